"""What stays in TensorFlow on the host: its inputs, its variables, and what it costs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from bringup.errors import BringupError
from bringup.frontends.stablehlo.module import StableHloError
from bringup.frontends.stablehlo.tensors import Type
from bringup.frontends.tensorflow import memory
from bringup.lines import calling_line
from bringup.paths import Places
from bringup.process import FACTS
from bringup.recording.recording import Recording, current
from bringup.text import plain, short

# TensorFlow's types that a chip may have, as StableHLO calls them.
_KINDS = {
    **{"bool": "i1", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64"},
    **{"uint8": "ui8", "uint16": "ui16", "uint32": "ui32", "uint64": "ui64"},
    **{"half": "f16", "float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"},
    **{"complex64": "complex<f32>", "complex128": "complex<f64>"},
}


class UninitializedError(BringupError):
    """A variable has no value yet."""


@dataclass
class OnHost:
    """A function that runs on the host.

    Attributes:
        why: the reason, as a sentence without a full stop.
        line: where the program calls it first, "" before that.
        rows, seconds: the rows of the recording before each call, and what the call took.
    """

    name: str
    why: str
    line: str = ""
    rows: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    recording: Recording | None = None


_called: list[OnHost] = []


def is_numeric(value: Any) -> bool:
    """Return True if a tensor has values that a chip may have."""
    return value.dtype.name in _KINDS


def type_of_variable(value: Any) -> Any:
    """Return TensorFlow's type of the variable that a tensor is the handle of, None for other tensors."""
    if value.dtype.name != "resource":
        return None
    from tensorflow.python.framework.dtypes import as_dtype

    data = value._handle_data
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    kind = as_dtype(data.shape_and_type[0].dtype)
    return kind if kind.name in _KINDS else None


def shape_of_varying(item: Any) -> tuple[int, ...] | None:
    """Return the present shape of a variable that was made without a fixed one, by its handle; None for the rest."""
    if type_of_variable(item) is None:
        return None
    from tensorflow.python.framework.tensor_shape import TensorShape

    fixed = TensorShape(item._handle_data.shape_and_type[0].shape).is_fully_defined()
    return None if fixed else tuple(value_of(item)._shape_tuple())


def value_of(handle: Any) -> Any:
    """Return the value of a variable, by its handle.

    Raises:
        UninitializedError: it has none yet.
    """
    from tensorflow.python.framework.errors_impl import FailedPreconditionError, NotFoundError
    from tensorflow.python.ops.gen_resource_variable_ops import read_variable_op

    try:
        return read_variable_op(handle, type_of_variable(handle))
    except (FailedPreconditionError, NotFoundError):
        raise UninitializedError(f"the variable {name_of_variable(handle)} has no value yet") from None


def name_of_variable(handle: Any) -> str:
    """Return the name of a variable in the program, by its handle."""
    return short(str(getattr(handle, "_name", "")).removesuffix(":0") or "without a name")


def type_of(item: Any) -> Type:
    """Return the type of a tensor, or of the value of a variable."""
    value = item if is_numeric(item) else value_of(item)
    return Type(_KINDS[value.dtype.name], tuple(value._shape_tuple()))


def called(function: OnHost, inputs: Sequence[Any], call: Callable[[], Any], strict: bool) -> Any:
    """Call a function on the host, which copies what it needs from the chip, and note what it takes.

    Raises:
        StableHloError: functions must run on the chip.
    """
    if strict:
        raise StableHloError(f"{function.name} cannot run on the chip: {function.why}: leave out --strict")
    if not function.line:
        print(f"bringup: {plain(function.name)} stays on the host: {plain(function.why)}", file=sys.stderr)
        function.line = "{}:{}".format(*(calling_line() or ("", 0)))
        _called.append(function)
    for item in inputs:
        if is_numeric(item):
            memory.read(item)
        elif type_of_variable(item) is not None:
            with suppress(UninitializedError):  # which the function may only write
                memory.read(value_of(item))
    ops, recording = torch.ops.bringup, current()
    if recording is not function.recording:
        function.recording, function.rows, function.seconds = recording, [], []
    if ops.is_recording():
        function.rows.append(ops.recorded_rows())
    begin = time.perf_counter()
    try:
        return call()
    finally:
        if ops.is_recording():
            function.seconds.append(time.perf_counter() - begin)
            ops.skip_host_time()


def _facts(places: Places) -> Callable[[], dict[str, Any]]:
    """Return what notes the calls of a recording."""

    def end() -> dict[str, Any]:
        listed = [
            {
                "name": function.name,
                "why": places.within(function.why),
                "line": places.line(function.line),
                "rows": function.rows[: len(function.seconds)],
                "seconds": function.seconds,
            }
            for function in _called
            if function.seconds and function.recording is current()
        ]
        return {"host_functions": listed} if listed else {}

    return end


FACTS.append(_facts)
