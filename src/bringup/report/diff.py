"""Shows the comparison of two runs: as text or a page for people, and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bringup.analyse.diff import GROUPS, LEAST_SHARE, Diff, Part
from bringup.analyse.summary import Summary
from bringup.recording.trace import Trace
from bringup.report import html
from bringup.report.terminal import escaped
from bringup.text import duration, module_name, quantity, size

MOST_PARTS = 8  # of a list, in the terminal
MOST_ROWS = 100  # of a table of the page
LEAST = 0.005  # a step that changed by less is called equal


def as_json(diff: Diff) -> str:
    """Write the comparison as one line of JSON; every pair is [first run, second run]."""
    before, after = diff.runs
    lists = {name: [_as_dict(part) for part in getattr(diff, name)] for name in ("slower", "faster", "new", "gone")}
    return json.dumps(
        {
            "chip": [before.chip, after.chip],
            "step_seconds": _rounded(before.step_seconds, after.step_seconds),
            "launches": [before.launches, after.launches],
            "peak_bytes": [before.peak_bytes, after.peak_bytes],
            "parts": {name: _rounded(*values) for name, values in _time_parts(before, after).items()},
            **lists,
            "memory": [_as_dict(part) for part in diff.memory],
        },
        sort_keys=True,
        allow_nan=False,
    )


def _as_dict(part: Part) -> dict[str, Any]:
    return {
        "by": part.group,
        "name": part.name,
        "was": part.was or part.name,
        "seconds": _rounded(*part.seconds),
        "launches": _rounded(*part.launches),
        "peak_bytes": list(part.peak_bytes),
    }


def _rounded(*values: float) -> list[float]:
    return [float(f"{value:.9g}") for value in values]


def _time_parts(before: Summary, after: Summary) -> dict[str, tuple[float, float]]:
    first, second = before.parts(), after.parts()
    return {name: (first.get(name, 0.0), second.get(name, 0.0)) for name in {**first, **second}}


def verdict(diff: Diff, names: tuple[str, str]) -> str:
    """Return in one sentence which run is faster, and which part of the step accounts for most of it."""
    before, after = diff.runs
    change = after.step_seconds - before.step_seconds
    noun = after.unit
    if abs(change) <= LEAST * before.step_seconds:
        return f"{names[1]} is as fast as {names[0]}: {duration(after.step_seconds)} per {noun}"
    share = f"{abs(change) / before.step_seconds:.1%} " if before.step_seconds else ""
    slower = "slower" if change > 0 else "faster"
    changes = {name: second - first for name, (first, second) in _time_parts(before, after).items()}
    sign = 1 if change > 0 else -1
    most = max(changes, key=lambda name: sign * changes[name])
    return (
        f"{names[1]} is {share}{slower} than {names[0]}: {duration(after.step_seconds)} per {noun} instead of "
        f"{duration(before.step_seconds)}; most of the change is in {most!r} ({signed(changes[most])})"
    )


def signed(seconds: float) -> str:
    """Write a change of time with its sign; less than half a nanosecond is no change."""
    return "=" if abs(seconds) < 0.5e-9 else f"{'-' if seconds < 0 else '+'}{duration(abs(seconds))}"


def _signed_size(count: int) -> str:
    return f"{'-' if count < 0 else '+'}{size(abs(count))}" if count else "="


def print_diff(diff: Diff, names: tuple[str, str], console: Console) -> None:
    """Print the verdict, the numbers of both runs, and the parts that changed."""
    before, after = diff.runs
    console.print(f"[bold]{escaped(verdict(diff, names))}[/]")
    table = _table("", escaped(names[0]), escaped(names[1]), "change")
    if before.chip != after.chip:
        table.add_row("chip", escaped(before.chip), escaped(after.chip), "")
    rows = {f"time of a {after.unit}": (before.step_seconds, after.step_seconds)}
    rows |= {f"  {name}": pair for name, pair in _time_parts(before, after).items()}
    for name, (first, second) in rows.items():
        table.add_row(name, duration(first), duration(second), signed(second - first))
    launches = after.launches - before.launches
    table.add_row(
        f"launches per {after.unit}",
        f"{before.launches:,}",
        f"{after.launches:,}",
        f"{launches:+,}" if launches else "=",
    )
    peaks = (before.peak_bytes, after.peak_bytes)
    table.add_row("memory at the peak", *map(size, peaks), _signed_size(peaks[1] - peaks[0]))
    console.print(table)
    for title, parts in (("slower", diff.slower), ("faster", diff.faster), ("new", diff.new), ("gone", diff.gone)):
        _print_parts(f"{title}, in time of a {after.unit}", parts, console)
    _print_parts("memory at the peak", diff.memory, console, times=False)
    if diff.slower or diff.faster or diff.new or diff.gone:
        console.print(
            "modules, lines and operators are three views of the same time; "
            "an idle chip's time counts for the call that it waits for",
            style="dim",
        )


def page(diff: Diff, traces: tuple[Trace, Trace], names: tuple[str, str], reports: Mapping[str, str]) -> str:
    """Write the comparison as a page.

    Args:
        diff: the comparison.
        traces: of both runs; they have the source of lines.
        names: of both runs.
        reports: name of a run -> address of its report, for those that have one.
    """
    before, after = diff.runs
    sources = {line: text for trace in traces for line, text in _sources(trace).items()}
    listed = [
        (what, part) for what in ("slower", "faster", "new", "gone") for part in getattr(diff, what) if _changed(part)
    ]
    groups = []
    for group in GROUPS:
        parts = [(what, part, sources.get(part.name, "")) for what, part in listed if part.group == group]
        parts.sort(key=lambda item: -abs(_change(item[1])))
        most = abs(_change(parts[0][1])) if parts else 1.0
        parts[:MOST_ROWS] = sorted(parts[:MOST_ROWS], key=lambda item: -_change(item[1]))
        groups.append((group, parts, most))
    times = {f"time of a {after.unit}": (before.step_seconds, after.step_seconds), **_time_parts(before, after)}
    more = after.launches - before.launches
    held = [run.peak_bytes for run in diff.runs]
    numbers = [
        (f"launches per {after.unit}", *(f"{run.launches:,}" for run in diff.runs), f"{more:+,}" if more else "="),
        ("memory at the peak", *map(size, held), _signed_size(held[1] - held[0])),
    ]
    return html.render(
        "diff.html",
        title=f"{names[0]} and {names[1]}, compared: bringup",
        verdict=verdict(diff, names),
        names=names,
        runs=diff.runs,
        reports=reports,
        times=times,
        longest=max(abs(second - first) for first, second in times.values()) or 1.0,
        numbers=numbers,
        groups=groups,
        most_rows=MOST_ROWS,
        memory=diff.memory,
        most_bytes=max((abs(part.peak_bytes[1] - part.peak_bytes[0]) for part in diff.memory), default=1),
        least=f"{LEAST_SHARE:.1%}".replace("%", " %"),
        name_of=lambda part: module_name(part.name) if part.group == "module" else part.name,
        was_of=lambda part: module_name(part.was) if part.group == "module" else part.was,
        duration=duration,
        signed=signed,
        signed_size=_signed_size,
        size=size,
    )


def _change(part: Part) -> float:
    return part.seconds[1] - part.seconds[0]


def _changed(part: Part) -> bool:
    """Return False for what is new or gone and takes no time of its own, such as a line that only allocates."""
    return signed(_change(part)) != "="


def _sources(trace: Trace) -> dict[str, str]:
    """Return the source of each line of the program that launches work."""
    return dict(zip(trace.lines, trace.about.get("source", ()), strict=False))


def _print_parts(title: str, parts: list[Part], console: Console, *, times: bool = True) -> None:
    """Print the first parts of a list, with their times and launches or with their memory."""
    if not parts:
        return
    console.print(f"\n[bold]{title}[/]")
    columns = ("before", "after", "change", *(("launches",) if times else ()))
    table = _table("", "", *columns, left=2)
    for part in parts[:MOST_PARTS]:
        (first, second), (few, many), (small, large) = part.seconds, part.launches, part.peak_bytes
        name = escaped(part.name + (f" (was {part.was})" if part.was else ""))
        launches = f"{few:,.4g}" if few == many else f"{few:,.4g} -> {many:,.4g}"
        cells = (duration(first), duration(second), signed(second - first), launches)
        table.add_row(
            f"  {part.group}", name, *(cells if times else (size(small), size(large), _signed_size(large - small)))
        )
    console.print(table)
    if len(parts) > MOST_PARTS:
        console.print(f"  and {quantity(len(parts) - MOST_PARTS, 'more part')}: --json lists all", style="dim")


def _table(*titles: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number < left else "right", overflow="fold")
    return table
