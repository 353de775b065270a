"""``bringup fit --model``: shows the memory of a model by name, and the chips that have enough."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.table import Table

from bringup.analyse.holders import TOO_LARGE, VERDICTS, verdict
from bringup.report import terminal
from bringup.text import size

if TYPE_CHECKING:
    from bringup.analyse.model_memory import ModelMemory
    from bringup.machine.schema import Chip

Command = TypeVar("Command", bound=Callable[..., Any])
MODEL_OPTIONS = ("train", "optimizer", "batch", "tokens", "dtype", "lora", "checkpointing")
MOST_GIB = 4096.0  # the bound of `memory.device_gib`
TEXTS = {**VERDICTS, TOO_LARGE: f"[red]{VERDICTS[TOO_LARGE]}[/]"}


def model_options(command: Command) -> Command:
    """Add the options of ``--model`` to a command."""
    for add in reversed(
        (
            click.option(
                "--model",
                default=None,
                metavar="NAME|FILE",
                help="Instead of a script: a config.json, or a model of transformers (llama-2-7b, gpt2) or timm.",
            ),
            click.option("--train", is_flag=True, help="With --model: train it (default: one forward pass)."),
            click.option(
                "--optimizer",
                type=click.Choice(["adamw", "adam", "adafactor", "adagrad", "rmsprop", "sgd"]),
                default="adamw",
                show_default=True,
                help="With --model --train: the optimizer.",
            ),
            click.option(
                "--batch",
                default=1,
                show_default=True,
                type=click.IntRange(1, 1 << 20),
                help="With --model: sequences or images.",
            ),
            click.option(
                "--tokens",
                default=2048,
                show_default=True,
                type=click.IntRange(1, 1 << 20),
                help="With --model: tokens per sequence, at most what the model allows.",
            ),
            click.option(
                "--dtype",
                type=click.Choice(["fp32", "bf16", "fp16", "bf16-mixed", "fp16-mixed"]),
                default="bf16",
                show_default=True,
                help="With --model: dtype of weights and activations; -mixed: float32 weights under autocast.",
            ),
            click.option(
                "--lora",
                default=0,
                type=click.IntRange(0, 65536),
                metavar="RANK",
                help="With --model --train: train low-rank adapters only.",
            ),
            click.option(
                "--checkpointing", is_flag=True, help="With --model --train: rebuild activations in the backward pass."
            ),
        )
    ):
        command = add(command)
    return command


def print_model(name: str, chips: dict[str, Chip], as_json: bool, **options: Any) -> None:
    """Print the parts of a model's memory, and for every chip whether it fits, and its largest batch and length.

    Args:
        name: the model.
        chips: the chips to try.
        as_json: print a JSON list instead of text.
        options: the values of `MODEL_OPTIONS`.

    Raises:
        BringupError: there is no such model, or it cannot do this.
    """
    from bringup.analyse.model_memory import ModelMemory  # imports torch, like the modules below
    from bringup.analyse.models import Work, find_model

    batch, tokens = options.pop("batch"), options.pop("tokens")
    model = find_model(name)
    _use_without_limit(next(iter(chips.values())))
    tokens = min(tokens, model.most_tokens) if model.most_tokens else 0
    memory = ModelMemory(model, Work(**options), batch, tokens)
    rows = [_row(chip, memory) for chip in chips.values()]
    if as_json:
        click.echo(json.dumps(rows))
        return
    _print(memory, rows)


def _use_without_limit(chip: Chip) -> None:
    """Choose the chip with the largest memory that a chip file may have: the recording only counts allocations."""
    import tomli_w  # with torch, for this command only

    from bringup.device.load import use

    data = chip.model_dump(exclude_none=True, exclude_unset=True)
    data["memory"] = {**data["memory"], "device_gib": MOST_GIB, "usable_gib": MOST_GIB}
    data["sources"] = {**data.get("sources", {}), "memory": "the largest that a chip file may have"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "chip.toml")
        file.write_text(tomli_w.dumps(data), encoding="utf-8")
        use(file)


def _row(chip: Chip, memory: ModelMemory) -> dict[str, Any]:
    return {
        "chip": chip.name,
        "fits": verdict(memory.peak_bytes, chip.room_bytes),
        "capacity_bytes": chip.device_bytes,
        "context_bytes": chip.context_bytes,
        "peak_bytes": memory.peak_bytes,
        **{f"{part}_bytes": count for part, count in memory.parts.items()},
        "batch": memory.batch,
        "tokens": memory.tokens,
        "largest_batch": memory.largest_batch(chip.room_bytes),
        "largest_tokens": memory.largest_length(chip.room_bytes),
    }


def _print(memory: ModelMemory, rows: list[dict[str, Any]]) -> None:
    console = terminal.console()
    work = memory.work
    what = f"training with {work.optimizer}" if work.train else "one forward pass"
    adapters = f", adapters of rank {work.lora}" if work.lora and work.train else ""
    checkpointing = ", checkpointing" if work.checkpointing and work.train else ""
    length = f" x {memory.tokens:,} tokens" if memory.tokens else ""
    title = f"{memory.model.title}: {what}{adapters}{checkpointing}, {work.dtype}, batch {memory.batch:,}{length}"
    console.print(terminal.escaped(title))
    parts = ", ".join(f"{part} {size(count)}" for part, count in memory.parts.items())
    console.print(f"peak {size(memory.peak_bytes)}: at most {parts}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("chip", "capacity", "", "largest batch", "longest sequence"):
        table.add_column(column, justify="left" if column in ("chip", "") else "right", no_wrap=True)
    for row in rows:
        largest = [_number(row["largest_batch"]), _number(row["largest_tokens"])]
        table.add_row(terminal.escaped(row["chip"]), size(row["capacity_bytes"]), TEXTS[row["fits"]], *largest)
    console.print(table)


def _number(value: int | None) -> str:
    return "-" if value is None else "none" if value == 0 else f"{value:,}"
