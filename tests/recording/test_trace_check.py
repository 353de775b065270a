"""A trace file is data of others: whatever it holds, it is priced or refused in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import bringup
from bringup import limits
from bringup.recording import trace_check
from bringup.recording.rows import ALLOC, COLUMNS, D2D, FREE, KINDS, LAUNCH, STEP

Rows = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def trace() -> bringup.Trace:
    """Rows of nearly every kind, of two devices and two streams."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4)).to("chip")
    optimizer = torch.optim.AdamW(model.parameters())
    with bringup.record() as recorded:
        for _ in range(2):
            loss = model(torch.randn(2, 3, 8, 8).to("chip")).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        side = torch.chip.Stream()
        with side:
            far = torch.nn.functional.scaled_dot_product_attention(*torch.randn(3, 1, 2, 4, 8, device="chip")).to(
                "chip:1"
            )
            event = side.record_event()
        torch.chip.current_stream().wait_event(event)
        event.synchronize()
        print(far.sum().item(), far.topk(2).values.sort().values.tolist())
        torch.chip.synchronize()
    return recorded


class Spoiled:
    """A saved trace that is written again with something else in it."""

    def __init__(self, trace: bringup.Trace, folder: Path) -> None:
        self.path = folder / "t.parquet"
        trace.save(self.path)
        self.table = pq.read_table(self.path)
        self.about = json.loads(self.table.schema.metadata[b"bringup"])
        self.kinds = trace.columns["kind"]

    def set(self, name: str, row: int, value: int, dtype: Any = np.int64) -> "Spoiled":
        values = self.table[name].to_numpy().astype(dtype)
        values[row] = value
        self.table = self.table.set_column(self.table.column_names.index(name), name, pa.array(values))
        return self

    def first(self, kind: int) -> int:
        return int(np.flatnonzero(self.kinds == kind)[0])

    def signature(self, op: str) -> Any:
        return next(item for item in self.about["signatures"] if item["op"].startswith(op))

    def save(self) -> Path:
        text = json.dumps(self.about)
        pq.write_table(self.table.replace_schema_metadata({"bringup": text}), self.path)
        return self.path


Spoil = Callable[[Spoiled], Any]


def test_every_kind_of_row_comes_back(trace: bringup.Trace, tmp_path: Path) -> None:
    spoiled = Spoiled(trace, tmp_path)
    found = {KINDS[kind] for kind in spoiled.kinds}
    assert {"launch", "h2d", "d2h", "d2d", "event_record", "event_wait", "event_sync", "alloc", "owner"} <= found
    again = bringup.Trace.load(spoiled.save())
    assert bringup.price(again, "t4").step_seconds == bringup.price(trace, "t4").step_seconds > 0


NUMBERS = [name for name in COLUMNS if name not in ("kind", "phase", "line", "module", "flags", "object")]
OUT_OF_RANGE = [(name, value) for name in NUMBERS for value in (-2, -(2**31), 2**62)]
OUT_OF_RANGE += [(name, 2**31 - 1) for name in ("device", "stream", "signature")]


@pytest.mark.parametrize(("column", "value"), OUT_OF_RANGE)
def test_number_out_of_its_range_is_told(trace: bringup.Trace, tmp_path: Path, column: str, value: int) -> None:
    spoiled = Spoiled(trace, tmp_path)
    spoiled.set(column, spoiled.first(LAUNCH), value)
    with pytest.raises(bringup.TraceError, match=rf"t\.parquet: is a damaged trace \({column} ") as caught:
        bringup.Trace.load(spoiled.save())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [ALLOC, FREE, KINDS.index("owner")])
@pytest.mark.parametrize("value", [-1, -(2**62), 2**31, 2**62])
def test_storage_that_no_row_can_have_is_told(trace: bringup.Trace, tmp_path: Path, kind: int, value: int) -> None:
    spoiled = Spoiled(trace, tmp_path)
    spoiled.set("object", spoiled.first(kind), value)
    with pytest.raises(bringup.TraceError, match=rf"damaged trace \(storage is {value} in a row, and has to be from 0"):
        bringup.Trace.load(spoiled.save())


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda s: s.set("signature", s.first(LAUNCH), -1), "signature of a launch is -1"),
        (lambda s: s.set("stream", s.first(LAUNCH), -1), "stream of a launch or copy is -1"),
        (lambda s: s.set("object", s.first(D2D), 64), "other device is 64 in a row, and has to be from 0 to 63"),
        (lambda s: s.set("object", s.first(STEP), -2), "optimizer is -2 in a row, and has to be -1 or more"),
        (lambda s: s.set("bytes", s.first(KINDS.index("owner")), 99), "kind of an owner is 99"),
        (lambda s: s.set("views", 0, 0, np.float64), "views is not whole numbers in every row"),
        (lambda s: s.about.pop("signatures"), "signatures: Field required"),
        (lambda s: s.about.pop("about"), "about: Field required"),
        (lambda s: s.about.update(lines=[1]), "lines.0: Input should be a valid string"),
        (lambda s: s.about.update(modules=["x" * 5000]), "modules.0: String should have at most 4096 characters"),
        (lambda s: s.about["about"].update(held_bytes=["1"]), "held_bytes.0: Input should be a valid integer"),
        (lambda s: s.about["about"].update(dry="yes"), "dry: Input should be a valid boolean"),
        (lambda s: s.about["about"].update(program="\udcff"), "program: Input should be a valid string"),
        (lambda s: s.signature("aten::addmm")["inputs"].__setitem__(0, ["f32", [4], [1], 0, 0]), "f32 is not a torch"),
        (lambda s: s.signature("aten::addmm")["inputs"][1].__setitem__(1, [2]), "1 dimensions has 2 strides"),
        (
            lambda s: s.signature("aten::addmm")["inputs"][1].__setitem__(1, ["x", "y"]),
            "Input should be a valid integer",
        ),
        (
            lambda s: s.signature("aten::addmm")["inputs"][1].__setitem__(1, [2**40, 2**40]),
            "more elements than an int64",
        ),
        (lambda s: s.signature("aten::addmm")["inputs"][1].__setitem__(1, [-1, 4]), "greater than or equal to 0"),
        (lambda s: s.signature("aten::addmm")["inputs"][1].__setitem__(3, 2**20 + 1), "less than or equal to 1048576"),
        (lambda s: s.signature("aten::addmm")["args"].update(mat1={"tensor": 9}), "an argument is tensor 9 of 3"),
        (lambda s: s.signature("aten::addmm")["args"].update(mat1={"tensor": -1}), "an argument is tensor -1 of 3"),
        (lambda s: s.signature("aten::addmm")["args"].update(mat1={"tensor": None}), "an argument is tensor None of 3"),
        (lambda s: s.signature("aten::addmm")["args"].update(mat1={"tensor": True}), "an argument is tensor True of 3"),
        (lambda s: s.signature("aten::addmm")["args"].update(x=json.loads("[" * 99 + "]" * 99)), "nested too deeply"),
        (lambda s: s.signature("aten::addmm")["args"].update(x=2**65), "a number of more than 64 bits"),
        (lambda s: s.signature("aten::addmm")["args"].update(read_first=[]), "read_first names no lines"),
        (lambda s: s.signature("aten::addmm").update(inner=[{}]), "inner.0.op: Field required"),
    ],
)
def test_damage_is_told_in_one_sentence(trace: bringup.Trace, tmp_path: Path, spoil: Spoil, problem: str) -> None:
    spoiled = Spoiled(trace, tmp_path)
    spoil(spoiled)
    with pytest.raises(bringup.TraceError) as caught:
        bringup.Trace.load(spoiled.save())
    assert problem in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("op", "change", "problem"),
    [
        ("aten::addmm", lambda data: data["inputs"][1].__setitem__(slice(1, 3), [[2], [1]]), "aten::addmm"),
        ("aten::addmm", lambda data: data["args"].pop("mat2"), "there is no tensor mat2"),
        ("aten::convolution", lambda data: data["args"].update(groups=-1), "items is -72"),
        ("aten::convolution", lambda data: data["args"].update(groups="many"), "invalid literal"),
        ("aten::topk", lambda data: data.update(inputs=[], args={}), "index out of range"),
        ("aten::_scaled_dot", lambda data: data["args"].update(query=None), "there is no tensor query"),
        ("aten::sort", lambda data: data.update(op="aten::fft_fft", args={"dim": [7]}), "index out of range"),
        ("aten::sort", lambda data: data.update(op="triton::k", args={"counters": {}}), "'products'"),
        ("aten::sort", lambda data: data.update(op="triton::k", args={"grid": ["x"], "counters": {}}), "products"),
    ],
)
def test_arguments_that_do_not_fit_the_operator_are_told_with_its_name(
    trace: bringup.Trace, tmp_path: Path, op: str, change: Callable[[Any], Any], problem: str
) -> None:
    spoiled = Spoiled(trace, tmp_path)
    data = spoiled.signature(op)
    change(data)
    again = bringup.Trace.load(spoiled.save())
    with pytest.raises(bringup.BringupError) as caught:
        bringup.price(again, "t4")
    assert str(caught.value).startswith(data["op"].split(".")[0]) and "cannot be priced" in str(caught.value)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_file_that_grows_beyond_any_recording_is_refused_unread(
    trace: bringup.Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = Spoiled(trace, tmp_path)
    rows = 1 << 26
    zeros = {name: pa.array(np.zeros(rows, np.int8)) for name in ("device", "stream")}
    text = {"bringup": json.dumps(spoiled.about)}
    pq.write_table(pa.table(zeros).replace_schema_metadata(text), spoiled.path, compression="zstd")
    assert spoiled.path.stat().st_size < 1 << 20
    with pytest.raises(
        bringup.TraceError, match=r"has 67,108,864 rows, and bringup reads a trace of at most 16,777,216"
    ):
        bringup.Trace.load(spoiled.path)
    trace.save(spoiled.path)
    for name, most in (("uses", 3), ("bytes", 99), ("description bytes", 99), ("columns", 2)):
        with monkeypatch.context() as patch, pytest.raises(bringup.TraceError, match=f"{name}, and bringup reads"):
            patch.setitem(trace_check.MOST, name, most)
            bringup.Trace.load(spoiled.path)
    monkeypatch.setitem(limits.BYTES, "trace file", limits.Limit(99, "a test"))
    with pytest.raises(bringup.TraceError, match=r"is larger than 99 bytes, .* \(a test\)"):
        bringup.Trace.load(spoiled.path)


def test_every_dtype_of_torch_is_known() -> None:
    dtypes = {str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}
    assert dtypes <= trace_check.DTYPES


def test_names_that_no_operator_has_are_priced_by_their_bytes(trace: bringup.Trace, tmp_path: Path) -> None:
    spoiled = Spoiled(trace, tmp_path)
    for number, name in enumerate(("::", "aten::", "no", "aten::a\0b", "é::__class__.x", "load_library::__call__")):
        spoiled.about["signatures"][number]["op"] = name
    assert "no" in bringup.price(bringup.Trace.load(spoiled.save()), "t4").unpriced
