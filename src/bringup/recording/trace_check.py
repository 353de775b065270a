"""The checks of a trace file, made once when it is loaded, because anyone may have written the file.

After them, every code is within its list and every storage number below its limit. No sum of bytes or nanoseconds
overflows, and every signature has the form that csrc/record/recorder.cpp writes.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, Field, StrictBool, ValidationError, model_validator

from bringup.cost.rules import TAGS
from bringup.limits import TRACE
from bringup.machine import vocabulary
from bringup.recording import rows
from bringup.text import short

Array = npt.NDArray[Any]
MOST = {name: limit.most for name, limit in TRACE.items()}
# Further dtypes of torch (c10/core/ScalarType.h), which are priced with four bytes per element.
DTYPES = vocabulary.DTYPES | {"float4_e2m1fn_x2", "quint4x2", "quint2x4", "bits8", "bits16", "bits1x8", "bits2x4"}
DTYPES |= {"bits4x2", *(f"{sign}int{width}" for sign in ("", "u") for width in range(1, 8))}


class Rows(Protocol):
    """The parts of a `Trace` that are checked."""

    columns: dict[str, Array]
    uses: Array
    offsets: Array
    signature_data: list[dict[str, Any]]
    lines: list[str]
    stacks: list[tuple[int, int, str]]
    modules: list[str]

    def __len__(self) -> int:
        """Count the rows."""


class Damaged(ValueError):
    """A trace is damaged; the message is the reason, as the end of a sentence."""


# ---- the description


def _size_of(tensor: tuple[str, list[int], list[int], int, int]) -> tuple[str, list[int], list[int], int, int]:
    _, shape, strides, *_ = tensor
    if len(shape) != len(strides):
        raise ValueError(f"a tensor of {len(shape)} dimensions has {len(strides)} strides")
    if math.prod(shape) >= 2**63:
        raise ValueError("a tensor has more elements than an int64 can count")
    return tensor


def _torch_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise ValueError(f"{dtype} is not a torch dtype")
    return dtype


def _tag(tag: str) -> str:
    if tag not in ("", *TAGS):
        raise ValueError(f"{tag} is no tag of torch that prices an operator")
    return tag


Text = Annotated[str, Field(max_length=MOST["letters"])]
# Strict, because the original values are used, not those that pydantic converts them to.
Sentence = Annotated[str, Field(max_length=16 * MOST["letters"])]  # names several lines
Count = Annotated[int, Field(strict=True, ge=0, lt=2**62)]
Size = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Sizes = Annotated[list[Size], Field(max_length=MOST["dimensions"])]
Storage = Annotated[int, Field(strict=True, ge=-1, le=MOST["tensors"])]
Tensor = Annotated[
    tuple[Annotated[Text, AfterValidator(_torch_dtype)], Sizes, Sizes, Storage, Literal[0, 1, False, True]],
    AfterValidator(_size_of),
]
Tensors = Annotated[list[Tensor | None], Field(max_length=MOST["tensors"])]


class _Signature(BaseModel):
    """A kind of launch, as `Signature.parse` reads it."""

    op: Annotated[Text, Field(min_length=1)]
    inputs: Tensors
    outputs: Tensors
    args: dict[Text, Any]
    inner: Annotated[list[_Signature], Field(max_length=MOST["tensors"])] = []
    tag: Annotated[str, AfterValidator(_tag)] = ""
    tf32: Annotated[list[Literal["matmul", "convolution", "rnn"]], Field(max_length=len(vocabulary.TF32))] = []
    cudnn: Annotated[bool, Field(strict=True)] = True

    @model_validator(mode="after")
    def _arguments_name_tensors(self) -> _Signature:
        for value in self.args.values():
            _check_argument(value, len(self.inputs), MOST["nesting"])
        lines = self.args.get("read_first", {})
        if not isinstance(lines, dict) or not all(isinstance(line, str) for line in lines.values()):
            raise ValueError("read_first names no lines")
        return self


def _check_argument(value: Any, inputs: int, nesting: int) -> None:
    if nesting == 0:
        raise ValueError("an argument is nested too deeply")
    if isinstance(value, dict):
        which = value.get("tensor", 0)
        if "tensor" in value and (type(which) is not int or not 0 <= which < inputs):
            raise ValueError(f"an argument is tensor {short(repr(which))} of {inputs}")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_argument(item, inputs, nesting - 1)
    elif isinstance(value, int) and not -(2**64) < value < 2**64:
        raise ValueError("an argument is a number of more than 64 bits")


class _GraphBreak(BaseModel):
    line: Text
    reason: Text


class _Recompilation(BaseModel):
    line: Text
    count: Count


class _Input(BaseModel):
    line: Text
    workers: Annotated[int, Field(strict=True, ge=0, le=MOST["devices"] * 2**10)]
    batch_seconds: Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False)]
    rows: Annotated[list[Count], Field(max_length=MOST["rows"])] = []
    maker: Text = ""
    by_library: StrictBool = False
    iterable: StrictBool = False


class _Sleep(BaseModel):
    line: Text
    rows: Annotated[list[Count], Field(max_length=MOST["rows"])]
    seconds: Annotated[list[Annotated[float, Field(strict=True, ge=0, le=1e9)]], Field(max_length=MOST["rows"])]

    @model_validator(mode="after")
    def _is_whole(self) -> _Sleep:
        if len(self.rows) != len(self.seconds):
            raise ValueError(f"{len(self.rows)} rows and {len(self.seconds)} times")
        return self


class _HostFunction(_Sleep):
    name: Text
    why: Text


class _ClockRead(BaseModel):
    line: Text
    rows: Annotated[list[Count], Field(max_length=MOST["rows"])]


class _Finding(BaseModel):
    check: Text
    what: Sentence
    line: Text
    other: Text
    advice: Sentence


class _Placement(BaseModel):
    planned_seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
    launches_as_planned: Count
    launches_elsewhere: Count
    launches_without_plan: Count
    unused_entries: Count
    unused: Annotated[list[Text], Field(max_length=MOST["lines"])]
    lacking: Annotated[list[Text], Field(max_length=MOST["lines"])] = []
    captured: Annotated[list[Text], Field(max_length=MOST["lines"])] = []


# Between two events of a device, whose clock may step back.
Seconds = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]


class _LedgerRow(BaseModel):
    """A row of `driver_rows`; the counts of a typical step are means, so they may be fractions."""

    op: Text
    on_device: StrictBool
    reason: Sentence
    kernel_possible: StrictBool
    launches: Annotated[float, Field(ge=0, lt=2**62)]
    bytes_down: Annotated[float, Field(ge=0, lt=2**62)]
    bytes_up: Annotated[float, Field(ge=0, lt=2**62)]
    kernel_seconds: Seconds
    down_seconds: Seconds
    host_seconds: Seconds
    up_seconds: Seconds
    between_seconds: Seconds


class _Driver(BaseModel):
    name: Text
    step_seconds: Seconds | None
    step_rows: Annotated[list[_LedgerRow], Field(max_length=MOST["signatures"])]
    on_device: Annotated[dict[Text, Count], Field(max_length=MOST["signatures"])]
    on_host: Annotated[list[_LedgerRow], Field(max_length=MOST["signatures"])]


class _About(BaseModel):
    """The entries of `Trace.about` that bringup reads; there may be others."""

    program: Text
    chip: Text = ""
    torch: Text = ""
    run: Annotated[str, Field(pattern="^[0-9a-f]*$", max_length=64)] = ""
    named_cuda: StrictBool = False
    redirected: Annotated[dict[Text, Count], Field(max_length=MOST["lines"])] = {}
    compiled_graphs: Count = 0
    graph_breaks: Annotated[list[_GraphBreak], Field(max_length=MOST["lines"])] = []
    recompilations: Annotated[list[_Recompilation], Field(max_length=MOST["lines"])] = []
    held_bytes: Annotated[list[Count], Field(max_length=MOST["devices"])] = []
    held_reserved_bytes: Annotated[list[Count], Field(max_length=MOST["devices"])] = []
    expandable_reserved_bytes: Annotated[list[Count], Field(max_length=MOST["devices"])] = []
    dry: StrictBool = False
    chip_time: StrictBool = False
    out_of_memory: StrictBool = False
    failed: StrictBool = False
    source: Annotated[list[Text], Field(max_length=MOST["lines"])] = []
    library_lines: Annotated[list[Count], Field(max_length=MOST["lines"])] = []
    inputs: Annotated[list[_Input], Field(max_length=MOST["lines"])] = []
    sleeps: Annotated[list[_Sleep], Field(max_length=MOST["lines"])] = []
    host_functions: Annotated[list[_HostFunction], Field(max_length=MOST["lines"])] = []
    clock_reads: Annotated[list[_ClockRead], Field(max_length=MOST["lines"])] = []
    framework: Text = ""
    stopped_by: Literal["", "SIGINT", "SIGTERM"] = ""
    host: Text = ""
    host_clock: Literal["modelled", "measured"] = "modelled"
    findings: Annotated[list[_Finding], Field(max_length=MOST["lines"])] = []
    cluster: Text = ""
    ranks: Annotated[int, Field(strict=True, ge=1, lt=2**31)] = 1
    rank: Count = 0
    placement: _Placement | None = None
    driver: _Driver = Field(default=None)  # type: ignore[assignment]  # absent beside a virtual chip


_Chain = tuple[Annotated[int, Field(strict=True, ge=-1)], Count, Text]


class _Description(BaseModel):
    about: _About
    signatures: Annotated[list[_Signature], Field(max_length=MOST["signatures"])]
    lines: Annotated[list[Text], Field(max_length=MOST["lines"])]
    modules: Annotated[list[Text], Field(max_length=MOST["lines"])]
    stacks: Annotated[list[_Chain], Field(max_length=MOST["stacks"])] = []


def check_description(about: dict[str, Any]) -> None:
    """Check the JSON of a trace.

    Raises:
        Damaged: it is not of the form that bringup writes.
    """
    try:
        _Description.model_validate(about)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = short(".".join(str(part) for part in first["loc"]))
        raise Damaged(f"{where}: {short(first['msg'].removeprefix('Value error, '), 200)}") from None


# ---- the rows


def check_rows(trace: Rows) -> None:
    """Check the columns and the uses of a trace.

    Raises:
        Damaged: a number is out of its range.
    """
    columns, count = trace.columns, len(trace)
    storages = count + len(trace.uses)  # they are numbered as they appear, in a row or a use
    for name, column in columns.items():
        if name != "object":  # whose meaning depends on the kind of row
            low = -1 if name in ("stream", "signature", "line", "module", "stack") else 0
            highs = {"device": MOST["devices"], "stream": MOST["streams"], "signature": len(trace.signature_data)}
            highs |= {"line": len(trace.lines), "module": len(trace.modules), "stack": len(trace.stacks)}
            _check_range(name, column, low, highs.get(name, 2**62))
    _check_range("kind", columns["kind"], 0, len(rows.KINDS))
    _check_range("phase", columns["phase"], 0, len(rows.PHASES))
    kind = columns["kind"]
    launched = kind == rows.LAUNCH
    _check_range("signature of a launch", columns["signature"][launched], 0, 2**62)
    on_stream = np.isin(kind, (rows.LAUNCH, rows.H2D, rows.D2H, rows.D2D, rows.EVENT_RECORD, rows.EVENT_WAIT))
    _check_range("stream of a launch or copy", columns["stream"][on_stream], 0, 2**62)
    of_kind: dict[tuple[int, ...], tuple[str, int, int]] = {
        (rows.ALLOC, rows.FREE, rows.OWNER): ("storage", 0, storages),
        (rows.EVENT_RECORD, rows.EVENT_WAIT, rows.EVENT_SYNC): ("event", 0, 2**62),
        (rows.D2D,): ("other device", 0, MOST["devices"]),
        (rows.HOST,): ("nanoseconds", 0, 2**62),
        (rows.SIGNAL, rows.RESUME): ("signal", 0, 2**62),
        (rows.STEP,): ("optimizer", rows.BY_PROGRAM, 2**62),
        (rows.LAUNCH,): ("replay of a graph", rows.ON_HOST, 2**62),
        (rows.H2D, rows.D2H): ("place of a copy", rows.ON_HOST, 1),
    }
    for kinds, (name, low, high) in of_kind.items():
        _check_range(name, columns["object"][np.isin(kind, kinds)], low, high)
    _check_range("kind of a host's wait", columns["flags"][kind == rows.HOST], 0, len(rows.WAITS_FOR))
    _check_range("part in a graph", columns["bytes"][launched], rows.NO_NODE, rows.DIFFERENTIABLE + 1)
    _check_range("kind of an owner", columns["bytes"][kind == rows.OWNER], 0, len(rows.OWNERS))
    for name, amounts in (
        ("bytes", columns["bytes"]),
        ("host_ns", columns["host_ns"]),
        ("nanoseconds", columns["object"][kind == rows.HOST]),
    ):
        if float(amounts.sum(dtype=np.float64)) >= 2.0**62:
            raise Damaged(f"{name} add up to more than an int64 can count")
    callers, lines = (np.asarray([chain[i] for chain in trace.stacks], dtype=np.int64) for i in (0, 1))
    _check_range("line of a stack", lines, 0, len(trace.lines))
    if (callers >= np.arange(len(callers))).any():
        raise Damaged("a stack comes before that of its caller")
    _check_range("uses", trace.uses >> 1, 0, storages)
    _check_range("use_count", np.diff(trace.offsets), 0, MOST["tensors"] + 1)
    if trace.offsets[-1] != len(trace.uses):
        raise Damaged(f"use_count adds up to {trace.offsets[-1]}, and there are {len(trace.uses)} uses")


def _check_range(name: str, values: Array, low: int, high: int) -> None:
    wrong = np.flatnonzero((values < low) | (values >= high))
    if len(wrong):
        allowed = f"from {low} to {high - 1}" if high < 2**62 else f"{low} or more"
        raise Damaged(f"{name} is {values[wrong[0]]} in a row, and has to be {allowed}")
