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
    "trace file": Limit(1 << 29, "the rows below, at 32 bytes each"),
    "scorecard": Limit(16 << 20, "56 items, and a matrix of 700 operators"),
    "measurement file": Limit(64 << 20, "the sets of seven publishers have 67,000 rows together"),
    "report": Limit(1 << 29, "a page whose timeline draws 600,000 launches has 80 MiB"),
}

# Of a trace file, beside its size.
TRACE = {
    "rows": Limit(1 << 24, "a comparison of so many takes 4 GiB"),
    "row groups": Limit(1 << 12, "Arrow puts a million rows into one"),
    "columns": Limit(64, "a trace has 16"),
    "uses": Limit(1 << 26, "four storages a row"),
    "bytes": Limit(1 << 32, "before compression; twice the columns of all rows"),
    "description bytes": Limit(1 << 26, "signatures, lines and modules; a thousand kinds of launch take 400 KiB"),
    "signatures": Limit(1 << 18, "kinds of launch that differ in operator, shapes or arguments"),
    "lines": Limit(1 << 18, "lines of source that launch something"),
    "tensors": Limit(1 << 20, "of a launch over the parameters of a mixture of a hundred thousand experts"),
    "dimensions": Limit(64, "torch allows 64"),
    "nesting": Limit(16, "lists of lists of an operator's arguments"),
    "letters": Limit(4096, "a path or a module's name; PATH_MAX is 4,096"),
    "devices": Limit(64, "the core opens 64"),
    "streams": Limit(128, "the core opens 65 per device"),
}

# Of the text of a Triton kernel. The largest of 1,600 kernels of FlagGems, Liger and the tutorials has 90,000 letters,
# 1,421 in a line, and brackets 3 deep.
TTIR = {
    "letters": Limit(1 << 23, "some 80,000 operations"),
    "letters in a line": Limit(1 << 17, "a function of a thousand arguments"),
    "brackets": Limit(100, "open at once, in a line"),
    "frames": Limit(10_000, "of one location, each called from others: ten may stand for a thousand"),
}
