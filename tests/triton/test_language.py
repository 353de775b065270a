"""Triton's language on the chip, statement by statement, against Triton's own interpreter."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.triton.language import PROGRAMS, B, N, outputs

triton = pytest.importorskip("triton", reason="needs bringup[triton]")
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))


@pytest.fixture
def check(tmp_path: Path, oracle: Any) -> Any:
    def run(body: str, **options: Any) -> None:
        compare(body, tmp_path, oracle, **options)

    return run


def compare(body: str, tmp_path: Path, oracle: Any, *, dtype: torch.dtype = torch.float32, exact: bool = True) -> None:
    torch.manual_seed(0)
    count = PROGRAMS * B
    if dtype.is_floating_point:
        x, y = torch.randn(count * B).to(dtype), (torch.rand(count * B) + 0.5).to(dtype)
    else:
        x, y = torch.randint(-50, 50, (count * B,), dtype=dtype), torch.randint(1, 9, (count * B,), dtype=dtype)
    z = torch.zeros(count * B, dtype=dtype)
    arguments = [x, y, z, N, 0.75]
    found = outputs(body, arguments, tmp_path, "chip")
    try:
        expected = oracle.apply(outputs, (body, arguments, tmp_path, "cpu"))
    except Exception as error:
        if "only 0-dimensional arrays" not in str(error):
            raise
        pytest.skip("the interpreter of this Triton does not know this numpy")
    assert any(not torch.equal(a, b) for a, b in zip(found, (x, y, z), strict=True)), "the kernel did nothing"
    for a, b in zip(found, expected, strict=True):
        if exact:
            assert torch.equal(a.nan_to_num(), b.nan_to_num()), (a - b).abs().max()
        else:
            torch.testing.assert_close(a, b, atol=2e-3 if dtype.itemsize == 2 else 1e-5, rtol=1e-3, equal_nan=True)


ONE = "tl.store(z + i, {}, mask=m)"
FLOATS = {
    "arithmetic": "a * b + a / b - f",
    "remainder": "a % b",
    "minimum": "tl.minimum(a, b) + tl.maximum(a, 0.5)",
    "nan": "tl.maximum(tl.where(a > 0, a, float('nan')), b, propagate_nan=tl.PropagateNan.ALL)",
    "compare": "tl.where((a < b) & (a != 0) | ~(b >= 1), a, -b)",
    "functions": "tl.exp(a) + tl.log(b) + tl.sqrt(b) + tl.sin(a) + tl.cos(a) + tl.abs(a)",
    "powers": "tl.exp2(a) + tl.log2(b) + tl.rsqrt(b) + tl.floor(a) + tl.ceil(a)",
    "erf": "tl.erf(a)",
    "sigmoid": "tl.sigmoid(a)",
    "fma": "tl.fma(a, b, a)",
    "clamp": "tl.clamp(a, -0.5, 0.5)",
    "scalar": "a * (p + 1) + n",
    "cast to int": "a.to(tl.int32).to(tl.float32)",
    "softmax": "tl.softmax(a)",
    "cdiv": "a + tl.cdiv(n, 3)",
    "zeros": "tl.zeros_like(a) + tl.full((B,), 2.5, tl.float32)",
    "swizzle of the sign": "(a.to(tl.int32, bitcast=True) ^ 1).to(tl.float32, bitcast=True)",
}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_floats(check: Any, name: str, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and name in ("swizzle of the sign", "nan", "remainder", "softmax", "zeros"):
        pytest.skip("is written for float32")
    widened = "" if dtype == torch.float32 else ".to(tl.float32)"
    load = f"a = tl.load(x + i, mask=m, other=1.0){widened}\nb = tl.load(y + i, mask=m, other=1.0){widened}\n"
    check(load + ONE.format(FLOATS[name]), dtype=dtype, exact=False)


INTEGERS = {
    "arithmetic": "a * b + a - 7",
    "wraps": "a * 2000000011 + b",
    "division": "a // b + a % b",
    "bits": "(a & b) | (a ^ 12) + ~b",
    "shifts": "(a << 2) + (b >> 1) + (a >> 3)",
    "extremes": "tl.minimum(a, b) * tl.maximum(a, -3)",
    "where": "tl.where(a > b, a, b)",
    "absolute": "tl.abs(a)",
    "float": "(a.to(tl.float32) * 1.5).to({t})",
    "unsigned": "(a.to(tl.uint32) // 3 + b.to(tl.uint32) % 2).to({t})",
    "unsigned compare": "tl.where(a.to(tl.uint32) > b.to(tl.uint32), 1, 0).to({t})",
    "unsigned shift": "(a.to(tl.uint32) >> 4).to({t})",
    "high product": "tl.umulhi(a.to(tl.uint32), 4000000000).to({t})",
    "narrow": "a.to(tl.int8).to({t}) + (a + b).to(tl.int16).to({t})",
    "boolean": "((a > 0) & (b > 2)).to({t}) + ((a > 0) ^ (b > 2)).to({t})",
}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(("dtype", "text"), [(torch.int32, "tl.int32"), (torch.int64, "tl.int64")])
def test_integers(check: Any, name: str, dtype: torch.dtype, text: str) -> None:
    load = "a = tl.load(x + i, mask=m, other=1)\nb = tl.load(y + i, mask=m, other=1)\n"
    check(load + ONE.format(INTEGERS[name].format(t=text)), dtype=dtype)


TILES = {
    "transpose": "tl.store(z + r * B + c, tl.trans(a))",
    "reshape": "tl.store(z + tl.arange(0, B * B), tl.reshape(a, (B * B,)))",
    "permute": "tl.store(z + r * B + c, tl.permute(a, (1, 0)))",
    "sum of rows": "tl.store(z + tl.arange(0, B), tl.sum(a, 1))",
    "sum of columns": "tl.store(z + tl.arange(0, B), tl.sum(a, 0))",
    "sum of all": "tl.store(z + p, tl.sum(a))",
    "maximum": "tl.store(z + tl.arange(0, B), tl.max(a, 1) + tl.min(a, 0))",
    "argmax": "tl.store(z + tl.arange(0, B), tl.argmax(a, 1).to(tl.float32) + tl.argmin(a, 0))",
    "maximum with index": "v, j = tl.max(a, 1, return_indices=True)\ntl.store(z + tl.arange(0, B), v + j)",
    "reduce": "tl.store(z + tl.arange(0, B), tl.reduce(a, 1, larger))",
    "reduce of pairs": (
        "v, j = tl.reduce((a, tl.broadcast_to(c, (B, B))), 1, pair)\ntl.store(z + tl.arange(0, B), v * 100 + j)"
    ),
    "reduce without a neutral element": (
        "tl.store(z + tl.arange(0, B), tl.reduce(tl.where(a > 1, a, 0.0), 1, first_nonzero))"
    ),
    "cumulative sum": "tl.store(z + r * B + c, tl.cumsum(a, 1))",
    "cumulative sum along columns": "tl.store(z + r * B + c, tl.cumsum(a, 0))",
    "cumulative product": "tl.store(z + r * B + c, tl.cumprod(a, 1))",
    "scan": "tl.store(z + r * B + c, tl.associative_scan(a, 1, larger))",
    "scan backwards": "tl.store(z + r * B + c, tl.associative_scan(a, 1, larger, reverse=True))",
    "recurrence": "d, e = tl.associative_scan((a * 0.5, a), 1, linear)\ntl.store(z + r * B + c, d + e)",
    "sort": "tl.store(z + r * B + c, tl.sort(a, 1))",
    "sort descending": "tl.store(z + r * B + c, tl.sort(a, 1, descending=True))",
    "flip": "tl.store(z + r * B + c, tl.flip(a, 1))",
    "gather": "tl.store(z + r * B + c, tl.gather(a, (B - 1 - c) + 0 * r, 1))",
    "join and split": (
        "u, v = tl.split(tl.reshape(a, (B, B // 2, 2)))\ntl.store(z + r * B + c, tl.reshape(tl.join(v, u), (B, B)))"
    ),
    "interleave": "u, v = tl.split(tl.reshape(a, (B, B // 2, 2)))\ntl.store(z + r * B + c, tl.interleave(v, u))",
    "expand": "tl.store(z + r * B + c, tl.max(a, 1)[:, None] - tl.min(a, 0)[None, :])",
    "ravel": "tl.store(z + tl.arange(0, B * B), tl.ravel(a))",
    "product": "tl.store(z + r * B + c, tl.dot(a, tl.trans(a), input_precision='ieee'))",
    "product added": "tl.store(z + r * B + c, tl.dot(a, a, acc=a, input_precision='ieee'))",
    "products in a loop": (
        "t = tl.zeros((B, B), tl.float32)\nfor j in range(3):\n    t = tl.dot(a, a + j, t, input_precision='ieee')\n"
        "tl.store(z + r * B + c, t)"
    ),
    "histogram": (
        "tl.store(z + tl.arange(0, B), tl.histogram(tl.abs(tl.ravel(a) * 3).to(tl.int32) % B, B).to(tl.float32))"
    ),
    "counting": "tl.store(z + tl.arange(0, B), tl.sum((a > 0).to(tl.int32), 1).to(tl.float32))",
    "xor": "tl.store(z + tl.arange(0, B), tl.xor_sum((a * 8).to(tl.int32), 1).to(tl.float32))",
    "block pointer": (
        "q = tl.make_block_ptr(x, (n, B), (B, 1), (p * B, 0), (B, B), (1, 0))\n"
        "s = tl.load(tl.advance(q, (1, 0)), boundary_check=(0,), padding_option='zero')\n"
        "tl.store(z + p * B * B + r * B + c, s)"
    ),
    "descriptor": (
        "q = tl.make_tensor_descriptor(x, [n, B], [B, 1], [B, B])\n"
        "w = tl.make_tensor_descriptor(z, [n, B], [B, 1], [B, B])\nw.store([p * B, 0], q.load([p * B, 0]) * 2)"
    ),
}


@pytest.mark.parametrize("name", TILES)
@pytest.mark.filterwarnings("ignore:.*make_block_ptr is deprecated.*:UserWarning")
def test_tiles(check: Any, name: str) -> None:
    body = TILES[name]
    if "make_block_ptr" in body and VERSION >= (3, 9):
        pytest.skip("Triton 3.9 has no block pointers any more")
    if "z + p" not in body and "descriptor" not in body:  # a place for every program
        body = re.sub(r"\(z \+", "(z + p * B * B +", body)
    check("a = tl.load(x + p * B * B + r * B + c)\n" + body, exact=False)


FLOW = {
    "loop": "t = 0.0\nfor j in range(0, n, 7):\n    t += tl.load(x + j)\ntl.store(z + p, t)",
    "loop of a different length in every program": (
        "t = 0.0\nfor j in range(p, 2 * p + 1):\n    t += tl.load(x + j)\ntl.store(z + p, t)"
    ),
    "loop that may not run": "t = a\nfor j in range(2, p):\n    t = t * 2 + j\ntl.store(z + i, t)",
    "loop inside a loop": (
        "t = a\nfor j in range(0, p + 1):\n    for h in range(j, 3):\n        t += j * 10 + h\ntl.store(z + i, t)"
    ),
    "loop with a step": "t = a\nfor j in range(p, n, p + 3):\n    t += j\ntl.store(z + i, t)",
    "static loop": "t = a\nfor j in tl.static_range(4):\n    t = t * 0.5 + j\ntl.store(z + i, t)",
    "pointer in a loop": (
        "q = x + i\nt = a\nfor j in range(p + 2):\n    t += tl.load(q)\n    q += 3\ntl.store(z + i, t)"
    ),
    "while": "j = p\nt = a\nwhile j < 9:\n    t += j\n    j += 2\ntl.store(z + i, t)",
    "while on data": (
        "t = tl.load(x + p)\nj = 0\nwhile tl.abs(t) < 4:\n    t = t * 2 + 0.1\n    j += 1\ntl.store(z + p, t + j)"
    ),
    "if": "t = a\nif p % 2 == 0:\n    t = t * 2\nelse:\n    t = t - 1\ntl.store(z + i, t)",
    "if without else": "if p > 1:\n    tl.store(z + i, a)",
    "if on data": "t = a\nif tl.sum(a) > 0:\n    t = t * 10\ntl.store(z + i, t)",
    "if inside a loop": (
        "t = a\nfor j in range(5):\n    if (j + p) % 3 == 0:\n"
        "        t += j\n    else:\n        t *= 1.5\ntl.store(z + i, t)"
    ),
    "early return": "if p == 1:\n    return\ntl.store(z + i, a)",
    "return on data": "if tl.load(x + p) < 0:\n    tl.store(z + p, 7.0)\n    return\ntl.store(z + p, 9.0)",
    "function that returns early": "tl.store(z + p, stops(p, 2) + 1)",
    "outlined function": "tl.store(z + p, outlined(p * 1.0, f))",
    "conditional expression": "t = f if p > 1 else f * 2\ntl.store(z + i, a * t)",
    "and, or": "t = a\nif p > 0 and n > 3 or p == 7:\n    t = -a\ntl.store(z + i, t)",
    "number of programs": "tl.store(z + i, a * tl.num_programs(0))",
    "pointers to either": "q = x\nif p > 1:\n    q = y\ntl.store(z + i, tl.load(q + i))",
    "grid stride": "for j in range(p, 6, tl.num_programs(0)):\n    tl.store(z + j * B + tl.arange(0, B), a + j)",
}


@pytest.mark.parametrize("name", FLOW)
def test_control_flow(check: Any, name: str) -> None:
    check("a = tl.load(x + i)\n" + FLOW[name], exact=False)


ATOMICS = {
    "add": "tl.atomic_add(z + i % 5, a)",
    "masked add": "tl.atomic_add(z + i % 5, a, mask=m & (i > 3))",
    "add, and what was there": "b = tl.atomic_add(z + i % 3, a)\ntl.store(z + 100 + i, b)",
    "ticket": "t = tl.atomic_add(z, 1)\ntl.store(z + 1 + t, p + 10)",
    "maximum": "tl.atomic_max(z + i % 5, a)",
    "minimum": "tl.atomic_min(z + i % 5, a)",
    "exchange": "tl.atomic_xchg(z + i, a)",
    "and, or, xor": "tl.atomic_or(z + i % 5, a)\ntl.atomic_xor(z + 10 + i % 5, a)\ntl.atomic_and(x + i % 5, a)",
    "compare and swap": "b = tl.atomic_cas(z + p, 0, p + 1)\ntl.store(z + 20 + p, b)",
    "compare and swap of a tile": "b = tl.atomic_cas(z + i, a - a, a)\ntl.store(z + 200 + i, b)",
}


@pytest.mark.parametrize("name", ATOMICS)
def test_atomics(check: Any, name: str) -> None:
    check("a = tl.load(x + i)\n" + ATOMICS[name], dtype=torch.int32)


@pytest.mark.parametrize("function", ["rand", "randn", "randint"])
def test_random_numbers_are_philoxs(check: Any, function: str) -> None:
    body = f"tl.store(z + i, tl.{function}(n + 5, i).to(tl.float32))"
    check(body, exact=False)


NARROW = [("float8e5", torch.float8_e5m2), ("float8e4nv", torch.float8_e4m3fn), ("bfloat16", torch.bfloat16)]


@pytest.mark.parametrize(("kind", "dtype"), NARROW)
def test_narrow_floats_round_as_torch_does(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    x = torch.randn(1024)  # Triton's interpreter rounds some of these wrongly
    body = f"tl.store(z + i, tl.load(x + i).to(tl.{kind}).to(tl.float32))"
    found = outputs(body, [x, x, torch.zeros(1024), N, 0.5], tmp_path, "chip")[2]
    count = PROGRAMS * B
    assert torch.equal(found[:count], x[:count].to(dtype).float())


def test_print_says_which_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = [torch.ones(1024), torch.ones(1024), torch.zeros(1024), N, 0.5]
    outputs("tl.device_print('value', p)", x, tmp_path, "chip")
    torch.chip.synchronize()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines] == [["pid", f"({p},", "0,", "0)"] for p in range(PROGRAMS)]
