"""Scripts of JAX on the chip: JAX compiles and runs them there itself, by the plug-in that it finds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import NO_FLAX, NO_JAX, ROOT, without_bringup

try:
    import jax
except ImportError:
    pytest.skip(NO_JAX, allow_module_level=True)

import jax.numpy as jnp
from jax import lax

import bringup
from bringup.frontends.stablehlo import team
from bringup.frontends.stablehlo.module import StableHloError, mesh_groups
from bringup.frontends.stablehlo.team import Team
from tests.frontends import test_jax, test_stablehlo

Run = Callable[..., "subprocess.CompletedProcess[str]"]
STEPS = 20


@pytest.fixture(autouse=True, scope="module")
def nothing_held() -> Iterator[None]:
    """The plug-in forgets at its next call what JAX has freed."""
    yield
    jax.clear_caches()
    chip().memory_stats()


def chip() -> Any:
    return jax.devices("chip")[0]


def values(shape: tuple[int, ...], dtype: Any = jnp.float32, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(-2, 2, shape).astype(dtype)


def whole(shape: tuple[int, ...], dtype: Any = jnp.int32, seed: int = 0, most: int = 100) -> Any:
    low = 0 if jnp.issubdtype(dtype, jnp.unsignedinteger) else -most
    return np.random.default_rng(seed).integers(low, most, shape).astype(dtype)


X, Y, V = values((4, 6)), values((4, 6), seed=1), values((5,), seed=2)
SQUARE = X @ X.T + 4 * np.eye(4, dtype=np.float32)
IMAGE, KERNEL = values((2, 8, 8, 3)), values((3, 3, 3, 4), seed=1)
MASK = np.tril(np.ones((4, 4), bool))


def key() -> Any:
    return jax.random.key(7)


def newton(x: Any) -> Any:
    """A loop whose end depends on data."""
    return lax.while_loop(
        lambda state: (jnp.abs(state[0] ** 2 - x) > 1e-4).any() & (state[1] < 50),
        lambda state: ((state[0] + x / state[0]) / 2, state[1] + 1),
        (jnp.ones_like(x), 0),
    )


def accumulated(x: Any) -> Any:
    return lax.scan(lambda carry, row: (jnp.tanh(carry + row), carry * row), jnp.zeros(x.shape[1]), x)


def convolved(x: Any, w: Any) -> Any:
    return lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    # jax.lax
    "lax.dot": (lax.dot, (X, Y.T)),
    "lax.batch_matmul": (lax.batch_matmul, (values((3, 2, 4)), values((3, 4, 5)))),
    "lax.conv": (convolved, (IMAGE, KERNEL)),
    "lax.reduce_window": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        (IMAGE,),
    ),
    "lax.top_k": (lambda x: lax.top_k(x, 3), (X,)),
    "lax.sort": (lambda x, y: lax.sort((x, y), num_keys=1), (X, Y)),
    "lax.dynamic_slice": (lambda x, i: lax.dynamic_slice(x, (i, 1), (2, 3)), (X, np.int32(5))),
    "lax.dynamic_update_slice": (lambda x, i: lax.dynamic_update_slice(x, x[:2, :2], (i, i)), (X, np.int32(1))),
    "lax.pad": (lambda x: lax.pad(x, 1.0, ((1, -1, 1), (0, 2, 0))), (X,)),
    "lax.cumsum": (lambda x: lax.cumsum(x, 1), (X,)),
    "lax.associative_scan": (lambda x: lax.associative_scan(jnp.maximum, x), (X,)),
    "lax.population_count": (lax.population_count, (whole((7,), np.uint8),)),
    "lax.bitcast_convert_type": (lambda x: lax.bitcast_convert_type(x, jnp.int32), (X,)),
    "lax.erf_inv": (lax.erf_inv, (X / 3,)),
    "lax.igamma": (lambda x: lax.igamma(x + 3, x + 3), (X,)),
    "lax.reduce_precision": (lambda x: lax.reduce_precision(x, 8, 7), (X,)),
    # jax.numpy
    "einsum": (lambda x, y: jnp.einsum("ij,kj->ik", x, y), (X, Y)),
    "softplus of bfloat16": (jax.nn.softplus, (values((4, 6), jnp.bfloat16),)),
    "product of bfloat16": (jnp.matmul, (values((16, 32), jnp.bfloat16), values((32, 8), jnp.bfloat16, 1))),
    "product of float16": (jnp.matmul, (values((16, 32), np.float16), values((32, 8), np.float16, 1))),
    "product of int8": (
        lambda x, y: lax.dot(x, y, preferred_element_type=jnp.int32),
        (whole((4, 6), np.int8), whole((6, 3), np.int8)),
    ),
    "float8": (lambda x: x.astype(jnp.float8_e4m3fn).astype(jnp.float32), (X,)),
    "complex": (lambda x, y: jnp.abs(lax.complex(x, y) ** 2), (X, Y)),
    "uint32": (lambda x: (x * np.uint32(2654435761)) >> 7, (whole((9,), np.uint32),)),
    "uint16 sorted": (jnp.sort, (whole((9,), np.uint16, most=60000),)),
    "int64 is int32": (lambda x: x // 3 + x % 5, (whole((9,), np.int64),)),
    "bool": (lambda x: jnp.any(x > 0, 0) & jnp.all(x < 1, 0), (X,)),
    "mean and var": (lambda x: (x.mean(), x.var(0), x.std(1)), (X,)),
    "argmax": (lambda x: (x.argmax(1), x.argmin(0)), (X,)),
    "argsort": (lambda x: jnp.argsort(x, 1, descending=True), (X,)),
    "take": (lambda x, i: jnp.take(x, i, axis=1), (X, np.asarray([5, 0, 3]))),
    "at set": (lambda x, i: x.at[i].set(0.0), (X, np.asarray([0, 2]))),
    "at add": (lambda x, i: x.at[:, i].add(1.5), (X, np.asarray([1, 1, 4]))),
    "where": (lambda x, y: jnp.where(x > y, x, y * 2), (X, Y)),
    "concatenate": (lambda x, y: jnp.concatenate([x, y, x], 1)[:, ::2], (X, Y)),
    "transposed": (lambda x: x.T.reshape(3, 8), (X,)),
    "roll": (lambda x: jnp.roll(jnp.flip(x, 0), 2, 1), (X,)),
    "median": (lambda x: (jnp.median(x), jnp.quantile(x, 0.3, axis=0)), (X,)),
    "histogram": (lambda x: jnp.histogram(x, bins=5, range=(-2, 2))[0], (X,)),
    "unique": (lambda x: jnp.unique(x, size=8, fill_value=-1), (whole((9,), most=4),)),
    "searchsorted": (lambda x, y: jnp.searchsorted(jnp.sort(x), y), (V, X)),
    "interp": (lambda x: jnp.interp(x, jnp.arange(4.0), jnp.arange(4.0) ** 2), (X,)),
    "fft": (lambda x: jnp.abs(jnp.fft.rfft(x)), (X,)),
    "segment_sum": (
        lambda x: jax.ops.segment_sum(x, jnp.asarray([0, 2, 2, 1]), num_segments=3),
        (X,),
    ),
    "empty": (lambda x: (x[:0].sum(), jnp.zeros((0, 3))), (X,)),
    "scalar": (lambda x: x * 2 + 1, (np.float32(3),)),
    # linear algebra
    "cholesky": (jnp.linalg.cholesky, (SQUARE,)),
    "solve": (jnp.linalg.solve, (SQUARE, X[:, 0])),
    "inverse": (jnp.linalg.inv, (SQUARE,)),
    "determinant": (jnp.linalg.det, (SQUARE,)),
    "eigh": (lambda x: jnp.linalg.eigh(x)[0], (SQUARE,)),
    "singular values": (lambda x: jnp.linalg.svd(x, compute_uv=False), (X,)),
    "qr": (lambda x: jnp.abs(jnp.linalg.qr(x.T)[1]), (X,)),
    "least squares": (lambda x, y: jnp.linalg.lstsq(x.T, y)[0], (X, values((6,)))),
    "gradient of a cholesky": (jax.grad(lambda x: jnp.linalg.cholesky(x).sum()), (SQUARE,)),
    # jax.nn
    **{
        name: (getattr(jax.nn, name), (X,))
        for name in ("relu", "gelu", "silu", "elu", "softmax", "log_softmax", "logsumexp", "standardize", "mish")
    },
    "one_hot": (lambda i: jax.nn.one_hot(i, 6), (np.asarray([0, 5, 7]),)),
    "attention": (
        lambda q: jax.nn.dot_product_attention(q, q, q, is_causal=True),
        (values((2, 5, 2, 8)),),
    ),
    # jax.random
    "normal": (lambda: jax.random.normal(key(), (40,)), ()),
    "uniform": (lambda: jax.random.uniform(key(), (40,), minval=-1), ()),
    "randint": (lambda: jax.random.randint(key(), (40,), 0, 1000), ()),
    "bernoulli": (lambda: jax.random.bernoulli(key(), 0.3, (40,)), ()),
    "permutation": (lambda: jax.random.permutation(key(), 40), ()),
    "choice": (lambda: jax.random.choice(key(), 40, (8,), replace=False), ()),
    "categorical": (lambda x: jax.random.categorical(key(), x, 1), (X,)),
    "truncated_normal": (lambda: jax.random.truncated_normal(key(), -1, 1, (40,)), ()),
    "gamma": (lambda: jax.random.gamma(key(), 2.0, (6,)), ()),
    "split": (lambda: jax.random.key_data(jax.random.split(jax.random.fold_in(key(), 3), 4)), ()),
    "key of data": (lambda seed: jax.random.normal(jax.random.key(seed), (8,)), (np.uint32(11),)),
    # control flow and transformations
    "scan": (accumulated, (X,)),
    "gradient of a scan": (jax.grad(lambda x: accumulated(x)[0].sum()), (X,)),
    "while": (newton, (np.abs(X) + 1,)),
    "fori_loop": (lambda x: lax.fori_loop(0, 5, lambda i, s: s * 0.5 + x[i % 4], x[0]), (X,)),
    "cond": (lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), (X,)),
    "switch": (lambda i, x: lax.switch(i, [jnp.sin, jnp.cos, jnp.tan], x), (np.int32(2), X)),
    "map": (lambda x: lax.map(lambda row: row.sum() * row, x), (X,)),
    "vmap": (jax.vmap(lambda row, m: m @ row, (0, None)), (X, values((3, 6)))),
    "vmap of a while": (jax.vmap(lambda x: newton(x)[0]), (np.abs(V) + 1,)),
    "hessian": (jax.hessian(lambda x: (jnp.sin(x) * x[::-1]).sum()), (V,)),
    "jacobian": (jax.jacfwd(lambda x: jnp.outer(x, x)), (V,)),
    "remat": (jax.grad(jax.checkpoint(lambda x: jnp.tanh(x @ x.T).sum())), (X,)),
    "nested jit": (lambda x: jax.jit(jnp.sin)(x) + jax.jit(jnp.sin)(x + 1), (X,)),
    "custom_vjp": (jax.grad(lambda x: jax.nn.relu(x).sum() + jax.nn.logsumexp(x)), (X,)),
}


def assert_equal(name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    wanted = jax.jit(function)(*arguments)
    with jax.default_device(chip()):
        results = jax.jit(function)(*arguments)
    for result, want in zip(jax.tree.leaves(results), jax.tree.leaves(wanted), strict=True):
        assert result.devices() == {chip()} and want.devices() != {chip()}
        assert (result.dtype, result.shape) == (want.dtype, want.shape)
        wide = np.complex128 if jnp.issubdtype(want.dtype, jnp.complexfloating) else np.float64
        got, right = np.asarray(result).astype(wide), np.asarray(want).astype(wide)
        tolerance = 1e-2 if want.dtype.itemsize < 4 and jnp.issubdtype(want.dtype, jnp.floating) else 1e-5
        scale = float(np.abs(right[np.isfinite(right)]).max(initial=1e-30))
        exact = not jnp.issubdtype(want.dtype, jnp.inexact)
        np.testing.assert_allclose(
            got, right, rtol=0 if exact else tolerance, atol=0 if exact else tolerance * scale, err_msg=name
        )


@pytest.mark.parametrize("name", CASES)
def test_result_equals_jaxlib(name: str) -> None:
    assert_equal(name, *CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in test_stablehlo.CASES if "collectives" not in name])  # of a CPU mesh
def test_operator_equals_jaxlib(name: str) -> None:
    with test_stablehlo.with_64_bits(name):
        assert_equal(name, *test_stablehlo.CASES[name])


def test_operations_without_jit_equal_numpy() -> None:
    with jax.default_device(chip()):
        x = jnp.asarray(X)
        y = (x + 1).T[::2]
        assert y.devices() == {chip()}
        np.testing.assert_allclose(np.asarray(y), (X + 1).T[::2], rtol=1e-6)
        assert float(x[1, 2]) == float(X[1, 2]) and x.nbytes == 96
        moved = jax.device_put(y, jax.devices("cpu")[0])
        back = jax.device_put(moved, chip())
        assert back.devices() == {chip()} and bool((back == y).all())


def test_array_of_the_host_may_change_after_the_call() -> None:
    for count in (8, 1 << 18):
        source = np.ones(count, np.float32)
        held = jax.device_put(source, chip())
        source[:] = 2
        assert held.block_until_ready().is_ready() and float(held.sum()) == count
        strided = jax.device_put(np.arange(24.0, dtype=np.float32).reshape(4, 6)[::-1, ::2].T, chip())
        assert np.asarray(strided)[:, 0].tolist() == [18, 20, 22]


@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in test_jax.PROGRAMS if name != "mlp")]
)
def test_training_equals_jaxlib(name: str) -> None:
    loss, parameters, batch = test_jax.PROGRAMS[name]
    zeros = jax.tree.map(np.zeros_like, parameters)
    losses = []
    for device in (jax.devices("cpu")[0], chip()):
        state = jax.device_put((parameters, zeros, zeros, np.float32(0)), device)
        step = jax.jit(test_jax.training(loss), donate_argnums=(0, 1, 2))
        losses.append([])
        for _ in range(STEPS):
            *state, value = step(*state, *batch)
            losses[-1].append(value)
    resolution = float(np.spacing(np.float32(losses[0][0])))  # of the first loss: later ones may be small
    np.testing.assert_allclose(*map(np.asarray, losses), rtol=1e-5, atol=resolution)


def test_donated_inputs_are_freed() -> None:
    with jax.default_device(chip()):
        x = jnp.zeros(1 << 16)
        add = jax.jit(lambda x: jnp.sin(x) + 1, donate_argnums=0)
        y = add(x)
        assert x.is_deleted() and not y.is_deleted()
        with pytest.raises(RuntimeError, match="deleted"):
            x + 1
        before = chip().memory_stats()
        for _ in range(3):
            y = add(y)
        after = chip().memory_stats()
    assert after["bytes_in_use"] == before["bytes_in_use"]
    assert after["bytes_limit"] > 2 * after["peak_bytes_in_use"] > 0


def test_array_that_is_donated_and_passed_once_more_is_refused() -> None:
    both = jax.jit(lambda x, y: x + y, donate_argnums=0)
    with jax.default_device(chip()):
        x = jnp.ones(1 << 16)
        before = chip().memory_stats()
        with pytest.raises(RuntimeError, match=r"donate"):
            both(x, x)
        assert not x.is_deleted() and float(both(x, jnp.ones(1 << 16)).sum()) == 2 << 16
    assert chip().memory_stats()["bytes_in_use"] <= before["bytes_in_use"]


def test_threads_wait_for_one_array() -> None:
    with jax.default_device(chip()):
        x = jnp.ones((512, 512))
        for _ in range(5):
            y = x @ x
            with ThreadPoolExecutor(8) as pool:
                waits = [pool.submit(lambda y=y: float(y.block_until_ready()[0, 0])) for _ in range(8)]
                assert [wait.result() for wait in waits] == [512.0] * 8
                assert len({str(layout) for layout in pool.map(lambda y: y.format, [y] * 8)}) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("int32", 1j), ("bool", 2), ("complex64", 1.0), ("int32", 1.0), ("float32", 1)]
)
def test_callback_that_returns_another_type_is_refused(name: str, value: Any) -> None:
    shape = jax.ShapeDtypeStruct((), name)
    with jax.default_device(chip()), pytest.raises(RuntimeError, match="callback"):
        jax.jit(lambda x: jax.pure_callback(lambda _: np.asarray(value), shape, x))(1.0).block_until_ready()


def test_callbacks_are_called(capfd: pytest.CaptureFixture[str]) -> None:
    seen = []

    @jax.jit
    def function(x: Any) -> Any:
        jax.debug.print("sum {}", x.sum())
        jax.debug.callback(lambda y: seen.append(np.asarray(y)), x.astype(jnp.bfloat16))
        return jax.pure_callback(lambda y: np.asarray(y) * 3, jax.ShapeDtypeStruct((2,), x.dtype), x)

    with jax.default_device(chip()):
        result = function(np.ones(2, np.float32))
    assert np.asarray(result).tolist() == [3, 3] and "sum 2.0" in capfd.readouterr().out
    assert seen[0].dtype == jnp.bfloat16 and seen[0].tolist() == [1, 1]


def test_order_of_callbacks_is_refused() -> None:
    with jax.default_device(chip()), pytest.raises(NotImplementedError, match=r"^ordered=True is not supported"):
        jax.jit(lambda x: jax.debug.print("{x}", x=x, ordered=True))(1.0)


def test_missing_operators_are_all_named() -> None:
    def function(x: Any) -> Any:
        return lax.linalg.hessenberg(x)[0] + lax.linalg.hessenberg(x + 1)[0] + jax.scipy.linalg.schur(x)[0].sum()

    with jax.default_device(chip()), pytest.raises(RuntimeError) as raised:
        jax.jit(function)(SQUARE)
    line = function.__code__.co_firstlineno + 1
    text = str(raised.value)
    assert text.startswith("UNIMPLEMENTED: function: 2 operators without a translation: ") and "\n" not in text
    assert f"custom_call of lapack_sgehrd_ffi (2 operations, {__file__}:{line})" in text
    assert "custom_call of lapack_sgees_ffi (1 operation" in text


def test_what_does_not_fit_is_an_error_and_the_process_lives() -> None:
    with jax.default_device(chip()):
        with pytest.raises(RuntimeError, match=r"RESOURCE_EXHAUSTED: .*out of memory"):
            jax.jit(lambda: jnp.zeros((1 << 20, 1 << 16)) + 1)()
        assert float(jnp.ones(3).sum()) == 3


def test_recording_has_programs_steps_and_lines() -> None:
    loss, parameters, batch = test_jax.PROGRAMS["mlp"]
    step = jax.jit(jax.value_and_grad(loss))
    with jax.default_device(chip()):
        parameters = jax.device_put(parameters, chip())
        step(parameters, *batch)
        with bringup.record() as trace:
            for _ in range(4):
                value, _ = step(parameters, *batch)
                float(value)
    summary = bringup.price(trace, "t4").summary
    assert (summary.framework, summary.steps, summary.steps_by) == ("jax", 4, "execution")
    launched = trace.columns["line"][trace.columns["kind"] == 0]
    own = [trace.lines[line] for line in launched if "test_jax.py" in trace.lines[line]]
    assert len(own) >= 0.95 * len(launched)


SCRIPT = """
import sys, jax, jax.numpy as jnp, numpy as np

@jax.jit
def step(w, x):
    loss, gradient = jax.value_and_grad(lambda w: (jnp.tanh(x @ w) ** 2).mean())(w)
    return w - 0.1 * gradient, loss

w = jnp.ones((64, 32)) / 100
for number in range(5):
    w, loss = step(w, np.ones((16, 64), np.float32))
print(jax.default_backend(), jax.devices()[0].device_kind, f"{float(loss):.4f}")
"""


def test_script_runs_under_bringup_run(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    done = bringup_run("--chip", "tpu-v6e", "train.py")
    assert done.returncode == 0 and "chip tpu-v6e 0.0196" in done.stdout and done.stderr == "", done.stderr
    summary = json.loads((tmp_path / "bringup-train" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["framework"], summary["steps"], summary["steps_by"]) == ("jax", 5, "execution")
    assert any(str(line).startswith("train.py:6") for line in json.dumps(summary).split('"'))
    dry = bringup_run("--chip", "tpu-v6e", "--dry", "--out", "dry", "train.py")
    assert dry.returncode == 0, dry.stderr
    computed_nothing = json.loads((tmp_path / "dry" / "summary.json").read_text(encoding="utf-8"))
    assert computed_nothing["launches"] == summary["launches"]


def test_script_runs_by_itself(python: Run) -> None:
    done = python(SCRIPT, JAX_PLATFORMS="chip", BRINGUP_CHIP="t4")
    assert done.returncode == 0 and done.stdout.startswith("chip t4 0.0196") and done.stderr == "", done.stderr


def test_script_that_does_not_ask_for_the_chip_pays_nothing(python: Run) -> None:
    done = python(SCRIPT + "print([name for name in ('torch', 'bringup') if name in sys.modules])\n")
    assert done.stdout.startswith("cpu cpu 0.0196") and "'torch'" not in done.stdout, done.stderr


def test_script_on_another_platform_is_told_so(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import os\nos.environ['JAX_PLATFORMS'] = 'cpu'\nimport jax\nprint(jax.numpy.ones(3).sum())\n", encoding="utf-8"
    )
    done = bringup_run("train.py")
    assert done.returncode == 0 and "3.0" in done.stdout
    assert "JAX_PLATFORMS=cpu keeps JAX on another device: unset it" in done.stderr


def test_untested_jaxlib_is_refused(python: Run) -> None:
    untested = "import jax, jaxlib.version\njaxlib.version.__version__ = '0.12.1'\n"
    done = python(untested + SCRIPT, JAX_PLATFORMS="chip")
    assert done.returncode == 1
    assert (
        "Unable to initialize backend 'chip': jaxlib 0.12.1 is not 0.10, the release that was tested: pip install "
        "'bringup[jax]', or run on the CPU with JAX_PLATFORMS=cpu" in done.stderr
    )


@pytest.mark.slow
def test_flax_and_optax_train_as_on_the_cpu() -> None:
    linen = pytest.importorskip("flax.linen", reason=NO_FLAX)
    optax = pytest.importorskip("optax", reason=NO_FLAX)

    class Decoder(linen.Module):
        @linen.compact
        def __call__(self, tokens: Any, train: bool) -> Any:
            x = linen.Embed(64, 32)(tokens)
            for _ in range(2):
                attention = linen.MultiHeadDotProductAttention(4, dropout_rate=0.1, deterministic=not train)
                x = x + attention(linen.LayerNorm()(x), mask=linen.make_causal_mask(tokens))
                x = x + linen.Dense(32)(linen.gelu(linen.Dense(128)(linen.LayerNorm()(x))))
            return linen.Dense(64)(x)

    model, tokens = Decoder(), whole((4, 17), np.uint32, most=64).astype(np.int32)
    schedule = optax.warmup_cosine_decay_schedule(0, 3e-3, 5, STEPS)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    @jax.jit
    def step(parameters: Any, state: Any, key: Any) -> Any:
        def loss(parameters: Any) -> Any:
            logits = model.apply(parameters, tokens[:, :-1], True, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    losses: list[list[float]] = []
    for device in (jax.devices("cpu")[0], chip()):
        with jax.default_device(device):
            parameters = model.init(jax.random.key(0), tokens[:, :-1], False)
            state = optimizer.init(parameters)
            losses.append([])
            for number in range(STEPS):
                parameters, state, value = step(parameters, state, jax.random.key(number))
                losses[-1].append(float(value))
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_programs_of_several_chips_equal_those_of_cpus() -> None:
    environment = without_bringup() | {"BRINGUP_DEVICES": "4", "JAX_PLATFORMS": "chip,cpu"}
    command = [sys.executable, "-m", "tests.frontends.jax_devices"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert len(results) == 16
    for name, line in results.items():
        assert line["error"] < 2e-5, line
        assert line["shardings"][0] == line["shardings"][1], name


def test_groups_of_a_mesh_are_its_axes() -> None:
    sizes = {"x": 2, "y": 4}
    assert mesh_groups(sizes, [], [("y", 1, 4)]) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert mesh_groups(sizes, [], [("x", 1, 2)]) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert mesh_groups(sizes, [], [("y", 2, 2)]) == [[0, 1], [2, 3], [4, 5], [6, 7]]  # the inner half of the axis
    assert mesh_groups({"x": 2}, [1, 0], [("x", 1, 2)]) == [[1, 0]]


def test_chips_that_wait_for_different_collectives_are_an_error() -> None:
    def program(key: str) -> Callable[[], Any]:
        def run() -> Any:
            member = team.here()
            assert member is not None
            return member.exchange(key, (0, 1), member.place)

        return run

    assert Team(2).run([program("a"), program("a")]) == [[0, 1], [0, 1]]
    with pytest.raises(StableHloError, match="chips wait for different collectives"):
        Team(2).run([program("a"), program("b")])
    with pytest.raises(ZeroDivisionError):
        Team(2).run([program("a"), lambda: 1 / 0])
