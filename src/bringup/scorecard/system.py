"""F to J. The system, operation, access, several devices, production."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

import bringup
from bringup import core, core_build
from bringup.errors import BringupError, VersionError
from bringup.scorecard import framework
from bringup.scorecard.matrix import support
from bringup.scorecard.registry import NotApplicable, item, needs_accelerator, needs_chip, require
from bringup.scorecard.tools import recording


@item("F1", "T", "step time with an error band", hint="validate prices against published measurements")
def step_time(device: torch.device) -> str:
    """A step's time has its parts, which add up, and says how far it may be off."""
    found = recording(device)
    parts = sum(found.parts().values())
    require(
        found.step_seconds > 0 and abs(parts - found.step_seconds) < 1e-3 * found.step_seconds,
        "the parts do not add up",
    )
    require(found.error_source, "nothing is said of the error")
    band = "" if found.error_band is None else f"+- {found.error_band:.0%}, "
    return f"{found.step_seconds * 1e6:.0f} us ({band}{found.error_source})"


@item("F4", "T", "sensitivity to the host", hint="replay with another host")
def host_sensitivity(device: torch.device) -> str:
    """A host that is twice as fast makes a host-bound step faster, and the report says by how much."""
    found = recording(device)
    faster = [item.step_seconds for item in found.what_if if item.key == "host"]
    require(faster and faster[0] < found.step_seconds, "a faster host does not help a host-bound program")
    return f"{found.step_seconds / faster[0]:.2f}x with a host twice as fast"


@item("F5", "T", "sensitivity to the link", hint="replay with another link")
def link_sensitivity(device: torch.device) -> str:
    """A link that is twice as fast makes a program of copies faster."""
    needs_chip(device)
    with bringup.record() as trace:
        for _ in range(4):
            torch.ones(1 << 20).pin_memory().to(device, non_blocking=True)
            torch.accelerator.synchronize()
    found = bringup.price(trace, "t4")
    faster = next(item for item in found.what_if if item.key == "link")
    require(faster.step_seconds < 0.9 * found.step_seconds, "a faster link does not help a program of copies")
    return f"{found.step_seconds / faster.step_seconds:.2f}x with a link twice as fast"


@item("F7", "P", "energy and cost of a step", hint="give power and price in the chip file")
def energy(device: torch.device) -> str:
    """A step has joules and, where the chip has a price, dollars."""
    found = bringup.price(recording(device).trace, "h100-sxm")
    require(found.energy_joules and found.cost_usd, "energy or cost is unknown although the chip file has both")
    return f"{found.energy_joules:.3g} J, {found.cost_usd:.3g} USD per step on h100-sxm"


@item("G2", "T", "strict mode", hint="refuse what the chip file does not list")
def strict(device: torch.device) -> str:
    """In strict mode an operator that the chip does not have raises and is named; without it, it runs."""
    needs_chip(device, "the device has no list of operators that bringup can read")
    program = "import torch; print(torch.zeros(2, dtype=torch.float64, device='chip').cos().sum().item())"
    said = {}
    for flag in ("0", "1"):
        environment = {**os.environ, "BRINGUP_CHIP": "tpu-v5e", "BRINGUP_STRICT": flag}
        said[flag] = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    require(said["0"].stdout.strip() == "2.0", "without strict mode the operator does not run")
    require(said["1"].returncode != 0 and "would run on the host" in said["1"].stderr, "strict mode lets it pass")
    return "a float64 operator on tpu-v5e is refused in strict mode and runs otherwise"


@item(
    "G4", "P", "versions are checked at import", hint="compare the torch that built the package with the one that runs"
)
def versions(device: torch.device) -> str:
    """The package says in one sentence that this torch is too old for it, instead of crashing."""
    needs_chip(device, "only bringup's own package can be asked")
    from unittest import mock

    refused = False
    with mock.patch.object(torch, "__version__", "1.0.0"):
        try:
            core.torch_here()
        except VersionError:
            refused = True
    require(refused, "a torch version that is too old is not noticed")
    return f"torch older than {core_build.TORCH_RANGE} is refused; for another one the core is built"


@item("H2", "D", "works without hardware, and says so", hint="offer an emulator under the same device")
def without_hardware(device: torch.device) -> str:
    """The device computes on this machine, which has none, and its name says what it is."""
    needs_chip(device, "the device is hardware of its own")
    name = torch.chip.get_device_name()  # type: ignore[attr-defined]
    require(torch.ops.bringup.driver_name() and name, "the device does not say what it is")
    require((torch.ones(2, device=device) + 1).tolist() == [2, 2], "it does not compute")
    return f"driver {torch.ops.bringup.driver_name()}: {name}"


@item("H4", "T", "needs no privileges", hint="use no device files, no kernel module")
def unprivileged(device: torch.device) -> str:
    """A process without root's rights uses the device."""
    if os.getuid() != 0:
        torch.ones(2, device=device)
        return f"runs as user {os.getuid()}"
    program = f"import os; os.setuid(65534); import torch; print(torch.ones(2, device={device.type!r}).sum().item())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    if "PermissionError" in done.stderr or "ModuleNotFoundError" in done.stderr:
        raise NotApplicable("this Python is not readable without root's rights")
    require(done.stdout.strip() == "2.0", (done.stderr.strip().splitlines() or ["it printed nothing"])[-1])
    return "runs as nobody"


@item("I1", "T", "two devices", hint="isolate devices, and copy between them without the program's help")
def two(device: torch.device) -> str:
    """Two devices compute apart, copies between them are right, and mixing them is refused."""
    needs_accelerator(device, "second device")
    if torch.accelerator.device_count() < 2:
        raise NotApplicable("there is one device (BRINGUP_DEVICES=2 gives two)")
    first, second = torch.device(device.type, 0), torch.device(device.type, 1)
    x = torch.arange(1000, device=first)
    y = x.to(second)
    require(torch.equal(y.cpu(), x.cpu()), "a copy between devices changes values")
    try:
        x + y
    except RuntimeError:
        return "copies are right, mixing is refused"
    require(False, "tensors of two devices are added")
    return ""


@item("J3", "P", "processes are isolated", hint="share nothing between processes by default")
def processes(device: torch.device) -> str:
    """Two processes use the device at the same time, and one that is killed leaves the other right."""
    program = (
        "import os, signal, sys, torch\n"
        f"x = torch.full((1 << 20,), float(sys.argv[1]), device={device.type!r})\n"
        "for _ in range(50): x = x * 2 / 2\n"
        "if sys.argv[1] == '2': os.kill(os.getpid(), signal.SIGKILL)\n"
        "print(x[0].item())\n"
    )
    started: list[Any] = [
        subprocess.Popen([sys.executable, "-c", program, str(number)], stdout=subprocess.PIPE, text=True)
        for number in (1, 2, 3)
    ]
    said = [process.communicate()[0].strip() for process in started]
    require(said == ["1.0", "", "3.0"], f"three processes, one killed, say {said}")
    return "two processes are right beside one that was killed"


@item("J6", "P", "the licence is declared", hint="name the licence in the package's metadata, and ship its text")
def licence(device: torch.device) -> str:
    """The package that brings the device names its licence."""
    package = "bringup" if device.type == "chip" else "torch"
    metadata: Any = importlib.metadata.metadata(package)
    found = metadata.get("License-Expression") or metadata.get("License")
    require(found, f"{package} names no licence")
    return f"{package}: {found}"


@item("G1", "D", "the support matrix is generated", hint="see the matrix in the scorecard: operator by dtype")
def matrix(device: torch.device) -> str:
    """Operators by dtype are tried, and each is native, on the host, or failing."""
    found = support(device, (torch.float32, torch.int64), every=40)
    counts = {word: sum(row.count(word) for row in (list(of.values()) for of in found.values())) for word in WORDS}
    require(sum(counts.values()) > 20 and counts["native"], f"nothing is native: {counts}")
    return ", ".join(f"{count} {word}" for word, count in counts.items())


WORDS = ("native", "fallback", "fails")


@contextmanager
def _group_of_one() -> Iterator[None]:
    """A process group of this process alone."""
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _one_process(device: torch.device, wrap: Any) -> float:
    """Train a wrapped module in a process group of one."""
    with _group_of_one():
        torch.manual_seed(0)
        model = wrap(torch.nn.Linear(8, 4).to(device))
        loss = model(torch.ones(2, 8, device=device)).square().sum()
        loss.backward()
        return float(loss.item())


@item("I2", "T", "DistributedDataParallel", hint="register a c10d backend for the device")
def ddp(device: torch.device) -> str:
    """A module in ``DistributedDataParallel`` has its forward and backward pass in a group of one process."""
    found = _one_process(device, torch.nn.parallel.DistributedDataParallel)
    return f"loss {found:.4f} in a group of one process"


@item("I3", "P", "FSDP2", hint="register a c10d backend for the device, with all-gather and reduce-scatter")
def fsdp(device: torch.device) -> str:
    """A module in ``fully_shard`` has its forward and backward pass in a group of one process."""

    def wrap(module: torch.nn.Module) -> Any:
        from torch.distributed.fsdp import fully_shard

        mesh = torch.distributed.device_mesh.init_device_mesh(device.type, (1,))
        return fully_shard(module, mesh=mesh)

    return f"loss {_one_process(device, wrap):.4f} in a group of one process"


@item("J4", "P", "no leak in a soak", hint="look at what grows: the process, or the device's allocator")
def soak(device: torch.device) -> str:
    """Ten seconds of training with changing batch sizes leave the device's memory as it was, and the process too."""
    import resource
    import time

    def held() -> int:
        return torch.accelerator.memory.memory_allocated(device) if device.type != "cpu" else 0

    framework.train(device)
    before, resident = held(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < 10:
        framework.train(device, steps=1 + rounds % 5)
        rounds += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) / 1024
    require(held() == before, f"{held() - before} bytes of device memory are left after {rounds} trainings")
    require(grown < 64, f"the process grew by {grown:.0f} MiB in {rounds} trainings")
    return f"{rounds} trainings leave nothing; the process grew by {grown:.0f} MiB"


@item("J5", "P", "errors are documented", hint="one type per kind of mistake, with a docstring")
def errors(device: torch.device) -> str:
    """Every error that the package raises for a user's mistake has a type of its own and a docstring."""
    needs_chip(device, "only bringup's own package can be asked")
    if sys.flags.optimize >= 2:
        raise NotApplicable("python -OO leaves docstrings out")
    kinds = [value for name in bringup.__all__ if isinstance(value := getattr(bringup, name), type)]
    own = [kind for kind in kinds if issubclass(kind, BringupError)]
    bare = [kind.__name__ for kind in own if not kind.__doc__]
    require(len(own) > 3 and not bare, f"without documentation: {', '.join(bare) or 'all'}")
    return f"{len(own)} documented types"


@item("I4", "P", "collectives in the timeline", hint="record collectives as launches, priced by the interconnect")
def collectives(device: torch.device) -> str:
    """An all-reduce is a row of the recording, with bytes and seconds."""
    needs_chip(device)
    with _group_of_one(), bringup.record() as trace:
        dist.all_reduce(torch.ones(1 << 20, device=device))
    ops = [data["op"] for data in trace.signature_data]
    require(any("reduce" in op for op in ops), f"an all-reduce leaves no row, only {', '.join(ops)}")
    return "an all-reduce is in the recording"


@item("G3", "P", "health and utilisation", hint="offer utilization() in the device's module, as torch.cuda does")
def health(device: torch.device) -> str:
    """The device tells its free memory and how busy it is."""
    needs_accelerator(device, "health of its own")
    free, total = torch.accelerator.memory.get_memory_info(device)
    require(0 < free <= total, f"{free} of {total} bytes are free")
    busy = getattr(torch.get_device_module(device), "utilization", None)
    require(busy is not None, "free memory is told, how busy the device is is not")
    assert busy is not None
    return f"{free >> 20} MiB are free, {busy()} % busy"
