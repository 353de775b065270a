"""F to J. System, operation, access, several devices, production."""

from __future__ import annotations

import importlib.metadata
import importlib.util
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
from bringup.placement.break_even import break_even
from bringup.scorecard import framework
from bringup.scorecard.matrix import support
from bringup.scorecard.registry import NotApplicable, item, needs_accelerator, needs_chip, require
from bringup.scorecard.tools import recording


@item("F1", "T", "step time with an error band", hint="validate predictions against published measurements")
def step_time(device: torch.device) -> str:
    """The parts of a step's time add up to it, and it has an error band."""
    prediction = recording(device)
    parts = sum(prediction.parts().values())
    require(
        prediction.step_seconds > 0 and abs(parts - prediction.step_seconds) < 1e-3 * prediction.step_seconds,
        "the parts do not add up",
    )
    require(prediction.error_source, "the error band is missing")
    band = "" if prediction.error_band is None else f"+- {prediction.error_band:.0%}, "
    return f"{prediction.step_seconds * 1e6:.0f} us ({band}{prediction.error_source})"


@item("F2", "T", "break-even size per operator", hint="compare the prices on chip and host by size")
def sizes(device: torch.device) -> str:
    """Every operator of the list has a size from which the chip is faster than the host, with the data there."""
    needs_chip(device)
    rows = break_even(bringup.load_chip("h100-sxm"), bringup.load_host())
    require(rows, "there are no operators")
    for row in rows:
        faster = [size for size, chip, host in zip(row.sizes, row.chip, row.host, strict=True) if chip < host]
        require(row.resident in faster, f"{row.op}: the chip is not faster from {row.resident} elements on")
        require(row.copied is None or row.copied >= (row.resident or 0), f"{row.op}: copies make the chip faster")
    return "on h100-sxm from " + ", ".join(f"{row.resident or 0:,} ({row.op})" for row in rows) + " elements"


@item("F3", "T", "placement plan", hint="plan from a recording, and let the launch ask the plan where it runs")
def placement(device: torch.device) -> str:
    """A plan is made from a recording, compared with chip and host alone, written, edited, read and applied."""
    needs_chip(device)
    if importlib.util.find_spec("scipy") is None:
        raise NotApplicable('placement needs scipy (pip install "bringup[place]")')
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).to(device)
    x = torch.ones(2, 16)

    def recorded() -> tuple[bringup.Trace, torch.Tensor]:
        with torch.no_grad(), bringup.record() as trace:
            for _ in range(3):
                result = model(x.to(device)).cpu()
                bringup.step()
        return trace, result

    trace, expected = recorded()
    plan = bringup.place(trace, "h100-sxm")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "plan.toml")
        plan.save(path)
        with open(path, encoding="utf-8") as file:
            text = file.read()
        edited = text.replace('where = "host"', 'where = "chip"', 1)
        require(edited != text, "nothing of a small program is on the host")
        with open(path, "w", encoding="utf-8") as file:
            file.write(edited)
        loaded = bringup.Plan.load(path)
    differ = sum(one != other for one, other in zip(plan.entries, loaded.entries, strict=True))
    require(differ == 1, f"{differ} entries changed when one was edited")
    with bringup.placed(loaded):
        placed, result = recorded()
    facts = placed.about["placement"]
    require(torch.equal(result, expected), "the placed program has other results")
    require(facts["launches_as_planned"] == placed.launches, f"launches are not where planned: {facts}")
    gains = (1 - plan.proposed_seconds / seconds for seconds in (plan.all_chip_seconds, plan.all_host_seconds))
    chip, host = (f"{gain:.0%}" for gain in gains)
    return f"{chip} less than all on the chip, {host} less than all on the host; edited and applied"


@item("F4", "T", "sensitivity to the host", hint="replay with another host")
def host_sensitivity(device: torch.device) -> str:
    """The report has the time of a host-bound step with a host twice as fast, and it is shorter."""
    prediction = recording(device)
    faster = [item.step_seconds for item in prediction.what_if if item.key == "host"]
    require(faster and faster[0] < prediction.step_seconds, "a faster host does not help a host-bound program")
    return f"{prediction.step_seconds / faster[0]:.2f}x with a host twice as fast"


@item("F5", "T", "sensitivity to the link", hint="replay with another link")
def link_sensitivity(device: torch.device) -> str:
    """A program that mostly copies is faster with a link twice as fast."""
    needs_chip(device)
    with bringup.record() as trace:
        for _ in range(4):
            torch.ones(1 << 20).pin_memory().to(device, non_blocking=True)
            torch.accelerator.synchronize()
    prediction = bringup.price(trace, "t4")
    faster = next(item for item in prediction.what_if if item.key == "link")
    require(
        faster.step_seconds < 0.9 * prediction.step_seconds, "a faster link does not help a program that mostly copies"
    )
    return f"{prediction.step_seconds / faster.step_seconds:.2f}x with a link twice as fast"


@item("F7", "P", "energy and cost of a step", hint="add power and price to the chip file")
def energy(device: torch.device) -> str:
    """The report has the energy of a step and, if the chip has a price, its cost."""
    prediction = bringup.price(recording(device).trace, "h100-sxm")
    require(
        prediction.energy_joules and prediction.cost_usd, "energy or cost is unknown although the chip file has both"
    )
    return f"{prediction.energy_joules:.3g} J, {prediction.cost_usd:.3g} USD per step on h100-sxm"


@item("G2", "T", "strict mode", hint="refuse operators that the chip file does not list")
def strict(device: torch.device) -> str:
    """In strict mode, an operator that the chip does not have raises an error with its name; otherwise it runs."""
    needs_chip(device, "bringup has no list of the device's operators")
    program = "import torch; print(torch.zeros(2, dtype=torch.float64, device='chip').cos().sum().item())"
    runs = {}
    for flag in ("0", "1"):
        environment = {**os.environ, "BRINGUP_CHIP": "tpu-v5e", "BRINGUP_STRICT": flag}
        runs[flag] = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    require(runs["0"].stdout.strip() == "2.0", "without strict mode the operator does not run")
    require(runs["1"].returncode != 0 and "would run on the host" in runs["1"].stderr, "strict mode does not refuse it")
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
    """The device computes on a machine without its hardware, and its name says so."""
    needs_chip(device, "the device is real hardware")
    name = torch.chip.get_device_name()  # type: ignore[attr-defined]
    require(torch.ops.bringup.driver_name() and name, "the driver or the device has no name")
    require((torch.ones(2, device=device) + 1).tolist() == [2, 2], "it does not compute")
    return f"driver {torch.ops.bringup.driver_name()}: {name}"


@item("H4", "T", "needs no privileges", hint="avoid device files and kernel modules")
def unprivileged(device: torch.device) -> str:
    """A process without root privileges can use the device."""
    if os.getuid() != 0:
        torch.ones(2, device=device)
        return f"runs as user {os.getuid()}"
    program = f"import os; os.setuid(65534); import torch; print(torch.ones(2, device={device.type!r}).sum().item())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    if "PermissionError" in done.stderr or "ModuleNotFoundError" in done.stderr:
        raise NotApplicable("this Python is not readable without root privileges")
    require(done.stdout.strip() == "2.0", (done.stderr.strip().splitlines() or ["it printed nothing"])[-1])
    return "runs as user nobody"


@item("I1", "T", "two devices", hint="isolate devices, and support copies between them")
def two(device: torch.device) -> str:
    """Two devices compute separately, copies between them are right, and mixing their tensors is refused."""
    needs_accelerator(device, "second device")
    if torch.accelerator.device_count() < 2:
        raise NotApplicable("there is one device (set BRINGUP_DEVICES=2 for two)")
    first, second = torch.device(device.type, 0), torch.device(device.type, 1)
    x = torch.arange(1000, device=first)
    y = x.to(second)
    require(torch.equal(y.cpu(), x.cpu()), "a copy between devices changes values")
    try:
        x + y
    except RuntimeError:
        return "copies are right, mixing tensors is refused"
    require(False, "adding tensors of two devices is not refused")
    return ""


@item("J3", "P", "processes are isolated", hint="share nothing between processes by default")
def processes(device: torch.device) -> str:
    """Processes use the device at the same time, and killing one does not affect the others."""
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
    outputs = [process.communicate()[0].strip() for process in started]
    require(outputs == ["1.0", "", "3.0"], f"three processes, of which one is killed, print {outputs}")
    return "two processes have right results beside a killed one"


@item("J6", "P", "the licence is declared", hint="name the licence in the metadata of the package, and ship its text")
def licence(device: torch.device) -> str:
    """The package of the device names its licence."""
    package = "bringup" if device.type == "chip" else "torch"
    metadata: Any = importlib.metadata.metadata(package)
    name = metadata.get("License-Expression") or metadata.get("License")
    require(name, f"{package} names no licence")
    return f"{package}: {name}"


@item("G1", "D", "the support matrix is generated", hint="see the matrix of operators by dtype in the scorecard")
def matrix(device: torch.device) -> str:
    """Operators are tried by dtype, and each is native, runs on the host, or fails."""
    by_op = support(device, (torch.float32, torch.int64), stride=40)
    verdicts = [verdict for by_dtype in by_op.values() for verdict in by_dtype.values()]
    counts = {word: verdicts.count(word) for word in WORDS}
    require(sum(counts.values()) > 20 and counts["native"], f"no operator is native: {counts}")
    return ", ".join(f"{count} {word}" for word, count in counts.items())


WORDS = ("native", "fallback", "fails")


@contextmanager
def _group_of_one() -> Iterator[None]:
    """Set up a process group with this process only."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _one_process(device: torch.device, wrap: Any) -> float:
    """Train a wrapped module in a process group of one process; return the loss."""
    with _group_of_one():
        torch.manual_seed(0)
        model = wrap(torch.nn.Linear(8, 4).to(device))
        loss = model(torch.ones(2, 8, device=device)).square().sum()
        loss.backward()
        value = float(loss.item())
        # Else the reducer is the last to hold the group, and ends its threads with the interpreter's lock held, which
        # they may be waiting for.
        del model, loss
        return value


@item("I2", "T", "DistributedDataParallel", hint="register a c10d backend for the device")
def ddp(device: torch.device) -> str:
    """A module in ``DistributedDataParallel`` runs its forward and backward pass in a group of one process."""
    loss = _one_process(device, torch.nn.parallel.DistributedDataParallel)
    return f"loss {loss:.4f} in a group of one process"


@item("I3", "P", "FSDP2", hint="register a c10d backend for the device, with all-gather and reduce-scatter")
def fsdp(device: torch.device) -> str:
    """A module in ``fully_shard`` runs its forward and backward pass in a group of one process."""

    def wrap(module: torch.nn.Module) -> Any:
        from torch.distributed.fsdp import fully_shard

        mesh = torch.distributed.device_mesh.init_device_mesh(device.type, (1,))
        return fully_shard(module, mesh=mesh)

    return f"loss {_one_process(device, wrap):.4f} in a group of one process"


@item("J4", "P", "no leak in a soak", hint="check whether the process or the device's allocator grows")
def soak(device: torch.device) -> str:
    """Ten seconds of training with changing batch sizes leak no memory of the device or of the process."""
    import resource
    import time

    def allocated() -> int:
        return torch.accelerator.memory.memory_allocated(device) if device.type != "cpu" else 0

    framework.train(device)
    before, resident = allocated(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < 10:
        framework.train(device, steps=1 + rounds % 5)
        rounds += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) / 1024
    require(allocated() == before, f"{allocated() - before} bytes of device memory are left after {rounds} trainings")
    require(grown < 64, f"the process grew by {grown:.0f} MiB in {rounds} trainings")
    return f"{rounds} trainings leave no device memory; the process grew by {grown:.0f} MiB"


@item("J5", "P", "errors are documented", hint="define one type per kind of mistake, with a docstring")
def errors(device: torch.device) -> str:
    """Every error that the package raises for a mistake of the user has its own type and a docstring."""
    needs_chip(device, "only bringup's own package can be checked")
    if sys.flags.optimize >= 2:
        raise NotApplicable("python -OO removes docstrings")
    kinds = [value for name in bringup.__all__ if isinstance(value := getattr(bringup, name), type)]
    error_types = [kind for kind in kinds if issubclass(kind, BringupError)]
    bare = [kind.__name__ for kind in error_types if not kind.__doc__]
    require(len(error_types) > 3 and not bare, f"without documentation: {', '.join(bare) or 'all'}")
    return f"{len(error_types)} documented types"


@item("I4", "P", "collectives in the timeline", hint="record collectives as launches, priced by the interconnect")
def collectives(device: torch.device) -> str:
    """An all-reduce is a row of the recording with bytes and seconds."""
    needs_chip(device)
    with _group_of_one(), bringup.record() as trace:
        dist.all_reduce(torch.ones(1 << 20, device=device))
    ops = [data["op"] for data in trace.signature_data]
    require(any("reduce" in op for op in ops), f"the recording has no row for an all-reduce, only {', '.join(ops)}")
    return "the recording has a row for an all-reduce"


@item("G3", "P", "health and utilisation", hint="offer utilization() in the device's module, as torch.cuda does")
def health(device: torch.device) -> str:
    """The device reports its free memory and its utilisation."""
    needs_accelerator(device, "health data of a device")
    free, total = torch.accelerator.memory.get_memory_info(device)
    require(0 < free <= total, f"{free} of {total} bytes are free")
    busy = getattr(torch.get_device_module(device), "utilization", None)
    require(busy is not None, "the device reports its free memory, but not its utilisation")
    assert busy is not None
    return f"{free >> 20} MiB free, {busy()} % busy"
