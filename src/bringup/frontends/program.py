"""A model of another framework as a program that `bringup run` runs: its options, and its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch

from bringup.errors import BringupError
from bringup.frontends.inputs import stand_ins
from bringup.recording.recording import step
from bringup.text import plain


@dataclass
class ModelProgram:
    """A model to run, with the names, shapes and data types of its inputs.

    Attributes:
        load: puts the model on the chip; returns a function of its inputs.
        described: returns a line for each of the results.
        error: the type of error that ends the program.
    """

    inputs: Sequence[tuple[str, Sequence[int], torch.dtype]]
    steps: int
    load: Callable[[], Callable[..., Any]]
    described: Callable[[Sequence[Any]], Iterable[str]]
    error: type[BringupError]

    def run(self) -> None:
        """Run the steps. Each copies its inputs to the chip and its outputs back.

        Raises:
            SystemExit: an operation cannot run on these inputs; the exit code is 2.
        """
        try:
            model = self.load()
            arguments = stand_ins(self.inputs, self.error, dry=torch.ops.bringup.is_dry())
            for _ in range(self.steps):
                results = model(*(item.to("chip") for item in arguments))
                results = results if isinstance(results, tuple) else (results,)
                held = [result.cpu() if isinstance(result, torch.Tensor) else result for result in results]
                step()
        except self.error as error:
            click.echo(f"bringup: {plain(str(error))}", err=True)
            raise SystemExit(2) from None
        for line in self.described(held):
            click.echo(plain(line))


def options(
    file: str, arguments: Sequence[str], own: list[click.Parameter], takes: str, error: type[BringupError]
) -> dict[str, Any]:
    """Return the values of ``--steps N`` and of a model's own options, which follow its name.

    Raises:
        BringupError: an option is unknown or malformed; `takes` says what there is.
    """
    steps = click.Option(["--steps"], type=click.IntRange(1, 1 << 20), default=3)
    parser = click.Command(file, params=[*own, steps], add_help_option=False)
    try:
        return parser.make_context(file, list(arguments)).params
    except click.ClickException as problem:
        raise error(f"{plain(file)}: {problem.format_message().rstrip('.')}: {takes}") from None
