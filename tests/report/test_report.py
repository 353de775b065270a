"""The report in a browser, and that it cannot be broken out of."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import bringup
from tests.conftest import NO_BROWSER

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="module")
def prediction() -> bringup.Prediction:
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 8)).to("chip")
    optimizer = torch.optim.AdamW(model.parameters())
    with bringup.record() as trace:
        for _ in range(3):
            loss = model(torch.randn(32, 64).to("chip")).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trace.about["program"] = "<script>alert(1)</script>.py"
    trace.modules[0] = '<img src=x onerror="alert(2)">'
    return bringup.price(trace, "t4")


def test_page_is_self_contained_and_escaped(prediction: bringup.Prediction, tmp_path: Path) -> None:
    prediction.to_html(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<script>alert(1)" not in text and "<img src=x" not in text
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", own)


def test_busiest_lanes_are_drawn(prediction: bringup.Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    from bringup.report import figures

    every, note = figures.timeline(prediction.timeline)
    names = {trace["name"] for trace in every["data"]}
    assert len(names) > 3 and "left out" not in note
    monkeypatch.setattr(figures, "MOST_LANES", 2)
    some, note = figures.timeline(prediction.timeline)
    assert len(some["data"]) == 2 and note.endswith(f"{len(every['data']) - 2} lanes with fewer of them are left out.")


def test_timeline_is_a_chrome_trace(prediction: bringup.Prediction) -> None:
    from bringup.report import perfetto

    events = json.loads(perfetto.text(prediction.timeline))["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {"addmm", "h2d"} <= {event["name"] for event in spans}
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)


def test_what_the_host_waits_for_is_drawn() -> None:
    from bringup.report import perfetto

    with bringup.record() as trace:
        torch.ones(4, device="chip")
        torch.ops.bringup.record_wait(2_000_000)
        torch.ones(4, device="chip")
    spans = json.loads(perfetto.text(bringup.price(trace, chip="t4").timeline))["traceEvents"]
    (sleep,) = [event for event in spans if event["name"] == "wait: sleep"]
    assert sleep["dur"] == 2000.0 and sleep["pid"] == 0


def test_the_screen_says_who_where_and_what_to_do(prediction: bringup.Prediction) -> None:
    from bringup.report.lines import lines
    from bringup.text import duration, size

    summary = prediction.summary
    shown = {line.role: line.text for line in lines(summary)}
    assert list(shown) == ["step", "shares", "launches", "memory", "bottleneck", "advice"]
    assert duration(summary.step_seconds) in shown["step"] and "t4" in shown["step"]
    for seconds in summary.parts().values():
        assert f"{seconds / summary.step_seconds:.0%}" in shown["shares"]
    assert f"{summary.launches} launches" in shown["launches"] and f"batch {summary.samples};" in shown["launches"]
    assert f"{size(summary.peak_bytes)} of 16.00 GiB" in shown["memory"]
    last = summary.bottlenecks[-1]
    assert f"{last.condition}; {last.cause}" in shown["bottleneck"] and last.action in shown["advice"]


def test_the_screen_lists_fallbacks_memory_and_ways_to_fit(prediction: bringup.Prediction) -> None:
    from bringup.report.lines import Row, lines
    from bringup.text import duration, size

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


def test_what_holds_the_peak_adds_up_by_line_and_by_module(prediction: bringup.Prediction) -> None:
    from bringup.analyse.holders import allocations_at_peak

    memory = prediction.memory
    allocations = allocations_at_peak(prediction.trace, memory.at)
    before = sum(owner.bytes for owner in memory.owners if owner.kind == "held before the recording")
    assert sum(allocation.bytes for allocation in allocations) == memory.peak_bytes - before


def report_page(prediction: bringup.Prediction) -> str:
    from bringup.report import html

    return html.page(prediction.timeline, prediction.summary)


def compare_page(prediction: bringup.Prediction) -> str:
    from bringup.analyse.compare import compare
    from bringup.report import html

    chips = [bringup.load_chip(name) for name in ("t4", "edge8", "h100-sxm")]
    return html.comparison(prediction.trace, compare(prediction.trace, chips, bringup.load_host()))


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
    return page.page({"schema": 1, "device": "chip", "chip": "t4", "items": items, "ops": ops}, {}, old)


PAGES = {  # page -> its main parts, by selector, and how many of each are drawn at least
    "report": (report_page, {".plot .main-svg": 3, "#plot-timeline .bars path": 10, ".split span": 4, "tbody tr": 20}),
    "compare": (compare_page, {"tbody tr": 3}),
    "validation": (validation_page, {"[id^=plot-] .main-svg": 2, ".points path": 20, "tbody tr": 2}),
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


@pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("name", PAGES)
def test_page_draws_in_a_browser(prediction: bringup.Prediction, tmp_path: Path, name: str, width: int) -> None:
    write, parts = PAGES[name]
    page = tmp_path / "page.html"
    listen = """<script>const failures = [];
    addEventListener("error", (event) => failures.push(event.message));
    addEventListener("unhandledrejection", (event) => failures.push(String(event.reason)));</script>"""
    check = f"""<script>addEventListener("load", () => setTimeout(() => {{
      document.querySelectorAll("details").forEach((item) => (item.open = true));
      document.title = JSON.stringify({{failures,
        parts: {json.dumps(list(parts))}.map((part) => document.querySelectorAll(part).length),
        wide: document.documentElement.scrollWidth <= innerWidth,
        named: [...document.querySelectorAll(".tools button")].every((item) => item.textContent.trim())}});
    }}, 500));</script>"""
    text = write(prediction)
    assert text.count("<head>") == 1
    page.write_text(text.replace("<head>", "<head>" + listen).replace("</body>", check + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--user-data-dir={tmp_path}/profile", f"--window-size={width},1200", "--virtual-time-budget=5000"]
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title is not None, done.stderr
    drawn = json.loads(title[1])
    assert drawn["failures"] == []
    for (part, least), count in zip(parts.items(), drawn["parts"], strict=True):
        assert count >= least, f"{part}: {count}"
    assert drawn["wide"] and drawn["named"], drawn
