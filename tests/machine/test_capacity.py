"""The memory that chips offer to programs, and verdicts about it."""

from __future__ import annotations

import pytest

import bringup
from bringup.analyse.holders import verdict
from bringup.errors import ChipFileError

# Totals in torch's out-of-memory messages, in GiB: the lowest and the highest.
REPORTED = {
    "t4": (14.56, 14.76),
    "rtx-3090": (23.70, 23.70),
    "rtx-4090": (23.64, 23.65),
    "a100-sxm-40": (38.6, 39.6),
    "a100-sxm-80": (79.15, 79.25),
    "v100-sxm": (15.78, 15.78),
    "h200-sxm": (139.80, 139.81),
    "mi300x": (191.98, 191.98),
}


@pytest.mark.parametrize("name", REPORTED)
def test_capacity_is_what_drivers_report(name: str) -> None:
    low, high = REPORTED[name]
    chip = bringup.load_chip(name)
    assert 0.99 * low <= chip.device_bytes / 2**30 <= 1.01 * high
    assert 0 < chip.context_bytes < 2**30
    assert chip.room_bytes == chip.device_bytes - chip.context_bytes


def test_capacity_without_a_report_is_the_whole_memory() -> None:
    chip = bringup.load_chip("edge8")
    assert chip.room_bytes == chip.device_bytes == 8 << 30 and chip.context_bytes == 0


@pytest.mark.parametrize(
    ("memory", "problem"),
    [
        ({"usable_gib": 9.0}, "usable_gib is 9, more than device_gib 8"),
        ({"context_mib": 8192.0}, "context_mib is 8192, which leaves nothing of 8 GiB"),
    ],
)
def test_impossible_capacities_are_refused(memory: dict[str, float], problem: str) -> None:
    chip = bringup.load_chip("edge8")
    data = chip.model_dump()
    data["memory"] = {**data["memory"], **memory}
    with pytest.raises((ChipFileError, ValueError), match=problem):
        type(chip).model_validate(data)


def test_verdict_near_the_room_is_to_try() -> None:
    assert [verdict(need, 1000) for need in (949, 951, 1000, 1049, 1051)] == [
        *("yes", "within 5 %", "within 5 %"),
        *("within 5 %", "no"),
    ]
