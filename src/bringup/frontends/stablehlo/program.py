"""Runs a module file as a program: ``bringup run step.mlir --steps 3``; and programs that JAX has lowered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bringup.frontends.program import ModelProgram, options
from bringup.frontends.stablehlo.executor import Program
from bringup.frontends.stablehlo.module import StableHloError, read_file, read_module


def stablehlo_program(file: str, arguments: Sequence[str] = ()) -> ModelProgram:
    """Read a module, and the options that follow its name.

    Raises:
        StableHloError: the module is malformed, operators have no translation, or an option is unknown.
    """
    values = options(file, arguments, [], "a module takes --steps N; its inputs have sizes", StableHloError)
    program = Program(read_file(file))

    def lines(results: Sequence[Any]) -> list[str]:
        return [f"output {number} {kind}" for number, kind in enumerate(program.outputs)]

    return ModelProgram(described(program), values["steps"], lambda: program, lines, StableHloError)


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
