"""``bringup doctor``: what this installation consists of, what is wrong with it and how to mend it."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from bringup import core_build, core_cache
from bringup.core_build import BuildError, Library, Torch
from bringup.drivers.names import names
from bringup.errors import BringupError
from bringup.machine.files import CHIPS, available_chips, load_chip
from bringup.process import DEFAULT_CHIP, asked_build, asked_chip, asked_compiler, asked_devices, asked_driver
from bringup.text import plain, size

VARIABLES = (
    *("BRINGUP_BUILD", "BRINGUP_CHECK", "BRINGUP_CHIP", "BRINGUP_COMPILE", "BRINGUP_DEVICES", "BRINGUP_DRIVER"),
    *("BRINGUP_LAUNCH_BLOCKING", "BRINGUP_MEASUREMENTS", "BRINGUP_STRICT"),
    *("BRINGUP_CUDA_LIBRARIES", "BRINGUP_CUDA_OPERATORS", "BRINGUP_KERNEL_LIMIT", "BRINGUP_OPENCL_OPERATORS"),
)
PACKAGES = (
    "numpy",
    "triton",
    "onnx",
    "jax",
    "tensorflow",
    "keras",
    "transformers",
    "accelerate",
    "scipy",
    "scikit-learn",
    "pytest",
)
# Runs in a process of its own: what is wrong may be a crash. Prints facts as one line of JSON, the last one.
PROBE = """
import json, sys
import torch
facts = {"cuda": torch.version.cuda, "hip": torch.version.hip, "gpus": []}
facts["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
current = torch.accelerator.current_accelerator()
facts["current"] = current.type if current is not None else None
from bringup.errors import BringupError
from bringup.device.load import register
try:
    register()
except BringupError as error:
    sys.exit(f"bringup: {error}")
total = (torch.arange(4.0, device="chip") + 1).sum().item()
facts["chip"] = torch.chip.get_device_name() if total == 10 else f"1 + 2 + 3 + 4 gave {total}"
facts["right"] = total == 10
print(json.dumps(facts))
"""


@dataclass
class Report:
    """What was examined.

    Attributes:
        facts: by name, in the order in which they are printed.
        problems: sentences that say what is wrong and how to mend it.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one object: facts and problems.")
def command(as_json: bool) -> int:
    """Examine this installation: versions, compiler, core, GPUs, chips and caches; what is wrong, and how to mend it.

    A bug report needs this output. The exit code is 1 if something is wrong.
    """
    report = examine()
    if as_json:
        click.echo(json.dumps({"facts": report.facts, "problems": report.problems}, indent=2))
    else:
        width = max(map(len, report.facts))
        for name, fact in report.facts.items():
            lines = fact if isinstance(fact, list) else [fact]
            for index, line in enumerate(lines or ["none"]):
                click.echo(f"{name if index == 0 else '':{width}}  {plain(str(line))}")
        click.echo()
        for problem in report.problems:
            click.echo(f"problem: {plain(problem)}")
        if not report.problems:
            click.echo("Nothing is wrong.")
    return 1 if report.problems else 0


def examine() -> Report:
    """Examine the installation. The device is tried in a process of its own."""
    report = Report()
    facts = report.facts
    facts["bringup"] = f"{_version('bringup') or 'not installed as a package'}, in {_home(core_build.PACKAGE)}"
    facts["python"] = f"{platform.python_version()} ({platform.python_implementation()}), {_home(Path(sys.executable))}"
    facts["system"] = f"{platform.platform()}, {os.cpu_count()} processors"
    torch = _torch(report)
    _compiler(report)
    has_core = False
    if torch is None:
        facts["core"] = "none: it is built for a torch"
    else:
        has_core = _library(report, "core", core_build.core_library(torch))
    _library(report, "replay", core_build.replay_library())
    if _version("jaxlib"):
        _library(report, "jax", core_build.jax_library())
    if torch is not None and not torch.refusal() and has_core:
        _device(report)
    _chips(report)
    facts["packages"] = [f"{name} {number}" for name in PACKAGES if (number := _version(name))]
    _environment(report)
    facts["cache"] = _cache()
    return report


def _torch(report: Report) -> Torch | None:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        report.facts["torch"] = "none"
        report.problems.append(
            "there is no torch in this environment, so nothing runs on a chip: pip install torch "
            f"({core_build.TORCH_RANGE})"
        )
        return None
    try:
        torch = Torch.at(Path(spec.origin).parent)
    except (BuildError, OSError) as error:
        report.facts["torch"] = f"incomplete, in {_home(Path(spec.origin).parent)}"
        report.problems.append(f"torch is not installed completely ({error}): reinstall it")
        return None
    tested = tuple(map(int, torch.release.split(".")[:2])) if torch.release == torch.version.split("+")[0] else (99,)
    note = "" if tested <= core_build.NEWEST_TESTED else "; newer than any that bringup was tested with"
    report.facts["torch"] = f"{torch.version}, in {_home(torch.home)}{note}"
    if refusal := torch.refusal():
        report.problems.append(refusal)
    return torch


def _compiler(report: Report) -> None:
    try:
        report.facts["compiler"] = core_build.compiler_version(core_build.compiler())
    except BuildError as error:
        report.facts["compiler"] = f"none ({error})"


def _library(report: Report, name: str, library: Library) -> bool:
    """Return True if there is a C++ library, or it may be built."""
    path = core_cache.find(library)
    if path is not None:
        report.facts[name] = f"{_home(path)} ({size(path.stat().st_size)})"
        return True
    report.facts[name] = "not built yet"
    if asked_build() is False:
        report.problems.append(f"{library.title} is not built, and BRINGUP_BUILD=0 forbids building it: unset it")
        return False
    try:
        library.command(core_cache.cache_folder() / library.file)
    except BuildError as error:
        report.problems.append(str(error))
        return False
    return True


def _device(report: Report) -> None:
    # The variables are examined by themselves.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BRINGUP_")}
    environment |= {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "BRINGUP_BUILD": "1"}
    try:
        # Its stderr is ours: the progress of a build belongs on the screen.
        done = subprocess.run(
            [sys.executable, "-c", PROBE], stdout=subprocess.PIPE, text=True, env=environment, timeout=600
        )
    except subprocess.TimeoutExpired:
        report.problems.append("a sum of four numbers on the chip has not ended within 600 s: please report this")
        return
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        report.facts["device"] = "does not work"
        report.problems.append(
            f"a sum of four numbers on the chip ended with exit code {done.returncode}; its messages are above. "
            "If none of them says what to do, please report them with this output"
        )
        return
    facts = json.loads(lines[-1])
    build = f"CUDA {facts['cuda']}" if facts["cuda"] else f"ROCm {facts['hip']}" if facts["hip"] else "CPU"
    report.facts["torch"] += f" ({build} build)"
    report.facts["gpus"] = facts["gpus"]
    report.facts["device"] = f"chip: {facts['chip']}"
    if not facts["right"]:
        report.problems.append(f"the chip computes wrongly: {facts['chip']}; please report this")
    if facts["current"] not in (None, "chip"):
        report.facts["device"] += f"; {facts['current']} stays the default until a program asks for a chip"


def _chips(report: Report) -> None:
    names = available_chips()
    report.facts["chips"] = f"{len(names)} in {_home(CHIPS)}"
    chosen = asked_chip() or DEFAULT_CHIP
    report.facts["chosen chip"] = chosen
    _try(report, lambda: load_chip(chosen))


def _environment(report: Report) -> None:
    mine = sorted(name for name in os.environ if name.startswith("BRINGUP_"))
    report.facts["variables"] = [f"{name}={os.environ[name]}" for name in mine]
    for name in mine:
        if name not in VARIABLES:
            near = difflib.get_close_matches(name, VARIABLES, 1)
            hint = f"did you mean {near[0]}?" if near else "unset it"
            report.problems.append(f"bringup reads no variable {name}: {hint}")
    for parse in (asked_devices, asked_compiler):
        _try(report, parse)
    if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        report.facts["variables"].append("TORCH_DEVICE_BACKEND_AUTOLOAD=0")
        report.problems.append(
            "TORCH_DEVICE_BACKEND_AUTOLOAD=0: `import torch` brings no device 'chip'; unset it, or call bringup.use"
        )
    driver = asked_driver()
    if driver and driver not in names() and not Path(driver).is_file():
        report.problems.append(f"BRINGUP_DRIVER={driver} is no file: give the path of a driver's library")


def _cache() -> str:
    try:
        folder = core_cache.cache_folder()
    except BuildError as error:
        return f"none ({error})"
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    libraries = sum(path.suffix == ".so" for path in files)
    return f"{_home(folder)}: {libraries} compiled, {size(sum(path.stat().st_size for path in files))}"


def _try(report: Report, action: Callable[[], object]) -> None:
    try:
        action()
    except BringupError as error:
        report.problems.append(str(error))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _home(path: Path) -> str:
    """Shorten a path below the user's home: the output is passed on."""
    home = os.path.expanduser("~")
    text = str(path)
    return f"~{text.removeprefix(home)}" if home != "/" and text.startswith(home + os.sep) else text
