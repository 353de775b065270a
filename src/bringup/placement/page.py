"""The pages of placement: a plan's step before and after, and break-even sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.machine.schema import Chip, Host
from bringup.placement.break_even import SIZES, BreakEven
from bringup.placement.place import Planned
from bringup.placement.placed import Replayer, Rows
from bringup.recording.rows import COLUMNS
from bringup.recording.trace import Trace
from bringup.report import figures, html, palette
from bringup.report.chart import Axis, Figure, Series
from bringup.text import duration, module_name, size
from bringup.timeline.replay import Timeline


def page(planned: Planned, names: dict[str, str]) -> str:
    """Write a plan with the timeline of a step before and after it.

    Args:
        planned: the plan and its step.
        names: of the baselines.
    """
    plan, replayer = planned.plan, planned.replayer
    before, _ = _timeline(replayer, Rows(replayer.as_is(), 0))
    after, note = _timeline(replayer, replayer.rows(planned.on_chip)) if planned.on_chip is not None else (None, "")
    return html.render(
        "placement.html",
        title=f"placement of {plan.program or 'a program'} on {plan.chip}: bringup",
        charts={"before": before, "after": after},
        plan=plan,
        names=names,
        note=note,
        duration=duration,
        module_name=module_name,
        size=size,
    )


def break_even_page(rows: list[BreakEven], chip: Chip, host: Host) -> str:
    """Write from which size operators are faster on the chip, with their times by size."""
    return html.render(
        "break_even.html",
        title=f"break-even sizes of {chip.name} and {host.name}: bringup",
        charts={row.op: _by_size(row) for row in rows},
        rows=rows,
        chip=chip.name,
        host=host.name,
    )


def _by_size(row: BreakEven) -> Figure:
    def line(name: str, colour: str, seconds: tuple[float, ...], *, dashed: bool = False) -> Series:
        times = [float(f"{value * 1e6:.4g}") for value in seconds]
        hover = f"{name}: {{y}} us for {{x}} elements"
        return Series(name, "line", colour, list(SIZES), times, hover=hover, dashed=dashed)

    lines = [
        line("host", palette.GUIDE, row.host),
        line("chip", palette.PAGE["chip"], row.chip),
        line("chip, copied up and down", palette.PAGE["link"], row.copied_chip, dashed=True),
    ]
    return Figure(Axis("elements of the first input", log=True), Axis("us", log=True), lines, height=280)


def _timeline(replayer: Replayer, rows: Rows) -> tuple[Figure | None, str]:
    """Draw the second of two steps with these rows."""
    twice, issued, start, end, waited = replayer.replayed(rows.columns)
    step = replayer.step
    trace = _trace(step.timeline.trace, twice)
    replayed = Timeline(
        trace,
        step.timeline.chip,
        step.timeline.host,
        step.timeline.prices,
        step.timeline.work,
        step.timeline.steps,
        issued,
        start,
        end,
        waited,
        twice["seconds"],
        twice["host_seconds"],
        twice["fallback"],
        step.inputs.parts,
    )
    return figures.timeline(replayed, (len(twice["kind"]) // 2, len(twice["kind"])))


def _trace(trace: Trace, rows: dict[str, npt.NDArray[Any]]) -> Trace:
    """Return a trace with these rows; added ones have the line and module of the row that they stand before."""
    columns = {name: rows[name] if name in rows else trace.columns[name][rows["row"]] for name in COLUMNS}
    columns = {name: values.astype(COLUMNS[name]) for name, values in columns.items()}
    added = rows["added"] > 0
    columns["signature"][added] = -1
    counts = np.where(added, 0, np.diff(trace.offsets)[rows["row"]])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    uses = trace.uses[np.repeat(trace.offsets[rows["row"]], counts) + within]
    copy = Trace(columns, uses, offsets, trace.signature_data, trace.lines, trace.modules, trace.about)
    copy.signatures, copy.work = trace.signatures, trace.work
    return copy
