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

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


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


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
@pytest.mark.parametrize("width", [400, 1600])
def test_page_draws_in_a_browser(prediction: bringup.Prediction, tmp_path: Path, width: int) -> None:
    page = tmp_path / "r.html"
    prediction.to_html(page)
    check = """<script>addEventListener("load", () => setTimeout(() => {
      document.title = JSON.stringify({plots: document.querySelectorAll(".plot .main-svg").length,
        bars: document.querySelectorAll("#plot-timeline .bars path").length,
        wide: document.documentElement.scrollWidth <= innerWidth,
        named: [...document.querySelectorAll(".tools button")].every((item) => item.textContent.trim())});
    }, 500));</script>"""
    page.write_text(page.read_text().replace("</body>", check + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--user-data-dir={tmp_path}/profile", f"--window-size={width},1200", "--virtual-time-budget=5000"]
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title is not None
    found = json.loads(title[1])
    assert found["plots"] >= 3 and found["bars"] >= 10
    assert found["wide"] and found["named"], found
