"""What descriptors gather, scatter and reduce, and products whose blocks have scales: against torch on the CPU."""

import pytest
import torch

import bringup

pytest.importorskip("triton", reason="needs bringup[triton]")

import triton
import triton.language as tl


@triton.jit
def gather(out, source, index, y, M: tl.constexpr, N: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    rows = tl.make_tensor_descriptor(source, [M, N], [N, 1], [1, C])
    tile = rows.gather(tl.load(index + tl.arange(0, R)), y)
    tl.store(out + tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :], tile)


@triton.jit
def scatter(out, source, index, y, M: tl.constexpr, N: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    rows = tl.make_tensor_descriptor(out, [M, N], [N, 1], [1, C])
    tile = tl.load(source + tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :])
    rows.scatter(tile, tl.load(index + tl.arange(0, R)), y)


@triton.jit
def reduce(out, source, M: tl.constexpr, N: tl.constexpr, LARGEST: tl.constexpr):
    blocks = tl.make_tensor_descriptor(out, [M, N], [N, 1], [16, N])
    tile = tl.load(source + tl.arange(0, 16)[:, None] * N + tl.arange(0, N)[None, :])
    if LARGEST:
        blocks.atomic_max([tl.program_id(0) * 8, 0], tile)
    else:
        blocks.atomic_add([tl.program_id(0) * 8, 0], tile)


def test_descriptor_gathers_rows_and_leaves_out_what_is_outside() -> None:
    source, index = torch.randn(40, 64), torch.tensor([3, 0, 7, 39, 45, 2, 2, 9], dtype=torch.int32)
    out = torch.full((8, 32), 7.0, device="chip")
    gather[(1,)](out, source.to("chip"), index.to("chip"), 48, 40, 64, 8, 32)
    expected = torch.zeros(8, 32)
    expected[index < 40, :16] = source[index[index < 40].long(), 48:]
    assert torch.equal(out.cpu(), expected)


def test_descriptor_scatters_rows_and_leaves_out_what_is_outside() -> None:
    source, index = torch.randn(8, 32), torch.tensor([3, 0, 7, 39, 45, 2, 12, 9], dtype=torch.int32)
    out = torch.zeros(40, 64, device="chip")
    scatter[(1,)](out, source.to("chip"), index.to("chip"), 48, 40, 64, 8, 32)
    expected = torch.zeros(40, 64)
    expected[index[index < 40].long(), 48:] = source[index < 40, :16]
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_descriptor_reduces_blocks_that_overlap(dtype: torch.dtype) -> None:
    source, largest = (torch.randn(16, 32) * 10).to(dtype), dtype == torch.int32
    out, expected = torch.zeros(40, 32, dtype=dtype, device="chip"), torch.zeros(40, 32, dtype=dtype)
    reduce[(3,)](out, source.to("chip"), 40, 32, largest)
    for first in (0, 8, 16):
        block = expected[first : first + 16]
        block.copy_(torch.maximum(block, source) if largest else block + source)
    torch.testing.assert_close(out.cpu(), expected)


@triton.jit
def scaled(
    a, a_scale, b, b_scale, c, K: tl.constexpr, A: tl.constexpr, B: tl.constexpr, KA: tl.constexpr, KB: tl.constexpr,
    BOTH: tl.constexpr,
):  # fmt: skip
    i, group = tl.arange(0, 32), tl.arange(0, K // 32)
    x = tl.load(a + i[:, None] * KA + tl.arange(0, KA)[None, :])
    y = tl.load(b + tl.arange(0, KB)[:, None] * 32 + i[None, :])
    x_scale = tl.load(a_scale + i[:, None] * (K // 32) + group[None, :])
    y_scale = tl.load(b_scale + i[:, None] * (K // 32) + group[None, :]) if BOTH else None
    tl.store(c + i[:, None] * 32 + i[None, :], tl.dot_scaled(x, x_scale, A, y, y_scale, B))


DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "bf16": torch.bfloat16, "fp16": torch.float16}


def operand(form: str, shape: tuple[int, int], axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes, and the numbers that they stand for (OCP Microscaling Formats 1.0, 5.3.3)."""
    if form != "e2m1":
        made = torch.randn(shape).to(DTYPES[form])
        return made, made.double()
    bits = torch.randint(0, 16, shape)
    exponent, mantissa = bits >> 1 & 3, (bits & 1).double()
    value = torch.where(exponent > 0, 2.0 ** (exponent - 1) * (1 + mantissa / 2), mantissa / 2)
    low, high = (bits.index_select(axis, torch.arange(start, shape[axis], 2)) for start in (0, 1))
    return (low | high << 4).to(torch.uint8), torch.where(bits > 7, -value, value)


@pytest.mark.parametrize(
    "forms", [("e4m3", "e4m3"), ("e5m2", "e2m1"), ("e2m1", "e2m1"), ("e2m1", "bf16"), ("fp16", "e4m3")]
)
@pytest.mark.parametrize("both", [True, False])
def test_product_with_scales(forms: tuple[str, str], both: bool) -> None:
    torch.manual_seed(0)
    (a, x), (b, y) = operand(forms[0], (32, 64), 1), operand(forms[1], (64, 32), 0)
    a_scale, b_scale = (torch.randint(120, 135, (32, 2), dtype=torch.uint8) for _ in range(2))
    c = torch.zeros(32, 32, device="chip")
    with bringup.record() as trace:
        scaled[(1,)](
            *(t.to("chip") for t in (a, a_scale, b, b_scale)), c, 64, *forms, a.shape[1], b.shape[0], both
        )  # fmt: skip
    x = x * (2.0 ** (a_scale.double() - 127)).repeat_interleave(32, 1)
    y = y * (2.0 ** (b_scale.double() - 127)).repeat_interleave(32, 1).T if both else y
    torch.testing.assert_close(c.cpu().double(), x @ y, rtol=1e-5, atol=1e-5 * float((x @ y).abs().max()))
    (launch,) = (item for item in trace.signatures if item.op == "triton::scaled")
    assert [product[:3] for product in launch.args["counters"]["products"]] == [[32, 32, 64]]


def test_scale_of_255_is_nan() -> None:
    a, scale = torch.ones(32, 64).to(torch.float8_e4m3fn), torch.full((32, 2), 127, dtype=torch.uint8)
    wrong = scale.clone()
    wrong[3, 1] = 255
    c = torch.zeros(32, 32, device="chip")
    b = torch.ones(64, 32).to(torch.float8_e4m3fn)
    scaled[(1,)](*(t.to("chip") for t in (a, wrong, b, scale)), c, 64, "e4m3", "e4m3", 64, 64, True)
    assert c.cpu()[3].isnan().all() and (c.cpu()[:3] == 64).all()
