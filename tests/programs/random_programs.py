"""Random programs on the chip and on the CPU: results, layouts and errors are the same, bit for bit.

    python -m tests.programs.random_programs --count 5000 --seed 1  # a campaign
    python -m tests.programs.random_programs --seed 1 --only 4711   # one program again: its text, shortened if it fails

Program number n follows from the seed and n alone. It is a list of statements in lanes. A lane has tensors of its own,
which it may hand over to another; on the chip it has a stream of its own, and in a third of the programs a thread.

Statements are made while the CPU runs them. Then the chip runs them asynchronously. After each statement its error and
the layouts of all tensors are compared, and in the end all bits. A third of the programs is recorded, and priced. A
tenth runs dry, where content is not compared.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import functools
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

os.environ.setdefault("BRINGUP_DEVICES", "2")
import torch

import bringup
from tests.campaign import Outcome
from tests.campaign import campaign as in_processes
from tests.programs.program_words import LARGEST, Missing, expression, tensors_of
from tests.programs.program_world import BY_CONTENT, Names, World, bits, difference, facts, speaks, tensors_in

SECONDS = 120  # for one program, of which most take 50 ms
OUTCOMES = ("equal", "wrong layout", "wrong value", "wrong error", "late error", "traceback", "crash", "hang")
FAULTS = OUTCOMES[1:]
POOL = 9  # names of a lane
Random = random.Random


@dataclass(frozen=True)
class Step:
    """A statement of a lane."""

    lane: int
    text: str


@dataclass(frozen=True)
class Program:
    """Statements, and how the chip runs them."""

    steps: tuple[Step, ...]
    threads: bool = False
    recorded: bool = False
    dry: bool = False

    def __str__(self) -> str:
        modes = [field.name for field in dataclasses.fields(self)[1:] if getattr(self, field.name)]
        return "\n".join([f"# {', '.join(modes) or 'plain'}", *(f"{step.lane}: {step.text}" for step in self.steps)])

    @property
    def lanes(self) -> list[int]:
        return sorted({step.lane for step in self.steps})


def program(text: str, **modes: bool) -> Program:
    """Read a program: a statement per line, after the number of its lane if there is more than one."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip() and not line.strip().startswith("#")]
    steps = [line.split(": ", 1) if line[:1].isdigit() else ("0", line) for line in lines]
    return Program(tuple(Step(int(lane), statement) for lane, statement in steps), **modes)


# ---- the CPU


@dataclass(frozen=True)
class Expected:
    """What the CPU did: per step the error and the facts of the lane, and all content in the end."""

    errors: list[str]
    facts: list[Names]
    content: dict[tuple[int, str], bytes]


def content_of(world: World) -> dict[tuple[int, str], bytes]:
    """Return the bits of all tensors."""
    return {
        (lane, name): bits(tensor) for lane, names in list(world.lanes.items()) for name, tensor in tensors_in(names)
    }


def on_cpu(steps: tuple[Step, ...]) -> tuple[World, Expected]:
    """Run a program's lanes in the order of its text."""
    world, errors, seen = World("cpu"), [], []
    for step in steps:
        errors.append(world._run(step.lane, step.text))
        seen.append(facts(world._names(step.lane)))
    return world, Expected(errors, seen, content_of(world))


# ---- making


class Author:
    """Makes a program while the CPU runs it."""

    def __init__(self, rng: Random, lanes: int, counted: bool) -> None:
        self.rng, self.lanes, self.counted = rng, lanes, counted
        self.world = World("cpu")
        self.steps: list[Step] = []
        self.made = 0

    def add(self, lane: int, text: str) -> bool:
        """Run a statement, and keep it unless what the CPU does of it is by content or without bounds."""
        error = self.world._run(lane, text)
        step = Step(lane, text)
        if error:  # a kernel may find out in the middle, or leave its result half made
            before, expected = on_cpu(tuple(self.steps))
            changed = expected.content != content_of(self.world) or any(
                facts(before._names(lane)) != facts(self.world._names(lane)) for lane in range(self.lanes)
            )
            if changed or error.endswith(BY_CONTENT):
                self.world = before
                return False
        large = [tensor.numel() for _, tensor in tensors_in(self.world._names(lane)) if tensor.numel() > LARGEST]
        self.steps.append(step)
        if large:
            self.world, _ = on_cpu(tuple(self.steps[:-1]))
            self.steps.pop()
        return not large

    def tensors(self, lane: int) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, value in self.world._names(lane).items():
            found |= tensors_of(value, name)
        return {name: tensor for name, tensor in found.items() if speaks(tensor)}

    def statement(self, lane: int) -> str:
        names = self.world._names(lane)
        if len(names) > POOL or (names and self.rng.random() < 0.04):
            return f"del {self.rng.choice(list(names))}"
        text, has_value = expression(self.rng, self.tensors(lane), self.counted)
        manner = self.rng.random()
        if manner < 0.06:
            guard = self.rng.choice(("torch.no_grad()", "torch.inference_mode()", "torch.enable_grad()"))
        elif manner < 0.12:
            guard = f"side({self.rng.random() < 0.5})"
        else:
            guard = ""
        if has_value:
            if names and self.rng.random() < 0.15:
                name = self.rng.choice(list(names))
            else:
                self.made += 1
                name = f"t{self.made}"
            text = f"{name} = {text}"
        return f"with {guard}: {text}" if guard else text

    def hand_over(self) -> None:
        source, target = self.rng.sample(range(self.lanes), 2)
        names = list(self.tensors(source))
        if not names:
            return
        self.made += 1
        key = f"k{self.made}"
        if self.add(source, f"give({key!r}, {self.rng.choice(names)})") and self.world.handed[key].qsize():
            self.add(target, f"t{self.made} = taken({key!r})")

    def write(self, length: int) -> None:
        for _ in range(length):
            lane = self.rng.randrange(self.lanes)
            if self.lanes > 1 and self.rng.random() < 0.08:
                self.hand_over()
                continue
            with contextlib.suppress(Missing):
                self.add(lane, self.statement(lane))


def random_program(rng: Random, longest: int = 45) -> Program:
    """Make a program."""
    dry = rng.random() < 0.1
    lanes = rng.choice((1, 1, 2, 3))
    author = Author(rng, lanes, counted=not dry)
    with quietly():
        author.write(rng.randint(5, longest) * (1 if lanes == 1 else 2))
    threads = lanes > 1 and not dry and rng.random() < 0.6
    if any("jvp(" in step.text for step in author.steps):  # torch has one stack of forward-mode levels for all threads
        threads = False
    return Program(tuple(author.steps), threads=threads, recorded=rng.random() < 0.33, dry=dry)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Let neither warnings nor the number of threads decide."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on both devices: then kernels cut their work alike
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)


# ---- the chip


class Fault(Exception):
    """The chip did something else than the CPU: outcome and reason."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(f"{outcome}: {reason}")
        self.outcome, self.reason = outcome, reason


def run_steps(program: Program, expected: Expected, world: World, lanes: list[int]) -> None:
    """Run the steps of some lanes, and compare what can be compared without waiting."""
    streams = {lane: torch.chip.Stream() for lane in lanes}
    for place, step in enumerate(program.steps):
        if step.lane not in streams or ("taken(" in step.text and expected.errors[place]):
            continue
        stream = streams[step.lane] if len(program.lanes) > 1 else torch.chip.current_stream()
        with torch.chip.stream(stream):
            error = world._run(step.lane, step.text)
            if error != expected.errors[place]:
                said = f" ({world.said[step.lane]})" if error else ""
                wanted = expected.errors[place] or "none"
                raise Fault("wrong error", f"{step.text}: {error or 'none'}{said}, the CPU's {wanted}")
            if differs := difference(facts(world._names(step.lane)), expected.facts[place]):
                raise Fault("wrong layout", f"{step.text}: {differs}")


def run_threads(program: Program, expected: Expected, world: World) -> None:
    """Run each lane in a thread of its own, all at once."""
    faults: list[BaseException] = []
    gate = threading.Barrier(len(program.lanes))
    world.patience = 60

    def work(lane: int) -> None:
        try:
            torch.set_num_threads(1)
            gate.wait(60)
            run_steps(program, expected, world, [lane])
        except BaseException as fault:
            faults.append(fault)
            world._give_up()

    threads = [threading.Thread(target=work, args=(lane,)) for lane in program.lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


def compare_content(world: World, expected: Expected) -> None:
    """Compare all bits."""
    found = content_of(world)
    for (lane, name), theirs in expected.content.items():
        if found[lane, name] != theirs:
            dtype = (tensor := dict(tensors_in(world._names(lane)))[name]).dtype
            ours, cpus = (torch.frombuffer(bytearray(values), dtype=dtype) for values in (found[lane, name], theirs))
            what = f"{ours[:5].tolist()}..., the CPU's {cpus[:5].tolist()}..."
            raise Fault("wrong value", f"{name} of lane {lane}, {dtype}{list(tensor.shape)}: {what}")


def on_chip(program: Program, expected: Expected) -> None:
    """Run a program and raise the first fault."""
    world = World("chip")
    with contextlib.ExitStack() as modes:
        trace = modes.enter_context(bringup.record()) if program.recorded else None
        if program.dry:
            modes.enter_context(bringup.dry())
        try:
            if program.threads:
                run_threads(program, expected, world)
            else:
                run_steps(program, expected, world, program.lanes)
            try:
                torch.chip.synchronize()
            except Exception as error:
                raise Fault("late error", " ".join(str(error).split())[:300]) from error
            if not program.dry:
                compare_content(world, expected)
            if trace is not None:
                modes.close()  # ends the recording
                bringup.price(trace, chip="t4")
        finally:
            with contextlib.suppress(Exception):
                torch.chip.synchronize()


def outcome_of(program: Program) -> tuple[str, str]:
    """Run a program on the CPU and on the chip; return the outcome, and what went wrong."""
    with quietly():
        _, expected = on_cpu(program.steps)
        try:
            on_chip(program, expected)
        except Fault as fault:
            return fault.outcome, fault.reason
        except Exception as error:
            return "traceback", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "equal", ""


# ---- shortening


def shortened(program: Program, fails: Callable[[Program], bool]) -> Program:
    """Leave out steps and modes as long as the program fails."""
    for field in ("threads", "recorded"):
        simpler = dataclasses.replace(program, **{field: False})
        if getattr(program, field) and fails(simpler):
            program = simpler
    size = max(len(program.steps) // 2, 1)
    while True:
        before = len(program.steps)
        for start in range(len(program.steps) - size, -size, -size):
            kept = program.steps[: max(start, 0)] + program.steps[start + size :]
            if kept and fails(shorter := dataclasses.replace(program, steps=kept)):
                program = shorter
        if size == 1 and len(program.steps) == before:
            return program
        size = max(min(size, len(program.steps)) // 2, 1)


def first_wrong_step(program: Program) -> str:
    """Wait after each step; return the text of the first whose content differs."""
    with quietly():
        cpu, chip = World("cpu"), World("chip")
        for step in program.steps:
            for world in (cpu, chip):
                world._run(step.lane, step.text)
            with contextlib.suppress(Exception):
                torch.chip.synchronize()
                if content_of(chip) != content_of(cpu):
                    return f"first differs after {step.lane}: {step.text}"
    return "equal if the host waits after each step"


# ---- a campaign


def rng_of(seed: int, number: int) -> Random:
    """Return the random numbers of a program."""
    return random.Random(f"{seed} {number}")


def outcome_of_number(seed: int, number: int) -> tuple[str, str]:
    """Make and run one program of a campaign."""
    return outcome_of(random_program(rng_of(seed, number)))


def campaign(seed: int, count: int, first: int = 0) -> Iterator[Outcome]:
    """Run programs in processes of their own; yield number, outcome and reason of each."""
    return in_processes(functools.partial(outcome_of_number, seed), list(range(first, first + count)), SECONDS)


def show(seed: int, number: int) -> int:
    """Print one program, run it here, and print what is left of it if it fails."""
    made = random_program(rng_of(seed, number))
    print(made, flush=True)
    outcome, reason = outcome_of(made)
    print(f"{outcome}: {reason}", flush=True)
    if outcome not in FAULTS:
        return 0
    short = shortened(made, lambda shorter: outcome_of(shorter)[0] == outcome)
    print(f"\n{short}\n{': '.join(outcome_of(short))}\n{first_wrong_step(short)}")
    return 1


def main() -> int:
    """Run a campaign, or one program."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=5000)
    options.add_argument("--first", type=int, default=0, help="number of the first program")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", type=int, default=None, help="one program, here")
    asked = options.parse_args()
    if asked.only is not None:
        return show(asked.seed, asked.only)
    counts: collections.Counter[str] = collections.Counter()
    began = time.monotonic()
    for number, outcome, reason in campaign(asked.seed, asked.count, asked.first):
        counts[outcome] += 1
        if outcome in FAULTS:
            print(f"{number}: {outcome}, {reason}", flush=True)
    row = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in OUTCOMES)
    print(f"{counts.total():,} programs of seed {asked.seed} in {time.monotonic() - began:.0f} s: {row}")
    return 1 if any(counts[outcome] for outcome in FAULTS) else 0


if __name__ == "__main__":
    sys.exit(main())
