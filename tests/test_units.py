"""Times, sizes and changes in options."""

import pytest

from bringup import units
from bringup.errors import BringupError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20ms", 0.02), ("1.5s", 1.5), ("1.5 s", 1.5), (" 3 US ", 3e-6), ("2e3ns", 2e-6), ("1min", 60.0), (".5s", 0.5)],
)
def test_times_are_seconds(text: str, seconds: float) -> None:
    assert units.parse_time(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("14GiB", 14 << 30),
        ("100 MiB", 100 << 20),
        ("1kib", 1024),
        ("2GB", 2_000_000_000),
        ("7B", 7),
        ("0B", 0),
        ("1.5KiB", 1536),
    ],
)
def test_sizes_are_bytes(text: str, count: int) -> None:
    assert units.parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "ms", "20", "20 parsecs", "-3ms", "+3ms", "1..2ms", "1e999s", "nan s", "inf s", "5%", "1_0s", "٣s"]
)
def test_what_is_no_time_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(BringupError, match="20ms") as error:
        units.parse_time(text)
    assert repr(text) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "14", "14 gigs", "14Gib/s", "-1GiB", "1e30TiB", "10ms", "5%"])
def test_what_is_no_size_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(BringupError, match="14GiB") as error:
        units.parse_size(text)
    assert repr(text) in str(error.value)


def test_errors_name_the_wrong_unit_and_the_right_ones() -> None:
    with pytest.raises(BringupError, match="'parsecs' is not a unit of it: use ns, us, ms, s, min, such as 20ms"):
        units.parse_time("20 parsecs")
    with pytest.raises(BringupError, match="it has no unit"):
        units.parse_size("14")


def test_changes_are_shares_or_amounts() -> None:
    share = units.parse_time_change("5%")
    assert share.relative and share.value == pytest.approx(0.05)
    assert share.exceeded(1.0, 1.06) and not share.exceeded(1.0, 1.04) and not share.exceeded(1.0, 0.5)
    amount = units.parse_size_change("+100MiB")
    assert not amount.relative and amount.value == 100 << 20 and amount.text == "+100MiB"
    assert amount.exceeded(0, (100 << 20) + 1) and not amount.exceeded(0, 100 << 20)
    assert units.parse_time_change("2ms").value == pytest.approx(0.002)
    assert units.parse_size_change("0%").exceeded(100, 101) and not units.parse_size_change("0%").exceeded(100, 100)


@pytest.mark.parametrize("text", ["", "+", "5", "++5%", "-5%", "5 %%", "5GiB", "% 5"])
def test_what_is_no_change_of_time_is_refused(text: str) -> None:
    with pytest.raises(BringupError, match=r"5% or \+2ms") as error:
        units.parse_time_change(text)
    assert repr(text) in str(error.value)
