"""Which dtypes a chip supports, and at which rates."""

import pytest
import torch

import bringup
from bringup import pricing
from bringup.cost import family_of
from bringup.cost.signature import Signature, Tensor
from bringup.cost.work_table import WorkTable
from bringup.machine.vocabulary import ITEM_BYTES

FLOAT8_CHIPS = [name for name in bringup.available_chips() if "float8_e4m3fn" in bringup.load_chip(name).matrix.tflops]
PEAKS = [
    (name, dtype)
    for name in bringup.available_chips()
    for dtype in bringup.load_chip(name).matrix.tflops
    if dtype in ITEM_BYTES  # tf32 is a mode of float32
]


def product(op: str, side: int, dtype: str, result: str) -> Signature:
    first = Tensor(dtype, (side, side), (side, 1), 0)
    second = Tensor(dtype, (side, side), (1, side), 1)
    outputs = (Tensor(result, (side, side), (side, 1), written=True),)
    return Signature(op, (first, second), outputs, {"self": first, "mat2": second})


def cast(op: str, source: str, target: str) -> Signature:
    data = Tensor(source, (1024, 1024), (1024, 1), 0)
    return Signature(op, (data,), (Tensor(target, (1024, 1024), (1024, 1), written=True),), {"self": data})


def prices(chip: bringup.Chip, *signatures: Signature) -> pricing.Prices:
    return pricing.price_table(WorkTable.from_signatures(signatures), signatures, chip)


@pytest.mark.parametrize(("name", "dtype"), PEAKS)
def test_dtype_with_a_matrix_peak_is_supported_in_products_casts_and_copies(name: str, dtype: str) -> None:
    chip = bringup.load_chip(name)
    wide = "int32" if dtype == "int8" else "float32"
    launches = (
        product("aten::mm", 8192, dtype, wide),
        product("aten::_scaled_mm", 8192, dtype, "bfloat16"),
        cast("aten::_to_copy", "float32", dtype),
        cast("aten::_to_copy", dtype, "float32"),
        cast("aten::copy_", dtype, dtype),
        cast("prims::convert_element_type", dtype, "float32"),
    )
    priced = prices(chip, *launches)
    assert priced.supported.tolist() == [True] * len(launches)
    peak = chip.matrix.tflops[dtype] * 1e12
    assert pricing.matrix_rate(chip, dtype) == peak * pricing.matrix_sustained(chip)
    assert priced.engines[pricing.ENGINES.index("matrix"), 0] > 2 * 8192**3 / peak


@pytest.mark.parametrize("name", FLOAT8_CHIPS)
def test_all_float8_formats_share_one_rate(name: str) -> None:
    chip = bringup.load_chip(name)
    formats = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    priced = prices(chip, *(product("aten::_scaled_mm", 4096, dtype, "bfloat16") for dtype in formats))
    assert priced.supported.all()
    assert len(set(priced.seconds.tolist())) == 1


def test_dtype_without_a_peak_falls_back_and_arithmetic_in_float8_does_too() -> None:
    t4, gaudi = bringup.load_chip("t4"), bringup.load_chip("gaudi2")
    assert prices(t4, product("aten::_scaled_mm", 64, "float8_e4m3fn", "bfloat16")).supported.tolist() == [False]
    assert not gaudi.supports("aten::add.Tensor", "pointwise", "float8_e4m3fn")
    assert not gaudi.supports("aten::mm", "matmul", "float8_e8m0fnu")  # the format of scales


def test_group_of_dtypes_decides_alone() -> None:
    chip = bringup.load_chip("gaudi2")
    ops = chip.ops.model_copy(update={"groups": {"matmul": ["bfloat16"]}})
    chip = chip.model_copy(update={"ops": ops})
    assert not chip.supports("aten::_scaled_mm", "matmul", "float8_e4m3fn")
    assert chip.supports("aten::_scaled_mm", "matmul", "bfloat16")


def test_scaled_product_runs_on_a_chip_with_float8() -> None:
    x = torch.randn(32, 64, device="chip")
    w = torch.randn(16, 64, device="chip")
    one = torch.ones((), device="chip")
    with bringup.record() as trace:
        torch._scaled_mm(x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn).t(), one, one, out_dtype=torch.bfloat16)
    assert bringup.price(trace, chip="h100-sxm").summary.fallbacks == []
    assert [item.op for item in bringup.price(trace, chip="t4").summary.fallbacks] == ["aten::_scaled_mm"]


@pytest.mark.parametrize("name", ["and", "or", "xor", "lshift", "rshift"])
def test_operators_of_bits_in_place_are_pointwise(name: str) -> None:
    assert family_of(f"aten::__{name}__.Scalar") == family_of(f"aten::__i{name}__.Tensor") == "pointwise"
