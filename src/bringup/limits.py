"""What a file that people exchange may hold at most, each limit with its reason.

Whatever its bytes, such a file ends in the answer or in one sentence: nothing that it says decides how much memory or
time is used. Limits of single values stand where they are checked (`_schema`, `trace_check`).
"""

from __future__ import annotations

from typing import NamedTuple


class Limit(NamedTuple):
    """The most that is accepted, and why that is enough."""

    most: int
    why: str


# The size of a file, by what it is.
BYTES = {
    "chip file": Limit(1 << 20, "the longest that ships has 4 KiB"),
    "host file": Limit(1 << 20, "the longest that ships has 2 KiB"),
    "trace file": Limit(1 << 29, "a million launches take some 20 MiB"),
    "scorecard": Limit(16 << 20, "56 items and 700 operators in 12 dtypes take 300 KiB"),
    "measurement file": Limit(64 << 20, "the largest that was published has 20 MiB"),
    "summary": Limit(64 << 20, "25 kernels, 3 bottlenecks and every fallback take 20 KiB"),
    "report": Limit(1 << 29, "plotly's script takes 5 MiB, the figures as much at most"),
}
