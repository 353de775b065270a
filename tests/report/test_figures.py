"""The numbers in the charts of the report are those of the recording and of the summary."""

from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

import bringup
from bringup import pricing
from bringup.recording.rows import H2D, LAUNCH
from bringup.report import figures, html
from bringup.report.chart import Figure, Series
from bringup.text import module_name

STEPS = 3
HOST_LANES = ("host thread 0", "host thread 1")  # the second runs the backward pass


@pytest.fixture(scope="module")
def prediction() -> bringup.Prediction:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 8)).to("chip")
    optimizer = torch.optim.AdamW(model.parameters())
    with bringup.record(stacks=True) as trace:
        for _ in range(STEPS):
            loss = model(torch.randn(32, 64).to("chip")).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return bringup.price(trace, "t4")


def small(prediction: bringup.Prediction, **changes: object) -> bringup.Prediction:
    """Price the recording on a t4 with twice the memory that the program needs."""
    chip = bringup.load_chip("t4")
    data = chip.model_dump() | {"invented": True, **changes}
    twice = 2 * prediction.peak_bytes / 2**30
    data["memory"] |= {"device_gib": twice, "usable_gib": twice, "context_mib": 0.0}
    return bringup.price(prediction.trace, type(chip).model_validate(data))


def bars(figure: Figure | None, *lanes: str) -> list[tuple[float, float, Series]]:
    assert figure is not None
    numbers = {figure.y.lanes.index(lane) for lane in lanes}
    marks = [
        (x, width, series)
        for series in figure.series
        for x, y, width in zip(series.x, series.y, series.width, strict=True)
        if y in numbers
    ]
    return sorted(marks, key=lambda mark: mark[:2])


def test_timeline_has_the_launches_of_the_last_step(prediction: bringup.Prediction) -> None:
    summary, replayed = prediction.summary, prediction.timeline
    figure, note = figures.timeline(replayed)
    assert figure is not None and figure.y.lanes == ["link to the chip", "chip:0 s0", *HOST_LANES]
    kind = replayed.trace.columns["kind"]
    last = np.arange(replayed.steps.ends[-2], replayed.steps.ends[-1])
    launched = last[kind[last] == LAUNCH]
    drawn = bars(figure, "chip:0 s0")
    assert len(drawn) == len(launched) == summary.launches
    assert [width for _, width, _ in drawn] == pytest.approx(
        1e3 * (replayed.end - replayed.start)[launched], abs=2e-6
    )  # a stream runs its launches in order
    assert sum(width for _, width, _ in drawn) == pytest.approx(1e3 * summary.device_seconds, rel=1e-3)
    assert min(x for x, _, _ in bars(figure, *HOST_LANES)) == 0
    (copy,) = bars(figure, "link to the chip")
    (row,) = last[kind[last] == H2D]
    assert copy[1] == pytest.approx(1e3 * (replayed.end - replayed.start)[row], abs=2e-6)
    assert copy[2].text[0].startswith("8.00 KiB")  # 32 x 64 x float32
    assert note == f"The typical step: {summary.launches + 1} launches and copies."


def test_timeline_text_has_operator_shapes_and_line(prediction: bringup.Prediction) -> None:
    figure, _ = figures.timeline(prediction.timeline)
    assert figure is not None
    (products,) = [series for series in figure.series if series.name == "matmul"]
    first, shapes, where = products.text[0].split("\n")
    assert first.startswith("aten::addmm ") and "float32[32, 64]" in shapes and "test_figures.py:" in where


def test_fallbacks_have_a_lane(prediction: bringup.Prediction) -> None:
    changed = small(prediction, ops={"host": ["aten::gelu"], "dtypes": ["float32", "int64"]})
    figure, _ = figures.timeline(changed.timeline)
    (ledger,) = changed.summary.fallbacks
    drawn = bars(figure, "fallbacks on the host")
    assert len(drawn) == ledger.count == 1 and {series.name for _, _, series in drawn} == {"fallback"}
    assert len(bars(figure, "chip:0 s0")) == changed.summary.launches - 1


def test_close_neighbours_are_merged(prediction: bringup.Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = figures.timeline(prediction.timeline)
    monkeypatch.setattr(figures, "MOST_SPANS", 1)
    merged, note = figures.timeline(prediction.timeline)
    assert whole is not None and merged is not None
    for one, other in zip(whole.series, merged.series, strict=True):
        (x,), (width,) = other.x, other.width
        assert x == one.x[0]
        assert x + width == pytest.approx(max(map(sum, zip(one.x, one.width, strict=True))), abs=2e-6)
    left = sum(len(series.x) - 1 for series in whole.series if series.column != "host")
    assert f" {left} are merged with a neighbour; timeline.pftrace.gz has all of them." in note


def test_busiest_lanes_are_drawn(prediction: bringup.Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, note = figures.timeline(prediction.timeline)
    assert whole is not None and len({series.name for series in whole.series}) > 3 and "leaves out" not in note
    monkeypatch.setattr(figures, "MOST_LANES", 2)
    busiest, note = figures.timeline(prediction.timeline)
    assert busiest is not None
    many, few = (
        sorted((len(series.x) for series in figure.series if series.column != "host"), reverse=True)
        for figure in (whole, busiest)
    )
    assert few == many[:2]
    assert note.endswith(f" The chart leaves out {len(many) - 2} lanes with fewer of them.")


def test_memory_reaches_the_peak(prediction: bringup.Prediction) -> None:
    figure = figures.memory(prediction.timeline, prediction.summary)
    assert figure is not None
    held = totals(figure)  # the capacity of 16 GiB is far away
    assert max(held) == pytest.approx(prediction.summary.peak_bytes / 2**20, abs=1e-3)
    for series in figure.series:
        assert series.shape == "stack" and series.x is figure.series[0].x and min(series.y) >= 0
    assert list(figure.series[0].x) == sorted(figure.series[0].x)


def totals(figure: Figure) -> list[float]:
    """Return the sums of the stacks."""
    stacks = [series.y for series in figure.series if series.shape == "stack"]
    return [sum(values) for values in zip(*stacks, strict=True)]


def test_memory_at_the_peak_has_the_owners_of_the_summary(prediction: bringup.Prediction) -> None:
    figure = figures.memory(prediction.timeline, prediction.summary)
    assert figure is not None
    held = totals(figure)
    top = held.index(max(held))
    drawn = {series.name: series.y[top] for series in figure.series if series.y[top]}
    sums: dict[str, float] = {}
    for owner in prediction.summary.memory.owners:
        sums[owner.kind] = sums.get(owner.kind, 0.0) + owner.bytes / 2**20
    assert drawn == pytest.approx(sums, abs=1e-4)


def test_parts_of_a_stack_are_its_storages(prediction: bringup.Prediction) -> None:
    figure = figures.memory(prediction.timeline, prediction.summary)
    assert figure is not None
    for series in figure.series:
        if series.name == "held before the recording":  # by lines that were not recorded
            continue
        parts = series.parts
        spans = list(zip(parts.x, parts.width, parts.y, strict=True))
        at, height = max(zip(series.x, series.y, strict=True), key=lambda mark: mark[1])
        covered = sum(y for x, width, y in spans if x <= at < x + width)
        assert covered == pytest.approx(height, rel=0.3), series.name  # calls of one moment have equal times
        assert "test_figures.py:" in "".join(parts.text)


def test_lane_of_the_host_has_its_calls_and_waits(prediction: bringup.Prediction) -> None:
    replayed = prediction.timeline
    figure, _ = figures.timeline(replayed)
    assert figure is not None
    names = {series.name for _, _, series in bars(figure, *HOST_LANES)}
    assert {"host: launch", "host: copy", "host: wait: blocking upload"} <= names
    assert all(series.column == "host" for _, _, series in bars(figure, *HOST_LANES))
    for lane in HOST_LANES:  # a thread does one thing at a time
        for (x, width, _), (after, _, _) in pairwise(bars(figure, lane)):
            assert x + width <= after + 2e-6
    first, last = replayed.steps.ends[-2], replayed.steps.ends[-1]
    launched = np.arange(first, last)[replayed.trace.columns["kind"][first:last] == LAUNCH]
    calls = [width for _, width, series in bars(figure, *HOST_LANES) if series.name == "host: launch"]
    assert sum(calls) == pytest.approx(1e3 * replayed.called[launched].sum(), rel=1e-3)


def test_launch_and_kernel_have_the_same_row(prediction: bringup.Prediction) -> None:
    figure, _ = figures.timeline(prediction.timeline)
    assert figure is not None
    calls = [one for one in figure.series if one.name == "host: launch"]
    begins = {row: x for one in calls for row, x in zip(one.row, one.x, strict=True)}
    kernels = [one for one in figure.series if one.column == "chip"]
    assert len(begins) == sum(len(one.row) for one in kernels)
    for one in kernels:
        assert all(begins[row] < x for row, x in zip(one.row, one.x, strict=True))


def test_memory_by_module_is_the_same_memory(prediction: bringup.Prediction) -> None:
    by_kind = figures.memory(prediction.timeline, prediction.summary)
    figure = figures.memory_by_module(prediction.timeline)
    assert by_kind is not None and figure is not None
    assert totals(figure) == pytest.approx(totals(by_kind), abs=1e-2)
    names = {series.name for series in figure.series}
    assert len(names) == len(figure.series) <= figures.MOST_MODULES + 2
    assert names & set(map(module_name, prediction.trace.modules))


def test_modules_are_grouped_where_they_are_large() -> None:
    names = ["embed", "layers.0.mlp", "layers.0.attn", *(f"layers.{number}" for number in range(1, 20)), "head"]
    weight = np.asarray([5.0, 90.0, 80.0, *[1.0] * 19, 2.0])
    assert figures._grouped(names, weight) == ["embed", *["layers"] * 21, "head"]
    few = names[:4]
    assert figures._grouped(few, weight[:4]) == few


def test_memory_peak_survives_thinning(prediction: bringup.Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_POINTS", 4)
    figure = figures.memory(prediction.timeline, prediction.summary)
    assert figure is not None and len(figure.series[0].x) == 4
    assert max(totals(figure)) == pytest.approx(prediction.summary.peak_bytes / 2**20, abs=1e-3)


def test_memory_has_the_capacity_if_it_is_near(prediction: bringup.Prediction) -> None:
    changed = small(prediction)
    figure = figures.memory(changed.timeline, changed.summary)
    assert figure is not None
    *_, held, capacity = figure.series
    assert capacity.name == "capacity" and list(capacity.x) == [held.x[0], held.x[-1]]
    assert list(capacity.y) == [pytest.approx(changed.summary.capacity_bytes / 2**20)] * 2


@pytest.mark.parametrize("by", ["module", "line", "stack"])
def test_flame_graph_adds_up_from_operators_to_passes(
    prediction: bringup.Prediction, by: Literal["module", "line", "stack"]
) -> None:
    figure = figures.flame(prediction.timeline, by)
    assert figure is not None
    marks = [mark for one in figure.series for mark in zip(one.x, one.y, one.width, one.text, strict=True)]
    top = len(figure.y.lanes) - 1
    assert [one.name for one in figure.series] == ["forward pass", "backward pass", "optimizer"]
    assert sum(width for _, y, width, _ in marks if y == top) == pytest.approx(
        1e3 * prediction.summary.device_seconds, rel=1e-3
    )
    for x, y, width, text in marks:
        if y == top:
            continue
        (above,) = [mark for mark in marks if mark[1] == y + 1 and mark[0] - 2e-6 <= x and x < mark[0] + mark[2] - 2e-6]
        assert x + width <= above[0] + above[2] + 1e-5
        assert above[3].split(" ")[0] in text.split("\n")[-1]


def test_flame_graph_by_stack_has_the_calls_and_needs_them(prediction: bringup.Prediction) -> None:
    from dataclasses import replace

    figure = figures.flame(prediction.timeline, "stack")
    assert figure is not None
    assert any(
        text.startswith("prediction  tests/report/test_figures.py:") for one in figure.series for text in one.text
    )
    columns = {name: column for name, column in prediction.trace.columns.items() if name != "stack"}
    without = bringup.price(replace(prediction.trace, columns=columns, stacks=[]), "t4")
    assert figures.flame(without.timeline, "stack") is None
    assert "bringup run --stacks" in html.page(without.timeline, without.summary)
    assert "by Python stack" in html.page(prediction.timeline, prediction.summary)


def test_lines_have_their_source_and_the_time_of_the_step(prediction: bringup.Prediction) -> None:
    from bringup.analyse.source_lines import source_lines

    (own,) = [lines for file, lines in source_lines(prediction.timeline) if file.endswith("test_figures.py")]
    texts = [line.text for line in own]
    assert 'loss = model(torch.randn(32, 64).to("chip")).square().mean()' in texts and "optimizer.step()" in texts
    files = source_lines(prediction.timeline)
    assert sum(line.launches for _, lines in files for line in lines) == prediction.summary.launches
    chip = sum(line.chip_seconds for _, lines in files for line in lines)
    assert chip == pytest.approx(prediction.summary.device_seconds, rel=1e-6)
    host = sum(line.host_seconds for _, lines in files for line in lines)
    assert host <= prediction.summary.step_seconds * (1 + 1e-9)  # the threads take turns
    page = html.page(prediction.timeline, prediction.summary)
    assert "<code>optimizer.step()</code>" in page


def test_roofline_has_the_kernels_of_the_summary(prediction: bringup.Prediction) -> None:
    figure = figures.roofline(prediction.timeline)
    points = [series for series in figure.series if series.shape == "points"]
    drawn = {mark for series in points for mark in zip(series.x, series.y, strict=True)}
    kernels = [kernel for kernel in prediction.summary.kernels if kernel.flops and kernel.bytes]
    assert len(kernels) > 5
    for kernel in kernels:
        intensity, speed = kernel.flops / kernel.bytes, kernel.flops / kernel.seconds / 1e9
        assert (float(f"{intensity:.6g}"), float(f"{speed:.6g}")) in drawn
    areas = sum(((size - 5) / 30) ** 2 for series in points for size in series.size)
    columns, replayed = prediction.trace.columns, prediction.timeline
    launched = columns["kind"] == LAUNCH
    seconds = (replayed.end - replayed.start)[launched]
    computes = replayed.work.flops[columns["signature"][launched]] > 0
    assert areas == pytest.approx(seconds[computes].sum() / seconds.sum(), rel=0.01)  # shares of the chip's time


def test_roofs_are_the_rates_that_prices_use(prediction: bringup.Prediction) -> None:
    chip = prediction.timeline.chip
    roofs = {series.name: series for series in figures.roofline(prediction.timeline).series if series.shape == "line"}
    assert set(roofs) == {f"{dtype} matrix" for dtype in chip.matrix.tflops if dtype != "tf32"}
    for dtype in ("float16", "float32"):
        x, y = roofs[f"{dtype} matrix"].x, roofs[f"{dtype} matrix"].y
        assert y[1] == y[2] == pricing.matrix_rate(chip, dtype) / 1e9
        assert y[0] / x[0] == pytest.approx(y[1] / x[1]) == pytest.approx(pricing.memory_rate(chip) / 1e9)


def test_recording_without_launches_has_no_charts() -> None:
    with bringup.record() as trace:
        pass
    empty = bringup.price(trace, "t4")
    assert figures.timeline(empty.timeline) == (None, "Nothing ran on the chip.")
    assert figures.memory(empty.timeline, empty.summary) is None
    page = html.page(empty.timeline, empty.summary)
    assert "Nothing ran on the chip." in page and page.count('class="chart"') == 1  # the roofs
