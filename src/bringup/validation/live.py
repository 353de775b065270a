"""Compares real runs on a device of this machine with predictions from its calibrated chip file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bringup.device.dry import dry
from bringup.device.load import use_unless_chosen
from bringup.errors import BringupError
from bringup.pricing.errors import errors
from bringup.pricing.measurements import Measurement
from bringup.recording.recording import record, step
from bringup.report.prediction import price
from bringup.validation.calibration import keep_freed_memory, timed
from bringup.validation.programs import RECORDED_ON, can_record

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host
    from bringup.recording.trace import Trace

ROUNDS = 5  # over all programs, so that slow minutes of the machine affect all of them; the median is used


@dataclass(frozen=True)
class Program:
    """A model, its mode, and the shape of its input."""

    model: str
    trains: bool
    batch: int

    @property
    def text(self) -> str:
        """Return a description, such as ``resnet18 training 4``."""
        return f"{self.model} {'training' if self.trains else 'forward'} {self.batch}"


@dataclass(frozen=True)
class Outcome:
    """All comparisons, and the speed of the machine during them.

    Attributes:
        rows: one per program.
        speed: speed of a matrix product relative to the chip file: 1.1 if the machine was 10 % faster than then.
    """

    rows: list[Comparison]
    speed: float


@dataclass(frozen=True)
class Comparison:
    """The measured and the predicted seconds per step of a program."""

    program: Program
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Return the relative error of the prediction."""
        return self.predicted / self.measured - 1


TOKENS = 64
PROBE = (512, 512, 512)  # m, n, k of a product whose time shows the machine's speed


def _resnet(layers: str) -> Callable[[Any], Any]:
    def build(transformers: Any) -> Any:
        config = transformers.ResNetConfig(num_labels=1000)
        if layers == "18":
            config = transformers.ResNetConfig(
                num_labels=1000, layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2]
            )
        return transformers.ResNetForImageClassification(config)

    return build


MODELS: dict[str, Callable[[Any], Any]] = {
    "resnet18": _resnet("18"),
    "resnet50": _resnet("50"),
    "mobilenet-v2": lambda t: t.MobileNetV2ForImageClassification(t.MobileNetV2Config(num_labels=1000)),
    "bert-base": lambda t: t.BertModel(t.BertConfig()),
    "gpt2": lambda t: t.GPT2LMHeadModel(t.GPT2Config(use_cache=False)),
    "vit-base": lambda t: t.ViTForImageClassification(t.ViTConfig(num_labels=1000)),
}
TRAINED = ("resnet18", "gpt2")


def programs(batches: tuple[int, ...] = (1, 4)) -> list[Program]:
    """List the programs: the forward pass of all models and training of two, at every batch size."""
    forward = [Program(model, False, batch) for model in MODELS for batch in batches]
    return forward + [Program(model, True, batch) for model in TRAINED for batch in batches]


def _step(program: Program, device: torch.device) -> Callable[[], Any]:
    """Build the model on a device and return a function that does one step."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with torch.device(device):
        model = MODELS[program.model](transformers).train(program.trains)
        tokens = program.model in ("bert-base", "gpt2")
        shape = (program.batch, TOKENS) if tokens else (program.batch, 3, 224, 224)
        data = torch.zeros(shape, dtype=torch.int64) if tokens else torch.randn(shape)
    if not program.trains:

        def forward() -> Any:
            with torch.no_grad():
                return model(data)

        return forward
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=True)

    def train() -> None:
        optimizer.zero_grad()
        model(data).logits.float().mean().backward()
        optimizer.step()

    return train


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def measured(device: torch.device, tick: Callable[[], None]) -> tuple[dict[Program, float], float]:
    """Return the median seconds of a step of every program on the real device, and those of the product `PROBE`."""
    import statistics

    from torch.utils.benchmark import Timer

    timers = {}
    for program in programs():
        with _seeded():
            step = _step(program, device)
        step()
        timers[program] = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
        tick()
    seconds: dict[Program, list[float]] = {program: [] for program in timers}
    square = torch.randn(PROBE[:2], device=device)
    probes = []
    for _ in range(ROUNDS):
        for program, timer in timers.items():
            probes.append(timed(lambda: square @ square))
            seconds[program].append(timer.blocked_autorange(min_run_time=0.2).median)
            tick()
    return {program: statistics.median(values) for program, values in seconds.items()}, statistics.median(probes)


def recorded(program: Program) -> Trace:
    """Record a step in a dry run on the virtual chip."""
    use_unless_chosen(RECORDED_ON)
    with dry():
        run = _step(program, torch.device("chip"))
        run()
        with record() as trace:
            run()
            torch.chip.synchronize()  # type: ignore[attr-defined]
            step()
    return trace


def compare(device: str, chip: Chip, host: Host, progress: Callable[[int], Callable[[], None]]) -> Outcome:
    """Run every program on the device and price it.

    Args:
        device: a torch device.
        chip: the device's chip file from `bringup calibrate`.
        host: the host file from `bringup calibrate`.
        progress: called with the number of runs; returns a function to call after each.

    Raises:
        BringupError: transformers is missing, or torch cannot use the device.
    """
    if not can_record():
        raise BringupError("--live needs transformers, which is not installed: pip install transformers")
    try:
        torch_device = torch.device(device)
        torch.zeros(1, device=torch_device)
    except (RuntimeError, AssertionError) as error:
        raise BringupError(f"torch cannot use the device {device!r}: {str(error).splitlines()[0]}") from None
    keep_freed_memory()
    tick = progress((ROUNDS + 1) * len(programs()))
    medians, probe = measured(torch_device, tick)
    product = Measurement(chip.name, "mm", "float32", PROBE, probe, "now", warm=True)
    rows = [
        Comparison(program, seconds, float(price(recorded(program), chip, host).step_seconds))
        for program, seconds in medians.items()
    ]
    return Outcome(rows, 1 + errors([product], chip)[product])
