"""Runs a module file as a program: ``bringup run step.mlir --steps 3``; and programs that JAX has lowered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch

from bringup.frontends.inputs import stand_ins
from bringup.frontends.stablehlo.executor import Program
from bringup.frontends.stablehlo.module import StableHloError, read_file, read_module
from bringup.recording.recording import step
from bringup.text import plain


@dataclass
class StableHloProgram:
    """A module to run."""

    program: Program
    steps: int

    def run(self) -> None:
        """Run the steps. Each copies its inputs to the chip and its outputs back.

        Raises:
            SystemExit: an operation cannot run; the exit code is 2.
        """
        try:
            arguments = stand_ins(described(self.program), dry=torch.ops.bringup.is_dry())
            for _ in range(self.steps):
                results = self.program(*(item.to("chip") for item in arguments))
                for result in results:
                    result.cpu()
                step()
        except StableHloError as error:
            click.echo(f"bringup: {plain(str(error))}", err=True)
            raise SystemExit(2) from None
        for number, kind in enumerate(self.program.outputs):
            click.echo(f"output {number} {kind}")


def stablehlo_program(file: str, arguments: Sequence[str] = ()) -> StableHloProgram:
    """Read a module, and the options that follow its name.

    Raises:
        StableHloError: the module is malformed, operators have no translation, or an option is unknown.
    """
    parser = click.Command(
        file, params=[click.Option(["--steps"], type=click.IntRange(1, 1 << 20), default=3)], add_help_option=False
    )
    try:
        steps = int(parser.make_context(file, list(arguments)).params["steps"])
    except click.ClickException as error:
        raise StableHloError(
            f"{plain(file)}: {error.format_message().rstrip('.')}: a module takes --steps N; its inputs have sizes"
        ) from None
    return StableHloProgram(Program(read_file(file)), steps)


def described(program: Program) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """Return names, shapes and data types of a program's inputs."""
    return [(f"{number}", kind.shape, kind.dtype) for number, kind in enumerate(program.inputs)]


def lowered_program(lowered: Any) -> Program:
    """Return the program that JAX has lowered.

    Raises:
        StableHloError: operators have no translation.
    """
    module = lowered.compiler_ir("stablehlo")
    name = str(module.operation.attributes["sym_name"]).strip('"') if "sym_name" in module.operation.attributes else ""
    return Program(read_module(module, name.removeprefix("jit_") or "main"))
