"""The report in a browser, and that it cannot be broken out of."""

import base64
import dataclasses
import gzip
import hashlib
import html
import re
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bringup
from bringup.analyse.summarize import by_group
from bringup.recording.rows import D2D, D2H, FALLBACK, H2D, KINDS, LAUNCH
from bringup.report import figures, palette, perfetto, pftrace
from bringup.report import html as pages
from bringup.report.chart import Axis, Figure, Series, read
from bringup.timeline.steady import steady
from tests.conftest import NO_AXE, NO_BROWSER, ROOT, slow
from tests.report import browser
from tests.report.traces import Contents, Slice
from tests.report.traces import read as read_trace

CHART = r'<figure class="chart" id="(.*?)">.*?<script type="application/json">(.*?)</script>'


@pytest.fixture(scope="module")
def prediction() -> bringup.Prediction:
    return training()


def training() -> bringup.Prediction:
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 8)).to("chip")
    optimizer = torch.optim.AdamW(model.parameters())
    with bringup.record() as trace:
        for _ in range(40):  # enough for an advice
            loss = model(torch.randn(32, 64).to("chip")).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trace.about["program"] = "<script>alert(1)</script>.py"
    trace.modules[0] = '<img src=x onerror="alert(2)">'
    return bringup.price(trace, "t4")


ALONE = """
import bringup
from tests.report.test_report import training
bringup.use("t4")
training().trace.save("trace.npz")
"""


def test_page_is_self_contained_and_escaped(prediction: bringup.Prediction, tmp_path: Path) -> None:
    prediction.to_html(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<script>alert(1)" not in text and "<img src=x" not in text
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", own)


def contents(timeline: Any, run: str = "") -> Contents:
    return read_trace(b"".join(perfetto.trace(timeline, run).packets()))


def test_timeline_has_a_slice_per_launch_and_copy(prediction: bringup.Prediction) -> None:
    timeline = prediction.timeline
    trace, kind = timeline.trace, timeline.trace.columns["kind"]
    rows = np.flatnonzero(np.isin(kind, (LAUNCH, H2D, D2H, D2D)))
    rows = rows[np.argsort(timeline.start[rows], kind="stable")]
    names = {row: trace.signatures[trace.columns["signature"][row]].op for row in rows[kind[rows] == LAUNCH]}
    slices = [piece for piece in contents(timeline).slices if piece.process.startswith("chip:")]
    assert len(slices) == len(rows) > 50
    lanes = defaultdict(list)
    for piece in slices:
        lanes[piece.process, piece.track].append(piece)
    assert set(lanes) == {("chip:0 t4", "stream 0"), ("chip:0 t4", "link to the chip")}
    for (_, track), pieces in lanes.items():
        ours = rows[kind[rows] == (H2D if track == "link to the chip" else LAUNCH)]
        for piece, row in zip(pieces, ours, strict=True):
            assert piece.name == names.get(row, KINDS[kind[row]]).removeprefix("aten::")
            assert piece.begin == pytest.approx(1e9 * timeline.start[row], abs=pftrace.TOLERANCE) and piece.begin >= 0
            assert piece.end == pytest.approx(1e9 * timeline.end[row], abs=pftrace.TOLERANCE)
            line = trace.columns["line"][row]
            assert piece.arguments["line"] == (trace.lines[line] if line >= 0 else "")
            assert ("shapes" in piece.arguments) == (kind[row] == LAUNCH) != ("bytes" in piece.arguments)
    for pieces in contents_by_track(slices):  # a stream, or a direction of the link, does one thing at a time
        assert all(piece.begin <= piece.end <= after.begin for piece, after in pairwise(pieces))
    last = max(piece.end for piece in slices)
    assert last <= 1e9 * prediction.summary.total_seconds + pftrace.TOLERANCE


def contents_by_track(slices: list[Slice]) -> list[list[Slice]]:
    tracks = defaultdict(list)
    for piece in slices:
        tracks[piece.process, piece.track].append(piece)
    return list(tracks.values())


def test_timeline_names_processes_and_waits(prediction: bringup.Prediction) -> None:
    shown = contents(prediction.timeline, "0123")
    host = f"host {prediction.summary.host}"
    assert shown.processes == {host: "run 0123", "chip:0 t4": ""}
    assert shown.tracks == {
        *((host, name) for name in ("host thread 0", "host thread 1")),
        *(("chip:0 t4", name) for name in ("stream 0", "link to the chip")),
    }
    waits = [piece for piece in shown.slices if piece.name.startswith("wait: ")]
    assert all(piece.process == host and piece.duration >= 0 for piece in waits)


def test_arrow_leads_from_each_call_to_its_launch(prediction: bringup.Prediction) -> None:
    shown = contents(prediction.timeline)
    on_chip = [piece for piece in shown.slices if piece.process == "chip:0 t4"]
    assert len(shown.arrows) == len(on_chip) > 50
    for call, launched in shown.arrows:
        assert call.process != launched.process == "chip:0 t4"
        assert call.name in (f"launch: {launched.name}", f"copy: {launched.name}")
        assert call.end <= launched.begin + 2 * pftrace.TOLERANCE
    ends = sorted(launched.begin for _, launched in shown.arrows)
    assert ends == sorted(piece.begin for piece in on_chip)
    for pieces in contents_by_track([piece for piece in shown.slices if piece.process != "chip:0 t4"]):
        assert all(piece.end <= after.begin for piece, after in pairwise(pieces))  # to the last digit


def test_counters_have_memory_queue_and_link(prediction: bringup.Prediction) -> None:
    shown = contents(prediction.timeline)
    counters = {name: values for (process, name), values in shown.counters.items() if process == "chip:0 t4"}
    assert set(counters) == {"memory", "launches queued", "link to the chip"}
    assert {name: shown.units["chip:0 t4", name] for name in counters} == {
        **{"memory": "B", "launches queued": "", "link to the chip": "B/s"}
    }
    for values in counters.values():
        moments = [moment for moment, _ in values]
        assert moments == sorted(moments) and min(value for _, value in values) >= 0
    highest = max(value for _, value in counters["memory"])
    assert highest <= prediction.summary.peak_bytes  # what came and went at one moment is left out
    assert highest >= 0.5 * prediction.summary.peak_bytes
    assert counters["launches queued"][-1][1] == counters["link to the chip"][-1][1] == 0
    rates = {value for _, value in counters["link to the chip"]}
    assert max(rates) < prediction.timeline.chip.link.h2d_gb_s * 1e9


def test_timeline_is_compressed_if_its_name_says_so(prediction: bringup.Prediction, tmp_path: Path) -> None:
    perfetto.write(tmp_path / "a.pftrace.gz", prediction.timeline, "12")
    perfetto.write(tmp_path / "a.pftrace", prediction.timeline, "12")
    whole = (tmp_path / "a.pftrace").read_bytes()
    packed = (tmp_path / "a.pftrace.gz").read_bytes()
    assert gzip.decompress(packed) == whole and b"timeline-12.pftrace" in packed[:40]


def test_timeline_has_few_bytes_for_a_launch(prediction: bringup.Prediction, tmp_path: Path) -> None:
    perfetto.write(tmp_path / "a.pftrace.gz", prediction.timeline)
    launches = int((prediction.trace.columns["kind"] == LAUNCH).sum())
    assert (tmp_path / "a.pftrace.gz").stat().st_size < 2000 + 10 * launches


def test_long_timeline_is_cut_with_a_note(prediction: bringup.Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perfetto, "MOST_EVENTS", 10)
    slices = contents(prediction.timeline).slices
    assert len([piece for piece in slices if piece.process == "chip:0 t4"]) == 10
    total = int(np.isin(prediction.trace.columns["kind"], (LAUNCH, H2D, D2H, D2D)).sum())
    assert [piece.name for piece in slices if piece.track == "cut"] == [f"cut: {total - 10} more events"]


def test_what_the_host_waits_for_is_drawn() -> None:
    with bringup.record() as trace:
        torch.ones(4, device="chip")
        torch.ops.bringup.record_wait(2_000_000)
        torch.ones(4, device="chip")
    slices = contents(bringup.price(trace, chip="t4").timeline).slices
    (sleep,) = [piece for piece in slices if piece.name == "wait: sleep"]
    assert sleep.duration == pytest.approx(2_000_000, abs=pftrace.TOLERANCE) and sleep.process.startswith("host ")


def test_times_stay_within_the_tolerance_and_equal_steps_have_equal_lengths() -> None:
    times = np.cumsum(np.tile([0.0, 1234.4e-9, 5000.3e-9, 81e-9], 20_000))
    written = pftrace.ticks(times)
    assert np.abs(written - times * 1e9).max() <= pftrace.TOLERANCE
    steps = np.diff(written, prepend=0).reshape(-1, 4)
    usual, counts = np.unique(steps, axis=0, return_counts=True)
    assert counts.max() > 0.8 * len(steps) and usual.min() >= 0


def test_slices_that_overlap_have_tracks_of_their_own(prediction: bringup.Prediction) -> None:
    timeline = prediction.timeline
    longer = dataclasses.replace(timeline, end=timeline.end + 1e-4)
    slices = contents(longer).slices
    on_chip = [piece for piece in slices if piece.track == "stream 0"]
    assert len(on_chip) == int((timeline.trace.columns["kind"] == LAUNCH).sum())
    lengths = timeline.seconds[timeline.trace.columns["kind"] == LAUNCH] * 1e9 + 1e5
    assert max(piece.duration for piece in on_chip) <= lengths.max() + 2 * pftrace.TOLERANCE


def test_the_screen_says_who_where_and_what_to_do(prediction: bringup.Prediction) -> None:
    from bringup.report.lines import lines
    from bringup.text import duration, size

    summary = prediction.summary
    shown = {line.role: line.text for line in lines(summary)}
    assert list(shown) == ["step", "shares", "launches", "host-alone", "memory", "waits", "bottleneck", "advice"]
    assert duration(summary.step_seconds) in shown["step"] and "t4" in shown["step"]
    for seconds in summary.parts().values():
        assert f"{seconds / summary.step_seconds:.0%}" in shown["shares"]
    assert f"{summary.launches} launches" in shown["launches"] and f"batch {summary.samples};" in shown["launches"]
    assert f"{size(summary.peak_bytes)} of 14.65 GiB" in shown["memory"]
    last = summary.bottlenecks[-1]
    assert f"{last.condition}; {last.cause}" in shown["bottleneck"] and last.action in shown["advice"]


def test_the_screen_lists_fallbacks_memory_and_ways_to_fit(python: Callable[..., Any], tmp_path: Path) -> None:
    from bringup.report.lines import Row, lines
    from bringup.text import duration, size

    # In a process of its own: what other tests leave on the chip would hide what this program could save.
    done = python(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + ALONE)
    assert done.returncode == 0, done.stderr
    prediction = bringup.price(bringup.Trace.load(tmp_path / "trace.npz"), "t4")
    chip = bringup.load_chip("edge8")
    data = chip.model_dump()
    data["ops"] = {**(data["ops"] or {}), "host": ["aten::gelu"]}
    data["memory"]["device_gib"] = prediction.peak_bytes / 2 / 2**30
    summary = bringup.price(prediction.trace, type(chip).model_validate(data)).summary
    shown = list(lines(summary))
    (row,) = [line for line in shown if isinstance(line, Row) and line.role == "fallback"]
    (ledger,) = summary.fallbacks
    assert row.cells[1:3] == ("aten::gelu float32", f"{ledger.file}:{ledger.line}")
    assert row.cells[4] == f"{duration(ledger.seconds)}/step" and duration(ledger.stall_seconds) in row.cells[5]
    holders = {line.cells[1]: line.cells[2] for line in shown if isinstance(line, Row) and line.role == "holder"}
    bytes_of: dict[str, int] = {}
    for owner in summary.memory.owners:
        bytes_of[owner.kind] = bytes_of.get(owner.kind, 0) + owner.bytes
    assert max(bytes_of, key=lambda kind: bytes_of[kind]) in holders
    assert holders == {kind: size(bytes_of[kind]) for kind in holders}
    ways = [line.text for line in shown if line.role == "way"]
    assert len(ways) == len(summary.ways_to_fit) > 0
    assert all(way.change in text for way, text in zip(summary.ways_to_fit, ways, strict=True))


DRIVER = {
    "name": "acme",
    "step_seconds": 5e-3,
    "on_device": {"aten::addmm": 80},
    "on_host": [],
}
ROW = {
    **dict.fromkeys(("launches", "bytes_down", "bytes_up", "kernel_seconds", "down_seconds", "host_seconds"), 0.0),
    **{"up_seconds": 0.0, "between_seconds": 0.0, "reason": "", "on_device": True, "kernel_possible": True},
}


def test_report_of_a_driver_has_predicted_beside_measured(prediction: bringup.Prediction) -> None:
    from bringup.analyse.on_driver import measured_step

    rows = [
        {**ROW, "op": "aten::addmm", "launches": 2.0, "kernel_seconds": 3e-3},
        {**ROW, "op": "aten::gelu", "on_device": False, "reason": "<no kernel>", "launches": 1.0, "host_seconds": 1e-3},
        {**ROW, "op": "", "between_seconds": 5e-4},
    ]
    trace = dataclasses.replace(
        prediction.trace, about={**prediction.trace.about, "driver": {**DRIVER, "step_rows": rows}}
    )
    measured = bringup.price(trace, "t4")
    step = measured_step(measured.timeline)
    assert step is not None and [op.op for op in step.ops[:2]] == ["aten::addmm", "aten::gelu"]
    assert step.parts() == {"on the device": 3e-3, "on the host": 1e-3, "between launches": 5e-4}
    predicted = {name: seconds for name, _, seconds, _ in by_group(measured.timeline, "op")}
    assert {op.op: op.predicted_seconds for op in step.ops} == predicted
    page = report_page(measured)
    assert "predicted for t4: <b>" in page and "measured on acme: <b>4.5 ms" in page
    assert "The program ran on acme: 5.0 ms per step were measured" in page and "&lt;no kernel&gt;" in page
    assert "Predicted and measured" not in report_page(prediction) and measured_step(prediction.timeline) is None


def test_timeline_has_lanes_of_what_a_driver_measured(prediction: bringup.Prediction) -> None:
    kind, flags = prediction.trace.columns["kind"], prediction.trace.columns["flags"].copy()
    launches = np.flatnonzero(kind == LAUNCH)
    flags[launches[1::2]] |= FALLBACK
    took = np.where(kind == LAUNCH, 2000, 0)
    times = {"measured_begin_ns": np.cumsum(took) - took, "measured_ns": took, "flags": flags}
    columns = prediction.trace.columns | times
    about = {**prediction.trace.about, "driver": DRIVER}
    trace = dataclasses.replace(prediction.trace, columns=columns, about=about)
    figure, note = figures.timeline(bringup.price(trace, "t4").timeline)
    assert figure is not None and figure.y.lanes[:2] == ["measured on acme", "measured on acme, host"]
    first, last, *_ = steady(prediction.timeline)
    measured = [series for series in figure.series if series.column == "measured"]
    assert measured and sum(len(series.x) for series in measured) == int((kind[first:last] == LAUNCH).sum())
    assert {width for series in measured for width in series.width} == {0.002}
    assert all("predicted " in text and ", measured 2.0 us" in text for series in measured for text in series.text)
    assert "The lanes measured on acme show when its device ran the same launches" in note
    assert "measured on" not in figures.timeline(prediction.timeline)[1]


def test_first_screen_says_what_bounds_the_step_and_which_line_and_memory_cost_most(
    prediction: bringup.Prediction,
) -> None:
    from bringup.analyse.source_lines import source_lines

    screen = report_page(prediction).split('id="time"')[0]
    summary = prediction.summary
    name, seconds = max(summary.parts().items(), key=lambda part: part[1])
    share = f"{100 * seconds / summary.step_seconds:.0f} %"
    assert name == "host-bound" and f"waits for launches {share} of a step." in screen
    assert f"<b>How sure:</b> {summary.error_source[:10]}" in screen
    assert all(item.action in html.unescape(screen) for item in summary.bottlenecks)
    ((_, lines),) = source_lines(prediction.timeline)
    costliest = max(lines, key=lambda line: max(line.chip_seconds, line.host_seconds))
    card = re.search(r"costliest line<b>(.*?)</b>", screen)
    assert card is not None and card[1].endswith(f"test_report.py:{costliest.number}")
    totals: dict[str, int] = {}
    for owner in summary.memory.owners:
        totals[owner.kind] = totals.get(owner.kind, 0) + owner.bytes
    kind = max(totals, key=lambda kind: totals[kind])
    assert f"; {100 * totals[kind] / summary.peak_bytes:.0f} % {kind}" in screen


def test_what_holds_the_peak_adds_up_by_line_and_by_module(prediction: bringup.Prediction) -> None:
    from bringup.analyse.holders import allocations_at_peak

    memory = prediction.memory
    allocations = allocations_at_peak(prediction.trace, memory.at)
    before = sum(owner.bytes for owner in memory.owners if owner.kind == "held before the recording")
    assert sum(allocation.bytes for allocation in allocations) == memory.peak_bytes - before


def report_page(prediction: bringup.Prediction) -> str:
    from bringup.report import html as view

    return view.page(prediction.timeline, prediction.summary)


def compare_page(prediction: bringup.Prediction) -> str:
    from bringup.analyse.compare import compare
    from bringup.report import comparison

    chips = [bringup.load_chip(name) for name in ("t4", "edge8", "h100-sxm", "tpu-v5e")]
    rows = compare(prediction.trace, chips, bringup.load_host())
    return comparison.page(prediction.trace, rows, [f"{row.name}.html" if row.name == "edge8" else "" for row in rows])


def diff_page(prediction: bringup.Prediction) -> str:
    from bringup.analyse.diff import diff
    from bringup.report import diff as view

    other = bringup.price(prediction.trace, "edge8")
    compared = diff((prediction.summary, other.summary), (prediction.timeline, other.timeline))
    return view.page(compared, (prediction.trace, other.trace), ("<before>", "after"), {"after": "a/report.html"})


def validation_page(_: bringup.Prediction) -> str:
    from bringup.report.validation import page
    from bringup.validation import errors, measurements, summarize

    rows = [row for row in measurements() if row.chip in ("t4", "h100-sxm")]
    off = errors(rows)
    groups = {**summarize(off, lambda row: str(row.chip)), **summarize(off, lambda row: "all")}
    tables = {"chip": {name: {"all": figures} for name, figures in groups.items()}}
    return page({row: row.seconds for row in rows}, off, tables, False)


def scorecard_page(_: bringup.Prediction) -> str:
    from bringup.scorecard import page, registry

    def line(number: int, verdict: str, score: float) -> dict[str, object]:
        item = registry.Item(f"X{number}", "D", "<b>", "", lambda device: "", 1)
        return registry.line(item, verdict, score, "<script>alert(1)</script>", 0.1)

    old = {"schema": 1, "items": [line(1, "pass", 1.0)]}
    ops = {"mm": {"float32": "native"}, "topk": {"float32": "fallback"}}
    items = [line(1, "fail", 0.0), line(2, "partial", 0.5)]
    return page.page({"schema": 1, "device": "chip", "chip": "t4", "items": items, "listed": 57, "ops": ops}, {}, old)


def placement_page(prediction: bringup.Prediction) -> str:
    from bringup.cli.place import NAMES
    from bringup.placement.page import page
    from bringup.placement.place import planned

    return page(planned(prediction.trace, "h100-sxm"), NAMES)


PAGES = {  # page -> its main parts, by selector, and how many of each are drawn at least
    "report": (report_page, {".plot canvas": 4, ".legend button": 10, ".split span": 4, "tbody tr": 20}),
    "compare": (compare_page, {".plot canvas": 2, "tbody tr": 4, "table.sortable": 2, "td a": 1}),
    "diff": (diff_page, {"tbody tr": 10, "table.sortable": 3, "p a": 1}),
    "placement": (placement_page, {".plot canvas": 1, ".legend button": 3, "tbody tr": 4}),
    "validation": (validation_page, {".plot canvas": 2, ".legend button": 10, "tbody tr": 2}),
    "scorecard": (scorecard_page, {"p svg": 1, ".cards div": 3, "tbody tr": 5}),
}


@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_html_without_foreign_addresses(prediction: bringup.Prediction, name: str) -> None:
    text = PAGES[name][0](prediction)
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", own)
    assert "$" not in re.search(r"<style>(.*?)</style>", own, re.DOTALL)[1]  # type: ignore[index]
    for tag in ("html", "body", "main", "table", "tbody", "tr"):
        assert len(re.findall(rf"<{tag}[ >]", own)) == own.count(f"</{tag}>"), tag


@pytest.mark.parametrize("name", PAGES)
def test_policy_allows_the_scripts_of_the_page_and_nothing_else(prediction: bringup.Prediction, name: str) -> None:
    text = PAGES[name][0](prediction)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', text)
    assert policy is not None and scripts
    allowed = dict(part.strip().partition(" ")[::2] for part in policy[1].split(";"))
    assert allowed["default-src"] == "'none'" and allowed["img-src"] == "data:"
    assert allowed["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]


@pytest.mark.skipif(browser.CHROMIUM is None, reason=NO_BROWSER)
def test_foreign_script_is_refused(prediction: bringup.Prediction, tmp_path: Path) -> None:
    text = compare_page(prediction).replace("</body>", "<script>document.body.remove()</script></body>")
    seen = browser.look(text, tmp_path, "use", width=1280, parts=["tbody tr"])
    assert "refused: inline" in seen["failures"] and seen["parts"][0] >= 3


@pytest.mark.skipif(browser.CHROMIUM is None, reason=NO_BROWSER)
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("name", PAGES)
def test_page_draws_in_a_browser(prediction: bringup.Prediction, tmp_path: Path, name: str, width: int) -> None:
    write, parts = PAGES[name]
    seen = browser.look(write(prediction), tmp_path, "use", width=width, parts=parts)
    assert seen["failures"] == [] and seen["overflow"] <= 0
    for (part, least), count in zip(parts.items(), seen["parts"], strict=True):
        assert count >= least, f"{part}: {count}"
    for drawn in seen["charts"].values():
        assert drawn["marks"] > 200 and drawn["left"] == 0
        assert len(drawn["changes"]) >= 10 and min(drawn["changes"].values()) > 200, drawn["changes"]
        assert len(drawn["alone"]) == 1


@pytest.mark.skipif(browser.CHROMIUM is None, reason=NO_BROWSER)
def test_tables_are_sorted_by_their_numbers(prediction: bringup.Prediction, tmp_path: Path) -> None:
    chips, graphs = browser.look(compare_page(prediction), tmp_path, "sort", width=1280)["sorted"]
    assert [next(iter(columns.values())) for columns in (chips, graphs)] == [["edge8", "h100-sxm", "t4"], ["tpu-v5e"]]
    steps = {name: bringup.price(prediction.trace, name).step_seconds for name in ("edge8", "h100-sxm", "t4")}
    fastest_first = chips["step ascending"]
    assert [steps[name] for name in fastest_first] == sorted(steps.values())
    assert [steps[name] for name in chips["step descending"]] == sorted(steps.values(), reverse=True)
    bands = [chips[f"band {direction}"] for direction in ("ascending", "descending")]
    assert {names[-1] for names in bands} == {"edge8"}, "a chip without a band stays last"


def number(text: str) -> float:
    return float(text.replace(",", ""))


@pytest.mark.skipif(browser.CHROMIUM is None, reason=NO_BROWSER)
@pytest.mark.parametrize("name", slow("report", "validation"))
def test_cursor_and_table_show_the_marks(prediction: bringup.Prediction, tmp_path: Path, name: str) -> None:
    page = PAGES[name][0](prediction)
    figures = {name: read(text) for name, text in re.findall(CHART, page, re.DOTALL)}
    seen = browser.look(page, tmp_path, "read", width=1280)["charts"]
    assert set(seen) == set(figures) and figures
    for name, figure in figures.items():
        marks = [(one["name"], *mark) for one in figure["series"] for mark in zip(one["x"], one["y"], strict=True)]
        rows = seen[name]["rows"]
        assert [row[0] for row in rows] == [mark[0] for mark in marks][:1000]
        assert [number(row[1]) for row in rows] == [pytest.approx(mark[1], rel=1e-5) for mark in marks][:1000]
        texts = {text for one in figure["series"] for text in one["text"]}
        shown = "\n".join(seen[name]["texts"])
        assert all(any(text in row[3] for row in rows) for text in (text.replace("\n", ", ") for text in texts))
        assert sum(text in shown for text in texts) >= 0.5 * len(texts)  # others are covered, or narrower than the grid
        highest = max(max(one["y"]) for one in figure["series"])
        for one in figure["series"]:  # a thin stack is between the lines of the grid
            is_thin = one["shape"] == "stack" and max(one["y"]) < 0.1 * highest
            assert is_thin or one.get("hover", "").partition("{")[0] in shown


@pytest.mark.skipif(browser.CHROMIUM is None, reason=NO_BROWSER)
def test_logarithmic_axes_have_distinct_ticks_in_any_range(tmp_path: Path) -> None:
    ranges = [(0.95, 1.2), (10.2, 10.4), (3.0, 4.0), (2e-5, 2.1e-5), (1.0, 30.0), (1e-6, 1e7), (5.0, 5.0)]
    charts = {}
    for number, ends in enumerate(ranges):
        points = Series("a", "points", "#000000", ends, ends, size=[5.0] * 2)
        charts[str(number)] = Figure(Axis(log=True), Axis(log=True), [points])
    drawn = browser.look(pages.validation(1, {}, charts, True, 1), tmp_path, "labels", width=1280)["charts"]
    for (low, high), texts in zip(ranges, drawn.values(), strict=True):
        ticks = [float(text.replace(",", "").replace("M", "e6")) for text in texts if text]
        second = next(i for i in range(1, len(ticks)) if ticks[i] < ticks[i - 1])  # those of the y axis
        for labels in (ticks[:second], ticks[second:]):
            assert len(set(labels)) == len(labels) >= 2 and labels == sorted(labels), texts
            assert all(low / 2 <= label <= high * 2 for label in labels), texts


@pytest.mark.skipif(browser.CHROMIUM is None, reason=NO_BROWSER)
def test_launch_is_connected_to_its_kernel_and_sums_follow_the_view(
    prediction: bringup.Prediction, tmp_path: Path
) -> None:
    page = PAGES["report"][0](prediction)
    figures = {name: read(text) for name, text in re.findall(CHART, page, re.DOTALL)}
    seen = browser.look(page, tmp_path, "pick", width=1280)["charts"]
    drawn, series = seen["chart-timeline"], figures["chart-timeline"]["series"]
    row = min(number for one in series for number in one["row"])
    marks = [(one["column"], one["text"][i]) for one in series for i, other in enumerate(one["row"]) if other == row]
    assert {"host"} < {column for column, _ in marks}
    assert all(text.replace("\n", ", ") in drawn["next"] for _, text in marks)  # after the key n
    assert drawn["arrow"] > 100 and drawn["clicked"] and drawn["cleared"] == ""
    sums, zoomed, searched = (
        {cells[0]: list(map(number, filter(None, cells[1:]))) for cells in drawn[name] if len(cells) > 2}
        for name in ("sums", "zoomed", "searched")
    )
    calls = [width for one in series if one["name"] == "host: launch" for width in one["width"]]
    assert sums["host: launch"] == [pytest.approx(sum(calls), rel=1e-3)]
    assert zoomed["host: launch"] < sums["host: launch"]
    assert "matmul" in searched and "optimizer" in sums and "optimizer" not in searched
    held = seen["chart-memory"]["clicked"]
    assert " ms: " in held and "MiB" in held and "test_report.py:" in held


@pytest.mark.skipif(browser.CHROMIUM is None, reason=NO_BROWSER)
@pytest.mark.parametrize("name", PAGES)
def test_page_is_dark_on_a_dark_screen(prediction: bringup.Prediction, tmp_path: Path, name: str) -> None:
    task: browser.Task = "use" if browser.AXE is None else "axe"  # axe measures contrasts
    seen = browser.look(PAGES[name][0](prediction), tmp_path, task, width=1280, dark=True)
    back = palette.DARK["back"]
    assert seen["back"] == f"rgb({', '.join(str(int(back[i : i + 2], 16)) for i in (1, 3, 5))})"
    assert seen["failures"] == [] and seen["problems"] == []


@pytest.mark.skipif(browser.CHROMIUM is None, reason=NO_BROWSER)
@pytest.mark.skipif(browser.AXE is None, reason=NO_AXE)
@pytest.mark.parametrize("width", [400, *slow(1600)])
@pytest.mark.parametrize("name", PAGES)
def test_page_has_no_problem_for_axe(prediction: bringup.Prediction, tmp_path: Path, name: str, width: int) -> None:
    seen = browser.look(PAGES[name][0](prediction), tmp_path, "axe", width=width)
    assert seen["failures"] == [] and seen["problems"] == []


def test_page_of_a_driver_leaves_out_checks_that_were_not_made() -> None:
    from bringup.drivers import page

    line = {"op": "aten::add", "dtype": "float32", "verdict": "right", "samples": 2, "worst_error": 0.0, "reason": ""}
    result = {"driver": "acme", "checks": [], "operators": [line]}
    text = page.page(result)
    assert "aten::add" in text and "Memory, streams, events, errors" not in text and ">0<" in text
