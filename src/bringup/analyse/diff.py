"""Compares two runs by module, line and operator: time, launches, memory at the peak, what is new and gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.analyse import holders
from bringup.analyse.summary import Summary
from bringup.recording.rows import D2D, D2H, H2D, LAUNCH
from bringup.timeline.replay import Timeline
from bringup.timeline.steady import steady

Array = npt.NDArray[Any]
Pair = tuple[float, float]
GROUPS = ("module", "line", "operator")
COPIES = {H2D: "copy to the chip", D2H: "copy to the host", D2D: "copy between chips"}
NONE = "(none)"
LEAST_SHARE = 0.005  # of the longer step: smaller changes are not listed


@dataclass(frozen=True)
class Part:
    """A module, line or operator in two runs. Pairs hold the first run's value and the second's; 0 where it is not.

    Attributes:
        group: one of `GROUPS`.
        name: its name in the second run, or in the first one if it is gone.
        was: its name in the first run if that differs (a line that moved); else empty.
        seconds: its share of a step, see `row_seconds`; the seconds of all parts of a group add up to the step.
        launches: launches and copies per step.
        peak_bytes: the bytes that it allocated of those held at the peak.
    """

    group: str
    name: str
    was: str
    seconds: Pair
    launches: Pair
    peak_bytes: tuple[int, int]


@dataclass(frozen=True)
class Diff:
    """Two runs, compared. The lists are sorted by the change of time, the largest first.

    Attributes:
        runs: the summaries of the two runs.
        slower, faster: parts that are in both runs.
        new, gone: parts that only the second run has, or only the first one.
        memory: parts in both runs that hold more or less at the peak, by the change of their bytes.
    """

    runs: tuple[Summary, Summary]
    slower: list[Part]
    faster: list[Part]
    new: list[Part]
    gone: list[Part]
    memory: list[Part]


@dataclass
class _Use:
    """What one name uses in one run."""

    seconds: float = 0.0
    launches: float = 0.0
    bytes: int = 0


def diff(runs: tuple[Summary, Summary], timelines: tuple[Timeline, Timeline]) -> Diff:
    """Compare two runs; see `Part` and `Diff`."""
    least = LEAST_SHARE * max(summary.step_seconds for summary in runs)
    least_bytes = LEAST_SHARE * max(summary.peak_bytes for summary in runs)
    memory: list[Part] = []
    changed: dict[str, list[Part]] = {name: [] for name in ("slower", "faster", "new", "gone")}
    uses = [_uses(timeline) for timeline in timelines]
    renamed = _moved_lines(*timelines)
    for group in GROUPS:
        for part in _parts(group, uses[0][group], uses[1][group], renamed if group == "line" else {}):
            change = part.seconds[1] - part.seconds[0]
            has_before, has_after = (any((part.seconds[i], part.launches[i], part.peak_bytes[i])) for i in (0, 1))
            if not has_before or not has_after:
                changed["new" if has_after else "gone"].append(part)
                continue
            if abs(part.peak_bytes[1] - part.peak_bytes[0]) > least_bytes:
                memory.append(part)
            if abs(change) > least:
                changed["slower" if change > 0 else "faster"].append(part)
    for parts in changed.values():
        parts.sort(key=lambda part: (-abs(part.seconds[1] - part.seconds[0]), GROUPS.index(part.group), part.name))
    memory.sort(key=lambda part: (-abs(part.peak_bytes[1] - part.peak_bytes[0]), GROUPS.index(part.group), part.name))
    return Diff(runs, **changed, memory=memory)


def _parts(group: str, before: dict[str, _Use], after: dict[str, _Use], renamed: dict[str, str]) -> Iterator[Part]:
    """Yield every name of a group once; `renamed` leads from names of the first run to those of the second."""
    old = {renamed.get(name, name): (name, use) for name, use in before.items()}
    for name in sorted({*old, *after} - {NONE}):
        was, first = old.get(name, (name, _Use()))
        second = after.get(name, _Use())
        stays = name in after
        yield Part(
            group,
            name if stays else was,
            was if stays and was != name else "",
            (first.seconds, second.seconds),
            (first.launches, second.launches),
            (first.bytes, second.bytes),
        )


def row_seconds(timeline: Timeline) -> Array:
    """Return for every row the seconds of the steady steps that are due to it.

    A moment belongs to the launch that the chip runs. If it runs none, it belongs to the fallback on the host, else to
    the copy on the link, else to the host's call, because the chip then waits for the host. Of rows at the same time,
    the first one counts.
    """
    kind = timeline.trace.columns["kind"]
    _, _, since, until = steady(timeline)
    start, end = timeline.start.copy(), timeline.end.copy()
    is_fallback = timeline.fallback >= 0
    seconds = np.zeros(len(kind))
    returned = timeline.issued + timeline.waited
    classes = (
        (np.flatnonzero((kind == LAUNCH) & ~is_fallback), start, end),
        (np.flatnonzero((kind == LAUNCH) & is_fallback), start, end),
        (np.flatnonzero(np.isin(kind, (H2D, D2H))), start, end),
        (np.flatnonzero(kind == D2D), start, end),
        (np.arange(len(kind)), _called(timeline, returned), returned),
    )
    claims: list[tuple[Array, Array]] = []  # of each class so far: moments, and the seconds claimed before them

    def free(moments: Array) -> Array:
        """Return the seconds before each moment that no class so far has claimed."""
        left = np.clip(moments, since, until)
        for at, claimed in claims:
            left = left - np.interp(left, at, claimed)
        return left

    for rows, begins, ends in classes:
        if not len(rows):
            continue
        first, last = free(begins[rows]), free(ends[rows])
        order = np.lexsort((last, first))
        covered = np.maximum.accumulate(last[order])
        from_here = np.maximum(first[order], np.concatenate(([first[order[0]]], covered[:-1])))
        lengths = np.maximum(last[order] - from_here, 0.0)
        seconds[rows[order]] += lengths
        edges = np.stack((from_here, from_here + lengths), axis=1).ravel()
        before = np.cumsum(lengths) - lengths
        claims.append((edges, np.stack((before, before + lengths), axis=1).ravel()))
    return seconds


def _called(timeline: Timeline, returned: Array) -> Array:
    """Return when the host's call of each row began: at the end of the previous call of its thread."""
    thread = timeline.trace.columns["thread"]
    called = np.zeros(len(thread))
    for number in np.unique(thread):
        rows = np.flatnonzero(thread == number)
        called[rows[1:]] = returned[rows[:-1]]
    return called


def _uses(timeline: Timeline) -> dict[str, dict[str, _Use]]:
    """Return for each group the time, launches and memory of every name, per step."""
    trace, columns = timeline.trace, timeline.trace.columns
    first, last, *_ = steady(timeline)
    kind, seconds = columns["kind"], row_seconds(timeline)
    counted = np.isin(kind, (LAUNCH, *COPIES))
    counted[:first] = counted[last:] = False
    owner, allocated_bytes = _held_at_peak(timeline)
    ops = [signature.op.split(".")[0] for signature in trace.signatures]
    operator = np.where(kind == LAUNCH, columns["signature"], -1)
    for place, copy in enumerate(COPIES):
        operator[kind == copy] = len(ops) + place
    codes = {
        "module": (columns["module"], [*trace.modules, NONE]),
        "line": (columns["line"], [*trace.lines, NONE]),
        "operator": (operator, [*ops, *COPIES.values(), NONE]),
    }
    uses: dict[str, dict[str, _Use]] = {}
    for group, (code, names) in codes.items():
        number_of = code % len(names)  # -1: none
        totals: dict[str, _Use] = {}
        sums = (
            np.bincount(number_of, seconds, len(names)),
            np.bincount(number_of[counted], minlength=len(names)),
            np.bincount(number_of[owner], allocated_bytes, len(names)),
        )
        for number in np.flatnonzero(np.any(sums, axis=0)):
            use = totals.setdefault(names[number], _Use())
            use.seconds += float(sums[0][number])
            use.launches += float(sums[1][number])
            use.bytes += int(sums[2][number])
        uses[group] = totals
    return uses


def _held_at_peak(timeline: Timeline) -> tuple[Array, Array]:
    """Return the storages held at the peak of the fullest device: the row that first used each, and its bytes."""
    trace = timeline.trace
    _, held_bytes = holders.memory_over_time(trace)
    if not len(held_bytes) or held_bytes.max() == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    top = int(np.argmax(held_bytes))
    handed_out = holders.storages(trace, int(trace.columns["device"][top]))
    live = (handed_out.allocated <= top) & (handed_out.freed > top)
    rows = handed_out.allocated[live]
    number = trace.columns["object"][rows]
    first_use = np.full(int(max(number.max(initial=-1), (trace.uses >> 1).max(initial=-1))) + 1, -1)
    first_use[(trace.uses >> 1)[::-1]] = trace.use_rows[::-1]  # of equal storages, the last assignment stays
    users = first_use[number]
    return np.where(users >= 0, users, rows), handed_out.bytes[live]


def _moved_lines(before: Timeline, after: Timeline) -> dict[str, str]:
    """Return where lines of the first run are in the second: an edit above a line changes its number, not its work.

    The lines of a file are matched in their order by the operators that they launch.
    """
    moved: dict[str, str] = {}
    old, new = _lines_by_file(before), _lines_by_file(after)
    for file in old.keys() & new.keys():
        (names, work), (new_names, new_work) = old[file], new[file]
        matcher = SequenceMatcher(None, work, new_work, autojunk=False)
        for tag, i, j, k, m in matcher.get_opcodes():
            if tag == "equal" or (tag == "replace" and j - i == m - k):
                moved.update(zip(names[i:j], new_names[k:m], strict=True))
        # A name that leads nowhere is not the line that now has its number.
        moved.update({name: f"{name} (before)" for name in names if name not in moved and name in new_names})
    return moved


def _lines_by_file(timeline: Timeline) -> dict[str, tuple[list[str], list[tuple[str, ...]]]]:
    """Return for each file its lines in order, and for each line the operators that it launches."""
    trace, columns = timeline.trace, timeline.trace.columns
    launched = (columns["kind"] == LAUNCH) & (columns["line"] >= 0)
    pairs = np.unique(np.stack((columns["line"][launched], columns["signature"][launched]), axis=1), axis=0)
    ops: dict[int, set[str]] = {}
    for line, signature in pairs.tolist():
        ops.setdefault(line, set()).add(trace.signatures[signature].op.split(".")[0])
    keyed = []
    for code, text in enumerate(trace.lines):
        match = re.fullmatch(r"(.*):(\d+)(.*)", text, re.DOTALL)
        if match:
            keyed.append((match[1] + match[3], int(match[2]), text, tuple(sorted(ops.get(code, ())))))
    files: dict[str, tuple[list[str], list[tuple[str, ...]]]] = {}
    for file, members in groupby(sorted(keyed), key=lambda item: item[0]):
        lines = list(members)
        files[file] = ([item[2] for item in lines], [item[3] for item in lines])
    return files
