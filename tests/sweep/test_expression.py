"""Formulas in sweep files: arithmetic, and nothing else."""

import pytest

from bringup import BringupError
from bringup.sweep.expression import Expression

NUMBERS = {"compute.cores": 100.0, "memory.bandwidth_gb_s": 2000.0, "area": 3.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 * compute.cores + 1", 201),
        ("-area ** 2", -9),
        ("sqrt(memory.bandwidth_gb_s / 20) + log2(8)", 13),
        ("min(area, 1, compute.cores) + max(area, 2)", 4),
        ("compute.cores <= 120", -20),
        ("compute.cores >= 120", 20),
    ],
)
def test_value(text: str, value: float) -> None:
    assert Expression(text, "here").value(NUMBERS) == pytest.approx(value)


def test_equal_sides_keep_a_budget_unless_it_says_less() -> None:
    assert Expression("area <= 3", "here").value(NUMBERS) == 0
    assert Expression("area < 3", "here").value(NUMBERS) > 0


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('x')",
        "area.__class__",
        "[1, 2]",
        "lambda: 1",
        "area if area else 1",
        "'text'",
        "min(*area)",
        "min(area, key=max)",
        "1 <= area <= 2",
        "area and 1",
        "True",
        "1 +",
        "-" * 100 + "1",
        "~" * 990,
        "1" + "+1" * 100,
        "",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BringupError, match=r"^here: "):
        Expression(text, "here").value(NUMBERS)


def test_value_is_finite() -> None:
    for text in ("1 / 0", "10 ** 400 ** 2", "sqrt(-1)", "(-1) ** 0.5", "9.0 ** 9 ** 9"):
        with pytest.raises(BringupError, match="value for these numbers"):
            Expression(text, "here").value(NUMBERS)


def test_nearest_name_is_shown() -> None:
    with pytest.raises(BringupError, match=r"names compute.core, .* did you mean compute.cores\?"):
        Expression("compute.core + 1", "here").value(NUMBERS)
