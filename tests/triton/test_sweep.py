"""Triton's language by operation and dtype, as its own language tests go through it, against Triton's interpreter.

Every case is a kernel. Triton's front end refuses it, or the chip computes what the interpreter does.
"""

import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.triton.language import PROGRAMS, B, N, outputs

pytest.importorskip("triton", reason="needs bringup[triton]")
pytestmark = pytest.mark.slow

SIGNED = {"int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64}
UNSIGNED = {"uint8": torch.uint8, "uint16": torch.uint16, "uint32": torch.uint32, "uint64": torch.uint64}
FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
INTEGERS = SIGNED | UNSIGNED
DTYPES = INTEGERS | FLOATS
LOADS = "a = tl.load(x + i, mask=m, other=1)\nb = tl.load(y + i, mask=m, other=1)\n"
TILE = "t = tl.load(x + r * B + c)\n"

Case = tuple[str, str, torch.dtype, torch.dtype, torch.dtype]  # name, body, dtypes of x, y, z


def wide(*names: str) -> torch.dtype:
    return torch.float64 if any(name in FLOATS for name in names) else torch.int64


def cases() -> Iterator[Case]:
    for (p, q), op in itertools.product(itertools.product(DTYPES, DTYPES), "+-*/%"):
        body = LOADS + f"tl.store(z + i, a {op} b, mask=m)"
        yield f"{p} {op} {q}", body, DTYPES[p], DTYPES[q], torch.float64 if op == "/" else wide(p, q)
    for (p, q), op in itertools.product(itertools.product(INTEGERS, INTEGERS), ("&", "|", "^", "//", "<<", ">>")):
        if op == ">>" and p[0] != q[0]:
            continue  # the interpreter takes numpy's type for what Triton promotes to unsigned
        yield f"{p} {op} {q}", LOADS + f"tl.store(z + i, a {op} b, mask=m)", INTEGERS[p], INTEGERS[q], torch.int64
    for (p, q), op in itertools.product(itertools.product(DTYPES, DTYPES), ("<", "<=", "==", "!=", ">", ">=")):
        yield f"{p} {op} {q}", LOADS + f"tl.store(z + i, a {op} b, mask=m)", DTYPES[p], DTYPES[q], torch.int8
    for (p, q), form in itertools.product(itertools.product(DTYPES, DTYPES), ("minimum", "maximum", "where")):
        call = "tl.where(a > 2, a, b)" if form == "where" else f"tl.{form}(a, b)"
        yield f"{form} {p} {q}", LOADS + f"tl.store(z + i, {call}, mask=m)", DTYPES[p], DTYPES[q], wide(p, q)
    for p, q in itertools.product(DTYPES, DTYPES):
        if q == "bfloat16":
            continue  # the interpreter gives its bits; tests/triton/test_language.py has the rounding
        body = LOADS + f"tl.store(z + i, a.to(tl.{q}), mask=m)"
        yield f"{p} to {q}", body, DTYPES[p], DTYPES[p], wide(q)
        if DTYPES[p].itemsize == DTYPES[q].itemsize and "bfloat16" not in (p, q):
            body = LOADS + f"tl.store(z + i, a.to(tl.{q}, bitcast=True), mask=m)"
            yield f"{p} as {q}", body, DTYPES[p], DTYPES[p], DTYPES[q]
    functions = ("exp", "exp2", "log", "log2", "sin", "cos", "sqrt", "rsqrt", "erf", "floor", "ceil", "abs", "sqrt_rn")
    for name, p in itertools.product(functions, ("float32", "float64")):
        yield f"{name} {p}", LOADS + f"tl.store(z + i, tl.{name}(b), mask=m)", FLOATS[p], FLOATS[p], torch.float64
    for op, p in itertools.product(("-a", "+a", "~a", "tl.abs(a)", "a + 3", "7 - a", "a * 1.5", "a // 3"), DTYPES):
        if op == "~a" and p in UNSIGNED:
            continue  # the interpreter xors with -1, which numpy refuses
        yield f"{op} {p}", LOADS + f"tl.store(z + i, {op}, mask=m)", DTYPES[p], DTYPES[p], wide(p)
    for op, p, axis in itertools.product(("sum", "max", "min", "argmax", "argmin", "xor_sum"), DTYPES, (0, 1, None)):
        place = {0: "tl.arange(0, B)", 1: "tl.arange(0, B)", None: "0"}[axis]
        yield f"{op} {p} {axis}", TILE + f"tl.store(z + {place}, tl.{op}(t, {axis}))", DTYPES[p], DTYPES[p], wide(p)
    scans = {"cumsum": "tl.cumsum(t, {0}, reverse={1})", "cumprod": "tl.cumprod(t, {0}, reverse={1})"}
    scans["largest"] = "tl.associative_scan(t, {0}, larger, reverse={1})"
    for op, p, axis, reverse in itertools.product(scans, DTYPES, (0, 1), (False, True)):
        body = TILE + f"tl.store(z + r * B + c, {scans[op].format(axis, reverse)})"
        yield f"{op} {p} {axis} {reverse}", body, DTYPES[p], DTYPES[p], wide(p)
    moves = {
        "trans": "tl.store(z + r * B + c, tl.trans(t))",
        "permute": "tl.store(z + r * B + c, tl.permute(t, (1, 0)))",
        "reshape": "tl.store(z + tl.arange(0, B * B), tl.reshape(t, (B * B,)))",
        "flip": "tl.store(z + r * B + c, tl.flip(t, 1))",
        "sort": "tl.store(z + r * B + c, tl.sort(t, descending=True))",
        "split": "u, v = tl.split(tl.reshape(t, (B, 8, 2)))\ntl.store(z + r * B + tl.arange(0, 8)[None, :], u - v)",
        "join": "tl.store(z + tl.arange(0, 2 * B * B), tl.reshape(tl.join(t, t + 1), (2 * B * B,)))",
        "interleave": "tl.store(z + tl.arange(0, 2 * B), tl.interleave(tl.load(x + i), tl.load(y + i)))",
        "cat": "tl.store(z + tl.arange(0, 2 * B), tl.cat(tl.load(x + i), tl.load(x + i), can_reorder=True))",
        "broadcast": "tl.store(z + r * B + c, tl.broadcast_to(tl.load(x + tl.arange(0, B))[None, :], (B, B)))",
        "gather": "tl.store(z + r * B + c, tl.gather(t, ((r + c) % B).to(tl.int32), 1))",
        "constant": "tl.store(z + r * B + c, tl.full((B, B), 3, t.dtype) + t)",
        "masked": "tl.store(z + r * B + c, tl.load(x + r * B + c, mask=(r + c) % 3 > 0, other=5), mask=r != 4)",
        "strided": "tl.store(z + r * B + c, tl.load(x + r + c * B))",
        "scalar": "tl.store(z + p, tl.load(x + p * 3) + tl.load(x))",
    }
    for (name, body), p in itertools.product(moves.items(), DTYPES):
        yield f"{name} {p}", TILE + body, DTYPES[p], DTYPES[p], DTYPES[p]
    atomics = ("add", "max", "min", "and", "or", "xor", "xchg")
    for name, p in itertools.product(atomics, ("int32", "uint32", "int64", "uint64", "float32")):
        if p == "float32" and name in ("and", "or", "xor", "xchg"):
            continue  # the first three are refused, the interpreter has no xchg of floats
        place = "i" if name == "xchg" else "(i % 5)"
        yield f"atomic {name} {p}", LOADS + f"tl.atomic_{name}(z + {place}, a, mask=m)", DTYPES[p], DTYPES[p], DTYPES[p]
    right = {"plain": "tl.load(y + r * B + c)", "transposed": "tl.trans(tl.load(y + r * B + c))"}
    for p, side, start in itertools.product(
        ("int8", "float16", "bfloat16", "float32", "float64"), right, (False, True)
    ):
        total = f"tl.full((B, B), 2, tl.{'int32' if p == 'int8' else 'float64' if p == 'float64' else 'float32'})"
        more = f", {total}" if start else ""
        body = TILE + f"tl.store(z + r * B + c, tl.dot(t, {right[side]}{more}, input_precision='ieee'))"
        yield f"dot {p} {side} {start}", body, DTYPES[p], DTYPES[p], wide(p)


TRITON_REFUSES = "refused"
CASES = {case[0]: case for case in cases()}
SHARES = 12


def values(dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Small numbers; the second argument's are above 0, so that divisions, shifts and logarithms are defined."""
    made = torch.Generator().manual_seed(seed)
    count = 2 * PROGRAMS * B * B
    if dtype.is_floating_point:
        return (torch.rand(count, generator=made) * 4 + (0.5 if seed else -2)).to(dtype)
    low, high = (1, 6) if seed else (0 if str(dtype).startswith("torch.u") else -40, 40)
    return torch.randint(low, high, (count,), generator=made).to(dtype)


def run(body: str, arguments: list[Any], folder: Path, device: str) -> Any:
    try:
        return outputs(body, arguments, folder, device)
    except Exception as error:
        if type(error).__name__ == "CompilationError":  # by Triton's front end, before any backend
            return TRITON_REFUSES
        return f"{type(error).__name__}: {error}"


def compare(case: Case, folder: Path, oracle: Any) -> str:
    """Return what is wrong."""
    _, body, p, q, result = case
    arguments = [values(p, 0), values(q, 1), torch.zeros(2 * PROGRAMS * B * B, dtype=result), N, 0.75]
    # The interpreter computes with the bits of bfloat16: it is given the same numbers in float32.
    widened = [x.float() if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 else x for x in arguments]
    found, expected = run(body, arguments, folder, "chip"), oracle.apply(run, (body, widened, folder, "cpu"))
    if found == TRITON_REFUSES:
        return ""
    if isinstance(found, str):
        return found[-300:]
    if isinstance(expected, str):
        return f"the interpreter raises {expected[:300]}"
    exact = not (p.is_floating_point or q.is_floating_point or result.is_floating_point)
    floats = [torch.finfo(dtype).eps for dtype in (p, q) if dtype.is_floating_point]
    tolerance = 0.0 if exact else 8 * max(floats, default=torch.finfo(torch.float32).eps)
    for a, b in zip(found, expected, strict=True):
        a, b = a.double(), b.double()
        if not torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
            where = int((a - b).abs().nan_to_num(1e9).argmax())
            return f"{float(a[where])} at {where}, the interpreter has {float(b[where])}"
    return ""


@pytest.mark.parametrize("share", range(SHARES))
def test_every_operation_on_every_dtype(share: int, tmp_path: Path, oracle: Any) -> None:
    chosen = [name for name in CASES if zlib.crc32(name.encode()) % SHARES == share]
    problems = {name: compare(CASES[name], tmp_path, oracle) for name in chosen}
    wrong = [f"{name}: {problem}" for name, problem in problems.items() if problem]
    assert not wrong, f"{len(wrong)} of {len(chosen)}:\n" + "\n".join(wrong)
