"""What-ifs for memory: kinds and layers, streamed copies, and launches that follow their storages to the host."""

import itertools
import json

import numpy as np
import pytest

from bringup.machine.files import load_chip
from bringup.placement.offload import CACHES, STATE, WEIGHTS, Offload, Visits, layers, offloads, shown
from bringup.placement.place import replayer_of
from bringup.placement.placed import Replayer
from bringup.recording.trace import Trace
from tests.placement.steps import recorded

MIB = 1 << 20
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return {name: recorded(name) for name in ("layers", "training", "cached", "tables")}


def replayer(traces: dict[str, Trace], name: str) -> Replayer:
    return replayer_of(traces[name], "t4")


def points(replays: Replayer, kind: str, way: str, room: int = PLENTY) -> list[Offload]:
    return [point for point in offloads(replays, room) if (point.kind, point.way) == (kind, way)]


def test_storages_have_kinds_and_layers(traces: dict[str, Trace]) -> None:
    step = replayer(traces, "training").step
    layer, kind = layers(step)
    held = [int(step.persistent_bytes[kind == number].sum()) for number in (WEIGHTS, STATE, CACHES)]
    parameters = 4 * (256 * 512 + 512 + 512 * 10 + 10)
    assert held[0] == pytest.approx(parameters, rel=0.01) and held[1] == pytest.approx(2 * parameters, rel=0.01)
    assert not held[2]
    assert len(np.unique(layer[kind == WEIGHTS])) == 2  # two products
    assert set(layer[kind == STATE]) == set(layer[kind == WEIGHTS])  # the state is in its parameter's layer


def test_caches_are_what_a_step_writes_for_the_next_one(traces: dict[str, Trace]) -> None:
    step = replayer(traces, "cached").step
    _, kind = layers(step)
    assert int(step.persistent_bytes[kind == CACHES].sum()) == 2 * 2 * MIB  # what steps use, for they were there before
    moved = points(replayer(traces, "cached"), "caches", "streamed")[-1]
    assert 2 * MIB <= moved.copied_bytes < 2 * 3 * MIB  # half of each cache is read, and a row is written


def test_streamed_layers_take_two_layers_of_memory_and_the_links_time(traces: dict[str, Trace]) -> None:
    replays = replayer(traces, "layers")
    link = load_chip("t4").link
    curve = points(replays, "weights", "streamed")
    assert [point.layers for point in curve] == sorted({point.layers for point in curve})
    none, all_ = curve[0], curve[-1]
    assert none.seconds == pytest.approx(replays.outcome(None).seconds) and none.chip_bytes == 12 * 16 * MIB
    assert all_.layers == all_.of_layers == 12
    assert all_.chip_bytes == 2 * 16 * MIB and all_.copied_bytes == 12 * 16 * MIB
    copies = 12 * (16 * MIB / (link.h2d_gb_s * 1e9) + link.latency_us * 1e-6)
    assert copies <= all_.seconds <= copies + none.seconds  # copies overlap with each other's launches
    assert all(one.chip_bytes >= two.chip_bytes for one, two in itertools.pairwise(curve[2:]))


def test_fewest_layers_that_fit_are_shown(traces: dict[str, Trace]) -> None:
    room = (16 * 8 + 1) * MIB  # of twelve layers of 16 MiB
    curves = offloads(replayer(traces, "layers"), room)
    by_way = {point.way: point for point in shown(curves)}
    assert by_way["streamed"].layers == 6 and by_way["streamed"].fits  # six stay, and two are under way
    assert by_way["on the host"].layers == 4 and by_way["on the host"].chip_bytes == 8 * 16 * MIB
    assert all(point.fits == (point.chip_bytes <= room) for point in curves)


def test_state_is_copied_up_and_down(traces: dict[str, Trace]) -> None:
    replays = replayer(traces, "training")
    state = points(replays, "optimizer state", "streamed")[-1]
    held = int(replays.step.persistent_bytes[layers(replays.step)[1] == STATE].sum())
    assert state.copied_bytes == pytest.approx(2 * held, rel=0.01)
    host = points(replays, "optimizer state", "on the host")[-1]
    assert host.chip_bytes <= replays.outcome(None).resident_bytes - held


def test_lookups_copy_the_rows_that_they_touch(traces: dict[str, Trace]) -> None:
    table = 400_000 * 64 * 4
    moved = points(replayer(traces, "tables"), "weights", "streamed")[-1]
    assert moved.copied_bytes < 0.5 * 8 * table


def test_visits_are_runs_of_one_layer(traces: dict[str, Trace]) -> None:
    step = replayer(traces, "layers").step
    layer, kind = layers(step)
    visits = Visits.of_step(step, layer, kind == WEIGHTS)
    assert visits.layer.tolist() == sorted(set(visits.layer.tolist()))
    assert (visits.last >= visits.first).all() and (np.diff(visits.first) > 0).all()
    assert len(Visits.of_step(step, layer, np.zeros(len(layer), dtype=bool))) == 0


def test_command_prints_ways(
    traces: dict[str, Trace], tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bringup.cli import bringup as verbs

    monkeypatch.chdir(str(tmp_path))
    traces["layers"].save("trace.npz")

    def run(*arguments: str) -> str:
        verbs.main(["place", "trace.npz", "--chip", "t4", "--offload", *arguments], standalone_mode=False)
        return capsys.readouterr().out

    screen = run("--capacity", "140MiB")
    assert "weights, copied up for each use" in screen and "weights, used by the host" in screen
    assert "does not fit" in screen.splitlines()[1]
    data = json.loads(run("--json"))
    assert data["chip"] == "t4" and {"kind", "way", "layers", "seconds", "fits"} <= set(data["offloads"][0])
