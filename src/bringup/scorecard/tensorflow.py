"""TensorFlow's scorecard: functions, variables, training, memory, errors and the ledger.

An item has the id of the one of torch that tries the same. A device is TensorFlow's name of it; ``chip`` is the virtual
chip, on which the functions run that the program calls. TensorFlow is imported by the items that run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np

from bringup.scorecard import frameworks, registry
from bringup.scorecard.registry import NotApplicable, Partial, needs_chip, require
from bringup.text import quantity

item = partial(registry.item, framework="tensorflow", seconds=300)

# Operators by the arguments that they take: x and y are real matrices, w positive ones, u values between -1 and 1, p a
# positive definite matrix, i and j whole numbers, and b booleans.
_OPERATORS = {
    "x": (
        *("math.abs", "math.atan", "math.ceil", "math.cos", "math.cosh", "math.erf", "math.erfc", "math.exp"),
        *("math.expm1", "math.floor", "math.negative", "math.sigmoid", "math.sign", "math.sin", "math.sinh"),
        *("math.softplus", "math.square", "math.tan", "math.tanh", "math.is_finite", "nn.elu", "nn.gelu"),
        *("nn.leaky_relu", "nn.log_softmax", "nn.relu", "nn.relu6", "nn.selu", "nn.silu", "nn.softmax", "nn.softsign"),
        *("math.argmax", "math.argmin", "math.cumsum", "math.reduce_logsumexp", "math.reduce_max", "math.reduce_mean"),
        *("math.reduce_min", "math.reduce_prod", "math.reduce_std", "math.reduce_sum", "math.reduce_variance"),
        *("sort", "argsort", "transpose", "ones_like", "zeros_like", "linalg.norm", "linalg.diag_part", "linalg.trace"),
        *("nn.l2_loss", "math.top_k", "round"),
    ),
    "w": ("math.digamma", "math.lgamma", "math.log", "math.log1p", "math.rsqrt", "math.sqrt", "math.reciprocal"),
    "u": ("math.acos", "math.asin", "math.atanh"),
    "xy": (
        *("math.add", "math.atan2", "math.divide", "math.equal", "math.floormod", "math.greater", "math.less"),
        *("math.maximum", "math.minimum", "math.multiply", "math.subtract", "math.squared_difference"),
        *("linalg.matmul", "math.not_equal", "math.divide_no_nan", "tensordot"),
    ),
    "wx": ("math.pow", "math.xlogy"),
    "p": ("linalg.cholesky", "linalg.eigvalsh"),
    "pp": ("linalg.matmul",),
    "i": ("math.reduce_sum", "math.reduce_max", "one_hot", "sort", "bitwise.invert"),
    "ij": (
        *("bitwise.bitwise_and", "bitwise.bitwise_or", "bitwise.bitwise_xor", "bitwise.left_shift", "math.add"),
        *("math.floordiv", "math.multiply"),
    ),
    "bxy": ("where",),
    "bb": ("math.logical_and", "math.logical_or", "math.logical_xor"),
}
_EXTRA = {"one_hot": (8,), "tensordot": (1,)}  # further arguments
_NO_GRADIENT = (
    *("ceil", "floor", "sign", "is_finite", "arg", "ones_like", "zeros_like", "round", "equal", "greater", "less"),
    *("not_equal", "eigvalsh", "reduce_prod"),
)


def _named(name: str) -> Callable[..., Any]:
    import tensorflow

    function: Any = tensorflow
    for part in name.split("."):
        function = getattr(function, part)
    return partial(_with, function, _EXTRA.get(name, ()))


def _with(function: Callable[..., Any], extra: tuple[Any, ...], *arguments: Any) -> Any:
    return function(*arguments, *extra)


def _place(device: str) -> AbstractContextManager[Any]:
    """Let TensorFlow compute on a device of its own; functions run on the chip without that."""
    import tensorflow

    place: AbstractContextManager[Any] = nullcontext() if device == "chip" else tensorflow.device(f"/{device}:0")
    return place


def _compared(device: str, names: dict[str, list[str]], gradients: bool = False) -> str:
    """Compare operators in functions on a device with TensorFlow's own, which compute on the CPU outside of functions.

    Raises:
        Partial, Failed: some operators differ or fail, or all.
    """
    import tensorflow

    values, failed, count = frameworks.values(), [], 0
    for arguments, functions in names.items():
        for name in functions:
            function = partial(_slopes if gradients else _with, _named(name), ())
            tensors = [tensorflow.constant(values[key]) for key in arguments]
            count += 1
            try:
                with tensorflow.device("/cpu:0"):
                    wanted = tensorflow.nest.flatten(function(*tensors))
                with _place(device):
                    got = tensorflow.nest.flatten(tensorflow.function(function)(*tensors))
                good = all(_close(a.numpy(), b.numpy()) for a, b in zip(wanted, got, strict=True))
            except Exception:  # any error of the device is this operator's result
                good = False
            failed += [] if good else [name]
    return frameworks.verdict(failed, count)


def _slopes(function: Callable[..., Any], extra: tuple[Any, ...], x: Any, *others: Any) -> Any:
    import tensorflow

    with tensorflow.GradientTape() as tape:
        tape.watch(x)
        leaves = tensorflow.nest.flatten(function(x, *others))
        total = sum(
            tensorflow.reduce_sum(leaf * tensorflow.reshape(tensorflow.cos(_count(leaf)), leaf.shape))
            for leaf in leaves
            if leaf.dtype.is_floating
        )
    return tape.gradient(total, x)


def _count(leaf: Any) -> Any:
    import tensorflow

    return tensorflow.range(leaf.shape.num_elements(), dtype=leaf.dtype)


def _close(wanted: Any, got: Any) -> bool:
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return False
    exact = wanted.dtype.kind in "biu"
    return bool(np.array_equal(wanted, got) if exact else np.allclose(got, wanted, 1e-3, 1e-4, equal_nan=True))


@item(
    "A1", "D", "functions run on the device", hint="take over the calls of functions, or offer a device to TensorFlow"
)
def listed(device: str) -> str:
    """A product in a ``tf.function`` runs on the device."""
    import tensorflow

    if device != "chip":
        listed = tensorflow.config.list_logical_devices(device.upper())
        require(listed, f"TensorFlow lists no {device}")
        return f"{quantity(len(listed), 'device')}: {listed[0].name}"
    import bringup

    with bringup.record() as trace:
        tensorflow.function(lambda x: x @ x)(tensorflow.ones((8, 8)))
    require(trace.launches, "a function launched nothing on the chip")
    return "a function's product runs on the chip"


@item("A2", "D", "tensors and variables", hint="keep variables on the device, and copy them when the host reads them")
def variables(device: str) -> str:
    """Functions change variables of several types, whose values the host reads."""
    import tensorflow

    failed, names = [], ("float32", "float16", "bfloat16", "float64", "int32", "int64", "uint8", "bool")
    with _place(device):
        for name in names:
            start = np.arange(6).reshape(2, 3) % 2
            variable = tensorflow.Variable(tensorflow.cast(start, name))

            def change(variable: Any = variable) -> Any:
                variable.assign(tensorflow.reverse(variable, [1]))
                return variable + variable if variable.dtype != tensorflow.bool else ~variable

            result = tensorflow.function(change)().numpy()
            right = start[:, ::-1] * 2 if name != "bool" else ~start[:, ::-1].astype(bool)
            if not (np.array_equal(result.astype(int), right) and np.array_equal(variable.numpy(), start[:, ::-1])):
                failed.append(name)
    if failed:
        raise Partial(1 - len(failed) / len(names), f"these lose their values: {', '.join(failed)}")
    return f"variables of {quantity(len(names), 'data type')} keep their values"


@item(
    "A3", "D", "operators in float32", hint="translate what XLA makes of TensorFlow's operators; compare with the CPU"
)
def operators(device: str) -> str:
    """Operators in functions have the results of TensorFlow's CPU in float32 and int32."""
    return _compared(device, {key: list(names) for key, names in _OPERATORS.items()})


@item("A5", "T", "gradients of operators", hint="translate what gradients lower to")
def gradients(device: str) -> str:
    """Gradients of operators in functions are those of TensorFlow's CPU."""
    names = frameworks.chosen(_OPERATORS, "xywup", lambda name: name.rpartition(".")[2].startswith(_NO_GRADIENT))
    return _compared(device, names, gradients=True)


def fit(device: str, eagerly: bool = False) -> list[float]:
    """Fit a small convolutional network with Keras; return the losses of the epochs.

    Eagerly, it runs operation by operation, outside of functions.
    """
    import keras

    keras.utils.set_random_seed(0)
    with _place(device):
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(8, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(4),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, run_eagerly=eagerly)
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(64, 8, 8, 1)).astype(np.float32), rng.integers(0, 4, 64)
        losses: list[float] = model.fit(x, y, batch_size=16, epochs=4, shuffle=False, verbose=0).history["loss"]
    return losses


@item("A8", "T", "an unmodified Keras script", hint="run the steps of Keras's fit")
def training(device: str) -> str:
    """Keras's ``fit`` has the losses of TensorFlow's CPU within a thousandth."""
    wanted, got = fit("cpu", eagerly=True), fit(device)
    require(np.allclose(got, wanted, 1e-3), f"the last loss is {got[-1]:.4f}, on the CPU {wanted[-1]:.4f}")
    require(got[-1] < got[0], "the loss does not fall")
    return f"{len(got)} epochs to a loss of {got[-1]:.4f}"


@item("A9", "T", "control flow", hint="execute while, case and calls of functions")
def control_flow(device: str) -> str:
    """Loops and branches that depend on data, and ``map_fn``, have the results of Python's."""
    import tensorflow

    @tensorflow.function
    def collatz(n: Any) -> Any:
        steps = 0
        while n != 1:
            n = n // 2 if n % 2 == 0 else 3 * n + 1
            steps += 1
        return steps

    @tensorflow.function
    def rows(x: Any) -> Any:
        return tensorflow.map_fn(lambda row: row / tensorflow.reduce_sum(row), x)

    with _place(device):
        require(int(collatz(tensorflow.constant(27))) == 111, "a loop with a branch has a wrong result")
        x = frameworks.values()["w"]
        require(np.allclose(rows(tensorflow.constant(x)).numpy(), x / x.sum(1, keepdims=True), 1e-5), "map_fn is wrong")
    return "a loop with branches and map_fn are right"


@item("A10", "T", "mixed precision", hint="compute products of bfloat16")
def mixed(device: str) -> str:
    """Layers of Keras under the policy ``mixed_bfloat16`` compute in bfloat16, near the results in float32."""
    import keras
    import tensorflow

    x = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)
    with _place(device):
        layer = keras.layers.Dense(16, dtype="mixed_bfloat16")
        result = tensorflow.function(layer)(tensorflow.constant(x))
        weights = layer.kernel.numpy()
    require(result.dtype == tensorflow.bfloat16, f"the result is {result.dtype.name}")
    error = float(np.abs(result.numpy().astype(np.float32) - x @ weights).max())
    require(error < 0.1, f"the product is off by {error:.2f}")
    return f"a product in bfloat16 is off by {error:.3f} at most"


@item(
    "B1",
    "D",
    "calls return before their functions end",
    hint="enqueue functions, and wait when the host reads a result",
)
def asynchronous(device: str) -> str:
    """Calling a series of products takes less than half of the time until they are done."""
    import tensorflow

    if device == "cpu":
        raise NotApplicable("the CPU need not run asynchronously")
    x = tensorflow.fill((2048, 2048), 1e-2)
    product = tensorflow.function(lambda x: (x @ x) * 1e-3)
    with _place(device):
        product(x).numpy()
        start, y = time.perf_counter(), x
        for _ in range(4):
            y = product(y)
        issued = time.perf_counter() - start
        y.numpy()
    total = time.perf_counter() - start
    text = f"4 calls take {issued / total:.0%} of the time until their products are done"
    require(issued < 0.5 * total, text)
    return text


@item("B8", "T", "a failed call leaves variables as they were", hint="restore what a failed call has written")
def failed_call(device: str) -> str:
    """A call that does not fit into memory raises an error; variables keep their values, and later calls are right."""
    import tensorflow

    needs_chip(device, "only the chip's capacity is known")
    import torch

    total = torch.chip.mem_get_info()[1]  # type: ignore[attr-defined]
    variable = tensorflow.Variable([1.0, 2.0])

    @tensorflow.function
    def large(x: Any) -> Any:
        variable.assign_add([1.0, 1.0])
        return tensorflow.fill((total // (4 << 20) + 1, 1 << 20), 1.0) * x

    text = ""
    try:
        large(tensorflow.constant(2.0))
    except Exception as error:
        text = str(error)
    require("out of memory" in text, "a result larger than the chip's memory is not refused")
    require(variable.numpy().tolist() == [1, 2], "the failed call has changed a variable")
    again = tensorflow.function(lambda: variable.assign_add([1.0, 1.0]))()
    require(again.numpy().tolist() == [2, 3], "the device does not work after the error")
    return text.splitlines()[0][:200]


def recording(device: str) -> Any:
    """Record training steps of a small program, priced on the device's chip."""
    needs_chip(device)
    import tensorflow
    import torch

    import bringup

    w, x = tensorflow.Variable(tensorflow.fill((256, 256), 0.01)), tensorflow.ones((64, 256))

    @tensorflow.function
    def train_step(x: Any) -> None:
        with tensorflow.GradientTape() as tape:
            loss = tensorflow.reduce_mean((tensorflow.tanh(x @ w) @ w) ** 2)
        w.assign_sub(0.01 * tape.gradient(loss, w))

    with bringup.record() as trace:
        for _ in range(20):
            train_step(x)
    return bringup.price(trace, torch.ops.bringup.chip())


@item(
    "E1", "D", "time, calls and line of every operator", hint="keep the names of TensorFlow's operations with launches"
)
def per_operator(device: str) -> str:
    """At least 95 % of the chip's time is on operations of the program's functions."""
    return frameworks.time_on_lines(recording(device), lambda name: name.startswith("tf.train_step:"), "operation")


@item("E3", "T", "the fallback ledger", hint="list every function that stays on the host, with its reason")
def ledger(device: str) -> str:
    """A function that XLA cannot compile runs on the host, with the right result, and the ledger lists it."""
    needs_chip(device)
    import tensorflow

    import bringup

    @tensorflow.function
    def augment(x: Any) -> Any:
        return tensorflow.numpy_function(lambda value: value * 2, [x], tensorflow.float32)

    with bringup.record() as trace:
        result = augment(tensorflow.constant([1.0, 2.0]))
    require(result.numpy().tolist() == [2, 4], "the function has a wrong result")
    listed = {function["name"]: function["why"] for function in trace.about.get("host_functions", [])}
    require("augment" in listed, f"the ledger has not the function augment, but {', '.join(listed) or 'nothing'}")
    return f"augment stays on the host: {listed['augment']}"


@item("E4", "T", "steps of a program are found", hint="mark every execution of a function")
def steps(device: str) -> str:
    """Each execution of the largest function is a step, with a time."""
    return frameworks.steps(recording(device))
