"""The time of collectives on described clusters."""

import pytest

import bringup
from bringup.pricing.collective import KINDS, LIBRARIES, NETWORK_SUSTAINED, traffic

MIB = 1 << 20


def seconds(kind: str, nbytes: float, cluster: str, ranks: object) -> float:
    return bringup.collective_seconds(kind, nbytes, cluster=cluster, ranks=ranks)  # type: ignore[arg-type]


def test_large_all_gather_is_bytes_over_the_sustained_rate() -> None:
    nbytes = 8192 * MIB
    passed = 7 / 8 * nbytes  # of eight parts, seven come from others
    library = LIBRARIES["nvlink"]
    rate = 300e9 * library.ring[-1].share * (1 - library.peers / 7)
    assert seconds("all_gather", nbytes, "dgx-a100", 8) == pytest.approx(passed / rate, rel=0.01)


def test_small_all_gather_is_the_measured_one() -> None:
    assert seconds("all_gather", 512, "dgx-a100", 8) == pytest.approx(15.56e-6, rel=0.01)


def test_all_reduce_passes_the_data_twice() -> None:
    assert traffic("all_reduce", 4) == (1.5, 6)
    twice = 2 * seconds("all_gather", 8192 * MIB, "dgx-a100", 4)
    assert seconds("all_reduce", 8192 * MIB, "dgx-a100", 4) == pytest.approx(twice, rel=0.01)


def test_switches_that_add_shorten_a_large_all_reduce() -> None:
    gather = seconds("all_gather", 4096 * MIB, "dgx-h100", 8)
    assert seconds("all_reduce", 4096 * MIB, "dgx-h100", 8) < 1.95 * gather
    pair = seconds("all_gather", 4096 * MIB, "dgx-h100", 2)
    assert seconds("all_reduce", 4096 * MIB, "dgx-h100", 2) == pytest.approx(2 * pair, rel=0.01)  # two need no switch


def test_more_bytes_never_take_less() -> None:
    for kind in KINDS:
        times = [seconds(kind, 2**power, "dgx-h100x4", 32) for power in range(34)]
        assert times == sorted(times)


def test_group_across_nodes_is_bound_by_network_cards() -> None:
    nbytes = 65536 * MIB
    passed = 2 * 15 / 16 * nbytes
    cards = 8 * 25e9 * NETWORK_SUSTAINED
    assert seconds("all_reduce", nbytes, "dgx-a100x2", 16) == pytest.approx(passed / cards, rel=0.01)
    # One chip of each node uses one card.
    passed = 2 * 1 / 2 * nbytes
    assert seconds("all_reduce", nbytes, "dgx-a100x2", [0, 8]) == pytest.approx(passed * 8 / cards, rel=0.01)


def test_uplinks_that_are_shared_slow_only_groups_of_several_pods() -> None:
    within, across = list(range(0, 3072, 8))[:16], list(range(0, 24576, 1536))
    assert len(within) == len(across)
    slower = seconds("all_reduce", 1024 * MIB, "llama3-24k", across)
    assert slower > 5 * seconds("all_reduce", 1024 * MIB, "llama3-24k", within)


def test_all_to_all_between_nodes_takes_longer_than_an_all_gather() -> None:
    # All but 8 of 64 parts leave the node, through one card per chip; a ring brings each byte into a node once.
    assert seconds("all_to_all", 1024 * MIB, "dgx-h100x8", 64) > 3 * seconds("all_gather", 1024 * MIB, "dgx-h100x8", 64)


def test_pcie_depends_on_the_size_of_the_group() -> None:
    pair, eight = (seconds("all_gather", 512 * MIB, "l40s-server", ranks) for ranks in (2, 8))
    assert eight > 20 * pair


def test_one_rank_takes_no_time() -> None:
    assert seconds("all_reduce", MIB, "dgx-h100", 1) == 0


@pytest.mark.parametrize(
    ("kind", "nbytes", "ranks", "problem"),
    [
        ("all_sum", 8, 8, "there is no collective 'all_sum': the kinds are all_reduce, "),
        ("all_reduce", -1, 8, "between 0 and 1e18 bytes, got -1"),
        ("all_reduce", 8, 0, "a group needs at least one rank"),
        ("all_reduce", 8, 9, "cluster dgx-h100 has 8 chips"),
    ],
)
def test_mistakes_are_told_in_one_sentence(kind: str, nbytes: float, ranks: int, problem: str) -> None:
    with pytest.raises(bringup.BringupError, match=problem):
        seconds(kind, nbytes, "dgx-h100", ranks)
