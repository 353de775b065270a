"""Choosing a chip, and what installing bringup changes."""

import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

import bringup
from tests.conftest import slow
from tests.machine.test_files import EDGE8

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_programs_import_compilers_only_to_compile(python: Run) -> None:
    done = python(
        """
import sys
import torch
print(torch.ones(2, 3, device="chip").softmax(1).std())
layer = torch.nn.TransformerEncoderLayer(8, 2, 8).to("chip")
layer(torch.ones(2, 3, 8, device="chip")).sum().backward()
print("torch._dynamo" in sys.modules, "triton" in sys.modules)
x = torch.arange(3.0, device="chip")
print(torch.compile(lambda x: torch.isfinite(x / 0) & (x.exp() > 1))(x).tolist())
from bringup.device.meta_kernels import _hidden
print(any(vars(kernel).get("__dynamo_disable") is kernel for kernel in _hidden()))
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["False False", "[False, False, False]", "False"]


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


def test_environment_chooses_chip_and_devices(python: Run) -> None:
    program = """
import torch
properties = torch.chip.get_device_properties(1)
print(torch.chip.device_count(), round(properties.total_memory / 2**30, 2), torch.chip.get_device_name())
"""
    done = python(program, BRINGUP_CHIP="a100-sxm-80", BRINGUP_DEVICES="2")
    assert done.stdout.startswith("2 79.15 a100-sxm-80 ("), done.stderr


def test_use_chooses_chip_and_devices(python: Run) -> None:
    done = python(
        """
import torch, bringup
bringup.use("a100-sxm-80", devices=2)
print(torch.chip.device_count(), torch.ones(1, device="chip:1").device, torch.chip.mem_get_info()[1] >> 30)
"""
    )
    assert done.stdout.split() == ["2", "chip:1", "79"], done.stderr


def test_chip_file_by_path(python: Run, tmp_path: Path) -> None:
    text = EDGE8.replace("device_gib = 8", "device_gib = 0.5").replace(
        "invented 8 GiB inference and training chip", "mine"
    )
    (tmp_path / "mine.toml").write_text(text)
    done = python(
        "import torch\nprint(torch.chip.mem_get_info()[1], torch.chip.get_device_name())", BRINGUP_CHIP="./mine.toml"
    )
    assert done.stdout.strip() == f"{1 << 29} mine (mine)", done.stderr


def test_bad_choice_in_the_environment_is_told_at_first_use(python: Run) -> None:
    done = python('import torch\nprint("imported")\ntorch.ones(2, device="chip")', BRINGUP_CHIP="t5")
    assert done.stdout == "imported\n"
    assert "no chip is named 't5'" in done.stderr.splitlines()[-1]
    done = python('import torch\ntorch.ones(2, device="chip")', BRINGUP_DEVICES="many")
    assert "BRINGUP_DEVICES must be a whole number from 1 to 64, got 'many'" in done.stderr.splitlines()[-1]


CHANGED = """
import bringup, torch
bringup.use("t4")
values = torch.ones(1 << 20, device="chip")
try:
    bringup.use("a100-sxm-80")
except bringup.ChipInUseError as error:
    print(error)
print((values @ values).item())
del values
bringup.use("a100-sxm-80")
print(torch.chip.get_device_name(), torch.chip.mem_get_info()[1] >> 30)
torch.chip.reset_peak_memory_stats()
large = torch.empty(20 << 30, dtype=torch.uint8, device="chip")
print(torch.chip.max_memory_allocated() >> 30)
del large
bringup.use("t4")
try:
    torch.empty(20 << 30, dtype=torch.uint8, device="chip")
except torch.OutOfMemoryError as error:
    print("chip:0 (t4) is out of memory" in str(error))
with bringup.record() as trace:
    torch.ones(4, device="chip") + 1
    try:
        bringup.use("l4")
    except bringup.ChipInUseError as error:
        print(error)
for options in ({"devices": 2}, {"check": True}, {"past_capacity": True}):
    try:
        bringup.use("l4", **options)
    except bringup.ChipInUseError as error:
        print(error)
print(torch.chip.get_device_name(), trace.about["chip"])
"""


def test_chip_changes_only_while_nothing_is_on_it(python: Run) -> None:
    done = python(CHANGED)
    assert done.returncode == 0, done.stderr
    alive, product, name, held, full, recording, *others, last = done.stdout.splitlines()
    assert "change from t4 to a100-sxm-80: 1 tensor of t4 still alive (4.00 MiB float32[1048576] by aten::" in alive
    assert "program.py:4" in alive and "delete it, or choose the chip at the top" in alive
    assert (product, name, held, full) == ("1048576.0", "a100-sxm-80 (NVIDIA A100 SXM4, 80 GB HBM2e) 79", "20", "True")
    assert "during a recording" in recording
    assert len(others) == 3 and all("is already open in this process, with other devices" in text for text in others)
    assert last == "t4 (NVIDIA T4, 16 GB GDDR6) t4"


def test_devices_out_of_range_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"chip:7 does not exist: this process has 2 chips \(chip:0 to chip:1\)"):
        torch.empty(1, device="chip:7")
    with pytest.raises(bringup.BringupError, match="chip:7 does not exist"):
        torch.chip.synchronize(7)
    with pytest.raises(RuntimeError, match="chip:7 does not exist"):
        torch.chip.set_device(7)


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
core.core_path = lambda: Path(__file__)
load.autoload()
print(torch.ones(2).sum().item())
"""
    done = python(program, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.stdout.split() == ["2.0"], done.stderr
    assert "program.py does not load" in done.stderr and "delete it, and it is built anew" in done.stderr


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
    done = python(program, TORCH_DEVICE_BACKEND_AUTOLOAD="0", BRINGUP_CHIP="")
    assert done.stdout.split() == ["cuda" if torch.cuda.is_available() else "None", "chip"], done.stderr
    done = python(
        program.replace("if sys.argv[1:] or True", "if False"), TORCH_DEVICE_BACKEND_AUTOLOAD="0", BRINGUP_CHIP="edge8"
    )
    assert done.stdout.split() == ["chip"], done.stderr


def test_import_torch_loads_neither_pydantic_nor_the_device(python: Run) -> None:
    done = python('import torch, sys\nprint("pydantic" in sys.modules, torch.chip.is_initialized())')
    before_3_7 = False
    # Beside a GPU, Triton before 3.7 has to be imported to choose between two drivers.
    with suppress(PackageNotFoundError):
        before_3_7 = tuple(map(int, version("triton").split(".")[:2])) < (3, 7)
    chooses = torch.cuda.is_available() and before_3_7
    assert done.stdout.split() == [str(chooses), "False"], done.stderr


@pytest.mark.parametrize("room", ["compile.hook", *slow("compile", "triton", "timeline.clock", "device.load")])
def test_any_room_may_be_imported_before_torch(python: Run, room: str) -> None:
    done = python(f"import bringup.{room}\nimport torch\nprint((torch.ones(2, device='chip') + 1).tolist())")
    assert done.stdout == "[2.0, 2.0]\n", done.stderr
