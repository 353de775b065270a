"""Choosing a chip: files, names, mistakes, and what installing bringup changes."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import bringup
from tests.conftest import ROOT

EDGE8 = (ROOT / "src" / "bringup" / "machine" / "chips" / "edge8.toml").read_text(encoding="utf-8")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_device_is_there_after_import_torch(python: Run) -> None:
    done = python(
        """
import torch
print(torch.accelerator.current_accelerator(), torch.accelerator.is_available(), torch.chip.is_available())
print(torch.chip.is_initialized(), torch.chip.device_count())
print(torch.ones(2).to("chip").device, torch.chip.get_device_name())
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "chip True True",
        "False 1",
        "chip:0 edge8 (invented 8 GiB inference and training chip)",
    ]


@pytest.mark.parametrize("name", bringup.available_chips())
def test_shipped_chip_loads(name: str) -> None:
    chip = bringup.load_chip(name)
    assert chip.name == name
    assert chip.invented or len(chip.sources) > 10


def test_every_promised_chip_ships() -> None:
    promised = """
        t4 v100-sxm v100-pcie a100-sxm-40 a100-sxm-80 a100-pcie-40 a100-pcie-80 h100-sxm h100-pcie h200-sxm b200-sxm
        l4 l40s rtx-3090 rtx-4090 jetson-orin mi100 mi210 mi250 mi300x max-1550 gaudi2 gaudi3 tpu-v3 tpu-v4 tpu-v5e
        tpu-v5p tpu-v6e gc200 bow grayskull-e150 wormhole-n150 wormhole-n300 blackhole-p150 inferentia2 trainium1
        cloud-ai-100 hailo-8 edge-tpu rngd warboy
    """
    assert set(promised.split()) <= set(bringup.available_chips())


@pytest.mark.parametrize("name", bringup.available_hosts())
def test_shipped_host_loads(name: str) -> None:
    assert bringup.load_host(name).sources


def test_environment_chooses_chip_and_devices(python: Run) -> None:
    program = """
import torch
properties = torch.chip.get_device_properties(1)
print(torch.chip.device_count(), properties.total_memory >> 30, torch.chip.get_device_name())
"""
    done = python(program, BRINGUP_CHIP="a100-sxm-80", BRINGUP_DEVICES="2")
    assert done.stdout.startswith("2 80 a100-sxm-80 ("), done.stderr


def test_use_chooses_chip_and_devices(python: Run) -> None:
    done = python(
        """
import torch, bringup
bringup.use("a100-sxm-80", devices=2)
print(torch.chip.device_count(), torch.ones(1, device="chip:1").device, torch.chip.mem_get_info()[1] >> 30)
"""
    )
    assert done.stdout.split() == ["2", "chip:1", "80"], done.stderr


def test_chip_file_by_path(python: Run, tmp_path: Path) -> None:
    text = EDGE8.replace("device_gib = 8", "device_gib = 0.5").replace(
        "invented 8 GiB inference and training chip", "mine"
    )
    (tmp_path / "mine.toml").write_text(text)
    done = python(
        "import torch\nprint(torch.chip.mem_get_info()[1], torch.chip.get_device_name())", BRINGUP_CHIP="./mine.toml"
    )
    assert done.stdout.strip() == f"{1 << 29} mine (mine)", done.stderr


def test_unknown_chip_suggests_the_nearest_names() -> None:
    with pytest.raises(bringup.UnknownChipError, match="no chip is named 'a100-smx-80': did you mean a100-sxm-80"):
        bringup.load_chip("a100-smx-80")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[memory]", "[memory", "is not valid TOML"),
        ("[memory]\ndevice_gib = 8\n", "[memory]\n", "memory.device_gib: Field required"),
        ("device_gib = 8", "device_gib = -1", "memory.device_gib: Input should be greater than 0, got -1"),
        ("device_gib = 8", 'device_gib = "many"', "memory.device_gib: Input should be a valid number"),
        ("invented = true\n", "", "compute.cores has no source: add it under [sources], or say invented = true"),
        ("invented = true\n", "invented = true\nclock = 3\n", "clock: Extra inputs are not permitted, got 3"),
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


def test_bad_choice_in_the_environment_is_told_at_first_use(python: Run) -> None:
    done = python('import torch\nprint("imported")\ntorch.ones(2, device="chip")', BRINGUP_CHIP="t5")
    assert done.stdout == "imported\n"
    assert "no chip is named 't5'" in done.stderr.splitlines()[-1]
    done = python('import torch\ntorch.ones(2, device="chip")', BRINGUP_DEVICES="many")
    assert "BRINGUP_DEVICES must be a whole number from 1 to 64, got 'many'" in done.stderr.splitlines()[-1]


def test_chip_chosen_after_first_use_is_refused() -> None:
    torch.ones(1, device="chip")
    with pytest.raises(bringup.ChipInUseError, match="edge8 is already in use; choose the chip before"):
        bringup.use("a100-sxm-80")


def test_devices_out_of_range_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"chip:7 does not exist: this process has 2 chips \(chip:0 to chip:1\)"):
        torch.empty(1, device="chip:7")
    with pytest.raises(bringup.BringupError, match="chip:7 does not exist"):
        torch.chip.synchronize(7)
    with pytest.raises(RuntimeError, match="chip:7 does not exist"):
        torch.chip.set_device(7)


def test_other_torch_warns_and_leaves_programs_alone(python: Run) -> None:
    program = """
import importlib.metadata, sys, types, warnings
build = types.ModuleType("bringup._build"); build.TORCH = "2.12.1"
sys.modules["bringup._build"] = build
import torch
print(torch.ones(2).sum().item())
import bringup
try:
    bringup.use("edge8")
except bringup.VersionError as error:
    print(error)
"""
    done = python(program)
    assert done.stdout.splitlines()[0] == "2.0", done.stderr
    assert "bringup was built for torch 2.12.1 and this is torch" in done.stdout
    assert "UserWarning: bringup was built for torch 2.12.1" in done.stderr


def test_another_out_of_tree_device_is_left_alone(python: Run) -> None:
    program = """
import torch
torch.utils.rename_privateuse1_backend("npu")
from bringup.device import load
load.autoload()
print(torch.ones(2).sum().item(), torch._C._get_privateuse1_backend_name())
"""
    done = python(program, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.stdout.split() == ["2.0", "npu"], done.stderr
    assert "another package has registered the device 'npu'" in done.stderr


def test_core_that_does_not_load_warns(python: Run) -> None:
    program = """
from pathlib import Path
import torch
from bringup import core
from bringup.device import load
core._library = lambda: Path(__file__)
load.autoload()
print(torch.ones(2).sum().item())
"""
    done = python(program, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.stdout.split() == ["2.0"], done.stderr
    assert "bringup's core does not load" in done.stderr


def test_real_accelerator_stays_current_until_a_chip_is_asked_for(python: Run) -> None:
    program = """
import sys
import torch  # TORCH_DEVICE_BACKEND_AUTOLOAD=0: load by hand, after pretending to have a GPU
real = torch.accelerator.current_accelerator
torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
from bringup.device import load
load.autoload()
torch.accelerator.current_accelerator = real
print(torch.accelerator.current_accelerator())
if sys.argv[1:] or True:
    import bringup
    bringup.use("edge8")
    print(torch.accelerator.current_accelerator())
"""
    done = python(program, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.stdout.split() == ["None", "chip"], done.stderr
    done = python(
        program.replace("if sys.argv[1:] or True", "if False"), TORCH_DEVICE_BACKEND_AUTOLOAD="0", BRINGUP_CHIP="edge8"
    )
    assert done.stdout.split() == ["chip"], done.stderr


def test_import_torch_loads_neither_pydantic_nor_the_device(python: Run) -> None:
    done = python('import torch, sys\nprint("pydantic" in sys.modules, torch.chip.is_initialized())')
    assert done.stdout.split() == ["False", "False"], done.stderr


@pytest.mark.parametrize("room", ["compile", "compile.hook", "triton", "timeline.clock", "device.load"])
def test_any_room_may_be_imported_before_torch(python: Run, room: str) -> None:
    done = python(f"import bringup.{room}\nimport torch\nprint((torch.ones(2, device='chip') + 1).tolist())")
    assert done.stdout == "[2.0, 2.0]\n", done.stderr
