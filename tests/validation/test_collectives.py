"""Measured collectives: the readers of their sets, and the fit without a system."""

import json
from pathlib import Path

import pytest

from bringup.pricing.collective import LIBRARIES, seconds
from bringup.validation.collectives import Row, System, fit, read_collectives, summary

HEADER = "op_name,nccl_dtype,num_gpus,message_size,latency\n"


def written(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_rows_that_describe_a_system_are_not_predicted(tmp_path: Path) -> None:
    lines = ["all_gather,half,8,256,0.014", "all_gather,half,8,268435456,400", "alltoall,int8,8,1048576,1.5"]
    about = {"box": {"node": {"intra_node_bw": 32e9, "pcie_bw": 32e9}}}
    written(tmp_path, "aiconfigurator/box__nccl_perf.csv", HEADER + "\n".join(lines))
    written(tmp_path, "aiconfigurator/systems.json", json.dumps(about))
    (system,), skipped = read_collectives(tmp_path)
    assert not skipped
    assert [row.kind for row in system.rows] == ["all_to_all"]
    links = system.topology.node.links
    assert links.kind == "pcie" and links.all_gather_us == pytest.approx(14)
    assert links.gb_s["8"] == pytest.approx(7 / 8 * 536870912 / 0.4 * 1e-9)


def test_network_cards_follow_from_two_rows(tmp_path: Path) -> None:
    header = "system,op,num_workers,devices_per_node,bytes,median_ms\n"
    lines = ["a100_dgx,all_reduce,2,1,1e9,100", "a100_dgx,all_reduce,16,8,1e9,62.5", "a100_dgx,all_reduce,8,8,1e9,8"]
    written(tmp_path, "vidur/network_median.csv", header + "\n".join(lines))
    (inside, across), _ = read_collectives(tmp_path)
    assert [row.size for row in inside.rows] == [8] and not across.rows
    cards = across.topology.node.network
    assert cards is not None and (cards.nics, cards.gb_s) == (3, pytest.approx(10))


def test_malformed_set_is_skipped_with_its_reason(tmp_path: Path) -> None:
    written(tmp_path, "aiconfigurator/h100_sxm__nccl_perf.csv", HEADER + "all_gather,half,8,many,1\n")
    systems, skipped = read_collectives(tmp_path)
    assert not systems and len(skipped) == 1 and "many" in skipped[0]


def test_fit_finds_the_constants_of_a_model(tmp_path: Path) -> None:
    written(tmp_path, "llmcompass/allreduce_A100x4_nvlink3.csv", "bytes,latency_us\n1024,12\n")
    (read,), _ = read_collectives(tmp_path)
    kinds, sizes = ("all_reduce", "all_gather", "all_to_all"), [2.0**power for power in range(9, 30, 2)]
    shapes = [Row("s", kind, n, n, nbytes, 1.0) for kind in kinds for n in (2, 4, 8) for nbytes in sizes]
    system = System("aiconfigurator exact", read.topology, tuple(shapes))
    times = zip(shapes, system.predicted(), strict=True)
    exact = tuple(Row(r.system, r.kind, r.size, r.size, r.nbytes, t) for r, t in times)
    system = System(system.name, system.topology, exact)
    library = fit([system], "nvlink")
    assert abs(system.errors(library)).mean() < 0.02
    assert abs(summary([system], leave_one_out=False)[system.name]["all"].mean) < 1e-9
    assert library.ring[-1].share == pytest.approx(LIBRARIES["nvlink"].ring[-1].share, rel=0.1)
    assert seconds("all_gather", system.predicted()[:1], system.topology, exact[0].group, library) > 0
