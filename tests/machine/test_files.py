"""Chip and host files: those that ship, their names, and mistakes."""

import os
from pathlib import Path

import pytest

import bringup
from bringup.machine.schema import Host
from tests.conftest import ROOT

EDGE8 = (ROOT / "src" / "bringup" / "machine" / "chips" / "edge8.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", bringup.available_chips())
def test_shipped_chip_loads(name: str) -> None:
    chip = bringup.load_chip(name)
    assert chip.name == name
    assert chip.invented or len(chip.sources) > 10


def test_every_promised_chip_ships() -> None:
    promised = """
        t4 v100-sxm v100-pcie a100-sxm-40 a100-sxm-80 a100-pcie-40 a100-pcie-80 h100-sxm h100-pcie h200-sxm b200-sxm
        l4 l40s rtx-3090 rtx-4090 rtx-pro-6000 jetson-orin mi100 mi210 mi250 mi300x max-1550 gaudi2 gaudi3 tpu-v3 tpu-v4
        tpu-v5e
        tpu-v5p tpu-v6e gc200 bow grayskull-e150 wormhole-n150 wormhole-n300 blackhole-p150 inferentia2 trainium1
        cloud-ai-100 hailo-8 edge-tpu rngd warboy a10 a10g h20 rtx-5090 rtx-3060 rtx-2080-ti rx-7900-xtx mi325x mi355x
        ascend-910b m2-ultra arc-b580 tpu-v7 trainium2 jetson-orin-nano inferentia1
    """
    assert set(promised.split()) <= set(bringup.available_chips())


@pytest.mark.parametrize("name", bringup.available_hosts())
def test_shipped_host_loads(name: str) -> None:
    assert bringup.load_host(name).sources


def test_unknown_chip_suggests_the_nearest_names() -> None:
    with pytest.raises(bringup.UnknownChipError, match="no chip is named 'a100-smx-80': did you mean a100-sxm-80"):
        bringup.load_chip("a100-smx-80")


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    text = EDGE8.replace("device_gib = 8\n", "").replace('kind = "tile"', 'kind = "systolic"')
    path.write_text(text.replace("[power]", "[powr]"))
    with pytest.raises(bringup.ChipFileError) as caught:
        bringup.load_chip(path)
    told = str(caught.value).removeprefix("bad.toml: ").split("; ")
    assert len(told) == 3 and told[0].startswith("powr is not a key of a chip file")
    assert {item.split(":")[0] for item in told[1:]} == {"memory.device_gib is missing", "matrix"}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[memory]", "[memory", "is not valid TOML"),
        ("[memory]\ndevice_gib = 8\n", "[memory]\n", "memory.device_gib is missing: add it, with its source"),
        ("device_gib = 8", "device_gib = -1", "memory.device_gib: Input should be greater than 0, got -1"),
        ("device_gib = 8", 'device_gib = "many"', "memory.device_gib: Input should be a valid number"),
        ("invented = true\n", "", "compute.cores has no source: add it under [sources], or say invented = true"),
        ("device_gib = 8\n", "device_gb = 8\n", "device_gb is not a key of [memory]: did you mean device_gib?"),
        ("[memory]\n", "[memroy]\n", "memroy is not a key of a chip file: did you mean memory?"),
        ("invented = true\n", "invented = true\nclock = 3\n", "clock is not a key of a chip file: its keys are "),
        ("[power]", '[sources]\n"speed" = "y"\n[power]', "names speed"),
        ("float32 = 4", "float33 = 4", "float33, which is not a torch dtype"),
        ('kind = "tile"', 'kind = "systolic"', "a systolic matrix engine needs rows and columns"),
        ('"complex128"]', '"complex128"]\nhost = ["topk"]', "write an operator, aten::topk"),
        ('"complex128"]', '"complex128"]\n[ops.groups]\nsums = []', "groups names sums: the groups are matmul"),
    ],
)
def test_malformed_chip_file_is_told_in_one_sentence(tmp_path: Path, old: str, new: str, problem: str) -> None:
    path = tmp_path / "bad.toml"
    assert old in EDGE8
    path.write_text(EDGE8.replace(old, new, 1))
    with pytest.raises(bringup.ChipFileError) as caught:
        bringup.load_chip(path)
    assert problem in str(caught.value)
    assert "bad.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "queue_depth = 256",
            "queue_depth = 4294967296",
            "launch.queue_depth: Input should be less than",
        ),
        ("queue_depth = 256", "queue_depth = true", "launch.queue_depth: Input should be a valid integer, got True"),
        ("concurrent_kernels = 4", "concurrent_kernels = 9223372036854775808", "concurrent_kernels: Input should be"),
        ("device_gib = 8", "device_gib = inf", "memory.device_gib: Input should be a finite number, got inf"),
        ("device_gib = 8", "device_gib = nan", "memory.device_gib: Input should be a finite number, got nan"),
        ("device_gib = 8", "device_gib = 1e-300", "memory.device_gib: must be at least 1e-05, got 1e-300"),
        ("clock_ghz = 1.2", "clock_ghz = 1e300", "compute.clock_ghz: Input should be less than or equal to 1000"),
        ("invented = true\n", "invented = true\nx = " + "[" * 3000, "is nested too deeply"),
        ("invented = true\n", "invented = true\n" + "a." * 100_000 + "a = 1", "is nested too deeply"),
        ("invented = true\n", "invented = true\nx = " + "9" * 6000, "is not valid TOML: Exceeds the limit"),
        ("invented = true\n", 'invented = true\nx = "' + "y" * 2**20 + '"', "is larger than 1.00 MiB"),
        (
            "description = ",
            'description = "\\u001b]0;x\\u0007"#',
            r"description: a text may not have the character",
        ),
        ("[power]", '[sources]\n"a\\nb" = "y"\n[power]', r"[sources] names a\nb, which is not a number"),
        ("description = ", 'description = "' + "y" * 900 + '"#', "String should have at most 200 characters, got 'yyy"),
    ],
)
def test_absurd_chip_file_is_told_in_one_sentence(tmp_path: Path, old: str, new: str, problem: str) -> None:
    test_malformed_chip_file_is_told_in_one_sentence(tmp_path, old, new, problem)


def test_chip_file_that_is_none_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    (tmp_path / "good.toml").write_text(EDGE8)
    (tmp_path / "link.toml").symlink_to("good.toml")
    for path, problem in {
        "/dev/zero": "is a device; give the path of a chip file",
        "/dev/stdin": "is an input stream",
        f"{tmp_path}/": "is a directory",
        f"{tmp_path}/pipe.toml": "is a pipe",
        f"{tmp_path}/loop.toml": "cannot be read (Too many levels of symbolic links)",
        f"{tmp_path}/{'x' * 300}.toml": "cannot be read (File name too long)",
    }.items():
        with pytest.raises(bringup.ChipFileError) as caught:
            bringup.load_chip(path)
        assert problem in str(caught.value)
    assert bringup.load_chip(tmp_path / "link.toml").name == "link"


def test_missing_chip_file_is_told() -> None:
    with pytest.raises(bringup.ChipFileError, match=r"^nowhere\.toml: there is no such chip file"):
        bringup.load_chip("./nowhere.toml")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("kernel_us = 5", "kernel_us = -5", "compute.kernel_us: Input should be greater than 0, got -5"),
        ("kernel_us = 5", "kernel_us = nan", "compute.kernel_us: Input should be a finite number, got nan"),
        ("copy_us = 20.0", "copy_us = -1", "dispatch.copy_us: Input should be greater than"),
        ("view_us = 2.0", "view_us = nan", "dispatch.view_us: Input should be a finite number, got nan"),
        ("memory_gb_s = 140.8", "memory_gb_s = 0", "compute.memory_gb_s: Input should be greater than 0, got 0"),
    ],
)
def test_host_file_with_an_impossible_cost_is_told_in_one_sentence(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    text = (ROOT / "src" / "bringup" / "machine" / "hosts" / "xeon-8275cl.toml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "bad.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(bringup.BringupError, match=problem) as caught:
        bringup.load_host(tmp_path / "bad.toml")
    assert "bad.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_host_file_with_an_unknown_family_is_refused() -> None:
    data = bringup.load_host().model_dump()
    data["dispatch"]["families"] = {"matmuls": 3.0}
    with pytest.raises(ValueError, match="matmuls is no operator family"):
        Host.model_validate({**data, "invented": True})
