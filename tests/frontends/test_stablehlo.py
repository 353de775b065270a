"""StableHLO's operators on the chip, each compared with jaxlib's CPU, and module files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import NO_JAX

try:
    import jax
except ImportError:
    pytest.skip(NO_JAX, allow_module_level=True)

import jax.numpy as jnp
from jax import lax

from bringup.errors import BringupError
from bringup.frontends.stablehlo import executor, module
from bringup.frontends.stablehlo.executor import Program
from bringup.frontends.stablehlo.module import StableHloError, read_file
from bringup.frontends.stablehlo.operators import OPERATORS
from bringup.frontends.stablehlo.program import lowered_program
from bringup.frontends.stablehlo.tensors import as_array, as_tensor
from bringup.limits import STABLEHLO, Limit

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True, scope="module")
def on_cpu() -> Any:
    """JAX's own results are those of its CPU."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def with_64_bits(name: str) -> Any:
    return jax.enable_x64(any(word in name for word in ("64", "wider")))


def numbers(shape: tuple[int, ...], dtype: Any = jnp.float32, seed: int = 0, low: float = -2, high: float = 2) -> Any:
    values = np.random.default_rng(seed).uniform(low, high, shape)
    return values.astype(dtype)


def whole(shape: tuple[int, ...], dtype: Any = jnp.int32, seed: int = 0) -> Any:
    info = jnp.iinfo(dtype)
    low, high = max(int(info.min), -(2**62)), min(int(info.max), 2**62)
    wide = np.random.default_rng(seed).integers(low, high, shape, endpoint=True)
    edges = np.asarray([info.min, info.max, 0, 1, 3], dtype=np.dtype(dtype))
    values = wide.astype(np.dtype(dtype))
    values.reshape(-1)[:5] = edges
    return values


X = numbers((4, 6))
Y = numbers((4, 6), seed=1)
POSITIVE = numbers((4, 6), low=0.1, high=3)
UNIT = numbers((4, 6), low=-0.95, high=0.95)
I = whole((4, 6))  # noqa: E741
J = whole((4, 6), seed=1)
IMAGE = numbers((2, 9, 8, 6))
KERNEL = numbers((3, 3, 6, 4))
NHWC = ("NHWC", "HWIO", "NHWC")
EDGES = np.asarray([0.0, -0.0, 1.5, 2.5, -2.5, jnp.inf, -jnp.inf, jnp.nan, 3e9, -3e9, 1e20, 255.7], jnp.float32)
SYMMETRIC = X @ X.T + 5 * np.eye(4, dtype=np.float32)
KEY = np.asarray([3, 7], jnp.uint32)


def on_one_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on a mesh of one device, whose axis is i."""
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("i")
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def conv(x: Any, w: Any, strides: Any = (1, 1), padding: Any = "SAME", **options: Any) -> Any:
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=NHWC, **options)


def window(x: Any, start: float, op: Any, size: Any = (1, 3, 2, 1), padding: Any = "SAME", **options: Any) -> Any:
    return lax.reduce_window(x, np.dtype(x.dtype).type(start), op, size, (1, 2, 2, 1), padding, **options)


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    **{
        name: (getattr(lax, name), (X,))
        for name in [
            "abs",
            "ceil",
            "cos",
            "cosh",
            "erf",
            "erfc",
            "exp",
            "expm1",
            "floor",
            "is_finite",
            "logistic",
            "neg",
            "round",
            "sign",
            "sin",
            "sinh",
            "square",
            "tan",
            "tanh",
            "cbrt",
            "asinh",
            "atan",
            "bessel_i1e",
        ]
    },
    **{name: (getattr(lax, name), (POSITIVE,)) for name in ["log", "log1p", "rsqrt", "sqrt", "lgamma", "digamma"]},
    **{name: (getattr(lax, name), (UNIT,)) for name in ["acos", "asin", "atanh", "erf_inv"]},
    "acosh": (lambda x: lax.acosh(x + 1), (POSITIVE,)),
    **{
        name: (getattr(lax, name), (X, Y))
        for name in ["add", "sub", "mul", "div", "rem", "max", "min", "atan2", "nextafter"]
    },
    **{
        f"{name} {kind}": (getattr(lax, name), (whole((4, 6), kind), whole((4, 6), kind, 1)))
        for name in [
            "add",
            "sub",
            "mul",
            "div",
            "rem",
            "max",
            "min",
            "bitwise_and",
            "bitwise_or",
            "bitwise_xor",
            "lt",
            "le",
            "eq",
            "ne",
            "gt",
            "ge",
        ]
        for kind in ("int8", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
    **{
        f"{name} {kind}": (
            getattr(lax, name),
            (
                whole((4, 6), kind),
                np.arange(24, dtype=kind).reshape(4, 6) * np.dtype(kind).type(2 if "64" not in kind else 3),
            ),
        )
        for name in ["shift_left", "shift_right_arithmetic", "shift_right_logical"]
        for kind in ("int8", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
    **{
        f"{name} {kind}": (getattr(lax, name), (whole((4, 6), kind),))
        for name in ["bitwise_not", "population_count", "clz"]
        for kind in ("int8", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
    **{
        f"convert {source} {target}": (
            lambda x, target=target: x.astype(target),
            (whole((4, 6), source) if "int" in source else EDGES.astype(source),),
        )
        for source in ("int8", "int32", "int64", "uint16", "uint32", "uint64", "float32", "float64", "bfloat16")
        for target in ("bool", "int8", "int32", "int64", "uint8", "uint32", "uint64", "float32", "float64", "float16")
    },
    "fp8 of powers": (lambda x: x.astype(jnp.float8_e8m0fnu).astype(jnp.float32), (np.append(EDGES, X[0]),)),
    "fp8": (lambda x: x.astype(jnp.float8_e4m3fn).astype(jnp.float32) * 2, (X,)),
    "add bool": (lambda x, y: lax.max(x, y), (X > 0, Y > 0)),
    "compare": (lambda x, y: (x < y, x <= y, x == y, x != y, x > y, x >= y), (EDGES, EDGES[::-1])),
    "divide by zero": (lambda x: (lax.div(x, x * 0), lax.rem(x, x * 0)), (I,)),
    "power": (lambda x, y: x**y, (POSITIVE, Y)),
    "power of whole numbers": (lambda x: lax.integer_pow(x, 3), (I,)),
    "polygamma": (lambda x: jax.scipy.special.polygamma(2, x), (POSITIVE,)),
    "zeta": (lambda x: lax.zeta(x + 2, x + 1), (POSITIVE,)),
    "clamp": (lambda x: lax.clamp(-0.5, x, 0.5), (X,)),
    "clamp unsigned": (lambda x: lax.clamp(jnp.uint32(9), x, jnp.uint32(3 << 30)), (whole((4, 6), jnp.uint32),)),
    "round to even": (jnp.round, (EDGES[1:6],)),
    "real": (lambda x, y: lax.real(lax.complex(x, y)) + 1, (X, Y)),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 8, 7), (X,)),
    "bitcast": (lambda x: lax.bitcast_convert_type(x, jnp.uint32), (X,)),
    "bitcast narrower": (lambda x: lax.bitcast_convert_type(x, jnp.uint16), (X,)),
    "bitcast wider": (lambda x: lax.bitcast_convert_type(x.reshape(4, 3, 2), jnp.float64), (X,)),
    "complex": (lambda x, y: (lax.complex(x, y) * (1 + 2j), abs(lax.complex(x, y)), jnp.exp(1j * x).imag), (X, Y)),
    "constants": (lambda x: x + np.arange(24.0).reshape(4, 6).astype(jnp.bfloat16).astype(x.dtype), (X,)),
    "select": (lambda x, y: jnp.where(x > y, x, y), (X, Y)),
    "iota": (lambda x: x + lax.broadcasted_iota(jnp.float32, (4, 6), 1), (X,)),
    "broadcast": (
        lambda x: lax.broadcast_in_dim(x, (6, 2, 4), (2,)) if x.ndim == 1 else x[None] + x[:, None, 0:1],
        (X,),
    ),
    "transpose": (lambda x: lax.transpose(x, (2, 0, 3, 1)), (IMAGE,)),
    "reverse": (lambda x: lax.rev(x, (0, 1)), (X,)),
    "slice": (lambda x: lax.slice(x, (1, 0), (4, 6), (2, 3)), (X,)),
    "concatenate": (lambda x, y: lax.concatenate([x, y, x], 1), (X, Y)),
    "pad": (lambda x: lax.pad(x, 1.0, ((1, 2, 1), (0, 3, 2))), (X,)),
    "pad less": (lambda x: lax.pad(x, 0.0, ((-1, 2, 1), (1, -2, 0))), (X,)),
    "dynamic_slice": (lambda x, i: lax.dynamic_slice(x, (i[0], i[1]), (2, 3)), (X, np.asarray([1, 5], np.int32))),
    "dynamic_slice constant": (lambda x: lax.dynamic_slice(x, (1, 2), (2, 3)), (X,)),
    "dynamic_update": (
        lambda x, y, i: lax.dynamic_update_slice(x, y[:2, :3], (i[0], i[1])),
        (X, Y, np.asarray([3, -2], np.int32)),
    ),
    "dynamic_update constant": (lambda x, y: lax.dynamic_update_slice(x, y[:2, :3], (1, 2)), (X, Y)),
    "dot": (lambda x, y: x @ y.T, (X, Y)),
    "dot batched": (lambda x, y: jnp.einsum("bij,bkj->bki", x, y), (IMAGE[0], IMAGE[1])),
    "dot of two": (lambda x, y: jnp.einsum("bijc,bkjc->ik", x, y), (IMAGE, IMAGE)),
    "dot bfloat16": (lambda x, y: x @ y.T, (X.astype(jnp.bfloat16), Y.astype(jnp.bfloat16))),
    "dot accumulated": (
        lambda x, y: lax.dot(x, y.T, preferred_element_type=jnp.float32),
        (X.astype(jnp.bfloat16), Y.astype(jnp.bfloat16)),
    ),
    "dot int8": (
        lambda x, y: lax.dot(x, y.T, preferred_element_type=jnp.int32),
        (whole((4, 6), jnp.int8), whole((4, 6), jnp.int8, 1)),
    ),
    "conv": (conv, (IMAGE, KERNEL)),
    "conv strided": (lambda x, w: conv(x, w, (2, 3), ((1, 0), (2, 1))), (IMAGE, KERNEL)),
    "conv dilated": (
        lambda x, w: conv(x, w, padding=((1, 2), (0, 3)), lhs_dilation=(2, 1), rhs_dilation=(1, 2)),
        (IMAGE, KERNEL),
    ),
    "conv grouped": (lambda x, w: conv(x, w[:, :, :2], feature_group_count=3), (IMAGE, numbers((3, 3, 6, 9)))),
    "conv grad": (lambda x, w: jax.grad(lambda *a: (conv(*a, (2, 2)) ** 2).sum(), (0, 1))(x, w), (IMAGE, KERNEL)),
    "conv depthwise grad": (
        lambda x, w: jax.grad(lambda *a: (conv(*a, feature_group_count=6) ** 2).sum(), (0, 1))(x, w),
        (IMAGE, numbers((3, 3, 1, 12))),
    ),
    "conv 1d": (
        lambda x, w: lax.conv_general_dilated(x, w, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")),
        (IMAGE[0], numbers((3, 6, 5))),
    ),
    "conv 3d": (lambda x, w: lax.conv(x, w, (1, 2, 1), "SAME"), (numbers((1, 2, 5, 6, 7)), numbers((3, 2, 2, 3, 3)))),
    **{
        f"reduce {name}": (lambda x, name=name: getattr(jnp, name)(x, axis=(0, 2)), (IMAGE,))
        for name in ("sum", "max", "min", "prod", "mean", "any", "all")
    },
    "reduce unsigned": (lambda x: (jnp.max(x, 1), jnp.min(x, 0), jnp.sum(x)), (whole((4, 6), jnp.uint32),)),
    "reduce from a number": (lambda x: lax.reduce(x, np.float32(7), lax.add, (1,)), (X,)),
    "reduce bits": (lambda x: (lax.reduce_xor(x, (0,)), lax.reduce_or(x, (1,)), lax.reduce_and(x, (1,))), (I,)),
    "reduce of pairs": (
        lambda x, y: lax.reduce((x, y), (np.float32(0), np.float32(1)), lambda a, b: (a[0] + b[0], a[1] * b[1]), (1,)),
        (X, Y),
    ),
    **{
        f"{name} {kind}": (lambda x, name=name: (getattr(jnp, name)(x, axis=0), getattr(jnp, name)(x)), (x,))
        for name in ("argmax", "argmin")
        for kind, x in (
            ("float", np.round(X)),
            ("nan", np.where(np.arange(24).reshape(4, 6) == 15, np.float32(np.nan), X)),
            ("int", I % 4),
            ("unsigned", whole((4, 6), jnp.uint32)),
            ("bool", X > 0),
        )
    },
    **{
        name: (lambda x, name=name: (getattr(lax, name)(x, 1), getattr(lax, name)(x, 0, reverse=True)), (X,))
        for name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
    },
    "max_pool": (lambda x: window(x, -np.inf, lax.max), (IMAGE,)),
    "min_pool": (lambda x: window(x, np.inf, lax.min, padding="VALID"), (IMAGE,)),
    "sum_pool": (lambda x: window(x, 0.0, lax.add), (IMAGE,)),
    "pool dilated": (
        lambda x: window(x, 0.0, lax.add, window_dilation=(1, 2, 3, 1), base_dilation=(1, 1, 2, 1)),
        (IMAGE,),
    ),
    "max_pool grad": (lambda x: jax.grad(lambda a: (window(a, -np.inf, lax.max) ** 2).sum())(x), (IMAGE,)),
    "max_pool grad of equals": (
        lambda x: jax.grad(lambda a: (window(a, -np.inf, lax.max) ** 2).sum())(x),
        (np.round(IMAGE),),
    ),
    "avg_pool grad": (lambda x: jax.grad(lambda a: (window(a, 0.0, lax.add) ** 2).sum())(x), (IMAGE,)),
    **{
        f"sort {kind}": (lambda x: (jnp.sort(x, 0), jnp.sort(x, 1, descending=True), jnp.argsort(x, 1)), (x,))
        for kind, x in (
            ("float", EDGES.reshape(3, 4)),
            ("int", I),
            ("unsigned", whole((4, 6), jnp.uint32)),
            ("unsigned 64", whole((4, 6), jnp.uint64)),
            ("bfloat16", X.astype(jnp.bfloat16)),
            ("equal", I % 3),
        )
    },
    "sort by two": (lambda x, y: lax.sort((x % 3, y, x), num_keys=2), (I, Y)),
    "sort by three": (lambda x, y: lax.sort((x % 2, x % 3, y, x), num_keys=3, dimension=0), (I, Y)),
    "top_k": (lambda x: lax.top_k(x, 3), (X,)),
    "top_k of equals": (lambda x: lax.top_k(x % 3, 4), (I,)),
    "gather rows": (lambda x, i: x[i], (X, np.asarray([[1, 3], [-1, 9]], np.int32))),
    "gather columns": (lambda x, i: x[:, i], (X, np.asarray([1, 3, 5], np.int32))),
    "gather elements": (lambda x, i, j: x[i, j], (X, np.asarray([0, 3, 2], np.int32), np.asarray([5, 1, 1], np.int32))),
    "gather filled": (lambda x, i: jnp.take(x, i, axis=1, mode="fill"), (X, np.asarray([1, 30, -9], np.int32))),
    "gather clipped": (lambda x, i: jnp.take(x, i, axis=0, mode="clip"), (X, np.asarray([[1, 30], [-9, 2]], np.int32))),
    "gather along": (lambda x, i: jnp.take_along_axis(x, i, 1), (X, whole((4, 3), jnp.int32) % 6)),
    "gather windows": (
        lambda x, i: jax.vmap(lambda k: lax.dynamic_slice(x, (k, 1), (2, 3)))(i),
        (X, np.asarray([0, 1, 2, 7], np.int32)),
    ),
    "gather of batches": (
        lambda x, i: jax.vmap(lambda row, k: lax.dynamic_slice(row, (k,), (2,)))(x, i),
        (X, np.asarray([0, 1, 4, 9], np.int32)),
    ),
    **{
        f"scatter {name}": (
            lambda x, i, u, name=name: getattr(x.at[i], name)(u),
            (
                X,
                np.asarray([1, 3, 9], np.int32) if name == "set" else np.asarray([1, 1, 9, 0], np.int32),
                Y[: 3 if name == "set" else 4],
            ),
        )
        for name in ("set", "add", "multiply", "min", "max")
    },
    "scatter maxima of unsigned": (
        lambda x, i, u: x.at[i].max(u),
        (whole((4, 6), jnp.uint32), np.asarray([1, 1, 9, 0], np.int32), whole((4, 6), jnp.uint32, 3)),
    ),
    "scatter a function": (lambda x, i: x.at[i].apply(jnp.tanh), (X, np.asarray([2, 9, 0], np.int32))),
    "scatter elements": (
        lambda x, i, j: x.at[i, j].add(2.0),
        (X, np.asarray([0, 3, 2], np.int32), np.asarray([5, 1, 1], np.int32)),
    ),
    "scatter columns": (lambda x, i: x.at[:, i].set(2.0), (X, np.asarray([5, 1], np.int32))),
    "scatter int": (lambda x, i: x.at[i].add(7), (I, np.asarray([2, 2, 0], np.int32))),
    "scatter bool": (lambda x, i: x.at[i].set(True), (X > 0, np.asarray([2, 0], np.int32))),
    "scatter windows": (
        lambda x, i, u: jax.vmap(lambda row, k, v: lax.dynamic_update_slice(row, v, (k,)))(x, i, u[:, :2]),
        (X, np.asarray([0, 1, 4, 9], np.int32), Y),
    ),
    "gather grad": (lambda x, i: jax.grad(lambda a: (a[i] ** 2).sum())(x), (X, np.asarray([1, 1, 2], np.int32))),
    "segment_sum": (lambda x, i: jax.ops.segment_sum(x, i, 3), (X, np.asarray([0, 2, 2, 1], np.int32))),
    "scan": (lambda x: lax.scan(lambda c, a: (c * 0.9 + a, c.sum()), x[0], x), (X,)),
    "while on the chip": (lambda x: lax.while_loop(lambda c: c.sum() < 50, lambda c: c * 1.5, x), (POSITIVE,)),
    "cond": (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), (X,)),
    "switch": (
        lambda x, i: [lax.switch(k, [jnp.sin, jnp.cos, jnp.tan], x) for k in i],
        (X, np.asarray([-3, 1, 9], np.int32)),
    ),
    "random": (lambda k: jax.random.normal(jax.random.wrap_key_data(k), (40,)), (KEY,)),
    "permutation": (lambda k: jax.random.permutation(jax.random.wrap_key_data(k), 50), (KEY,)),
    "fft": (lambda x: (jnp.fft.fft(x), jnp.fft.rfft2(x), jnp.fft.ifft(x), jnp.fft.irfft(jnp.fft.rfft(x))), (X,)),
    "cholesky": (jnp.linalg.cholesky, (SYMMETRIC,)),
    "solve": (jnp.linalg.solve, (SYMMETRIC, X)),
    "triangular": (
        lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True, lower=True, transpose_a=True),
        (SYMMETRIC, X),
    ),
    "det": (jnp.linalg.det, (SYMMETRIC,)),
    "qr": (lambda x: [abs(item) for item in jnp.linalg.qr(x.T)], (X,)),
    "eigh": (lambda x: jnp.linalg.eigh(x)[0], (SYMMETRIC,)),
    "svd": (lambda x: jnp.linalg.svd(x, full_matrices=False)[1], (X,)),
    "eig": (lambda x: jnp.sort(jnp.abs(jnp.linalg.eigvals(x))), (X[:, :4],)),
    "eigenvectors": (
        lambda x: jnp.abs(x @ (parts := lax.linalg.eig(x))[2] - parts[0] * parts[2]) + jnp.abs(parts[1]).sum(0),
        (X[:, :4],),
    ),
    "tridiagonal": (lambda d, b: lax.linalg.tridiagonal_solve(d / 9, d + 3, d / 8, b), (POSITIVE[:, 0], X)),
    "best of many": (lambda x: (lax.approx_max_k(x, 2), lax.approx_min_k(x, 3, reduction_dimension=0)), (X,)),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, 1), (X,)),
    "map": (lambda x: lax.map(lambda row: jnp.sort(row), x), (X,)),
    "collectives": (
        on_one_device(lambda x: (lax.psum(x, "i"), lax.pmax(x, "i"), lax.pmean(x, "i"), lax.all_gather(x, "i"))),
        (X,),
    ),
    "collectives that move": (
        on_one_device(
            lambda x: (
                lax.psum_scatter(x, "i", tiled=True),
                lax.ppermute(x, "i", [(0, 0)]),
                lax.ppermute(x, "i", []),
                x + lax.axis_index("i"),
            )
        ),
        (X,),
    ),
    "random bits": (
        lambda k: (lax.rng_bit_generator(k, (7, 3)), lax.rng_bit_generator(k, (1,))),
        (np.asarray([2**32 - 5, 3, 2**32 - 2, 9], np.uint32),),
    ),
    "random bits, 64": (lambda k: lax.rng_bit_generator(k, (7,), jnp.uint64), (np.arange(4, dtype=np.uint32),)),
    "random numbers of rbg": (
        lambda k: jax.random.normal(jax.random.wrap_key_data(k, impl="rbg"), (40,)),
        (np.arange(4, dtype=np.uint32),),
    ),
    "random with a key": (lambda k: jax.random.categorical(jax.random.wrap_key_data(k), np.log(POSITIVE)), (KEY,)),
    "ragged_dot": (lambda x, w, n: lax.ragged_dot(x, w, n), (X, numbers((2, 6, 3)), np.asarray([3, 1], np.int32))),
}


def run_both(function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """Return results of the chip and of jaxlib's CPU."""
    jitted = jax.jit(function)
    wanted = jax.tree.leaves(jitted(*arguments))
    program = lowered_program(
        jitted.lower(
            *arguments,
        )
    )
    results = program(*(as_tensor(np.asarray(item)) for item in jax.tree.leaves(arguments)))
    assert all(result.device.type == "chip" for result in results)
    arrays = [as_array(result, kind.kind) for result, kind in zip(results, program.outputs, strict=True)]
    return list(zip(arrays, wanted, strict=True))


# Faults that a translation may have: the operator, its wrong form, and the first word of cases that must notice.
PLANTED: dict[str, tuple[str, Callable[..., Any], str]] = {
    "remainder with the divisor's sign": ("remainder", lambda call, x, y: torch.remainder(x, y + (y == 0)), "rem"),
    "quotient towards minus infinity": ("divide", lambda call, x, y: torch.floor_divide(x, y + (y == 0)), "div"),
    "order of signed numbers": ("maximum", lambda call, x, y: torch.maximum(x, y), "max"),
    "shift that keeps the sign": ("shift_right_logical", lambda call, x, y: x >> y.clamp(0, 7), "shift_right_logical"),
    "rounding away from zero": (
        "round_nearest_even",
        lambda call, x: torch.sign(x) * torch.floor(x.abs() + 0.5),
        "round",
    ),
    "sort that is not stable": (
        "sort",
        lambda call, *items: tuple(item.flip(call("dimension")) for item in original("sort")(call, *items)),
        "sort",
    ),
    "start of a slice that is not clamped": (
        "dynamic_slice",
        lambda call, x, *starts: original("dynamic_slice")(call, x, *(start * 0 for start in starts)),
        "dynamic_slice",
    ),
    "kernel that is not turned": (
        "reverse",
        lambda call, x: x,
        "conv",
    ),
    "updates that add twice": (
        "scatter",
        lambda call, x, i, u: original("scatter")(call, original("scatter")(call, x, i, u)[0], i, u),
        "scatter",
    ),
    "matrix that is not transposed": (
        "dot_general",
        lambda call, x, y: original("dot_general")(call, x, y.flip(0)),
        "dot",
    ),
    "NaN that compares as equal": ("compare", lambda call, x, y: ~original("compare")(call, y, x), "compare"),
    "imaginary part of another sign": ("complex", lambda call, x, y: torch.complex(x, -y), "complex"),
}
_ORIGINALS = {name: item.function for name, item in OPERATORS.items()}


def original(name: str) -> Callable[..., Any]:
    return _ORIGINALS[name]


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, wrong, word = PLANTED[fault]
    monkeypatch.setitem(OPERATORS, operator, replace(OPERATORS[operator], function=wrong))
    for name in CASES:
        if name.split()[0] == word:
            try:
                test_operator_equals_jaxlib(name)
            except (AssertionError, StableHloError):
                return
    pytest.fail("no case noticed it")


@pytest.mark.parametrize("name", CASES)
def test_operator_equals_jaxlib(name: str) -> None:
    function, arguments = CASES[name]
    with with_64_bits(name):
        pairs = run_both(function, arguments)
    for result, want in pairs:
        narrow = want.dtype in (jnp.bfloat16, jnp.float16)
        array = np.asarray(want.astype(jnp.float32) if narrow else want)
        assert result.shape == array.shape
        if array.dtype.kind in "iub":
            np.testing.assert_array_equal(result, array)
        else:
            scale = float(np.max(np.abs(array[np.isfinite(array)]), initial=1e-3))
            tolerance = 1e-2 if narrow else 1e-5
            np.testing.assert_allclose(result.astype(array.dtype), array, rtol=tolerance, atol=tolerance * scale)


def test_every_translation_ran() -> None:
    """JAX lowers the cases to all operators with a translation, but for those below and a few rare ones."""
    used = set()
    for name, (function, arguments) in CASES.items():
        with with_64_bits(name):
            used |= {op.name for op in ops_of(function, arguments)}
    rare = {"if", "composite", "is_pos_inf", "is_neg_inf", "conj", "mulhi"}
    rare |= {"callback", "threefry2x32"}  # where JAX lowers for the chip: test_jax_platform.py
    rare |= {"copy"}  # in programs of several chips: test_jax_platform.py
    rare |= {"mhlo.copy"}  # where XLA writes variables of TensorFlow: test_tensorflow.py
    assert set(OPERATORS) - used <= {*WITHOUT_JAX, *rare}


def ops_of(function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[module.Op]:
    read = module.read_module(jax.jit(function).lower(*arguments).compiler_ir("stablehlo"), "case")
    return [op for block in read.functions.values() for op in block.walk()]


WITHOUT_JAX = {
    "logistic": ("%0 = stablehlo.logistic %x : tensor<4x4xf32>", torch.sigmoid),
    "triangular_solve": (
        '%0 = "stablehlo.triangular_solve"(%x, %x) {left_side = true, lower = true, unit_diagonal = false, transpose_a '
        "= #stablehlo<transpose TRANSPOSE>} : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>",
        lambda x: torch.linalg.solve(x.tril().T, x),
    ),
    "cholesky": ("%0 = stablehlo.cholesky %x, lower = true : tensor<4x4xf32>", torch.linalg.cholesky),
    "round_nearest_afz": (
        "%0 = stablehlo.round_nearest_afz %x : tensor<4x4xf32>",
        lambda x: torch.sign(x) * torch.floor(x.abs() + 0.5),
    ),
    "optimization_barrier": ("%0 = stablehlo.optimization_barrier %x : tensor<4x4xf32>", lambda x: x),
    "is_inf": (
        "%1 = chlo.is_inf %x : tensor<4x4xf32> -> tensor<4x4xi1>\n%0 = stablehlo.select %1, %x, %x : "
        "tensor<4x4xi1>, tensor<4x4xf32>",
        lambda x: x,
    ),
    "map": (
        '%0 = "stablehlo.map"(%x) ({\n^bb0(%a: tensor<f32>):\n%b = stablehlo.add %a, %a : tensor<f32>\n'
        "stablehlo.return %b : tensor<f32>\n}) {dimensions = array<i64: 0, 1>} : (tensor<4x4xf32>) -> tensor<4x4xf32>",
        lambda x: x + x,
    ),
}


def one_after_the_other(x: torch.Tensor) -> torch.Tensor:
    """What the scatter of pairs gives: updates of the same row follow each other, and one is out of bounds."""
    first, second = x.clone(), x.clone()
    for row, update in zip((1, 1, 9, 0), x, strict=True):
        if row < len(x):
            first[row], second[row] = second[row] * 2 + update, first[row].clone()
    return first


WITHOUT_JAX["scatter of pairs"] = (
    "%i = stablehlo.constant dense<[[1], [1], [9], [0]]> : tensor<4x1xi32>\n"
    "%two = stablehlo.constant dense<2.0> : tensor<f32>\n"
    '%0, %1 = "stablehlo.scatter"(%x, %x, %i, %x, %x) ({\n'
    "^bb0(%a: tensor<f32>, %b: tensor<f32>, %u: tensor<f32>, %v: tensor<f32>):\n"
    "%c = stablehlo.multiply %b, %two : tensor<f32>\n%d = stablehlo.add %c, %u : tensor<f32>\n"
    "stablehlo.return %d, %a : tensor<f32>, tensor<f32>\n"
    "}) {scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], "
    "scatter_dims_to_operand_dims = [0], index_vector_dim = 1>} : (tensor<4x4xf32>, tensor<4x4xf32>, tensor<4x1xi32>, "
    "tensor<4x4xf32>, tensor<4x4xf32>) -> (tensor<4x4xf32>, tensor<4x4xf32>)",
    one_after_the_other,
)


GROUPS = "replica_groups = dense<0> : tensor<1x1xi64>"
WITHOUT_JAX |= {
    "all_to_all": (
        '%0 = "stablehlo.all_to_all"(%x) <{concat_dimension = 0 : i64, split_count = 1 : i64, '
        f"split_dimension = 1 : i64, {GROUPS}}}> : (tensor<4x4xf32>) -> tensor<4x4xf32>",
        lambda x: x,
    ),
    "collective_broadcast": (
        f'%0 = "stablehlo.collective_broadcast"(%x) <{{{GROUPS}}}> : (tensor<4x4xf32>) -> tensor<4x4xf32>',
        lambda x: x,
    ),
    "replica_id": (
        "%1 = stablehlo.replica_id : tensor<ui32>\n%2 = stablehlo.convert %1 : (tensor<ui32>) -> tensor<f32>\n"
        "%3 = stablehlo.broadcast_in_dim %2, dims = [] : (tensor<f32>) -> tensor<4x4xf32>\n"
        "%0 = stablehlo.add %x, %3 : tensor<4x4xf32>",
        lambda x: x,
    ),
    "sdy.sharding_constraint": (
        '%0 = sdy.sharding_constraint %x <mesh<["a"=1]>, [{"a"}, {}]> : tensor<4x4xf32>',
        lambda x: x,
    ),
}


FEATURES = "tensor<4x4xf32>, tensor<4xf32>, tensor<4xf32>"
NORMALIZED = (
    "%a = stablehlo.constant dense<[1.0, 2.0, -1.0, 0.5]> : tensor<4xf32>\n"
    "%b = stablehlo.constant dense<[0.5, 1.0, 2.0, 3.0]> : tensor<4xf32>\n"
)
BY = "<{epsilon = 0.001 : f32, feature_index = 0 : i64}>"
A, B = torch.tensor([1.0, 2.0, -1.0, 0.5]), torch.tensor([0.5, 1.0, 2.0, 3.0])


def normalized(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-3) * scale[:, None]


def gradient(x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad((normalized(x, A) * x.detach()).sum(), x)[0]


WITHOUT_JAX |= {
    "dot": ("%0 = stablehlo.dot %x, %x : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>", lambda x: x @ x),
    "rng": (
        "%s = stablehlo.constant dense<4> : tensor<2xi64>\n%e = stablehlo.constant dense<1.0> : tensor<f32>\n"
        "%0 = stablehlo.rng %e, %e, %s, distribution = UNIFORM : (tensor<f32>, tensor<f32>, tensor<2xi64>) -> "
        "tensor<4x4xf32>",
        lambda x: torch.ones(4, 4),
    ),
    "batch_norm_training": (
        f'{NORMALIZED}%0, %1, %2 = "stablehlo.batch_norm_training"(%x, %a, %b) {BY} : ({FEATURES}) -> ({FEATURES})',
        lambda x: normalized(x, A) + B[:, None],
    ),
    "batch_norm_inference": (
        f'{NORMALIZED}%0 = "stablehlo.batch_norm_inference"(%x, %b, %a, %a, %b) {BY} : ({FEATURES}, tensor<4xf32>, '
        "tensor<4xf32>) -> tensor<4x4xf32>",
        lambda x: (x - A[:, None]) / torch.sqrt(B[:, None] + 1e-3) * B[:, None] + A[:, None],
    ),
    "batch_norm_grad": (
        f'{NORMALIZED}%c, %m, %v = "stablehlo.batch_norm_training"(%x, %a, %b) {BY} : ({FEATURES}) -> ({FEATURES})\n'
        f'%0, %1, %2 = "stablehlo.batch_norm_grad"(%x, %a, %m, %v, %x) {BY} : ({FEATURES}, tensor<4xf32>, '
        f"tensor<4x4xf32>) -> ({FEATURES})",
        gradient,
    ),
}


def module_text(line: str) -> str:
    return f"func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {{\n{line}\nreturn %0 : tensor<4x4xf32>\n}}\n"


@pytest.mark.parametrize("name", WITHOUT_JAX)
def test_operator_that_jax_does_not_lower_to(name: str, tmp_path: Path) -> None:
    line, function = WITHOUT_JAX[name]
    (tmp_path / "m.mlir").write_text(module_text(line), encoding="utf-8")
    x = torch.from_numpy(np.array(SYMMETRIC))
    (result,) = Program(read_file(tmp_path / "m.mlir"))(x)
    torch.testing.assert_close(result.cpu(), function(x))


@pytest.mark.parametrize(
    ("kind", "of", "mean", "deviation"),
    [("f32", "NORMAL", 3.0, 2.0), ("f32", "UNIFORM", 2.5, 1 / 12**0.5), ("i32", "UNIFORM", 2.0, 0.0)],
)
def test_random_numbers_have_their_distribution(
    kind: str, of: str, mean: float, deviation: float, tmp_path: Path
) -> None:
    low, high = ("3.0", "2.0") if of == "NORMAL" else ("2", "3") if kind == "i32" else ("2.0", "3.0")
    text = (
        f"func.func @main() -> tensor<100x100x{kind}> {{\n%a = stablehlo.constant dense<{low}> : tensor<{kind}>\n"
        f"%b = stablehlo.constant dense<{high}> : tensor<{kind}>\n%s = stablehlo.constant dense<100> : tensor<2xi64>\n"
        f"%0 = stablehlo.rng %a, %b, %s, distribution = {of} : (tensor<{kind}>, tensor<{kind}>, tensor<2xi64>) -> "
        f"tensor<100x100x{kind}>\nreturn %0 : tensor<100x100x{kind}>\n}}\n"
    )
    (tmp_path / "m.mlir").write_text(text, encoding="utf-8")
    (result,) = Program(read_file(tmp_path / "m.mlir"))()
    values = result.cpu().double()
    assert abs(float(values.mean()) - mean) < 0.1
    assert abs(float(values.std()) - deviation) < 0.1


# Of TensorFlow 2.21: tf.raw_ops.StatelessRandomUniformFullIntV2(shape=[10], key=[123456789012345], counter=[7, 9],
# alg=1, dtype=tf.uint32), which is Philox.
PHILOX = [3216766244, 688479277, 928408327, 3671251893, 1919700040, 585492362, 392653803, 214265601, 2137777993]


def test_random_bits_with_a_state_of_three_words(tmp_path: Path) -> None:
    (tmp_path / "m.mlir").write_text(
        "func.func @main() -> (tensor<3xui64>, tensor<9xui32>) {\n"
        "%s = stablehlo.constant dense<[123456789012345, 7, 9]> : tensor<3xui64>\n"
        "%0, %1 = stablehlo.rng_bit_generator %s, algorithm = PHILOX : (tensor<3xui64>) -> (tensor<3xui64>, "
        "tensor<9xui32>)\nreturn %0, %1 : tensor<3xui64>, tensor<9xui32>\n}\n",
        encoding="utf-8",
    )
    state, bits = Program(read_file(tmp_path / "m.mlir"))()
    assert (bits.cpu().long() & 0xFFFFFFFF).tolist() == PHILOX
    assert state.tolist() == [123456789012345, 10, 9]


def test_missing_operators_are_all_named(tmp_path: Path) -> None:
    text = module_text(
        "%1 = stablehlo.custom_call @mine(%x) : (tensor<4x4xf32>) -> tensor<4x4xf32>\n"
        "%2 = stablehlo.custom_call @mine(%1) : (tensor<4x4xf32>) -> tensor<4x4xf32>\n"
        '%3 = stablehlo.einsum %x, %x, config = "ij,jk->ik" : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>\n'
        "%0 = stablehlo.add %2, %2 : tensor<4x4xf32>"
    )
    (tmp_path / "m.mlir").write_text(text, encoding="utf-8")
    with pytest.raises(StableHloError) as caught:
        Program(read_file(tmp_path / "m.mlir"))
    assert "2 operators without a translation: custom_call of mine (2 operations, " in str(caught.value)
    assert "m.mlir:2), einsum (1 operation, " in str(caught.value)


def body_of(line: str) -> str:
    """A function with one more line."""
    return f"func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {{\n{line}\nreturn %x : tensor<4x4xf32>\n}}\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("no module", "is no StableHLO module in text form"),
        ("module {}", "has no function main"),
        ("[" * 5000, "more than 100 brackets are open at once"),
        ("func.func @main(%x: tensor<?xf32>) -> tensor<?xf32> { return %x : tensor<?xf32> }", "is dynamic"),
        ("func.func @main(%x: tensor<2xi4>) -> tensor<2xi4> { return %x : tensor<2xi4> }", "no data type for i4"),
        (
            "func.func @main(%x: tensor<2xf32>) -> tensor<2xf32> {\n%0 = call @main(%x) : (tensor<2xf32>) -> "
            "tensor<2xf32>\nreturn %0 : tensor<2xf32>\n}",
            "function main calls itself",
        ),
        (body_of("%0 = stablehlo.add %x#2147483647, %x : tensor<4x4xf32>"), "more than 4,194,304 results"),
        (body_of(f"%0 = stablehlo.add %x#{'9' * 6000}, %x : tensor<4x4xf32>"), "more than 4,194,304 results"),
        (
            body_of(
                '%0 = "stablehlo.convolution"(%x, %x) {a = #stablehlo.conv<[b, 0, 2147483647, f]x[0, 1, i, o]->'
                "[b, 0, 1, f]>} : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>"
            ),
            "a convolution has more than 64 dimensions",
        ),
        (body_of('"a.b"() {padding = dense<0> : tensor<2147483647x2xi64>} : () -> ()'), "more than 1,048,576 elements"),
        (
            body_of("%0 = stablehlo.constant dense<(1.0, 1.0)> : tensor<2147483647xcomplex<f32>>"),
            "more than 1,048,576 elements",
        ),
        (body_of(f"%0 = stablehlo.iota dim = 0 : tensor<{'1x' * 100}f32>"), "more than 64 dimensions"),
        ("!t = tuple<tensor<f32>, tensor<f32>>\n!u = tuple<!t, !t>", "!t is an alias of a type or a list"),
        ("#a = [1]\n#b = [#a, #a]", "#a is an alias of a type or a list"),
        (
            body_of("%0 = stablehlo.constant sparse<[[0, 0]], [1.0]> : tensor<4x4xf32>"),
            r"constant of type f32\[4, 4\] is not written as dense",
        ),
    ],
)
def test_malformed_module_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "m.mlir").write_text(text, encoding="utf-8")
    with pytest.raises(StableHloError, match=sentence) as caught:
        read_file(tmp_path / "m.mlir")
    assert "\n" not in str(caught.value)


def test_splat_of_a_type_that_numpy_lacks_takes_no_memory(tmp_path: Path) -> None:
    text = body_of("%0 = stablehlo.constant dense<2.0> : tensor<2147483647x1024xbf16>")
    (tmp_path / "m.mlir").write_text(text, encoding="utf-8")
    value = read_file(tmp_path / "m.mlir").functions["main"].ops[0].attributes["value"]
    assert value.shape == (2147483647, 1024) and value.dtype == torch.bfloat16
    assert value.untyped_storage().nbytes() == 2 and value[0, 0].item() == 2


def test_program_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STABLEHLO, "runs", Limit(100, "of the test"))
    loop = lowered_program(jax.jit(lambda x: lax.fori_loop(0, 10**9, lambda i, c: c + 1, x)).lower(X))
    chip = torch.zeros(4, 6, device="chip")
    with pytest.raises(StableHloError, match="its loops and calls run more than 100 blocks"):
        loop(chip)
    shape = "tensor<4x4xf32>"
    functions = ["func.func @main(%x: {0}) -> {0} {{\n%0 = call @f59(%x) : ({0}) -> {0}\nreturn %0 : {0}\n}}"]
    for i in range(60):  # each calls the one before it twice
        calls = f"%0 = call @f{i - 1}(%x) : ({{0}}) -> {{0}}\n%1 = call @f{i - 1}(%0) : ({{0}}) -> {{0}}"
        lines = calls if i else "%1 = stablehlo.add %x, %x : {0}"
        functions.append(f"func.func private @f{i}(%x: {{0}}) -> {{0}} {{{{\n{lines}\nreturn %1 : {{0}}\n}}}}")
    (tmp_path / "m.mlir").write_text("\n".join(item.format(shape) for item in functions), encoding="utf-8")
    with pytest.raises(StableHloError, match="its loops and calls run more than 100 blocks"):
        Program(read_file(tmp_path / "m.mlir"))(torch.zeros(4, 4, device="chip"))


def test_collectives_over_several_devices_are_named(tmp_path: Path) -> None:
    reduce = (
        '%{0} = "stablehlo.all_reduce"(%x) <{{replica_groups = dense<{1}>}}> ({{\n'
        "^bb0(%a: tensor<f32>, %b: tensor<f32>):\n%s = stablehlo.add %a, %b : tensor<f32>\n"
        "stablehlo.return %s : tensor<f32>\n}}) : (tensor<4x4xf32>) -> tensor<4x4xf32>\n"
    )
    groups = ["[[0, 1]]> : tensor<1x2xi64", "[[0], [1]]> : tensor<2x1xi64", "> : tensor<0x0xi64"]
    lines = "".join(reduce.format(number, text) for number, text in enumerate(groups, 1))
    body = module_text(
        f"{lines}%9 = stablehlo.partition_id : tensor<ui32>\n%0 = stablehlo.add %x, %x : tensor<4x4xf32>"
    )
    text = f"module attributes {{mhlo.num_partitions = 4 : i32}} {{\n{body}}}\n"
    (tmp_path / "m.mlir").write_text(text, encoding="utf-8")
    with pytest.raises(StableHloError) as caught:
        Program(read_file(tmp_path / "m.mlir"))
    message = str(caught.value)
    assert "3 operators without a translation" in message
    for part in ("all_reduce over 2 devices", "all_reduce over 4 devices", "partition_id in a program of 4 devices"):
        assert part in message


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.mlir").write_text(module_text(WITHOUT_JAX["map"][0]), encoding="utf-8")
    program = Program(read_file(tmp_path / "m.mlir"))
    with pytest.raises(BringupError, match=r"input 0 is f32\[4, 4\], got float32\[2\]"):
        program(torch.zeros(2))
    with pytest.raises(BringupError, match="takes 1 input, got 0"):
        program()


def test_too_new_jaxlib_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TESTED", (0, 1))
    with pytest.raises(StableHloError, match=r"is newer than 0.1, the newest that was tested"):
        module.bindings()


def test_loop_with_a_counter_does_not_wait() -> None:
    import bringup

    program = lowered_program(jax.jit(lambda x: lax.fori_loop(0, 5, lambda i, c: c * x[i], x[0])).lower(X))
    x = as_tensor(np.asarray(X)).to("chip")
    program(x)
    before = bringup.launch_stats()["synchronizations"]
    program(x)
    assert bringup.launch_stats()["synchronizations"] == before


def test_values_are_freed_when_nothing_reads_them_any_more() -> None:
    def chain(x: Any) -> Any:
        for _ in range(20):
            x = jnp.sin(x)
        return x

    program = lowered_program(jax.jit(chain).lower(jnp.zeros(1 << 20, jnp.float32)))
    x = torch.zeros(1 << 20, device="chip")
    torch.chip.reset_peak_memory_stats()  # type: ignore[attr-defined]
    before = torch.chip.memory_allocated()  # type: ignore[attr-defined]
    program(x)
    peak = torch.chip.max_memory_allocated() - before  # type: ignore[attr-defined]
    assert peak == 2 * 4 * 2**20  # the operand and the result of one operation


def test_neutral_values_need_no_launch() -> None:
    assert executor.neutral("maximum", module.Type("ui32", ())) == 0
    assert executor.neutral("minimum", module.Type("i8", ())) == 127


def test_module_file_runs_from_the_command_line(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.mlir").write_text(module_text(WITHOUT_JAX["map"][0]), encoding="utf-8")
    done = bringup_run("--chip", "t4", "m.mlir", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert "output 0 f32[4, 4]" in done.stdout
    assert '"framework": "stablehlo"' in (tmp_path / "bringup-m" / "summary.json").read_text()
    wrong = bringup_run("m.mlir", "--input", "x=3")
    assert wrong.returncode == 2 and "a module takes --steps N" in wrong.stderr
