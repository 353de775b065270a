"""JAX's scorecard: arrays, operators, transformations, execution, memory, tools and several devices.

An item has the id of the one of torch that tries the same. jax is imported by the items that run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from bringup.analyse import summarize
from bringup.scorecard import frameworks, registry
from bringup.scorecard.registry import NotApplicable, Partial, needs_chip, require
from bringup.text import quantity

item = partial(registry.item, framework="jax")
SIDES = (512, 1024, 2048, 4096)  # of the matrices whose products keep a device busy

# Operators by the arguments that they take: x and y are real matrices, i and j whole numbers, b booleans, p a positive
# definite matrix, u values between -1 and 1, and w positive ones.
_OPERATORS = {
    "x": (
        *("numpy.abs", "numpy.ceil", "numpy.cos", "numpy.exp", "numpy.expm1", "numpy.floor", "numpy.negative"),
        *("numpy.round", "numpy.sign", "numpy.sin", "numpy.sinh", "numpy.square", "numpy.tan", "numpy.tanh"),
        *("numpy.arctan", "numpy.arcsinh", "numpy.cosh", "numpy.isfinite", "numpy.trunc", "numpy.signbit"),
        *("lax.erf", "lax.erfc", "lax.logistic", "lax.cbrt", "lax.exp2", "lax.is_finite", "lax.neg"),
        *("nn.celu", "nn.elu", "nn.gelu", "nn.glu", "nn.hard_swish", "nn.hard_tanh", "nn.leaky_relu"),
        *(
            "nn.log_sigmoid",
            "nn.log_softmax",
            "nn.logsumexp",
            "nn.mish",
            "nn.relu",
            "nn.relu6",
            "nn.selu",
            "nn.sigmoid",
        ),
        *("nn.silu", "nn.soft_sign", "nn.softmax", "nn.softplus", "nn.squareplus", "nn.standardize"),
        *("numpy.all", "numpy.any", "numpy.argmax", "numpy.argmin", "numpy.max", "numpy.mean", "numpy.median"),
        *("numpy.min", "numpy.prod", "numpy.ptp", "numpy.std", "numpy.sum", "numpy.var", "numpy.count_nonzero"),
        *("numpy.cumprod", "numpy.cumsum", "numpy.diff", "numpy.argsort", "numpy.sort", "numpy.flip", "numpy.ravel"),
        *("numpy.rot90", "numpy.transpose", "numpy.tril", "numpy.triu", "numpy.diagonal", "numpy.trace"),
        *("numpy.fft.fft", "numpy.fft.fft2", "numpy.fft.ifft", "numpy.fft.rfft", "numpy.linalg.norm", "numpy.nanmean"),
    ),
    "w": (
        "numpy.log",
        "numpy.log10",
        "numpy.log1p",
        "numpy.log2",
        "numpy.sqrt",
        "lax.rsqrt",
        "lax.lgamma",
        "lax.digamma",
    ),
    "u": ("numpy.arccos", "numpy.arcsin", "numpy.arctanh", "lax.erf_inv"),
    "xy": (
        *("numpy.add", "numpy.arctan2", "numpy.copysign", "numpy.divide", "numpy.equal", "numpy.fmod", "numpy.greater"),
        *("numpy.hypot", "numpy.less", "numpy.logaddexp", "numpy.maximum", "numpy.minimum", "numpy.multiply"),
        *(
            "numpy.remainder",
            "numpy.subtract",
            "numpy.inner",
            "numpy.vdot",
            "numpy.outer",
            "numpy.kron",
            "lax.nextafter",
        ),
    ),
    "wx": ("numpy.power", "lax.pow"),
    "ww": ("lax.igamma", "lax.igammac"),
    "pp": ("numpy.matmul", "numpy.dot", "numpy.linalg.solve", "lax.batch_matmul"),
    "p": (
        *(
            "numpy.linalg.cholesky",
            "numpy.linalg.det",
            "numpy.linalg.eigvalsh",
            "numpy.linalg.inv",
            "numpy.linalg.pinv",
        ),
        *("numpy.linalg.slogdet", "scipy.linalg.expm"),
    ),
    "i": (
        *("numpy.bincount", "numpy.invert", "lax.clz", "lax.population_count", "nn.one_hot"),
        *("numpy.cumsum", "numpy.sort", "numpy.max", "numpy.sum", "numpy.unique_values"),
    ),
    "ij": (
        *("numpy.bitwise_and", "numpy.bitwise_or", "numpy.bitwise_xor", "numpy.floor_divide", "numpy.gcd", "numpy.lcm"),
        *("numpy.left_shift", "numpy.right_shift", "numpy.add", "numpy.multiply", "numpy.not_equal", "numpy.remainder"),
    ),
    "bxy": ("numpy.where", "lax.select"),
    "bb": ("numpy.logical_and", "numpy.logical_or", "numpy.logical_xor"),
}
_EXTRA = {"nn.one_hot": (8,), "numpy.unique_values": (), "lax.batch_matmul": ()}  # further arguments
_NO_JIT = ("numpy.bincount", "numpy.unique_values")  # the size of the result depends on data
_INTEGER_VALUED = ("argmax", "argmin", "argsort", "equal", "greater", "less", "isfinite", "is_finite", "signbit")
_NO_GRADIENT = (
    *_INTEGER_VALUED,
    *(
        "all",
        "any",
        "count_nonzero",
        "ceil",
        "floor",
        "round",
        "sign",
        "trunc",
        "nextafter",
        "fft",
        "igamma",
        "igammac",
    ),
)
_HALF = ("lax", "numpy.linalg", "numpy.fft", "scipy")  # have no 16-bit numbers, or few


def _has_no_gradient(name: str) -> bool:
    return name.rpartition(".")[2].startswith(_NO_GRADIENT) or ".fft." in name


def _named(name: str) -> Callable[..., Any]:
    import importlib

    module, _, function = name.rpartition(".")
    named: Callable[..., Any] = getattr(importlib.import_module(f"jax.{module}"), function)
    return named


def _compared(device: Any, names: dict[str, list[str]], dtype: Any, tolerance: float, gradients: bool = False) -> str:
    """Compare operators on a device with JAX's CPU; return the evidence.

    Raises:
        Partial, Failed: some operators differ or fail, or all.
    """
    import jax

    values, failed, count = frameworks.values(dtype), [], 0
    cpu = jax.devices("cpu")[0]
    for arguments, functions in names.items():
        for name in functions:
            function = _named(name)
            extra = _EXTRA.get(name, ())
            call = lambda *args, function=function, extra=extra: function(*args, *extra)  # noqa: E731
            if gradients:
                call = jax.grad(partial(_weighted, call))
            count += 1
            try:
                results = []
                for place in (cpu, device):
                    with jax.default_device(place):
                        run = call if name in _NO_JIT else jax.jit(call)
                        results.append(jax.tree.leaves(run(*(jax.device_put(values[key], place) for key in arguments))))
                wanted, got = ([np.asarray(leaf) for leaf in leaves] for leaves in results)
                if not all(map(partial(_close, tolerance=tolerance), wanted, got)) or len(wanted) != len(got):
                    failed.append(name)
            except Exception:  # any error of the device is this operator's result
                failed.append(name)
    return frameworks.verdict(failed, count)


def _weighted(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return a sum of a function's results, in which each element has a weight of its own."""
    import jax
    import jax.numpy as jnp

    leaves = jax.tree.leaves(call(*arguments))
    return sum(jnp.sum(leaf * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)) for leaf in leaves)


def _close(wanted: Any, got: Any, tolerance: float) -> bool:
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return False
    if wanted.dtype.kind in "biu":
        return bool(np.array_equal(wanted, got))
    wide = np.complex128 if wanted.dtype.kind == "c" else np.float64
    return bool(np.allclose(got.astype(wide), wanted.astype(wide), tolerance, tolerance, equal_nan=True))


@item("A1", "D", "JAX finds the device", hint="offer a PJRT plug-in by the entry point jax_plugins")
def listed(device: Any) -> str:
    """``jax.devices`` lists the device with a kind, and new arrays are made on it where it is the default."""
    import jax
    import jax.numpy as jnp

    devices = jax.devices(device.platform)
    require(device in devices and device.device_kind, "the device has no kind, or is not listed")
    with jax.default_device(device):
        require(jnp.zeros(2).devices() == {device}, "new arrays are on another device")
    return f"{quantity(len(devices), 'device')} of kind {device.device_kind}"


@item("A2", "D", "arrays", hint="implement buffers: copies in both directions, of any strides, and their data types")
def arrays(device: Any) -> str:
    """Arrays of all data types keep their values on the way to the device and back, indexed and printed."""
    import jax
    import jax.numpy as jnp

    names = (
        "bool",
        "int8",
        "int16",
        "int32",
        "uint8",
        "uint16",
        "uint32",
        "float16",
        "bfloat16",
        "float32",
        "complex64",
    )
    host = np.arange(24).reshape(2, 3, 4)
    failed = []
    for name in names:
        value = host.astype(jnp.dtype(name))
        for way in (value, value.T, value[:, ::2], value[:0]):
            array = jax.device_put(way, device)
            if array.dtype != way.dtype or not np.array_equal(np.asarray(array), way) or device not in array.devices():
                failed.append(name)
    require(len(set(failed)) < len(names), "no data type keeps its values")
    array = jax.device_put(host.astype(np.float32), device)
    require(float(array[1, 2, 3]) == 23 and "23." in str(array), "an array cannot be indexed or printed")
    if failed:
        missing = list(dict.fromkeys(failed))
        raise Partial(1 - len(missing) / len(names), f"these lose their values: {', '.join(missing)}")
    return f"{quantity(len(names), 'data type')} keep their values, with any strides"


@item(
    "A3",
    "D",
    "operators in float32",
    hint="translate the operators of StableHLO; compare each with the CPU",
    seconds=300,
)
def operators(device: Any) -> str:
    """The operators of jax.numpy, jax.lax, jax.nn and linear algebra have the CPU's results in float32 and int32."""
    return _compared(device, {key: list(names) for key, names in _OPERATORS.items()}, np.float32, 1e-4)


@item("A4", "T", "operators in bfloat16", hint="compute with 16-bit numbers", seconds=300)
def operators_of_half(device: Any) -> str:
    """Operators of jax.numpy and jax.nn have the CPU's results in bfloat16."""
    import jax.numpy as jnp

    names = frameworks.chosen(_OPERATORS, "xywu", lambda name: name.startswith(_HALF))
    return _compared(device, names, jnp.bfloat16, 5e-2)


@item(
    "A5",
    "T",
    "gradients of operators",
    hint="translate what JAX's gradients lower to: gather, scatter, select",
    seconds=300,
)
def gradients(device: Any) -> str:
    """Differentiable operators have the CPU's gradients in float32."""
    names = frameworks.chosen(_OPERATORS, "xywup", _has_no_gradient)
    return _compared(device, names, np.float32, 1e-3, gradients=True)


def train(device: Any, steps: int = 20) -> list[float]:
    """Train a perceptron by gradient descent in one jitted step with donated parameters; return the losses."""
    import jax
    import jax.numpy as jnp

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        for w, b in parameters[:-1]:
            x = jax.nn.gelu(x @ w + b)
        w, b = parameters[-1]
        return jnp.mean((x @ w + b - y) ** 2)

    @partial(jax.jit, donate_argnums=0)
    def step(parameters: Any, x: Any, y: Any) -> Any:
        value, slopes = jax.value_and_grad(loss)(parameters, x, y)
        return jax.tree.map(lambda p, g: p - 0.1 * g, parameters, slopes), value

    rng = np.random.default_rng(0)
    sizes = (16, 32, 32, 4)
    start = [(rng.normal(0, 0.3, pair), np.zeros(pair[1])) for pair in pairwise(sizes)]
    parameters, losses = jax.device_put(jax.tree.map(np.float32, start), device), []
    x, y = rng.normal(size=(64, 16)).astype(np.float32), rng.normal(size=(64, 4)).astype(np.float32)
    for _ in range(steps):
        parameters, value = step(parameters, jax.device_put(x, device), jax.device_put(y, device))
        losses.append(float(value))
    return losses


@item("A8", "T", "an unmodified training script", hint="run jitted steps with gradients and donated parameters")
def training(device: Any) -> str:
    """A jitted training loop has the losses of the CPU within a thousandth."""
    import jax

    wanted, got = train(jax.devices("cpu")[0]), train(device)
    require(np.allclose(got, wanted, 1e-3), f"the last loss is {got[-1]:.4f}, on the CPU {wanted[-1]:.4f}")
    require(got[-1] < got[0], "the loss does not fall")
    return f"{len(got)} steps to a loss of {got[-1]:.4f}"


@item("A9", "T", "transformations and control flow", hint="execute while, case and calls of functions")
def transformations(device: Any) -> str:
    """``vmap``, ``scan``, ``while_loop``, ``cond``, ``switch``, ``checkpoint`` and ``jvp`` have the CPU's results."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    ways: dict[str, Callable[[Any], Any]] = {
        "vmap": jax.vmap(lambda row: jnp.outer(row, row)),
        "scan": lambda x: lax.scan(lambda carry, row: (carry + row, carry * row), jnp.zeros(x.shape[1]), x),
        "while_loop": lambda x: lax.while_loop(lambda v: jnp.sum(v) < 50.0, lambda v: v * 2 + 1, jnp.abs(x)),
        "fori_loop": lambda x: lax.fori_loop(0, 5, lambda i, v: v.at[i].add(i), x),
        "cond": lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
        "switch": lambda x: lax.switch(2, [jnp.sin, jnp.cos, jnp.tanh], x),
        "checkpoint": jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda v: jnp.sin(jnp.sin(v)))(x))),
        "jvp": lambda x: jax.jvp(jnp.tanh, (x,), (x,)),
        "map": lambda x: lax.map(lambda row: row / jnp.sum(row), x),
    }
    x, cpu, failed = frameworks.values()["x"], jax.devices("cpu")[0], []
    for name, function in ways.items():
        try:
            wanted, got = (jax.tree.leaves(jax.jit(function)(jax.device_put(x, place))) for place in (cpu, device))
            good = all(_close(np.asarray(a), np.asarray(b), 1e-5) for a, b in zip(wanted, got, strict=True))
        except Exception:
            good = False
        failed += [] if good else [name]
    require(len(failed) < len(ways), "no transformation works")
    if failed:
        raise Partial(1 - len(failed) / len(ways), f"these fail: {', '.join(failed)}")
    return f"{len(ways)} transformations have the CPU's results"


@item("A10", "T", "random numbers", hint="make the bits of Threefry as JAX defines them")
def random(device: Any) -> str:
    """A key has the CPU's random bits, and its normal numbers, permutations and choices."""
    import jax

    def draw(place: Any) -> list[Any]:
        with jax.default_device(place):
            key = jax.random.key(7)
            first = [jax.random.bits(key, (33,)), jax.random.permutation(key, 20), jax.random.randint(key, (9,), 0, 99)]
            return [
                np.asarray(part) for part in (*first, jax.random.normal(key, (40,)), jax.random.uniform(key, (40,)))
            ]

    pairs = list(zip(draw(jax.devices("cpu")[0]), draw(device), strict=True))
    require(all(_close(*pair, tolerance=1e-5) for pair in pairs), "a key gives other numbers than on the CPU")
    return "bits, permutations, whole and normal numbers are those of the CPU"


def _product() -> Callable[[Any], Any]:
    import jax

    def chained(x: Any) -> Any:
        return (x @ x) * 1e-3

    product: Callable[[Any], Any] = jax.jit(chained)
    return product


@item("B1", "D", "calls return before their programs end", hint="enqueue programs, and return arrays with events")
def asynchronous(device: Any) -> str:
    """Calling a series of products takes less than half of the time until they are done."""
    import jax

    if device.platform == "cpu":
        raise NotApplicable("the CPU need not run asynchronously")
    product, shares = _product(), []
    for side in SIDES:
        x = jax.device_put(np.full((side, side), 1e-2, np.float32), device)
        product(x).block_until_ready()
        start, y = time.perf_counter(), x
        for _ in range(8):
            y = product(y)
        issued = time.perf_counter() - start
        y.block_until_ready()
        shares.append(issued / (time.perf_counter() - start))
        if shares[-1] < 0.5:
            return f"8 calls take {shares[-1]:.0%} of the time until their products are done"
    require(False, f"8 calls take {min(shares):.0%} of the time until their products are done")
    return ""


@item(
    "B7", "T", "an error of a program is raised", hint="return errors by PJRT's events or status, and go on after them"
)
def errors(device: Any) -> str:
    """An error in a callback is raised with its text when its result is read, and later programs are right."""
    import jax
    import jax.numpy as jnp

    def fail(x: Any) -> Any:
        raise ValueError("planted mistake")

    x = jax.device_put(np.ones(4, np.float32), device)
    kind = jax.ShapeDtypeStruct((4,), np.float32)
    text = ""
    try:
        np.asarray(jax.jit(lambda x: jax.pure_callback(fail, kind, x) + 1)(x))
    except Exception as error:
        text = str(error)
    require("planted mistake" in text, "the error of a callback is lost, or callbacks are not supported")
    require(float(jnp.sum(x + 1)) == 8, "the device does not work after the error")
    return "the error is raised with its text, and the device works after it"


@item(
    "C2", "D", "full memory raises RESOURCE_EXHAUSTED", hint="refuse buffers that do not fit, with PJRT's code for it"
)
def capacity(device: Any) -> str:
    """Too large an array raises an error with RESOURCE_EXHAUSTED, and the program continues."""
    import jax
    import jax.numpy as jnp

    limit = _statistics(device)["bytes_limit"]
    live = jax.device_put(np.ones(1 << 20, np.float32), device)
    text = ""
    try:
        with jax.default_device(device):
            jax.jit(lambda: jnp.ones((limit // (4 << 20) + 1, 1 << 20)))().block_until_ready()
    except Exception as error:
        text = str(error)
    require("RESOURCE_EXHAUSTED" in text, f"an array of more than {limit} bytes is not refused")
    require(float((live + 1)[0]) == 2, "the device does not work after the error")
    return text.splitlines()[0][:200]


def _statistics(device: Any) -> dict[str, int]:
    if device.platform == "cpu":
        raise NotApplicable("the CPU has no memory of its own")
    statistics = device.memory_stats()
    require(statistics and "bytes_limit" in statistics, "the device has no memory statistics")
    return dict(statistics)


@item("C3", "T", "memory statistics", hint="implement PJRT_Device_MemoryStats")
def counters(device: Any) -> str:
    """The bytes in use and their peak follow the life of an array."""
    import jax

    before = _statistics(device)["bytes_in_use"]
    array = jax.device_put(np.ones(1 << 22, np.float32), device)
    array.block_until_ready()
    during = _statistics(device)
    size = array.nbytes
    require(during["bytes_in_use"] - before >= size, "an array of 16 MiB is not counted")
    array.delete()
    after = _statistics(device)
    require(after["bytes_in_use"] <= during["bytes_in_use"] - size, "a deleted array is still counted")
    require(after["peak_bytes_in_use"] >= during["bytes_in_use"], "the peak is below the bytes in use")
    return f"{size >> 20} MiB are counted while the array lives"


@item("C4", "T", "donated memory is reused", hint="free donated buffers when their program has read them")
def donation(device: Any) -> str:
    """A donated array is deleted, and a chain of donations needs the memory of two arrays at most."""
    import jax
    import torch

    step = jax.jit(lambda x: x * 1.5, donate_argnums=0)
    if device.platform == "chip":
        torch.chip.reset_peak_memory_stats()  # type: ignore[attr-defined]
    before = _statistics(device)["bytes_in_use"] if device.platform != "cpu" else 0
    first = x = jax.device_put(np.ones(1 << 22, np.float32), device)
    for _ in range(8):
        x = step(x)
    x.block_until_ready()
    require(first.is_deleted(), "a donated array is still alive")
    if device.platform == "cpu":
        return "a donated array is deleted"
    grown = _statistics(device)["peak_bytes_in_use"] - before
    require(grown < 3.5 * first.nbytes, f"8 donations of {first.nbytes} bytes have a peak of {grown}")
    return f"the peak of 8 donations is {grown / first.nbytes:.1f} arrays"


_PROGRAM = """
import jax, jax.numpy as jnp

@jax.jit
def step(w, x):
    hidden = jnp.tanh(x @ w)
    return w - 0.01 * jax.grad(lambda w: jnp.mean((hidden @ w) ** 2))(w)

w, x = jnp.full((256, 256), 0.01), jnp.ones((64, 256))
for _ in range(20):
    w = step(w, x)
w.block_until_ready()
"""


def recording(device: Any) -> Any:
    """Record training steps of a small program, priced on the device's chip."""
    needs_chip(device)
    import jax
    import torch

    import bringup

    with bringup.record() as trace, jax.default_device(device):
        exec(compile(_PROGRAM, "program.py", "exec"), {"__name__": "program"})
    return bringup.price(trace, torch.ops.bringup.chip())


@item("E1", "D", "time, calls and line of every operator", hint="keep the locations of StableHLO with every launch")
def per_operator(device: Any) -> str:
    """At least 95 % of the chip's time is on lines of the program."""
    return frameworks.time_on_lines(recording(device), lambda name: "program.py:" in name, "line")


@item("E4", "T", "steps of a program are found", hint="mark every execution of a compiled program")
def steps(device: Any) -> str:
    """Each execution of the largest program is a step, with a time and an error band."""
    return frameworks.steps(recording(device))


@item("F1", "T", "a lowered program is priced", hint="read StableHLO, and price its operators without running them")
def lowered(device: Any) -> str:
    """``bringup.predict`` prices a lowered program, which computes nothing."""
    needs_chip(device)
    import jax
    import jax.numpy as jnp
    import torch

    import bringup

    x = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    step = jax.jit(lambda x: jnp.tanh(x @ x)).lower(x)
    prediction = bringup.predict(step, chip=torch.ops.bringup.chip())
    flops = sum(flops for *_, flops in summarize.by_group(prediction.timeline, "op"))
    require(flops >= 2 * 512**3, f"a product of 2 * 512^3 flop is priced as {flops:.0f} flop")
    return f"{prediction.step_seconds * 1e6:.0f} us for {flops / 1e6:.0f} Mflop"


def _several(device: Any, count: int = 2) -> list[Any]:
    import jax

    devices = jax.devices(device.platform)
    if len(devices) < count:
        raise NotApplicable(f"there is {quantity(len(devices), 'device')}")
    return list(devices[:count])


@item("I1", "T", "two devices", hint="offer every device to JAX, with copies between them")
def two(device: Any) -> str:
    """Arrays on two devices compute separately, and copies between them keep values."""
    import jax

    first, second = _several(device)
    a, b = jax.device_put(np.ones(5, np.float32), first), jax.device_put(np.full(5, 3, np.float32), second)
    require((a + a).devices() == {first} and (b + b).devices() == {second}, "results are on another device")
    moved = jax.device_put(b * 2, first)
    require(moved.devices() == {first} and np.array_equal(np.asarray(moved + a), np.full(5, 7)), "a copy loses values")
    try:
        a + b
    except ValueError:
        return "two devices compute separately, and their arrays are not mixed"
    require(False, "arrays of two devices are added without an error")
    return ""


@item("I2", "T", "shardings and collectives", hint="run programs of several devices, with XLA's collectives")
def sharded(device: Any) -> str:
    """A product of sharded matrices, and ``psum`` and ``ppermute`` in ``shard_map``, have the results of one device."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(_several(device)), ("x",))
    host = frameworks.values()["x"]
    rows = jax.device_put(host, NamedSharding(mesh, PartitionSpec("x", None)))
    columns = jax.device_put(host, NamedSharding(mesh, PartitionSpec(None, "x")))
    product = jax.jit(lambda a, b: a @ b)(columns, rows)
    require(_close(host @ host, np.asarray(product), 1e-5), "a product of sharded matrices is wrong")

    def exchanged(part: Any) -> Any:
        return jax.lax.ppermute(part, "x", [(0, 1), (1, 0)]) + jax.lax.psum(part.sum(), "x")

    spec = PartitionSpec("x", None)
    result = jax.jit(jax.shard_map(exchanged, mesh=mesh, in_specs=spec, out_specs=spec))(rows)
    require(_close(np.roll(host, 3, 0) + host.sum(), np.asarray(result), 1e-5), "collectives are wrong")
    return "a sharded product, psum and ppermute over two devices are right"
