"""Runs a model file as a program: ``bringup run model.onnx --input x=1x3x224x224:float32 --steps 3``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click
import torch

from bringup.frontends import inputs as models
from bringup.frontends.onnx.graph import Graph, Input, OnnxError, read_model
from bringup.frontends.onnx.model import OnnxModel, check_operators
from bringup.frontends.onnx.tensors import NAMED
from bringup.frontends.program import ModelProgram, options
from bringup.text import plain, short

_SIZES = re.compile(r"([0-9]{1,18}(?:x[0-9]{1,18})*|scalar)(?::(\w+))?")  # 18 digits fit into 64 bits
_TYPES = {**{str(dtype).removeprefix("torch."): dtype for dtype in NAMED.values()}, **NAMED}

stand_ins = partial(models.stand_ins, error=OnnxError)


def onnx_program(file: str, arguments: Sequence[str] = ()) -> ModelProgram:
    """Read a model, and the options that follow its name.

    Raises:
        OnnxError: the model is malformed, or an option does not fit it.
    """
    own: list[click.Parameter] = [
        click.Option(["--input", "inputs"], multiple=True),
        click.Option(["--compile", "compiled"], is_flag=True),
    ]
    takes = "a model takes --input NAME=1x3x224x224:float32, --steps N and --compile"
    values = options(file, arguments, own, takes, OnnxError)
    graph = read_model(file)
    check_operators(graph, file)

    def load() -> Callable[..., Any]:
        model = OnnxModel(graph, file).to("chip")
        return torch.compile(model) if values["compiled"] else model

    def lines(results: Sequence[Any]) -> list[str]:
        return [f"{name} {_shown(value)}" for name, value in zip(graph.outputs, results, strict=True)]

    return ModelProgram(inputs_of(graph, file, values["inputs"]), values["steps"], load, lines, OnnxError)


def _shown(value: Any) -> str:
    return f"{_text(value.shape)}:{_name(value.dtype)}" if isinstance(value, torch.Tensor) else "a sequence"


def inputs_of(graph: Graph, file: str, shapes: Sequence[str] = ()) -> list[tuple[str, list[int], torch.dtype]]:
    """Return names, shapes and types of a model's inputs; `shapes` has those that the user gives: ``x=1x3:float32``.

    Raises:
        OnnxError: an input is unknown, does not fit, or has a dynamic axis without a size.
    """
    chosen: dict[str, str] = {}
    names = [item.name for item in graph.inputs]
    for text in shapes:
        name, equals, rest = text.rpartition("=")
        if not equals or not _SIZES.fullmatch(rest):
            raise OnnxError(f"--input must be NAME=1x3x224x224:float32, or NAME=scalar, got {short(text)}")
        if name not in names:
            has = ", ".join(map(short, names)) or "none"
            raise OnnxError(f"{plain(file)}: has no input {short(name)}; its inputs: {has}")
        chosen[name] = rest
    return [(item.name, *_described(item, file, chosen.get(item.name))) for item in graph.inputs]


def _described(item: Input, file: str, text: str | None) -> tuple[list[int], torch.dtype]:
    declared = NAMED.get(item.dtype)
    where = f"{plain(file)}: input {short(item.name)}"
    if declared is None and (item.dtype or text is None):
        raise OnnxError(f"{where} has the type {item.dtype or 'sequence'}, which a program has to give: use load_onnx")
    if text is None:
        sizes = item.shape
        if sizes is None or not all(isinstance(size, int) and size > 0 for size in sizes):
            shown = "any shape" if sizes is None else f"shape {_text('?' if size is None else size for size in sizes)}"
            raise OnnxError(f"{where} has {shown}: give its size, as in --input {short(item.name)}={_example(item)}")
        assert declared is not None
        return [int(size or 0) for size in sizes], declared
    match = _SIZES.fullmatch(text)
    assert match is not None
    sizes = () if match[1] == "scalar" else tuple(int(size) for size in match[1].split("x"))
    if match[2] is not None and match[2] not in _TYPES:
        raise OnnxError(f"{where}: there is no data type {short(match[2])}; it has {item.dtype}")
    dtype = _TYPES[match[2]] if match[2] else declared or torch.float32
    if declared not in (None, dtype):
        raise OnnxError(f"{where} has the data type {_name(declared)}, got {_name(dtype)}")  # type: ignore[arg-type]
    fits = item.shape is None or (
        len(item.shape) == len(sizes)
        and all(have == size for have, size in zip(item.shape, sizes, strict=True) if isinstance(have, int) and have)
    )
    if not fits:
        raise OnnxError(f"{where} has shape {_text(item.shape or ())}, got {match[1]}")
    return list(sizes), dtype


def _example(item: Input) -> str:
    """Return a size that fits an input: 1 where it has a dynamic axis."""
    if item.shape is None:
        return "1x3x224x224"
    return _text(size if isinstance(size, int) and size else 1 for size in item.shape)


def _text(sizes: object) -> str:
    return "x".join(str(size) for size in sizes) or "scalar"  # type: ignore[attr-defined]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
