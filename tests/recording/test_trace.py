"""The recorder and its files."""

import functools
import gc
import itertools
import json
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bringup
from bringup.device.choose import SCALAR_TYPES
from bringup.recording import archive
from bringup.recording.rows import (
    ALLOC,
    D2H,
    EVENT_RECORD,
    EVENT_WAIT,
    FALLBACK,
    FORWARD,
    FREE,
    H2D,
    LAUNCH,
    OF_ALLOCATOR,
    PHASES,
    STEP,
    STREAM_SYNC,
)
from bringup.timeline.replay import replay

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def trace() -> bringup.Trace:
    model = Tiny().to("chip")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bringup.record() as recorded:
        for _ in range(3):
            x = torch.randn(2, 8).to("chip")
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
    return recorded


def ops(trace: bringup.Trace, phase: str) -> Counter[str]:
    rows = (trace.columns["kind"] == LAUNCH) & (trace.columns["phase"] == PHASES.index(phase))
    return Counter(trace.signatures[i].op for i in trace.columns["signature"][rows])


def test_a_trace_is_shown_on_one_line(trace: bringup.Trace) -> None:
    assert repr(trace) == f"<Trace: {trace.launches} launches in {len(trace):,} rows>"


def test_launches_have_phases(trace: bringup.Trace) -> None:
    assert ops(trace, "forward")["aten::addmm"] == 6
    assert ops(trace, "backward")["aten::mm"] == 9  # the first layer's input needs no gradient
    assert set(ops(trace, "optimizer")) == {"aten::_foreach_add_.List"}


def test_launches_have_lines_and_modules(trace: bringup.Trace) -> None:
    where = {
        (trace.modules[m], trace.lines[line].split("/")[-1].split(":")[0])
        for m, line, s in zip(*(trace.columns[name] for name in ("module", "line", "signature")), strict=True)
        if s >= 0 and trace.signatures[s].op == "aten::addmm"
    }
    assert where == {("layers.0", "test_trace.py"), ("layers.2", "test_trace.py")}


def calls(trace: bringup.Trace, row: int) -> list[str]:
    """The functions that led to a row, the outermost first."""
    names, number = [], int(trace.columns["stack"][row])
    while number >= 0:
        number, line, function = trace.stacks[number]
        assert trace.lines[line].startswith("tests/recording/test_trace.py:")
        names.append(function.rpartition(".")[2])
    return names[::-1]


def test_stacks_have_the_calls_that_led_to_each_launch() -> None:
    def inner(x: torch.Tensor) -> torch.Tensor:
        return x.exp()

    def outer(x: torch.Tensor) -> torch.Tensor:
        return nn.Sequential(nn.Tanh())(inner(x))

    def step(x: torch.Tensor) -> None:
        outer(x).sum().backward()

    x = torch.ones(4, device="chip", requires_grad=True)
    with bringup.record(stacks=True) as trace:
        step(x)
        inner(x.detach())
    test = "test_stacks_have_the_calls_that_led_to_each_launch"
    rows = np.flatnonzero(trace.columns["kind"] == LAUNCH)
    found = [(trace.signatures[trace.columns["signature"][row]].name, calls(trace, row)) for row in rows]
    assert found[:3] == [
        ("exp", [test, "step", "outer", "inner"]),
        ("tanh", [test, "step", "outer"]),
        ("sum", [test, "step"]),
    ]
    assert found[-1] == ("exp", [test, "inner"])
    backward = [chain for row, (_, chain) in zip(rows, found, strict=True) if trace.columns["phase"][row] == 1]
    assert [test, "step", "outer", "inner"] in backward  # that of the forward operator
    with bringup.record() as plain:
        step(x)
    assert "stack" not in plain.columns and plain.stacks == []


def test_backward_launches_have_the_module_of_their_forward(trace: bringup.Trace) -> None:
    columns = trace.columns
    rows = (columns["kind"] == LAUNCH) & (columns["phase"] == PHASES.index("backward"))
    pairs = zip(columns["module"][rows], columns["signature"][rows], strict=True)
    found = {trace.modules[m] for m, s in pairs if m >= 0 and trace.signatures[s].op == "aten::mm"}
    assert found == {"layers.0", "layers.2"}


def test_copies_waits_steps_and_calls_are_rows(trace: bringup.Trace) -> None:
    kinds = Counter(int(kind) for kind in trace.columns["kind"])
    assert (kinds[H2D], kinds[D2H], kinds[STREAM_SYNC], kinds[STEP], kinds[FORWARD]) == (3, 3, 6, 3, 3)
    copied = trace.columns["bytes"][trace.columns["kind"] == H2D]
    assert set(copied.tolist()) == {2 * 8 * 4}


def test_storages_tell_who_reads_what_was_written(trace: bringup.Trace) -> None:
    columns = trace.columns
    rows = [i for i in np.flatnonzero(columns["kind"] == LAUNCH) if columns["phase"][i] == 0]
    names = [trace.signatures[columns["signature"][i]].name for i in rows]
    addmm, relu = rows[names.index("addmm")], rows[names.index("relu")]

    def uses(row: int, written: int) -> set[int]:
        of_row = trace.uses[trace.offsets[row] : trace.offsets[row + 1]]
        return {int(use) >> 1 for use in of_row if use & 1 == written}

    assert uses(addmm, written=1) <= uses(relu, written=0)


def test_allocations_and_frees_pair(trace: bringup.Trace) -> None:
    kind, objects = trace.columns["kind"], trace.columns["object"]
    allocated = set(objects[kind == ALLOC].tolist())
    assert len(allocated) == int((kind == ALLOC).sum())
    assert allocated & set(objects[kind == FREE].tolist())


def test_scalars_that_change_do_not_make_new_signatures() -> None:
    x = torch.ones(4, device="chip")
    with bringup.record() as trace:
        for value in range(5):
            x * float(value)
    assert len(trace.signatures) == 1
    assert trace.launches == 5


def host_us(run: Callable[[], object], views: int) -> float:
    """Modelled microseconds of a program that makes views before its last launch."""
    x = torch.zeros(8, 8, device="chip")
    with bringup.record() as trace:
        x.add(1)
        for _ in range(views):
            x.t()
        run()
        torch.chip.synchronize()
    return replay(trace, bringup.load_chip("t4"), bringup.load_host()).total_seconds * 1e6


@pytest.mark.parametrize("form", ["fresh", "out", "copy", "read", "nothing"])
def test_views_cost_what_the_host_file_says(form: str) -> None:
    x, out = torch.zeros(8, 8, device="chip"), torch.zeros(8, 8, device="chip")
    runs: dict[str, Callable[[], object]] = {
        "fresh": lambda: x.add(1),
        "out": lambda: torch.add(x, 1, out=out),
        "copy": lambda: torch.zeros(4).to("chip"),
        "read": lambda: x[0, 0].item(),
        "nothing": lambda: None,
    }
    cost = host_us(runs[form], 1000) - host_us(runs[form], 0)
    assert cost == pytest.approx(1000 * bringup.load_host().dispatch.view_us, rel=1e-6)


def test_views_after_the_last_launch_count() -> None:
    x = torch.zeros(8, device="chip")
    with bringup.record() as trace:
        for _ in range(500):
            x[1:]
    assert trace.columns["views"].sum() == 500


def test_views_of_a_thread_that_ends_count() -> None:
    x = torch.zeros(8, device="chip")

    def work() -> None:
        x.add(1)
        for _ in range(1000):
            x[1:]

    with bringup.record() as trace:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    columns = trace.columns
    assert columns["views"].sum() == 1000
    assert set(columns["thread"][columns["views"] > 0]) == set(columns["thread"][columns["kind"] == LAUNCH])


@pytest.mark.parametrize("launches", [0, 1])
def test_views_are_set_aside_with_their_rows(launches: int) -> None:
    ops, x = torch.ops.bringup, torch.zeros(8, device="chip")
    with bringup.record() as trace:
        x.add(1)
        for _ in range(7):
            x[1:]
        ops.set_recording_aside(True)
        for _ in range(launches):
            x.add(1)
        for _ in range(100):
            x[1:]
        ops.set_recording_aside(False)
        x.add(1)
    assert trace.launches == 2 and trace.columns["views"].sum() == 7


def test_allocations_carry_no_host_time() -> None:
    x, side = torch.zeros(8, device="chip"), torch.chip.Stream()
    with bringup.record() as trace:
        for _ in range(3):
            used = torch.empty(8, device="chip")
            used.record_stream(side)
            sum(range(200_000))  # the program's own time
            del used  # the allocator records an event
            x + x[:1]
    events = trace.columns["kind"] == EVENT_RECORD
    memory = np.isin(trace.columns["kind"], (ALLOC, FREE)) | events
    assert (trace.columns["flags"][events] == OF_ALLOCATOR).sum() == 3
    assert memory.any() and not trace.columns["host_ns"][memory].any() and not trace.columns["views"][memory].any()
    rows = list(zip(*(trace.columns[name].tolist() for name in ("kind", "thread", "host_ns", "object")), strict=True))
    assert (trace.columns["host_ns"][trace.columns["kind"] == LAUNCH][1:] > 100_000).all(), rows


def test_more_views_than_two_bytes_count() -> None:
    x = torch.zeros(8, device="chip")
    with bringup.record() as trace:
        x + 1
        for _ in range(70_000):
            x[0]
        x + 1
    assert trace.columns["views"].tolist().count(70_000) == 1


@pytest.mark.parametrize("number", [1000, 33_000, 70_000])
def test_launch_over_a_long_list(number: int) -> None:
    a, b, c = (
        [torch.full((2,), value + i % 7 * grows, device="chip") for i in range(number // 3)]
        for value, grows in ((0.0, 1), (2.0, 0), (4.0, 0))
    )
    with bringup.record() as trace:
        torch._foreach_addcdiv_(a, b, c, 1.0)
    assert torch.stack(a)[:, 0].cpu().tolist() == [i % 7 + 0.5 for i in range(number // 3)]
    (row,) = np.flatnonzero(trace.columns["kind"] == LAUNCH)
    uses = trace.uses[trace.offsets[row] : trace.offsets[row + 1]]
    assert len(uses) == number // 3 * 3 and (uses & 1).sum() == number // 3
    signature = trace.signatures[trace.columns["signature"][row]]
    assert len(signature.tensors) == number // 3 * 3 and signature.written_bytes == 8 * (number // 3)


def test_the_core_and_python_agree_on_the_dtype_that_a_launch_computes_in() -> None:
    """The core decides by it what falls back, Python what it costs."""
    dtypes = (torch.bool, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64, torch.complex64)
    tensors = [torch.ones(shape, dtype=dtype, device="chip") for dtype in dtypes for shape in ((3,), (1, 3), ())]
    index = torch.zeros(2, dtype=torch.int64, device="chip")
    ops = ["aten::mul.Tensor", "aten::where.self", "aten::embedding", "aten::cat", "aten::index_select"]
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        torch.ops.bringup.set_fallbacks(ops, [1 << SCALAR_TYPES[name]] * len(ops), False)
        try:
            with bringup.record() as trace:
                for a, b in itertools.product(tensors, tensors):
                    a * b, torch.where(a.to(torch.bool), a, b)
                    if a.dim() == b.dim() == 1:
                        torch.cat([a, b])
                for a in tensors[1::3]:
                    torch.nn.functional.embedding(index, a), a.index_select(0, index[:1])
        finally:
            torch.ops.bringup.set_fallbacks([], [], False)
        rows = trace.columns["kind"] == LAUNCH
        flags, ids = trace.columns["flags"][rows], trace.columns["signature"][rows]
        signatures = [trace.signatures[number] for number in ids]
        chosen = [(s, bool(f & FALLBACK)) for s, f in zip(signatures, flags, strict=True) if s.op in ops]
        assert chosen and all((signature.dtype == name) == on_host for signature, on_host in chosen), name


def test_streams_and_events_are_rows() -> None:
    with bringup.record() as trace:
        side = torch.Stream("chip")
        with side:
            torch.ones(4, device="chip")
            event = side.record_event()
        torch.chip.current_stream().wait_event(event)
    own = trace.columns["flags"] & OF_ALLOCATOR == 0  # which may wait for memory of tests before
    kind, objects, stream = (trace.columns[name][own] for name in ("kind", "object", "stream"))
    assert len(objects[kind == EVENT_RECORD]) == 1
    assert objects[kind == EVENT_RECORD].tolist() == objects[kind == EVENT_WAIT].tolist()
    assert stream[kind == LAUNCH].tolist() == [side.stream_id]


def test_nothing_is_recorded_outside_of_the_block() -> None:
    with bringup.record() as trace:
        torch.ones(4, device="chip")
    torch.ones(4, device="chip")
    assert trace.launches == 1


def test_what_was_computed_of_the_empty_trace_is_forgotten() -> None:
    with bringup.record() as trace:
        assert len(trace.signatures) == len(trace.work.works) == 0  # not recorded yet
        torch.ones(4, device="chip")
    assert len(trace.signatures) == len(trace.work.works) == 1


def test_recording_that_is_open_when_the_interpreter_ends_is_left_alone(python: Run) -> None:
    done = python("import bringup, torch\nblock = bringup.record()\nblock.__enter__()\ntorch.ones(4, device='chip')")
    assert (done.returncode, done.stderr) == (0, "")


def test_two_recordings_at_once_are_refused() -> None:
    with bringup.record(), pytest.raises(bringup.BringupError, match="inside another one"), bringup.record():
        pass


def test_module_of_a_dead_model_does_not_name_the_next() -> None:
    with bringup.record() as trace:
        for kind in (nn.ReLU, nn.Tanh, nn.Sigmoid):
            kind()(torch.ones(2, device="chip"))
    columns = trace.columns
    pairs = zip(columns["signature"], columns["module"], strict=True)
    named = [(trace.signatures[s].name, trace.modules[m]) for s, m in pairs if s >= 0 and m >= 0]
    assert named == [("relu", "ReLU"), ("tanh", "Tanh"), ("sigmoid", "Sigmoid")]


def test_saved_trace_comes_back(trace: bringup.Trace, tmp_path: Path) -> None:
    trace.save(tmp_path / "t.npz")
    again = bringup.Trace.load(tmp_path / "t.npz")
    for name, column in trace.columns.items():
        assert np.array_equal(column, again.columns[name]), name
    assert np.array_equal(trace.uses, again.uses) and np.array_equal(trace.offsets, again.offsets)
    assert (trace.signatures, trace.lines, trace.modules, trace.about) == (
        again.signatures,
        again.lines,
        again.modules,
        again.about,
    )


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_trace_is_one_line_for_other_tools(trace: bringup.Trace, tmp_path: Path, library: str) -> None:
    frames = pytest.importorskip(library, reason=f"{library} is not installed")
    trace.save(tmp_path / "t.npz")
    frame = frames.DataFrame(bringup.Trace.load(tmp_path / "t.npz").table())
    assert len(frame) == len(trace)
    if library == "pandas":  # which has nan for a text that is not there
        rows = frame.astype(object).where(frame.notna(), None).to_dict(orient="list")
    else:
        rows = frame.to_dict(as_series=False)
    expected = trace.table()
    assert list(rows) == list(expected)
    assert all(list(rows[name]) == list(expected[name]) for name in expected)


def test_table_says_in_words_what_rows_are(trace: bringup.Trace) -> None:
    table = trace.table()
    assert {len(column) for column in table.values()} == {len(trace)}
    first = table["kind"].index("launch")
    assert table["op"][first].startswith("aten::") and table["shapes"][first].startswith("float32[")
    assert table["op"][table["kind"].index("alloc")] is None
    assert set(table["phase"]) <= set(PHASES) and None in table["module"]
    assert [use for uses in table["uses"] for use in uses] == trace.uses.tolist()


def test_file_is_one_line_for_numpy(trace: bringup.Trace, tmp_path: Path) -> None:
    trace.save(tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as file:
        assert file["uses"].tolist() == trace.uses.tolist() and len(file["kind"]) == len(trace)


def test_another_suffix_than_npz_is_refused(trace: bringup.Trace, tmp_path: Path) -> None:
    with pytest.raises(bringup.errors.TraceError, match=r"t\.parquet: a trace is an npz file"):
        trace.save(tmp_path / "t.parquet")
    assert not [*tmp_path.iterdir()]


def test_same_trace_gives_the_same_bytes(trace: bringup.Trace, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        trace.save(tmp_path / name)
    bringup.Trace.load(tmp_path / "b.npz").save(tmp_path / "c.npz")
    assert len({(tmp_path / name).read_bytes() for name in ("a.npz", "b.npz", "c.npz")}) == 1


@pytest.mark.parametrize("spoil", ["missing", "truncated", "foreign", "other archive", "other version", "damaged"])
def test_bad_trace_is_told_in_one_sentence(trace: bringup.Trace, tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "t.npz"
    if spoil != "missing":
        trace.save(path)
    if spoil == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    if spoil == "foreign":
        path.write_text("not a trace")
    if spoil == "other archive":
        np.savez(path, a=np.ones(1))
    if spoil in ("other version", "damaged"):
        text, columns = archive.read(path)
        about = json.loads(text)
        about |= {"version": 99} if spoil == "other version" else {"signatures": []}
        archive.write(path, json.dumps(about).encode(), columns)
    with pytest.raises(bringup.TraceError, match=r"t\.npz") as caught:
        bringup.Trace.load(path)
    assert "\n" not in str(caught.value)


def test_module_calls_of_two_threads_are_both_marked() -> None:
    from threading import Barrier, Thread

    both = Barrier(2)

    class Meets(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both.wait()
            return x + 1

    with bringup.record() as trace:
        threads = [Thread(target=Meets(), args=(torch.ones(2, device="chip"),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert int((trace.columns["kind"] == FORWARD).sum()) == 2
    assert len(set(trace.columns["thread"][trace.columns["kind"] == FORWARD].tolist())) == 2


def test_dry_records_what_a_real_run_records() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)).to("chip")
    x = torch.randn(16, 64).to("chip")

    def step() -> None:
        model(x).square().sum().backward()
        model.zero_grad()

    step()

    def recorded() -> tuple[list[str], int, int]:
        gc.collect()  # memory of tests before
        torch.chip.synchronize()
        torch.chip.reset_peak_memory_stats()
        with bringup.record() as trace:
            step()
        ops = [trace.signature_data[i]["op"] for i in trace.columns["signature"] if i >= 0]
        return ops, torch.chip.max_memory_allocated(), int(bringup.price(trace, "t4").step_seconds * 1e12)

    real = recorded()
    with bringup.dry():
        assert recorded() == real


def test_dry_computes_nothing_and_touches_no_memory() -> None:
    import resource

    kept = torch.ones(4, device="chip")
    torch.chip.synchronize()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with bringup.dry():
        large = torch.ones(1 << 28, device="chip")  # 1 GiB
        kept.mul_(2)
        uploaded = torch.full((1 << 20,), 7.0).to("chip")
        assert torch.chip.memory_allocated() >= 1 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert kept.tolist() == [1, 1, 1, 1]
    assert uploaded[:2].tolist() != [7.0, 7.0]
    del large
    kept.mul_(3)
    assert kept.tolist() == [3, 3, 3, 3], "after the block everything is computed again"


def test_dry_nests_and_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), bringup.dry():
        with bringup.dry():
            pass
        x = torch.ones(2, device="chip").add_(1)
        1 / 0  # noqa: B018
    assert torch.ones(2, device="chip").add_(1).tolist() == [2, 2]
    assert x.shape == (2,)


def test_marks_are_unseen_by_a_selective_checkpoint() -> None:
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    def policy(_: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        saved = op is torch.ops.aten.mm.default
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    inner = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()).to("chip")
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    x = torch.randn(4, 8, device="chip", requires_grad=True)
    with bringup.record() as trace:  # the recomputed module is an outermost call in the backward pass
        checkpoint(inner, x, use_reentrant=False, context_fn=contexts).sum().backward()
    assert trace.launches and x.grad is not None
