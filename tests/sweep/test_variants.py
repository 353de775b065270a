"""Chips with other numbers."""

import pytest

from bringup import BringupError, load_chip
from bringup.sweep.variants import check, fields, numbers_of, variant


def test_variant_differs_in_its_numbers_and_is_invented() -> None:
    chip = load_chip("h100-sxm")
    other = variant(chip, {"memory.bandwidth_gb_s": 1000.0, "matrix.tflops.bfloat16": 500.0})
    assert other.memory.bandwidth_gb_s == 1000 and other.matrix.tflops["bfloat16"] == 500 and other.invented
    assert other.matrix.tflops["float16"] == chip.matrix.tflops["float16"]
    assert chip.memory.bandwidth_gb_s != 1000, "the chip itself is as before"
    assert variant(chip, {}) is chip


def test_capacity_is_the_usable_one() -> None:
    chip = load_chip("h100-sxm")
    assert chip.memory.usable_gib is not None
    assert variant(chip, {"memory.device_gib": 16.0}).device_bytes == 16 * 2**30


def test_every_number_of_a_shipped_chip_is_a_field() -> None:
    names = dict(fields())
    numbers = numbers_of(load_chip("h100-sxm"))
    assert {"memory.bandwidth_gb_s", "compute.cores", "matrix.tflops.bfloat16", "link.latency_us"} <= set(numbers)
    assert all(name in names or name.rpartition(".")[0] + ".*" in names for name in numbers)
    assert names["compute.cores"] and not names["memory.bandwidth_gb_s"]


def test_whole_numbers_stay_whole() -> None:
    values = check(load_chip("t4"), {"compute.cores": (8.0, 16), "memory.bandwidth_gb_s": (8, 16)})
    assert values == {"compute.cores": (8, 16), "memory.bandwidth_gb_s": (8.0, 16.0)}
    assert [type(value) for value in (*values["compute.cores"], *values["memory.bandwidth_gb_s"])] == [int] * 2 + [
        float
    ] * 2


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("memory.bandwith_gb_s", 1, "is not a number of a chip file: did you mean memory.bandwidth_gb_s?"),
        ("matrix.tflop.float32", 1, "did you mean matrix.tflops.float32?"),
        ("qqq", 1, "docs/chip.md lists the fields"),
        ("link.lanes", 8, "no prediction depends on this field"),
        ("compute.cores", 1.5, "compute.cores has 1.5, but the field has whole numbers"),
        ("memory.bandwidth_gb_s", -1, "chip edge8 with memory.bandwidth_gb_s = -1: memory.bandwidth_gb_s: Input"),
        ("interconnect.gb_s", 100, "chip edge8 has no [interconnect]"),
        ("matrix.tflops.bfloat17", 1, "which is not a torch dtype"),
    ],
)
def test_mistake_is_one_sentence(name: str, value: float, sentence: str) -> None:
    with pytest.raises(BringupError) as error:
        check(load_chip("edge8"), {name: (value,)})
    assert sentence in str(error.value) and "\n" not in str(error.value)
