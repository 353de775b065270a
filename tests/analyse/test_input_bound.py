"""Input that takes longer than the step is shown with its line and workers, and workers are advised."""

from typing import Any

import pytest
import torch

import bringup
from bringup.report import writer
from bringup.report.lines import lines
from bringup.report.prediction import Prediction
from tests.analyse.programs import four_products


def trace_with(*loaders: dict[str, Any]) -> bringup.Trace:
    x = torch.ones(64, 64, device="chip")
    with bringup.record() as trace:
        for _ in range(10):
            (x @ x).relu()
            bringup.step()
    feed(trace, *loaders)
    return trace


def feed(trace: bringup.Trace, *loaders: dict[str, Any]) -> None:
    """Let the steps after the first take the loaders' batches: one each, up to their number."""
    starts = trace.steps.ends.tolist()
    trace.about["inputs"] = [{**item, "rows": starts[: item["batches"]]} for item in loaders]


def loader(seconds: float, *, batches: int = 10, **others: Any) -> dict[str, Any]:
    return {"line": "train.py:7", "workers": 0, "batches": batches, "batch_seconds": seconds, **others}


def shown(prediction: Prediction) -> dict[str, str]:
    return {line.role: line.text for line in lines(prediction.summary)}


def test_input_slower_than_the_step_is_shown_with_workers_as_advice() -> None:
    prediction = bringup.price(trace_with(loader(0.05)), "t4")
    summary = prediction.summary
    assert summary.input_seconds == 0.05 and summary.step_seconds < 1e-3, "input is no part of the step"
    text = shown(prediction)["input"]
    assert "waiting for input 50.0 ms per step" in text and "train.py:7" in text and "num_workers=0" in text
    first = summary.bottlenecks[0]
    assert (first.key, first.remedy, first.line) == ("input-bound", "workers", "train.py:7")
    cores = prediction.timeline.host.compute.cores
    assert first.numbers["workers"] == cores, "fewer do not keep up with the chip"
    assert first.seconds == pytest.approx(0.05 + summary.step_seconds - 0.05 / cores)


def test_workers_share_the_time_and_load_beside_the_step() -> None:
    prediction = bringup.price(trace_with(loader(0.05, workers=5)), "t4")
    assert prediction.summary.input_seconds == pytest.approx(0.01)
    cores = prediction.timeline.host.compute.cores
    assert prediction.summary.bottlenecks[0].seconds == pytest.approx(0.01 - 0.05 / cores)


def test_enough_workers_are_advised_but_not_more() -> None:
    trace, step = four_products()
    feed(trace, loader(3.5 * step))
    (first, *_) = bringup.price(trace, "t4").summary.bottlenecks
    assert first.key == "input-bound" and first.numbers["workers"] == 4


@pytest.mark.parametrize("item", [loader(1e-6), loader(0.05, batches=1), loader(0.05, workers=10_000)])
def test_input_that_keeps_up_and_rare_batches_are_not_shown(item: dict[str, Any]) -> None:
    prediction = bringup.price(trace_with(item), "t4")
    assert prediction.summary.input_seconds == 0 and prediction.summary.inputs == []
    assert "input" not in shown(prediction)


def test_workers_are_not_advised_beyond_the_cores_of_the_host() -> None:
    cores = bringup.price(trace_with(), "t4").timeline.host.compute.cores
    summary = bringup.price(trace_with(loader(1.0, workers=cores)), "t4").summary
    assert summary.input_seconds > 0 and all(item.key != "input-bound" for item in summary.bottlenecks)


def test_measured_input_does_not_change_the_id_of_a_run() -> None:
    first, second = (bringup.price(trace_with(loader(seconds)), "t4") for seconds in (0.05, 0.06))
    assert writer.run_id(first) == writer.run_id(second)


def test_all_typical_steps_but_the_last_take_one_batch() -> None:
    (item,) = bringup.price(trace_with(loader(0.05, batches=8)), "t4").summary.inputs
    assert item.per_step == 1.0, "the loop has taken the batch of the step after the last"


def test_batches_of_two_steps_count_half() -> None:
    trace = trace_with(loader(0.05))
    trace.about["inputs"][0]["rows"] = trace.steps.ends[::2].tolist()
    (item,) = bringup.price(trace, "t4").summary.inputs
    assert item.per_step == pytest.approx(5 / 9)


def test_batches_of_an_evaluation_are_no_input_of_the_step() -> None:
    model = torch.nn.Linear(64, 64).to("chip")
    x = torch.ones(64, 64, device="chip")
    rows = []
    with bringup.record() as trace:
        for _ in range(8):
            model(x).sum().backward()
            bringup.step()
        for _ in range(16):
            rows.append(torch.ops.bringup.row_count())
            with torch.no_grad():
                model(x)
    trace.about["inputs"] = [{**loader(0.05), "rows": rows}]
    assert bringup.price(trace, "t4").summary.inputs == []


def test_the_line_that_makes_the_loader_is_in_the_advice() -> None:
    prediction = bringup.price(trace_with(loader(0.05, maker="data.py:3")), "t4")
    assert "at data.py:3" in prediction.summary.bottlenecks[0].action


def test_workers_of_a_stream_take_parts_of_it() -> None:
    alone = bringup.price(trace_with(loader(0.05)), "t4").summary.bottlenecks[0].action
    stream = bringup.price(trace_with(loader(0.05, iterable=True)), "t4").summary.bottlenecks[0].action
    assert stream == f"{alone}; with get_worker_info, each takes its part of the IterableDataset"


def test_workers_of_a_librarys_loader_are_not_advised() -> None:
    prediction = bringup.price(trace_with(loader(0.05, maker="fit.py:3", by_library=True)), "t4")
    assert prediction.summary.input_seconds == 0.05
    assert "train.py:7 (made by fit.py:3)" in shown(prediction)["input"]
    assert all(item.key != "input-bound" for item in prediction.summary.bottlenecks)
