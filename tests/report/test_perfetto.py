"""Perfetto's lanes of several ranks: a stream per group, and the links with what passes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bringup
from bringup.machine.files import load_chip, load_host
from bringup.report import perfetto
from bringup.timeline.replay import replay
from tests.analyse.test_layout_advice import MIB, all_reduce
from tests.report.traces import read


def test_ranks_and_links_have_lanes(tmp_path: Path) -> None:
    with bringup.dry(), bringup.record() as trace:
        all_reduce(torch.empty(4, device="chip"), MIB, size=8)
        all_reduce(torch.empty(4, device="chip"), 64 * MIB, size=16)
    trace.about.update(ranks=16, cluster="dgx-h100x2")
    timeline = replay(trace, load_chip("h100-sxm"), load_host(None))
    path = tmp_path / "ranks.pftrace.gz"
    perfetto.write_ranks(path, {0: timeline, 8: timeline})
    contents = read(path.read_bytes())
    chips = [f"rank {rank}: chip:0 h100-sxm" for rank in (0, 8)]
    for chip in chips:
        slices = {item.track: item for item in contents.slices if item.process == chip and "bytes" in item.arguments}
        assert {track: item.arguments["bytes"] for track, item in slices.items()} == {
            "links of the node (nvlink)": MIB,
            "network between nodes": 64 * MIB,
        }
        alone = bringup.collective_seconds("all_reduce", 64 * MIB, cluster="dgx-h100x2", ranks=16)
        assert slices["network between nodes"].duration == pytest.approx(1e9 * alone, rel=1e-3)
        assert any(process == chip and track.endswith(": collectives") for process, track in contents.tracks)
    assert len(contents.arrows) == 4
