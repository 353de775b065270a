"""Whole programs: Hugging Face models are recorded in a dry run, priced, and compared with published times.

The prediction is made from the launches of the model, not from a formula per row. Needs transformers. Weights are
random and nothing is computed, so recording a model of several gigabytes takes a fraction of a second.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bringup.analyse.program_class import program_class
from bringup.device.dry import dry
from bringup.device.load import use_unless_chosen
from bringup.errors import BringupError
from bringup.pricing.bands import bound
from bringup.recording.recording import record, step
from bringup.report.prediction import price

if TYPE_CHECKING:
    from bringup.machine.schema import Chip
    from bringup.recording.trace import Trace
    from bringup.report.prediction import Prediction

TABLE = Path(__file__).parent / "programs.csv"
# Programs are recorded on this chip; the traces are priced on others.
RECORDED_ON = "b200-sxm"


@dataclass(frozen=True)
class Run:
    """The published latency of a whole program.

    Attributes:
        chip: name of a chip file.
        host: name of a host file; None if the source does not name the host.
        model: key of `MODELS`.
        mode: ``inference`` (forward) or ``training`` (forward and backward, no optimizer).
        precision: ``float32`` or ``amp`` (autocast to float16).
        length: tokens per sequence, or pixels per side of an image.
        batch: number of sequences or images.
        seconds: the measured latency.
        source: where it was published.
    """

    chip: str
    host: str | None
    model: str
    mode: str
    precision: str
    length: int
    batch: int
    seconds: float
    source: str

    @property
    def program(self) -> tuple[str, str, str, int, int]:
        """Return the arguments of `recorded`, which do not depend on the chip."""
        return self.model, self.mode, self.precision, self.length, self.batch

    @property
    def text(self) -> str:
        """Return a description, such as ``gpt2-large inference 4 x 1024``."""
        return f"{self.model} {self.mode} {self.batch} x {self.length}" + (" amp" if self.precision == "amp" else "")


def _bert(hidden: int, layers: int, heads: int) -> Callable[[Any], Any]:
    def build(transformers: Any) -> Any:
        config = transformers.BertConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            attn_implementation="eager",
        )
        return transformers.BertForSequenceClassification(config)

    return build


def _gpt(width: int, layers: int, heads: int, positions: int) -> Callable[[Any], Any]:
    def build(transformers: Any) -> Any:
        config = transformers.GPT2Config(
            n_embd=width, n_layer=layers, n_head=heads, n_positions=positions, attn_implementation="eager"
        )
        config.use_cache = False
        return transformers.GPT2LMHeadModel(config)

    return build


def _opt(width: int, layers: int, heads: int) -> Callable[[Any], Any]:
    def build(transformers: Any) -> Any:
        config = transformers.OPTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            ffn_dim=4 * width,
            word_embed_proj_dim=width,
            attn_implementation="eager",
        )
        config.use_cache = False
        return transformers.OPTForCausalLM(config)

    return build


def _resnet(transformers: Any) -> Any:
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))


# Dimensions from the models' papers. For GPT-3 XL, the paper gives 24 heads of 128 but a width of 2,048 (Brown et al.,
# 2020, table 2.1). The measured latencies are for the width that 24 heads of 128 need.
MODELS: dict[str, Callable[[Any], Any]] = {
    "bert-large": _bert(1024, 24, 16),
    "gpt2-large": _gpt(1280, 36, 20, 1024),
    "gpt3-xl": _gpt(3072, 24, 24, 2048),
    "gpt3-2.7b": _gpt(2560, 32, 32, 2048),
    "opt-1.3b": _opt(2048, 24, 32),
    "resnet50": _resnet,
}


@cache
def runs() -> tuple[Run, ...]:
    """Read the published latencies that ship with bringup."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Run(
                row["chip"],
                row["host"] or None,
                row["model"],
                row["mode"],
                row["precision"],
                int(row["length"]),
                int(row["batch"]),
                float(row["milliseconds"]) * 1e-3,
                row["source"],
            )
            for row in csv.DictReader(file)
        )


def can_record() -> bool:
    """Return True if transformers is installed."""
    from importlib.util import find_spec

    return find_spec("transformers") is not None


@cache
def recorded(model: str, mode: str, precision: str, length: int, batch: int) -> Trace:
    """Record one step of a program in a dry run.

    Raises:
        BringupError: transformers is missing, or the chip of the process is too small.
    """
    if not can_record():
        raise BringupError("whole programs need transformers, which is not installed: pip install transformers")
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    use_unless_chosen(RECORDED_ON)
    trains = mode == "training"
    with dry(), torch.device("chip"):
        program = MODELS[model](transformers).train(trains)
        shape = (batch, 3, length, length) if model == "resnet50" else (batch, length)
        data = torch.zeros(shape, dtype=torch.float32 if model == "resnet50" else torch.int64)
        with (
            record() as trace,
            torch.set_grad_enabled(trains),
            torch.autocast("chip", dtype=torch.float16, enabled=precision == "amp"),
        ):
            result = program(data).logits
            if trains:
                result.backward(torch.empty_like(result))
            torch.chip.synchronize()  # type: ignore[attr-defined]
            step()
    return trace


def predicted(run: Run, chip: Chip | None = None) -> Prediction:
    """Return the prediction of one step, on the run's own chip by default."""
    return price(recorded(*run.program), chip or run.chip, run.host)


# How far one run moves the scale of a chip: the model's error differs by some 10 % between chips and by 8 % between
# runs on one chip (labs disagree by 3 to 9 % on the same silicon), so the share of a run is 0.1^2 / (0.1^2 + 0.08^2).
TRUST = 0.6


def with_one_run(run_errors: dict[Run, float]) -> dict[Run, float]:
    """Return the errors after one measured run per chip is known.

    The first run of each chip corrects the chip's scale, and is left out of the result.
    """
    scales: dict[str, float] = {}
    scaled: dict[Run, float] = {}
    for run, error in run_errors.items():
        if run.chip not in scales:
            scales[run.chip] = (1 + error) ** TRUST
        else:
            scaled[run] = (1 + error) / scales[run.chip] - 1
    return scaled


def errors(rows: Iterable[Run]) -> dict[Run, float]:
    """Return the relative error of the prediction for every run."""
    return {run: predicted(run).step_seconds / run.seconds - 1 for run in rows}


def class_of(run: Run) -> str:
    """Return the class of a run's program."""
    return program_class(recorded(*run.program))


def bound_of(run: Run) -> str:
    """Return whether a run is predicted to be host- or chip-bound on its chip."""
    summary = predicted(run).summary
    return bound(summary.device_seconds, summary.step_seconds)
