"""The one-screen summary as data: lines and rows of tables, each with its role."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bringup.process import EXPANDABLE
from bringup.recording.waits import WAIT_KINDS, count_text, hint, noun, places
from bringup.text import duration, figure, module_name, quantity, size

if TYPE_CHECKING:  # the list of chips needs no summary
    from bringup.analyse.holders import Moment, Owner
    from bringup.analyse.summary import Summary, Way

MOST_FALLBACKS, MOST_KERNELS, MOST_BREAKS, MOST_UNPRICED = 5, 3, 5, 6
MOST_UNLIKE, MOST_CHANGES, MOST_CLOCKS = 3, 3, 3
MOST_OF_RUN = 0.5  # if the typical steps take less of the run, the summary says so
FEW_STEPS = 6  # of so few, the quantiles are the shortest and the longest
LEAST_WAITS = 0.5  # per step: rarer kinds are not worth a word
MEMBER = re.compile(r"(^|\.)\d+(?=\.|$)")  # the number of a member of a list
MOST_RANGES = 4  # of the members of a list in a name
LEAST_MFU = 1e-4  # smaller ones are not written with their digits
LEAST_SHARE = 0.005  # smaller shares would be shown as 0 %


@dataclass(frozen=True)
class Line:
    """One line of the summary.

    Attributes:
        role: the kind of line, such as ``step``, ``memory`` or ``advice``.
        parts: pairs of a text and its terminal style; an empty style is plain text.
    """

    role: str
    parts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """Return the line without styles."""
        return "".join(text for text, _ in self.parts)


@dataclass(frozen=True)
class Row:
    """One row of a table; neighbouring rows with the same role form one table."""

    role: str
    cells: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return the cells, separated by spaces."""
        return "  ".join(self.cells)


def _line(role: str, *parts: str | tuple[str, str]) -> Line:
    return Line(role, tuple((part, "") if isinstance(part, str) else part for part in parts))


def lines(summary: Summary) -> Iterator[Line | Row]:
    """Yield the numbers, findings and advice of a summary, for one screen."""
    if summary.failed:
        yield _line("failed", ("the program ended with an error; this is what it did up to there", "bold"))
    if summary.stopped_by:
        yield _line("failed", (f"{summary.stopped_by} ended the program; this is what it did up to there", "bold"))
    if summary.step_seconds or not summary.failed:
        yield from _times(summary)
    yield from communication_lines(summary)
    yield from _notes(summary)
    yield from step_lines(summary)
    yield from _input(summary)
    yield from _own_time(summary)
    yield from _host_alone(summary)
    yield from _size(summary)
    yield from _expandable(summary)
    yield from placement_lines(summary)
    yield from _waits(summary)
    if not summary.fits:
        yield from _memory(summary)
    yield from _fallbacks(summary)
    yield from _kernels(summary)
    for finding in summary.findings:
        yield _line("finding", "  ", (finding.check, "bold red"), f": {finding.what}")
        yield _line("finding-advice", f"     -> {finding.advice}")
    for number, item in enumerate(summary.bottlenecks, 1):
        yield _line("bottleneck", "  ", (f"{number}.", "bold"), f" {item.condition}; {item.cause}")
        yield _line("advice", f"     -> {item.action}")
    for advice in summary.memory_advice:
        yield _line("memory-advice", "  ", ("memory:", "bold"), f" {advice.condition}; {advice.cause}")
        yield _line("advice", f"     -> {advice.action}")
    yield from _compiled(summary)
    yield from compilation_lines(summary)
    if summary.unpriced:
        names = ", ".join(summary.unpriced[:MOST_UNPRICED]) + (", ..." if len(summary.unpriced) > MOST_UNPRICED else "")
        yield _line("unpriced", f"  no cost rule, estimated from the bytes moved: {names}")


def _times(summary: Summary) -> Iterator[Line]:
    yield _line(
        "step",
        (f"{summary.unit} {duration(summary.step_seconds)}", "bold"),
        " on ",
        (summary.chip, "bold"),
        f" (host {summary.host}, {summary.link})    ",
        (band(summary), "dim"),
    )
    total = summary.step_seconds or 1.0
    shares = "   ".join(f"{name} {seconds / total:.0%}" for name, seconds in summary.parts().items())
    yield _line("shares", f"  {shares}")


def communication_lines(summary: Summary) -> Iterator[Line]:
    """Yield what the collectives of several ranks take."""
    if not summary.collectives or summary.ranks == 1:  # a group of one moves nothing
        return
    spent, exposed = duration(summary.communication_seconds), duration(summary.exposed_communication_seconds)
    first = summary.collectives[0]
    where = f" at {first.file}:{first.line}" if first.file else ""
    most = f"{first.count:,}x {first.kind} of {size(first.bytes)} among {first.group_size:,}{where}"
    who = f"{quantity(summary.ranks, 'rank')} on {summary.cluster}"
    times = f"  communication {spent}, of which {exposed} are exposed ({who})"
    yield _line("communication", f"{times}; most: {most}, {duration(first.seconds)}")
    if summary.tokens_per_second and summary.cluster_tokens_per_second:
        yield _line("tokens", f"  {tokens_text(summary.tokens_per_second, summary.cluster_tokens_per_second)}")
    yield from _another_recording(summary)
    if summary.bubble_seconds:
        share, bubble = summary.bubble_seconds / summary.step_seconds, duration(summary.bubble_seconds)
        yield _line("communication", f"  bubble {bubble} ({share:.0%}): the chip only waits for other ranks")


def _another_recording(summary: Summary) -> Iterator[Line]:
    """Yield how to compare other degrees of parallelism, whose kernels the recording does not have."""
    from bringup.analyse.layout_advice import LEAST_EXPOSED

    exposed: dict[int, float] = {}
    for item in summary.collectives:
        if item.group_size < summary.ranks and item.kind not in ("send", "recv"):
            exposed[item.group_size] = exposed.get(item.group_size, 0.0) + item.exposed_seconds
    size, seconds = max(exposed.items(), key=lambda item: item[1], default=(0, 0.0))
    if seconds < LEAST_EXPOSED * summary.step_seconds or not summary.step_seconds:
        return
    share = f"{seconds / summary.step_seconds:.0%}"
    how = f"bringup run --dry --ranks {summary.ranks} --out other ..., then bringup diff"
    yield _line(
        "communication",
        f"  groups of {size:,} ranks are exposed for {share}; to compare another size, record it ({how})",
    )


def tokens_text(of_chip: float, of_cluster: float) -> str:
    """Write the tokens per second of a chip and of all."""
    return f"{figure(of_chip)} tokens/s per chip, {figure(of_cluster)} on all"


def _notes(summary: Summary) -> Iterator[Line]:
    if summary.dry:
        yield _line("dry", "  dry run: nothing was computed; results that the program printed are stand-ins")
    if summary.chip_time:
        yield _line("chip-time", "  the program's clocks showed chip time; times that it printed are predictions")
    synchronize = f"torch.{'cuda' if summary.named_cuda else 'chip'}.synchronize()"
    for item in summary.early_clocks[:MOST_CLOCKS]:
        times = f"it shows {duration(item.shown_seconds)} of {duration(item.seconds)}"
        yield _line(
            "early-clock",
            f"  the clock at {item.file}:{item.line} is read before the chip is done: {times}; {synchronize} first",
        )
    if summary.redirected:
        yield _line("cuda", f"  cuda meant the chip: {redirected(summary)}")


def step_lines(summary: Summary) -> Iterator[Line]:
    """Yield how many steps there are and which one is shown, and what differs from it."""
    one = summary.unit
    launches = f"{quantity(summary.launches, 'launch')} per {one}"
    if summary.steps_by == "whole":
        yield _line("launches", f"  {quantity(summary.launches, 'launch')}, {summary.steps_text()}")
    else:
        times = f"{summary.batches:,} times " if summary.batches > 1 else ""
        batch = f", {times}batch {summary.samples:,}" if summary.samples else ""
        shown = f"{quantity(summary.steps, 'step')}, {summary.steps_text()}{_shown(summary)}"
        yield _line("launches", f"  {launches}{batch}; {shown}")
    if summary.unequal:
        between = f"{duration(summary.low_seconds)} to {duration(summary.high_seconds)}"
        most = "they" if summary.like_steps <= FEW_STEPS else "four of five"
        yield _line("unequal", f"  steps that do the same work are unequal: {most} take {between}")
    yield from _unlike(summary)
    capture = " (warm-up and capture of the graph)" if summary.steps_by == "replay" else ""
    for name, part in ((f"before the first step{capture}", summary.before), ("after the last step", summary.after)):
        if part.seconds > summary.step_seconds:
            launches = f"{quantity(part.launches, 'launch')}, " if part.launches else ""
            where = f", longest at {part.file}:{part.line}" if part.file else ""
            yield _line("outside", f"  {name}: {launches}{duration(part.seconds)}{where}")
    if summary.typical_share < MOST_OF_RUN:
        typical = "the step is" if summary.steps == 1 else "steps like the one shown are"
        yield _line("typical-share", f"  {typical} {summary.typical_share:.0%} of the run")


def _unlike(summary: Summary) -> Iterator[Line]:
    """Yield the steps with other work; the range of their times if these differ."""
    for item in summary.unlike_steps[:MOST_UNLIKE]:
        where = f" at {item.file}:{item.line}" if item.file else ""
        each = " each" if item.count > 1 else ""
        cost = f"{quantity(item.launches, 'launch')}, {duration(item.seconds)}{each}"
        if item.is_unequal:
            cost = f"{duration(item.low_seconds)} to {duration(item.high_seconds)} each"
        yield _line("unlike", f"  {quantity(item.count, 'step')} with other work{where}: {cost}")
    if len(summary.unlike_steps) > MOST_UNLIKE:
        more = quantity(len(summary.unlike_steps) - MOST_UNLIKE, "more line")
        yield _line("more-unlike", f"  and other work at {more}: see the report")


def _shown(summary: Summary) -> str:
    """Return in words which step the figures are of."""
    others = summary.steps - 1
    if others < 2:
        return ", the first left out as warm-up" if others else ""
    if summary.like_steps == 1:
        return "; shown is a later one, since the first one does what no other does"
    return f"; shown is the median of the {summary.like_steps:,} after the first" + (
        " that do the same work" if summary.like_steps < others else ""
    )


def compilation_lines(summary: Summary) -> Iterator[Line]:
    """Yield what is compiled again because shapes change."""
    built = summary.compilations
    if built is None:
        return
    where = f" at {', '.join(built.changed_at[:MOST_CHANGES])}" if built.changed_at else ""
    shapes = f"{quantity(built.shapes, 'shape')} in {quantity(summary.steps, 'step')}"
    changes = {-1: "shapes change", 0: "the first axis changes"}.get(built.axis, "the length changes")
    buckets = f"; buckets of {built.bucket:,}: {built.bucketed:,}" if built.bucket else ""
    if built.again:
        times = "once" if built.again == 1 else f"{built.again:,} times"
        why = f"; {shapes}: {changes}{buckets}" if built.axis >= 0 else ""  # else shapes may not be why
        yield _line(
            "compilations", f"  torch.compile compiled again {times} for calls{where}, which the times leave out{why}"
        )
    elif built.shapes > 1:
        built_for = f"{shapes} = {quantity(built.graphs, 'compilation')}, which the times leave out"
        yield _line("compilations", f"  {built_for}; {changes}{where}{buckets}")


def _size(summary: Summary) -> Iterator[Line]:
    verdict = (summary.verdict_text(), "" if summary.fits else "bold red")
    energy = "" if summary.energy_joules is None else f"   energy {figure(summary.energy_joules)} J per {summary.unit}"
    cost = "" if summary.cost_usd is None else f"   {per_million(summary)}"
    mfu = f"   MFU {used_peak(summary)}" if summary.mfu is not None else ""
    peak = f"  memory {size(summary.peak_bytes)} of {size(summary.capacity_bytes)}, "
    yield _line("memory", peak, verdict, f"{energy}{cost}{mfu}")


def expandable_text(summary: Summary) -> str:
    """Return what expandable segments would change; "" if that is not worth a word."""
    memory = summary.memory
    if memory.expandable_bytes is None or not memory.expandable_gain(summary.room_bytes):
        return ""
    fits = memory.expandable_bytes <= summary.room_bytes < memory.reserved_bytes
    sizes = f"{size(memory.expandable_bytes)} instead of {size(memory.reserved_bytes)}{', which fits' if fits else ''}"
    return f"expandable segments ({EXPANDABLE}) would reserve {sizes}"


def _expandable(summary: Summary) -> Iterator[Line]:
    if text := expandable_text(summary):
        yield _line("expandable", f"  {text}")


def placement_lines(summary: Summary) -> Iterator[Line]:
    """Yield the planned step beside the replay of what ran, and the launches that had no plan."""
    placement = summary.placement
    if placement is None:
        return
    planned = placement.planned_seconds
    off = f" ({placement.replayed_seconds / planned - 1:+.1%})" if planned else ""
    took = summary.measured_step_seconds  # on a driver
    measured = "" if took is None else f", measured {duration(took)}"
    rest = "".join(
        f", {count:,} {what}"
        for count, what in (
            (placement.launches_elsewhere, "elsewhere"),
            (placement.launches_without_plan, "without a plan"),
        )
        if count
    )
    yield _line(
        "placement",
        f"  placed: planned {duration(planned)}, replayed {duration(placement.replayed_seconds)}{off}{measured}; "
        f"{quantity(placement.launches_as_planned, 'launch')} where planned{rest}",
    )


def _memory(summary: Summary) -> Iterator[Line | Row]:
    """Yield the moment of the memory peak, its holders, and ways to fit."""
    memory = summary.memory
    if memory.at is not None:
        yield _line("fullest", f"  memory is fullest in {moment(memory.at, summary)}")
    for kind, total, largest in by_kind(memory.owners):
        where = ", ".join(f"{name or 'outside modules'} {size(count)}" for name, count in largest)
        if total >= LEAST_SHARE * memory.peak_bytes:
            yield Row("holder", ("   ", kind, size(total), f"{total / max(memory.peak_bytes, 1):.0%}", where))
    if memory.free_bytes >= LEAST_SHARE * memory.peak_bytes:
        yield _line("free", f"  beside them, the allocator holds {size(memory.free_bytes)} that no tensor uses")
    if summary.out_of_memory:
        yield _line(
            "out-of-memory",
            "  the program ended there: run it with --oom=continue to see the memory it needs and ways to make it fit",
        )
    for way in summary.ways_to_fit:
        yield _line("way", f"  -> {way_text(way, summary.room_bytes)}")


def _fallbacks(summary: Summary) -> Iterator[Line | Row]:
    for item in summary.fallbacks[:MOST_FALLBACKS]:
        parts = {
            "d2h": item.d2h_seconds,
            "host": item.host_seconds,
            "h2d": item.h2d_seconds,
            "stall": item.stall_seconds,
        }
        where = f"{item.file}:{item.line}" if item.file else "-"
        took = f"{duration(item.seconds)}/{summary.unit}"
        terms = " + ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
        yield Row(
            "fallback", ("  fallback", f"{item.op} {item.dtype}", where, f"{item.count:,.3g}x", took, f"({terms})")
        )
    more = summary.fallbacks[MOST_FALLBACKS:]
    if more:
        rest = sum(item.seconds for item in more)
        yield _line(
            "more-fallbacks",
            f"  and {quantity(len(more), 'more fallback')}, {duration(rest)} per {summary.unit}: see the report",
        )


def _input(summary: Summary) -> Iterator[Line]:
    """Yield the time of input, if batches take longer than the step."""
    if not summary.inputs:
        return
    slowest = summary.inputs[0]
    beside = "whose waits are in" if summary.chip_time else "not part of"
    maker = f" (made by {slowest.maker})" if slowest.by_library else ""
    yield _line(
        "input",
        (f"  waiting for input {duration(summary.input_seconds)} per {summary.unit}", "bold"),
        f", {beside} the {summary.unit} above: the DataLoader at {slowest.file}:{slowest.line}{maker} takes "
        f"{duration(slowest.batch_seconds)} for a batch, num_workers={slowest.workers} (measured on this machine)",
    )


def _own_time(summary: Summary) -> Iterator[Line]:
    """Yield the time of the program's own Python, if it is more than the step."""
    if not summary.own:
        return
    longest = summary.own[0]
    place = "in the sleep at" if longest.sleeps else "before the launch at"
    mostly = f": mostly {place} {longest.file}:{longest.line}" if longest.file else ""
    yield _line(
        "own-time",
        (f"  waiting for the program's own Python {duration(summary.own_seconds)} per {summary.unit}", "bold"),
        f", not part of the {summary.unit} above{mostly} (measured on this machine)",
    )


def _host_alone(summary: Summary) -> Iterator[Line]:
    """Yield that the CPU is faster than the chip, if it clearly is."""
    if summary.host_alone_seconds is not None:
        core = f"one core of {summary.host} takes about {duration(summary.host_alone_seconds)} per {summary.unit}"
        yield _line("host-alone", ("  the CPU is faster for this", "bold"), f": {core}")


def _waits(summary: Summary) -> Iterator[Line]:
    """Yield how often the host waits for the chip in each step, by kind, with the line of most of them."""
    kinds, total = [], 0.0
    for kind in WAIT_KINDS:
        of_kind = [item for item in summary.waits if item.kind == kind]
        count = sum(item.per_step for item in of_kind)
        if count >= LEAST_WAITS:
            total += count
            ops = sorted({op for item in of_kind for op in item.ops})
            words = "" if summary.failed else hint(kind, small=all(item.small for item in of_kind), ops=ops)
            at = places([(item.file, item.line, item.per_step) for item in of_kind])
            kinds.append(f"{noun(kind, count, ops)}{at}{f' ({words})' if words else ''}")
    if not kinds:
        return
    times = "once" if count_text(total) == "1" else f"{count_text(total)} times"
    yield _line("waits", f"  the host waits for the chip {times} per {summary.unit}: {'; '.join(kinds)}")


def _kernels(summary: Summary) -> Iterator[Line | Row]:
    """Yield the limits of the program's own kernels."""
    kernels = [item for item in summary.kernels if item.op.startswith("triton::")]
    for item in kernels[:MOST_KERNELS]:
        name = item.op.removeprefix("triton::")
        name = name if len(name) <= 30 else name[:28] + ".."
        busy = ", ".join(f"{engine} {share:.0%}" for engine, share in item.engines.items() if share >= LEAST_SHARE)
        limit = f"{item.bound}-bound, {item.roof:.0%} of the roofline; busy: {busy}"
        yield Row("kernel", ("  kernel", name, item.line, f"{item.count:,.3g}x", duration(item.seconds), limit))
    if len(kernels) > MOST_KERNELS:
        yield _line("more-kernels", f"  and {quantity(len(kernels) - MOST_KERNELS, 'more kernel')}: see the report")


def _compiled(summary: Summary) -> Iterator[Line]:
    if not summary.compiled_graphs:
        return
    breaks = len(summary.graph_breaks)
    lost = summary.graph_breaks_seconds
    costs = f", which costs {duration(lost)} per {summary.unit}" if lost else ""
    cut = f", cut at {quantity(breaks, 'line')}{costs}:" if breaks else ", no graph breaks"
    yield _line("compiled", f"  torch.compile: {quantity(summary.compiled_graphs, 'graph')}{cut}")
    for cut_at in summary.graph_breaks[:MOST_BREAKS]:
        yield _line("graph-break", f"     {cut_at.line}: {cut_at.reason}")
    if breaks > MOST_BREAKS:
        yield _line("more-breaks", f"     and {quantity(breaks - MOST_BREAKS, 'more line')}: see the report")


def band(summary: Summary) -> str:
    """Write the error band and its source."""
    if summary.error_band is None:
        return summary.error_source
    return f"+- {summary.error_band:.0%} ({summary.error_source})"


def used_peak(summary: Summary) -> str:
    """Write the share of the peak that products use, with its denominator; empty without products."""
    if summary.mfu is None or summary.mfu_peak_flops is None:
        return ""
    peak = f"{summary.mfu_peak_flops / 1e12:,.4g} Tflop/s"
    share = f"{100 * summary.mfu:.2g}%" if summary.mfu >= LEAST_MFU else f"below {LEAST_MFU:.2%}"
    return f"{share} of {peak}, the {summary.mfu_dtype} peak"


def per_million(summary: Summary) -> str:
    """Write the cost of a million samples, or of a million steps if the batch is unknown."""
    cost = usd_per_million(summary)
    return "-" if cost is None else f"{figure(cost)} USD per million {priced_noun(summary)}"


def usd_per_million(summary: Summary) -> float | None:
    """Return the cost of a million of `priced_noun` in USD, or None if the chip has no price."""
    samples = summary.samples * summary.batches if summary.samples else 1
    return None if summary.cost_usd is None else summary.cost_usd * 1e6 / samples


def priced_noun(summary: Summary) -> str:
    """Return what the cost of a million is given for: samples, or steps or runs if the batch is unknown."""
    return "samples" if summary.samples else f"{summary.unit}s"


def redirected(summary: Summary) -> str:
    """Write the CUDA names that the program used most."""
    most = sorted(summary.redirected.items(), key=lambda pair: (-pair[1], pair[0]))
    names = ", ".join(f"{name} {count:,}x" if count > 1 else name for name, count in most[:4])
    return names + (f", and {quantity(len(most) - 4, 'more name')}" if len(most) > 4 else "")


def memory_share(summary: Summary) -> str:
    """Write the peak as a share of the memory that tensors can take, with the verdict unless it fits."""
    note = {"yes": "", "no": ": too small"}.get(summary.verdict, ": try it")
    return f"{summary.peak_bytes / summary.room_bytes:.0%}{note}"


def way_text(way: Way, room: int) -> str:
    """Write a way to fit with the memory and the time that it needs for the same work."""
    verdict = "fits" if way.fits else f"{size(way.peak_bytes - room)} too much"
    return f"{way.change}: {size(way.peak_bytes)}, {verdict}, {duration(way.step_seconds)} for the same work"


def moment(at: Moment, summary: Summary) -> str:
    """Write the step if there are steps, the phase, module and line at which memory is fullest."""
    step = (
        f"step {at.step + 1:,} of {summary.steps:,}, " if at.step < summary.steps else "the part after the last step, "
    )
    inside = f" of {module_name(at.module)}" if at.module else ""
    where = f", at {at.line}" if at.line else ""
    return f"{'' if summary.steps_by == 'whole' else step}{at.phase} pass{inside}{where}"


def names_as_one(names: set[str]) -> str:
    """Write names that differ only in their numbers as one: ``layers.0-11.mlp``, or ``layers.0,3-11.mlp``."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    parts = (sorted(set(column), key=lambda part: (len(part), part)) for column in columns)
    return ".".join(part[0] if len(part) == 1 else _ranges([int(number) for number in part]) for part in parts)


def _ranges(numbers: list[int]) -> str:
    """Write numbers in order, neighbours as one; only the first and the last if that is long."""
    begins = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    if len(begins) > MOST_RANGES:
        begins, ends = numbers[:1], numbers[-1:]
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in zip(begins, ends, strict=True))


def by_kind(owners: list[Owner]) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """Group the holders of memory; return kinds, bytes and their three largest modules, with list members merged."""
    totals: dict[str, dict[str, int]] = {}
    members: dict[tuple[str, str], set[str]] = {}  # of a kind and a pattern
    for item in owners:
        pattern = MEMBER.sub(r"\1*", item.module)
        by_module = totals.setdefault(item.kind, {})
        by_module[pattern] = by_module.get(pattern, 0) + item.bytes
        members.setdefault((item.kind, pattern), set()).add(item.module)
    groups = []
    for kind, modules in totals.items():
        largest = sorted(modules.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = [(module_name(names_as_one(members[kind, pattern])), count) for pattern, count in largest[:3]]
        groups.append((kind, sum(modules.values()), shown if modules.keys() != {""} else []))
    return sorted(groups, key=lambda group: (-group[1], group[0]))
