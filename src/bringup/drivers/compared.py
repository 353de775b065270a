"""What the comparisons of a driver's kernels with the CPU add up to, by operator and dtype."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Compared:
    """The launches of an operator in one dtype.

    Attributes:
        compared, wrong: launches of its kernel.
        worst_error: the largest |a - b| / (1 + |a|), where a is the CPU's result.
        first: what was wrong at first.
        refused: launches that ran on the host, by reason.
    """

    compared: int = 0
    wrong: int = 0
    worst_error: float = 0.0
    first: str = ""
    refused: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row of the core's report."""
        self.compared += row["compared"]
        self.wrong += row["wrong"]
        self.worst_error = max(self.worst_error, row["worst_error"])
        self.first = self.first or row["first"]
        self.refused.update(row["refused"])

    def line(self, op: str, dtype: str) -> dict[str, Any]:
        """Return its line of the result. A right operator may have a reason, too: for forms that run on the host."""
        verdict = "wrong" if self.wrong else "right" if self.compared else "refused"
        common = self.refused.most_common(1)
        reason = self.first if self.wrong else common[0][0] if common else ""
        counts = {"verdict": verdict, "reason": reason, "worst_error": self.worst_error, "samples": self.compared}
        return {"op": op, "dtype": dtype, **counts}


ByOperator = dict[tuple[str, str], Compared]


def add_rows(operators: ByOperator, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows of the core's report, which name their operator and dtype."""
    for row in rows:
        operators.setdefault((row["op"], row["dtype"]), Compared()).add(row)


def rows_of(operators: ByOperator) -> list[dict[str, Any]]:
    """Return such rows."""
    return [{"op": op, "dtype": dtype, **vars(compared)} for (op, dtype), compared in sorted(operators.items())]
