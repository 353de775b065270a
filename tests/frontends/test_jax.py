"""Programs of JAX on the chip: their numbers, the lines of their recordings, and predictions."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bringup
from tests.conftest import NO_JAX

try:
    import jax
except ImportError:
    pytest.skip(NO_JAX, allow_module_level=True)

import jax.numpy as jnp
from jax import lax

from bringup.errors import BringupError
from bringup.frontends.stablehlo.program import lowered_program
from bringup.frontends.stablehlo.tensors import as_array, as_tensor

Run = Callable[..., "subprocess.CompletedProcess[str]"]
STEPS = 5


def values(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Any:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def mlp(parameters: Any, x: Any, labels: Any) -> Any:
    hidden = jax.nn.relu(x @ parameters["w1"] + parameters["b1"])
    logits = hidden @ parameters["w2"] + parameters["b2"]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def cnn(parameters: Any, x: Any, labels: Any) -> Any:
    x = lax.conv_general_dilated(x, parameters["c1"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = lax.reduce_window(jax.nn.relu(x), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = lax.conv_general_dilated(x, parameters["c2"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    x = jax.nn.gelu((x - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape[0], -1)
    return -jnp.take_along_axis(jax.nn.log_softmax(x @ parameters["w"]), labels[:, None], 1).mean()


def norm(x: Any) -> Any:
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


def transformer(parameters: Any, tokens: Any, key: Any) -> Any:
    """A decoder: scan over layers with remat, causal attention of 4 heads, dropout, tied embedding."""
    x = parameters["embedding"][tokens[:, :-1]]

    @jax.checkpoint
    def layer(carry: Any, weights: Any) -> Any:
        x, key = carry
        key, drop = jax.random.split(key)
        batch, length, width = x.shape
        q, k, v = jnp.split(norm(x) @ weights["qkv"], 3, -1)
        q, k, v = (item.reshape(batch, length, 4, width // 4) for item in (q, k, v))
        x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)
        hidden = jax.nn.gelu(norm(x) @ weights["up"])
        hidden = jnp.where(jax.random.bernoulli(drop, 0.9, hidden.shape), hidden / 0.9, 0)
        return (x + hidden @ weights["down"], key), None

    (x, _), _ = lax.scan(layer, (x, jax.random.wrap_key_data(key)), parameters["layers"])
    logits = jax.nn.log_softmax(norm(x) @ parameters["embedding"].T)
    return -jnp.take_along_axis(logits, tokens[:, 1:, None], -1).mean()


def recurrent(parameters: Any, x: Any, labels: Any) -> Any:
    """A GRU cell under scan, and a fixed number of refinements under fori_loop."""

    def cell(state: Any, x: Any) -> Any:
        z, r, n = jnp.split(x @ parameters["x"] + state @ parameters["h"], 3, -1)
        z = jax.nn.sigmoid(z)
        state = (1 - z) * jnp.tanh(n * jax.nn.sigmoid(r)) + z * state
        return state, state.sum(-1)

    state, sums = lax.scan(cell, jnp.zeros((x.shape[1], parameters["h"].shape[0])), x)
    state = lax.fori_loop(0, 3, lambda _, s: jnp.sin(s) + 0.5 * s, state)
    return ((state @ parameters["o"] - labels) ** 2).mean() + 1e-3 * sums.mean()


LABELS = np.arange(8, dtype=np.int32) % 5
PROGRAMS: dict[str, tuple[Callable[..., Any], Any, tuple[Any, ...]]] = {
    "mlp": (
        mlp,
        {"w1": values((12, 32)), "b1": np.zeros(32, np.float32), "w2": values((32, 5), 1), "b2": values((5,), 2)},
        (values((8, 12), 3), LABELS),
    ),
    "cnn": (
        cnn,
        {"c1": values((3, 3, 3, 8)), "c2": values((3, 3, 8, 16), 1, 0.2), "w": values((144, 5), 2, 0.1)},
        (values((8, 12, 12, 3), 3), LABELS),
    ),
    "transformer": (
        transformer,
        {
            "embedding": values((40, 16), 0, 0.3),
            "layers": {
                "qkv": values((3, 16, 48), 1, 0.2),
                "up": values((3, 16, 64), 2, 0.2),
                "down": values((3, 64, 16), 3, 0.2),
            },
        },
        (np.random.default_rng(4).integers(0, 40, (2, 13)).astype(np.int32), np.asarray([1, 2], np.uint32)),
    ),
    "recurrent": (
        recurrent,
        {"x": values((6, 48), 0, 0.3), "h": values((16, 48), 1, 0.3), "o": values((16, 1), 2)},
        (values((7, 4, 6), 3), values((4, 1), 4)),
    ),
}


def training(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return one step of Adam."""

    def step(parameters: Any, first: Any, second: Any, count: Any, *batch: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(parameters, *batch)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, second, gradients)
        count = count + 1

        def updated(p: Any, m: Any, v: Any) -> Any:
            return p - 1e-2 * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.99**count)) + 1e-3)

        return jax.tree.map(updated, parameters, first, second), first, second, count, value

    return step


@pytest.mark.parametrize("name", PROGRAMS)
def test_training_equals_jaxlib(name: str) -> None:
    loss, parameters, batch = PROGRAMS[name]
    zeros = jax.tree.map(np.zeros_like, parameters)
    state = (parameters, zeros, zeros, np.float32(0))
    step = jax.jit(training(loss))
    program = lowered_program(step.lower(*state, *batch))
    on_chip = [as_tensor(np.asarray(item)).to("chip") for item in jax.tree.leaves(state)]
    inputs = [as_tensor(item).to("chip") for item in batch]
    kinds = program.outputs
    for _ in range(STEPS):
        *wanted, loss_value = step(*state, *batch)
        state = tuple(wanted)
        *on_chip, result = program(*on_chip, *inputs)
        np.testing.assert_allclose(float(result), float(loss_value), rtol=1e-5)
    for tensor, kind, want in zip(on_chip, kinds, jax.tree.leaves(state), strict=False):
        scale = float(np.abs(want).max())
        np.testing.assert_allclose(as_array(tensor, kind.kind), want, rtol=1e-4, atol=1e-4 * scale)


def test_lines_are_those_of_the_program() -> None:
    loss, parameters, batch = PROGRAMS["transformer"]
    p = bringup.predict(jax.jit(jax.grad(loss)).lower(parameters, *batch), chip="tpu-v6e")
    first, last = transformer.__code__.co_firstlineno, recurrent.__code__.co_firstlineno
    launched = p.trace.columns["kind"] == 0
    lines = [p.trace.lines[line] for line in p.trace.columns["line"][launched]]
    own = [line for line in lines if line.partition(":")[0].endswith("test_jax.py")]
    assert len(own) >= 0.95 * len(lines)
    numbers = [int(line.split(":")[1]) for line in own]
    assert min(numbers) > norm.__code__.co_firstlineno
    assert sum(first <= number < last for number in numbers) > len(numbers) / 2


def test_predict_takes_lowered_programs_and_files(tmp_path: Path) -> None:
    lowered = jax.jit(lambda a, b: jnp.tanh(a @ b)).lower(jnp.zeros((512, 256)), jnp.zeros((256, 128)))
    (tmp_path / "m.mlir").write_text(lowered.as_text(debug_info=True), encoding="utf-8")
    a, b = torch.zeros(512, 256), torch.zeros(256, 128)
    wanted = bringup.predict(lambda a, b: torch.tanh(a @ b), a, b, chip="t4")
    for program, framework in ((lowered, "jax"), (tmp_path / "m.mlir", "stablehlo")):
        p = bringup.predict(program, chip="t4")
        assert p.summary.framework == framework
        assert p.trace.launches == 2
        assert p.step_seconds == pytest.approx(wanted.step_seconds, rel=1e-6)
    with pytest.raises(BringupError, match="has the sizes of its inputs: leave out the arguments"):
        bringup.predict(lowered, a, b, chip="t4")


def test_dry_prediction_runs_loops_that_count() -> None:
    def repeated(count: int) -> Any:
        return jax.jit(lambda x: lax.fori_loop(0, count, lambda _, c: jnp.sin(c), x)).lower(jnp.zeros(1 << 10))

    few, many = (bringup.predict(repeated(count), chip="t4").trace.launches for count in (3, 30))
    assert (few, many) == (3, 30)


def test_jax_is_not_imported_unless_it_is_used(python: Run) -> None:
    done = python(
        "import sys, torch, bringup\n"
        "bringup.predict(lambda x: x + x, torch.ones(8), chip='t4')\n"
        "print([name for name in ('jax', 'jaxlib') if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr
