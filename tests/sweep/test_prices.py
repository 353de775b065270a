"""Prices of a sweep are those of `summarize`, digit for digit."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bringup
from bringup import BringupError, Trace, load_host
from bringup.analyse.holders import Memory, fits
from bringup.analyse.summarize import summarize
from bringup.machine.files import available_hosts
from bringup.machine.schema import Chip
from bringup.serving.outcome import Objective
from bringup.sweep import file, grid, prices, programs
from bringup.sweep.variants import variant
from bringup.timeline.replay import Calls, WhatIf, replay
from tests.sweep.sweeps import SMALL, sweep_of


def whole(folder: Path, text: str) -> tuple[grid.Grid, list[Trace], list[dict[str, Any]]]:
    """Price all rows of a sweep over recordings; return them with their labels."""
    sweep = sweep_of(folder, text)
    axes = grid.of_sweep(sweep)
    traces = [Trace.load(folder / str(program.trace)) for program in sweep.file.programs]
    pricer = prices.Pricer(axes, traces)
    rows = []
    for block in axes.blocks():
        columns = {**axes.labels(block), **pricer.price(block)}
        rows += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return axes, traces, rows


def check(row: dict[str, Any], trace: Trace, chip: Chip) -> None:
    what_if = WhatIf(
        graph=row.get("mode", "graph" if "eager" not in chip.modes else "eager") == "graph",
        dispatch_scale=row.get("dispatch_scale", 1.0),
        link_scale=row.get("link_scale", 1.0),
    )
    summary = summarize(replay(trace, chip, load_host(row["host"]), what_if=what_if))
    for name in ("step_seconds", "device_seconds", "peak_bytes", "fits"):
        assert row[name] == getattr(summary, name), name
    for name, value in (
        ("energy_joules", summary.energy_joules),
        ("cost_usd", summary.cost_usd),
        ("band", summary.error_band),
    ):
        assert row[name] == value if value is not None else math.isnan(row[name]), name


def test_rows_are_those_of_the_summary(folder: Path) -> None:
    text = SMALL.replace('["t4", "h100-sxm", "tpu-v3"]', '"all"')
    axes, traces, rows = whole(folder, text)
    assert len(rows) == axes.rows > 45 * 2 * 2
    chips = {chip.name: chip for chip in axes.chips}
    named = {"mlp": traces[0], "big": traces[1]}
    for row in rows[::7]:
        check(row, named[row["program"]], chips[row["chip"]])


WORDS = """
import torch
class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.heads = torch.nn.Embedding(8_000_000, 64), torch.nn.Linear(64, 192)
    def example(self, batch, tokens):
        return torch.zeros(batch, tokens, dtype=torch.int64)
    def forward(self, tokens):
        q, k, v = self.heads(self.words(tokens)).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        read = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return read.transpose(1, 2).flatten(2) @ self.words.weight.T
model = Words
"""


def test_rows_of_a_designed_chip_are_those_of_a_file_with_its_numbers(folder: Path) -> None:
    text = SMALL.replace("dispatch_scale = [1.0, 0.5]", "link_scale = [0.5, 2.0]")
    text += "[ranges]\nmemory.bandwidth_gb_s = [100, 300, 3]\ncompute.cores = {values = [10, 200]}\n"
    axes, traces, rows = whole(folder, text)
    assert len({row["step_seconds"] for row in rows}) > len(rows) / 4
    chips = {chip.name: chip for chip in axes.chips}
    named = {"mlp": traces[0], "big": traces[1]}
    for row in rows[::5]:
        numbers = {name: row[name].item() for name in ("memory.bandwidth_gb_s", "compute.cores")}
        check(row, named[row["program"]], variant(chips[row["chip"]], numbers))


def test_some_rows_of_a_block_are_those_of_the_whole(folder: Path) -> None:
    sweep = sweep_of(folder)
    axes = grid.of_sweep(sweep)
    traces = [Trace.load(folder / str(program.trace)) for program in sweep.file.programs]
    pricer = prices.Pricer(axes, traces)
    block = next(axes.blocks())
    some = np.asarray([1, 4, 5, block.rows - 1])
    columns, alone = pricer.price(block), prices.Pricer(axes, traces).price(block, some)
    for name in columns:
        np.testing.assert_array_equal(columns[name][some], alone[name])


def test_host_times_of_a_trace_are_shared_between_chips(folder: Path) -> None:
    from bringup import load_chip

    trace = Trace.load(folder / "mlp.npz")
    calls = Calls(trace)
    host = load_host()
    for name in ("h100-sxm", "t4", "h100-sxm"):  # the first chip has plans of attention, which add to the host's time
        shared, alone = replay(trace, load_chip(name), host, calls=calls), replay(trace, load_chip(name), host)
        np.testing.assert_array_equal(shared.end, alone.end)
        np.testing.assert_array_equal(shared.issued, alone.issued)
    assert calls.seconds(host, False) is calls.seconds(host, False)
    slower = host.model_copy(update={"dispatch": host.dispatch.model_copy(update={"view_us": 50.0})})
    assert (calls.seconds(slower, False) != calls.seconds(host, False)).any(), "another host of the same name"


@pytest.mark.parametrize("name", available_hosts())
def test_shared_host_times_serve_each_shipped_host(name: str, folder: Path) -> None:
    from bringup import load_chip

    trace = Trace.load(folder / "mlp.npz")
    calls, host = Calls(trace), load_host(name)
    for chip in (load_chip("h100-sxm"), load_chip("t4"), load_chip("h100-sxm")):
        shared, alone = replay(trace, chip, host, calls=calls), replay(trace, chip, host)
        np.testing.assert_array_equal(shared.end, alone.end)


def test_clusters_price_collectives(folder: Path) -> None:
    pytest.importorskip("torch.distributed")
    script = folder / "ddp.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('chip')\n"
        "x = torch.ones(1 << 22, device='chip')\n"
        "for step in range(3):\n    dist.all_reduce(x)\n    x.sum().item()\n",
        encoding="utf-8",
    )
    clusters = 'clusters = ["dgx-h100x2", "dgx-a100x2"]'
    text = f'chips = ["h100-sxm"]\n{clusters}\n[[programs]]\nscript = "ddp.py"\nranks = 16\n'
    sweep = sweep_of(folder, text)
    recordings = programs.record_all(sweep, "h100-sxm", folder / "recordings", print)
    axes = grid.of_sweep(sweep)
    block = next(axes.blocks())
    seconds = prices.Pricer(axes, [item.source for item in recordings]).price(block)["step_seconds"]
    assert axes.labels(block)["cluster"].tolist() == ["dgx-h100x2", "dgx-a100x2"]
    assert seconds[0] < seconds[1], "the newer node has the faster links"
    for cluster, value in zip(("dgx-h100x2", "dgx-a100x2"), seconds, strict=True):
        assert bringup.price(recordings[0].source, "h100-sxm", cluster=cluster).step_seconds == value
    assert file.load(folder / "sweep.toml").file.clusters


def test_placements_are_those_of_place(folder: Path) -> None:
    text = 'chips = ["h100-sxm", "t4"]\nplacements = ["chip", "host", "best"]\n[[programs]]\ntrace = "mlp.npz"\n'
    _, (trace,), rows = whole(folder, text)
    assert len(rows) == 6
    for chip in ("h100-sxm", "t4"):
        plan = bringup.place(trace, chip)
        best = plan.proposed_seconds if plan.proposes else plan.all_chip_seconds
        expected = {"chip": plan.all_chip_seconds, "host": plan.all_host_seconds, "best": best}
        found = {row["placement"]: row for row in rows if row["chip"] == chip}
        assert {name: row["step_seconds"] for name, row in found.items()} == pytest.approx(expected)
        assert found["host"]["device_seconds"] == 0 and found["host"]["peak_bytes"] == 0
        assert found["best"]["peak_bytes"] <= found["chip"]["peak_bytes"]


def test_rates_are_those_of_serve(folder: Path) -> None:
    service = '[serving]\nrates = [1000, 100000]\nrequests = 50\nslo = "latency=1ms"\n'
    text = f'chips = ["h100-sxm", "t4"]\n{service}[[programs]]\ntrace = "mlp.npz"\n'
    _, (trace,), rows = whole(folder, text)
    assert len(rows) == 4
    for row in rows:
        settings = {"arrivals": f"poisson:{float(row['rate'])!r}", "requests": 50, "slo": Objective(latency=1e-3)}
        outcome = bringup.serve(trace, chip=row["chip"], **settings)
        assert row["latency_p99"] == outcome.percentiles()["latency"]["p99"]
        assert (row["attainment"], row["unstable"]) == (outcome.attainment, outcome.unstable)
        assert row["cost_per_million_tokens"] == outcome.cost_per_million_tokens and np.isnan(row["tpot_p50"])
        assert row["step_seconds"] == outcome.busy_seconds / outcome.steps and row["fits"]


def test_a_program_that_ran_out_of_memory_does_not_fit(folder: Path) -> None:
    trace = Trace.load(folder / "mlp.npz")
    trace.about["out_of_memory"] = True
    trace.save(folder / "mlp.npz")
    program = '[[programs]]\ntrace = "mlp.npz"\n'
    served = whole(folder, f'chips = ["h100-sxm"]\n[serving]\nrates = [10]\n{program}')[2]
    placed = whole(folder, f'chips = ["h100-sxm"]\nplacements = ["chip", "host"]\n{program}')[2]
    assert [bool(row["fits"]) for row in served + placed] == [False, False, False]
    assert math.isnan(served[0]["latency_p99"])
    with pytest.raises(BringupError, match="the recorded program ran out of memory on"):
        bringup.serve(trace, chip="h100-sxm", arrivals="poisson:10")


def test_one_rule_says_if_a_divided_program_fits(folder: Path) -> None:
    """The allocator reserved more than the chip has; so it does not fit, unless a part of it is on the host."""
    trace = Trace.load(folder / "mlp.npz")
    chip = bringup.load_chip(trace.about["chip"])
    peak = Memory(peak_bytes=chip.room_bytes - 1, reserved_bytes=chip.room_bytes + 1, free_bytes=0, at=None, owners=[])
    assert not fits(trace, peak, chip) and fits(trace, peak, chip, moved_bytes=1)
    larger = replace(peak, peak_bytes=chip.room_bytes + 8)
    assert [fits(trace, larger, chip, moved_bytes=count) for count in (7, 8)] == [False, True]


def test_a_model_is_served_by_engines_of_several_chips(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text(WORDS, encoding="utf-8")
    service = '[serving]\nrates = [20]\nchips_per_engine = [1, 2]\nrequests = 10\nlengths = "fixed:40:4"\n'
    text = f'{service}max_requests = 4\nprefill = "chunked:64"\n[[programs]]\nmodel = "words.py"\n'
    sweep = sweep_of(tmp_path, f'chips = ["h100-sxm"]\n[ranges]\nmemory.device_gib = {{values = [1, 40]}}\n{text}')
    first, again = (programs.record_all(sweep, "h100-sxm", tmp_path, print)[0] for _ in range(2))
    assert first.digest == again.digest, "a second recording has the same keys"
    axes = grid.of_sweep(sweep)
    columns = prices.Pricer(axes, [first.source]).price(next(axes.blocks()))
    assert columns["fits"].tolist() == [False, False, True, True]
    assert np.isnan(columns["latency_p50"]).tolist() == [True, True, False, False]
    asked = {"lengths": "fixed:40:4", "requests": 10, "max_requests": 4, "prefill": "chunked:64"}
    alone = bringup.serve(str(tmp_path / "words.py"), chip="h100-sxm", arrivals="poisson:20.0", chips=2, **asked)
    assert columns["latency_p50"][3] == pytest.approx(alone.percentiles()["latency"]["p50"])
