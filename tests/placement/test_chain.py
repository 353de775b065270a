"""Several chips: dynamic programming finds the best consecutive layers, and the replay judges them."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bringup import BringupError
from bringup.machine.files import load_chip, load_host
from bringup.machine.schema import Chip
from bringup.placement import chain as chains
from bringup.placement.chain import Layers, _between, _consecutive, _improve, _text, divide
from bringup.placement.place import replayer_of
from bringup.recording.trace import Trace
from tests.placement.steps import recorded

MIB = 1 << 20


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return {name: recorded(name) for name in ("layers", "training")}


def cost(layers: Layers, chips: list[Chip], division: tuple[int, ...], busiest: bool) -> float:
    """The time of all chips, or of the busiest one, with a copy where the chip changes."""
    times = np.zeros(len(chips))
    for layer, number in enumerate(division):
        times[number] += layers.seconds[number, layer]
        if layer and division[layer - 1] != number:
            latency, rate = _between(chips[max(number - 1, 0)], chips[number])
            times[number] += layers.copies[layer] * latency + layers.cut[layer] / rate
    return float(times.max() if busiest else times.sum())


@pytest.mark.parametrize("busiest", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_dynamic_programming_finds_the_best_division(seed: int, busiest: bool) -> None:
    rng = np.random.default_rng(seed)
    count, chips = int(rng.integers(1, 8)), [load_chip("t4"), load_chip("h100-sxm"), load_chip("t4")]
    layers = Layers(
        of_node=np.zeros(0, dtype=np.int64),
        of_storage=np.zeros(0, dtype=np.int64),
        seconds=rng.lognormal(-7, 1, (3, count)),
        bytes=rng.lognormal(0, 0.5, count),
        cut=rng.lognormal(10, 1, count),
        copies=rng.integers(1, 4, count).astype(np.float64),
    )
    room = rng.uniform(0.2, 0.8, 3) * layers.bytes.sum()
    divisions = [
        item
        for item in itertools.combinations_with_replacement(range(3), count)
        if (np.bincount(item, layers.bytes, 3) <= room).all()
    ]
    best = _consecutive(layers, room, chips, busiest)
    assert (best is None) == (not divisions)
    if best is not None:
        least = min(cost(layers, chips, division, busiest) for division in divisions)
        assert cost(layers, chips, tuple(best.tolist()), busiest) == pytest.approx(least)


def smaller(mib: float) -> Chip:
    """A T4 in which a process has so much room."""
    chip = load_chip("t4")
    gib = (mib * MIB + chip.context_bytes) / 2**30
    return chip.model_copy(update={"memory": chip.memory.model_copy(update={"device_gib": gib, "usable_gib": gib})})


def test_layers_that_do_not_fit_one_chip_are_divided(traces: dict[str, Trace]) -> None:
    chip = smaller(150)  # of twelve layers of 16 MiB
    chain = divide(traces["layers"], [chip, chip, chip], load_host())
    assert not chain.first_chip_fits and sum(part.layers for part in chain.parts) == 12
    assert all(part.bytes <= chip.room_bytes for part in chain.parts)
    assert chain.bound_seconds <= chain.seconds
    alone = replayer_of(traces["layers"], chip).outcome(None).seconds
    assert chain.first_chip_seconds == pytest.approx(alone)
    assert chain.copied_bytes == sum(part.layers > 0 for part in chain.parts[1:]) * 16 * 2048 * 4
    with pytest.raises(BringupError, match=r"2 chips cannot hold the program: it needs"):
        divide(traces["layers"], [smaller(60), smaller(60)], load_host())


def test_equal_chips_one_after_the_other_save_nothing(traces: dict[str, Trace]) -> None:
    """Each step waits for its result, so no chip works while another one does."""
    chain = divide(traces["layers"], [load_chip("t4"), load_chip("t4")], load_host())
    assert chain.seconds >= chain.first_chip_seconds * (1 - 1e-9)


def test_faster_chip_gets_the_work(traces: dict[str, Trace]) -> None:
    chain = divide(traces["layers"], [load_chip("t4"), load_chip("h100-sxm")], load_host())
    assert chain.parts[1].layers >= 10 and chain.seconds <= chain.first_chip_seconds


def test_training_is_divided_with_its_backward_pass(traces: dict[str, Trace]) -> None:
    chain = divide(traces["training"], [load_chip("t4"), load_chip("t4")], load_host())
    assert sum(part.layers for part in chain.parts) == 3 and chain.bound_seconds <= chain.seconds
    with pytest.raises(BringupError, match="name 2 to 64 chips, got 1"):
        divide(traces["training"], [load_chip("t4")], load_host())


def test_moved_layers_are_replayed_so_often_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "MOST_MOVES", 10)
    replayed = []

    class Judge:
        layers = Layers(*(np.zeros(0, dtype=np.int64),) * 2, np.ones((8, 8)), *(np.ones(8),) * 3)

        def outcome(self, chip_of: np.ndarray) -> SimpleNamespace:
            replayed.append(chip_of)
            return SimpleNamespace(seconds=1.0)

    start = np.arange(8)  # each layer on a chip of its own: 8 layers may move to 7 chips
    _, _, tried = _improve(Judge(), [start], np.full(8, 8.0))  # type: ignore[arg-type]
    assert tried == len(replayed) == 10


def test_neighbours_are_written_as_one() -> None:
    assert _text({"embed", "layers.0", "layers.1", "layers.2", "layers.5"}) == "embed, layers.0-2,5"
    assert _text(set()) == ""


def test_command_prints_parts(
    traces: dict[str, Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bringup.cli import bringup as verbs

    monkeypatch.chdir(tmp_path)
    traces["layers"].save("trace.npz")

    def run(*arguments: str) -> str:
        verbs.main(["place", "trace.npz", "--chips", "t4,h100-sxm", *arguments], standalone_mode=False)
        return capsys.readouterr().out

    screen = run()
    assert "chip:0 (t4)" in screen and "chip:1 (h100-sxm)" in screen and "no division takes less than" in screen
    with pytest.raises(BringupError, match="leave out --chip"):
        run("--chip", "t4")
    data = json.loads(run("--json"))
    assert len(data["parts"]) == 2 and data["bound_seconds"] <= data["seconds"]
