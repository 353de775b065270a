"""A trace file is data of others: whatever it holds, it is priced or refused in one sentence."""

import io
import json
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bringup
from bringup import limits
from bringup.recording import archive, trace_check
from bringup.recording.rows import ALLOC, COLUMNS, D2D, FREE, KINDS, LAUNCH, STEP

Rows = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def trace() -> bringup.Trace:
    """Rows of nearly every kind, of two devices and two streams."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4)).to("chip")
    optimizer = torch.optim.AdamW(model.parameters())
    with bringup.record(stacks=True) as recorded:
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
        self.path = folder / "t.npz"
        trace.save(self.path)
        text, self.columns = archive.read(self.path)
        self.about = json.loads(text)
        self.kinds = trace.columns["kind"]

    def set(self, name: str, row: int, value: int, dtype: Any = None) -> "Spoiled":
        """Put a value into a row; a column that cannot have it becomes one of int64, or of the dtype."""
        column = self.columns[name]
        fits = np.iinfo(column.dtype).min <= value <= np.iinfo(column.dtype).max
        self.columns[name] = column.astype(dtype or (column.dtype if fits else np.int64))
        self.columns[name][row] = value
        return self

    def first(self, kind: int) -> int:
        return int(np.flatnonzero(self.kinds == kind)[0])

    def signature(self, op: str) -> Any:
        return next(item for item in self.about["signatures"] if item["op"].startswith(op))

    def save(self, method: int = zipfile.ZIP_DEFLATED) -> Path:
        members = {archive.DESCRIPTION: json.dumps(self.about).encode()}
        for name, column in self.columns.items():
            npy = io.BytesIO()
            np.save(npy, column)
            members[f"{name}.npy"] = npy.getvalue()
        with zipfile.ZipFile(self.path, "w", method) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return self.path


Spoil = Callable[[Spoiled], Any]


def test_every_kind_of_row_comes_back(trace: bringup.Trace, tmp_path: Path) -> None:
    spoiled = Spoiled(trace, tmp_path)
    found = {KINDS[kind] for kind in spoiled.kinds}
    assert {"launch", "h2d", "d2h", "d2d", "event_record", "event_wait", "event_sync", "alloc", "owner"} <= found
    again = bringup.Trace.load(spoiled.save())
    assert bringup.price(again, "t4").step_seconds == bringup.price(trace, "t4").step_seconds > 0


NUMBERS = [name for name in COLUMNS if name not in ("flags", "object")]
OUT_OF_RANGE = [(name, value) for name in NUMBERS for value in (-2, -(2**31), 2**62)]
OUT_OF_RANGE += [(name, 2**31 - 1) for name in ("device", "stream", "signature", "line", "module", "stack")]
OUT_OF_RANGE += [("kind", len(KINDS)), ("phase", 3), ("use_count", -1), ("use_count", 2**30)]


@pytest.mark.parametrize(("column", "value"), OUT_OF_RANGE)
def test_number_out_of_its_range_is_told(trace: bringup.Trace, tmp_path: Path, column: str, value: int) -> None:
    spoiled = Spoiled(trace, tmp_path)
    spoiled.set(column, spoiled.first(LAUNCH), value)
    with pytest.raises(bringup.TraceError, match=rf"t\.npz: is a damaged trace \({column} ") as caught:
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
        (lambda s: s.set("views", 0, 0, np.float64), "views is not int32 in every row"),
        (lambda s: s.set("bytes", 0, 0, np.float64), "bytes is not int64 in every row"),
        (lambda s: s.columns.update(views=s.columns["views"][1:]), "views is not int32 in every row"),
        (lambda s: s.columns.update(views=s.columns["views"].astype(object)), "views is not int32 in every row"),
        (lambda s: s.columns.update(kind=s.columns["kind"][:, None]), "kind is not uint8 in every row"),
        (lambda s: s.columns.update(uses=s.columns["uses"][1:]), "use_count adds up to"),
        (lambda s: s.signature("aten::addmm").update(tag="core"), "tag: core is no tag of torch"),
        (lambda s: s.about.pop("signatures"), "signatures: Field required"),
        (lambda s: s.about.pop("about"), "about: Field required"),
        (lambda s: s.about.update(lines=[1]), "lines.0: Input should be a valid string"),
        (lambda s: s.about.update(modules=["x" * 5000]), "modules.0: String should have at most 4096 characters"),
        (lambda s: s.about["stacks"].__setitem__(0, [0, 0, "main"]), "a stack comes before that of its caller"),
        (lambda s: s.about["stacks"].__setitem__(0, [-2, 0, "main"]), "stacks.0.0: Input should be greater than"),
        (lambda s: s.about["stacks"].__setitem__(0, [-1, 9999, "main"]), "line of a stack is 9999"),
        (lambda s: s.about["stacks"].__setitem__(0, [-1, 0]), "stacks.0.2: Field required"),
        (lambda s: s.about.pop("stacks"), "stack is 0 in a row"),
        (lambda s: s.about["about"].update(held_bytes=["1"]), "held_bytes.0: Input should be a valid integer"),
        (lambda s: s.about["about"].update(dry="yes"), "dry: Input should be a valid boolean"),
        (lambda s: s.about["about"].update(driver=3), "driver: Input should be a valid dictionary"),
        (lambda s: s.about["about"].update(driver=None), "driver: Input should be a valid dictionary"),
        (lambda s: s.columns.update(measured_ns=s.columns["kind"].astype(np.int64)), "has no measured_begin_ns.npy"),
        (lambda s: s.about["about"].update(driver={"name": "acme"}), "driver.step_seconds: Field required"),
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
    spoiled.columns["kind"] = np.zeros(1 << 26, np.uint8)
    assert spoiled.save().stat().st_size < 1 << 20
    with pytest.raises(
        bringup.TraceError, match=r"has 67,108,864 rows, and bringup reads a trace of at most 16,777,216"
    ):
        bringup.Trace.load(spoiled.path)
    trace.save(spoiled.path)
    for name in ("rows", "uses", "description bytes", "directory bytes"):
        with monkeypatch.context() as patch, pytest.raises(bringup.TraceError, match=f"{name}, and bringup reads"):
            patch.setitem(limits.TRACE, name, limits.Limit(3, "a test"))
            bringup.Trace.load(spoiled.path)
    monkeypatch.setitem(limits.BYTES, "trace file", limits.Limit(99, "a test"))
    with pytest.raises(bringup.TraceError, match=r"is larger than 99 bytes, .* \(a test\)"):
        bringup.Trace.load(spoiled.path)


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(bringup.TraceError) as caught:
        bringup.Trace.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_member_that_is_larger_than_promised_is_refused_and_takes_no_memory(
    trace: bringup.Trace, tmp_path: Path
) -> None:
    spoiled = Spoiled(trace, tmp_path)
    whole = io.BytesIO()
    np.save(whole, spoiled.columns["views"])
    spoiled.save()
    with zipfile.ZipFile(spoiled.path, "a", zipfile.ZIP_DEFLATED) as file:  # the last of a name is read
        bomb = zipfile.ZipInfo("views.npy")
        bomb.compress_type = zipfile.ZIP_DEFLATED
        with pytest.warns(UserWarning, match="Duplicate name"), file.open(bomb, "w") as member:
            member.write(whole.getvalue())
            for _ in range(1 << 10):
                member.write(bytes(1 << 20))
    data = spoiled.path.read_bytes()
    assert len(data) < 4 << 20
    place = data.rindex(b"views.npy") - 46  # its record in the directory; then its promise
    data = data[: place + 24] + struct.pack("<L", len(whole.getvalue())) + data[place + 28 :]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "it is truncated or no archive (Bad CRC-32 for file 'views.npy')" in refused(spoiled.path, data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_directory_of_a_million_entries_is_refused_unread(trace: bringup.Trace, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *[0] * 16)
    entries = entry * (1 << 20)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entries), 0, 0)
    assert "has 48,234,496 directory bytes, and bringup reads a trace of at most 65,536" in refused(path, entries + end)
    large = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 46, 0, 0)
    assert "(it is an archive of more than 4 GiB)" in refused(path, entries + large + end)


@pytest.mark.parametrize("place", [1, 1 << 32, (1 << 64) - 1])
def test_member_that_lies_elsewhere_is_refused(trace: bringup.Trace, tmp_path: Path, place: int) -> None:
    spoiled = Spoiled(trace, tmp_path)
    with zipfile.ZipFile(spoiled.save(), "a") as file:
        file.getinfo("views.npy").header_offset = place
        file.writestr("more", "")  # so that the directory is written again
    assert "it is truncated or no archive (" in refused(spoiled.path, spoiled.path.read_bytes())


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(trace: bringup.Trace, tmp_path: Path, method: int) -> None:
    spoiled = Spoiled(trace, tmp_path)
    spoiled.save(method)
    assert "compressed by another method than deflate" in refused(spoiled.path, spoiled.path.read_bytes())


def test_stored_members_are_read(trace: bringup.Trace, tmp_path: Path) -> None:
    assert len(bringup.Trace.load(Spoiled(trace, tmp_path).save(zipfile.ZIP_STORED))) == len(trace)


def test_every_beginning_of_a_file_is_refused_in_one_sentence(trace: bringup.Trace, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    trace.save(path)
    data = path.read_bytes()
    for length in range(0, len(data), 97):
        assert "it is truncated or no archive (it does not end as an archive)" in refused(path, data[:length])


def test_every_dtype_of_torch_is_known() -> None:
    dtypes = {str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}
    assert dtypes <= trace_check.DTYPES


def test_names_that_no_operator_has_are_priced_by_their_bytes(trace: bringup.Trace, tmp_path: Path) -> None:
    spoiled = Spoiled(trace, tmp_path)
    for number, name in enumerate(("::", "aten::", "no", "aten::a\0b", "é::__class__.x", "load_library::__call__")):
        spoiled.about["signatures"][number]["op"] = name
    assert "no" in bringup.price(bringup.Trace.load(spoiled.save()), "t4").unpriced
