"""When requests arrive, and how long they are: from a file, or drawn from a stated distribution."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.files import StrPath, read_text
from bringup.serving.requests import Request
from bringup.text import short

Array = npt.NDArray[Any]
TIMES = ("arrival", "arrival_time", "timestamp")  # seconds
PROMPTS = ("prompt_tokens", "input_tokens", "input_toks")
COLUMNS = ("prompt", "output", "priority", "prefix", "shared")  # of a `Stream`, beside the arrival
OUTPUTS = ("output_tokens", "completion_tokens", "output_toks")
SIGMA = 1.0  # of the lognormal lengths without a stated one; chosen: half of the lengths are within a factor of two
MOST = 10_000_000  # requests; chosen: they take some 4 GiB
RATES = (1e-6, 1e9)  # requests per second; chosen: a double then has the times of all requests to a hundredth of a gap
LARGEST = 2**53  # whole numbers above are not all doubles


@dataclass(frozen=True)
class Stream:
    """Requests as arrays, one place each.

    Attributes:
        arrival: seconds from the first; with `clients`, zeros.
        prompt, output: tokens.
        priority: smaller numbers go first.
        prefix: -1, or the number of a prefix, whose first `shared` tokens the prompt has.
        clients: 0, or the number of clients that send their next request when they have their answer.
        has_priorities: True if a file states priorities.
    """

    arrival: Array
    prompt: Array
    output: Array
    priority: Array
    prefix: Array
    shared: Array
    clients: int = 0
    has_priorities: bool = False

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def has_prefixes(self) -> bool:
        """True if prompts share their first tokens."""
        return bool(self.shared.any())

    @property
    def longest(self) -> int:
        """The most tokens that a request has in the cache; its last one is never read."""
        return int((self.prompt + self.output).max()) - 1

    @property
    def rate(self) -> float:
        """Requests per second."""
        span = float(self.arrival[-1] - self.arrival[0]) if len(self) > 1 else 0.0
        return (len(self) - 1) / span if span else math.inf

    def faster(self, factor: float) -> Stream:
        """Return the same requests at a multiple of the rate."""
        return replace(self, arrival=self.arrival / factor)

    def at(self, places: Array) -> Stream:
        """Return the requests at some places, all of them there at the start."""
        columns = {name: getattr(self, name)[places] for name in COLUMNS}
        return replace(self, **columns, arrival=np.zeros(len(places)))

    @property
    def digest(self) -> str:
        """A name of the contents."""
        columns = (np.ascontiguousarray(getattr(self, name)) for name in ("arrival", *COLUMNS))
        return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()[:32]

    def requests(self) -> list[Request]:
        """Return the requests."""
        columns = (self.arrival, self.prompt, self.output, self.priority, self.prefix, self.shared)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Request(number, *row) for number, row in enumerate(rows)]


def stream(arrivals: str, lengths: str | Stream | None, count: int | None, random: np.random.Generator) -> Stream:
    """Make the requests that two options describe.

    Args:
        arrivals: ``poisson:RATE``, ``constant:RATE``, ``closed:CLIENTS``, or a file of requests.
        lengths: ``fixed:PROMPT:OUTPUT``, ``lognormal:PROMPT:OUTPUT[:SIGMA]`` with medians, a file of requests, or the
            requests that `read_lengths` returns. A file of arrivals may have the lengths itself, and keeps its
            priorities if others are given.
        count: requests (default: those of the file, else 1,000).
        random: draws what is drawn.

    Raises:
        BringupError: an option or a file is malformed.
    """
    if count is not None and not 1 <= count <= MOST:
        raise BringupError(f"requests must be from 1 to {MOST:,}, got {count:,}")
    kind, _, value = arrivals.partition(":")
    if kind in ("poisson", "constant", "closed"):
        number = _positive(value, f"arrivals {kind}", whole=kind == "closed")
        if kind != "closed" and not RATES[0] <= number <= RATES[1]:
            raise BringupError(
                f"arrivals {kind}: the rate must be from {RATES[0]:g} to {RATES[1]:g} per second, so that the clock "
                f"can tell the arrivals apart, got {short(value)}"
            )
        if lengths is None:
            raise BringupError(
                f"arrivals {arrivals} need lengths: fixed:512:128, lognormal:512:128 or a file of requests"
            )
        count = count or 1000
        drawn = _lengths(lengths, count, random)
        if kind == "closed":
            return replace(drawn, clients=int(number))
        gaps = random.exponential(1 / number, count) if kind == "poisson" else np.full(count, 1 / number)
        return replace(drawn, arrival=np.cumsum(gaps) - gaps[0])
    rows = _read(arrivals)
    if count is not None and count > len(rows):
        raise BringupError(f"{arrivals}: has {len(rows):,} requests, fewer than {count:,}: ask for fewer")
    rows = rows[:count]
    times = np.asarray([_number(row, TIMES, arrivals, line) for line, row in rows])
    late = np.flatnonzero(np.diff(times) < 0)
    if len(late):
        line = rows[int(late[0]) + 1][0]
        raise BringupError(f"{arrivals}:{line}: arrives before the request above it: sort the file by arrival")
    drawn = _of_rows(rows, arrivals) if lengths is None else _lengths(lengths, len(rows), random)
    if any("priority" in row for _, row in rows):
        drawn = replace(drawn, priority=_priorities(rows, arrivals), has_priorities=True)
    return replace(drawn, arrival=times - times[0])


def is_file(lengths: str) -> bool:
    """Return True for lengths that are drawn from the requests of a file."""
    return lengths.partition(":")[0] not in ("fixed", "lognormal")


def read_lengths(path: StrPath) -> Stream:
    """Return the requests of a file, whose lengths can be drawn.

    Raises:
        BringupError: the file is missing or malformed, with the line.
    """
    return _of_rows(_read(path), str(path))


def _lengths(text: str | Stream, count: int, random: np.random.Generator) -> Stream:
    if isinstance(text, Stream) or is_file(text):
        requests = read_lengths(text) if isinstance(text, str) else text
        return requests.at(random.integers(len(requests), size=count))
    kind, _, values = text.partition(":")
    parts = values.split(":")
    if len(parts) not in ((2,) if kind == "fixed" else (2, 3)):
        form = "fixed:PROMPT:OUTPUT" if kind == "fixed" else "lognormal:PROMPT:OUTPUT[:SIGMA]"
        raise BringupError(f"lengths {short(text)}: write {form}, in tokens")
    prompt, output = (_positive(part, f"lengths {kind}", whole=True) for part in parts[:2])
    sigma = 0.0 if kind == "fixed" else _positive(parts[2], "the sigma of lengths") if len(parts) == 3 else SIGMA
    drawn = [np.exp(math.log(median) + sigma * random.standard_normal(count)) for median in (prompt, output)]
    return _plain(*(np.clip(np.rint(column), 1, 2**31).astype(np.int64) for column in drawn))


def _plain(prompt: Array, output: Array) -> Stream:
    zeros = np.zeros(len(prompt), dtype=np.int64)
    return Stream(np.zeros(len(prompt)), prompt, output, zeros, zeros - 1, zeros)


def _of_rows(rows: list[tuple[int, dict[str, Any]]], path: str) -> Stream:
    prompt, output = (
        np.asarray([_number(row, names, path, line, whole=True) for line, row in rows], dtype=np.int64)
        for names in (PROMPTS, OUTPUTS)
    )
    plain = _plain(prompt, output)
    numbers: dict[str, int] = {}
    prefix, shared = plain.prefix.copy(), plain.shared.copy()
    for place, (line, row) in enumerate(rows):
        if row.get("prefix") is not None:
            prefix[place] = numbers.setdefault(json.dumps(row["prefix"], sort_keys=True), len(numbers))
            shared[place] = _number(row, ("prefix_tokens",), path, line, whole=True)
            if shared[place] > prompt[place]:
                raise BringupError(f"{path}:{line}: prefix_tokens is more than the prompt has")
    stated = any("priority" in row for _, row in rows)
    priority = _priorities(rows, path)
    return replace(plain, priority=priority, prefix=prefix, shared=shared, has_priorities=stated)


def _priorities(rows: list[tuple[int, dict[str, Any]]], path: str) -> Array:
    """Return the priority of each request; 0 for those without one."""
    names = ("priority",)
    stated = (
        _number(row, names, path, line, whole=True, least=-(2**31)) if "priority" in row else 0 for line, row in rows
    )
    return np.fromiter(stated, dtype=np.int64, count=len(rows))


def _read(path: StrPath) -> list[tuple[int, dict[str, Any]]]:
    """Read a file with one JSON object per line, and return them with their line numbers."""
    rows = []
    for number, line in enumerate(read_text(path, "request file").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise BringupError(f"{path}:{number}: must be a JSON object, one request per line")
        rows.append((number, row))
    if not rows:
        raise BringupError(f"{path}: has no requests: write one JSON object per line")
    return rows


def _number(
    row: dict[str, Any], names: tuple[str, ...], path: str, line: int, *, whole: bool = False, least: float = 0
) -> float:
    value = next((row[name] for name in names if name in row), None)
    if value is None:
        raise BringupError(
            f"{path}:{line}: has no {names[0]} (also called {', '.join(names[1:])})"
            if names[1:]
            else f"{path}:{line}: has no {names[0]}"
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise BringupError(f"{path}:{line}: {names[0]} must be a number, got {short(str(value))}")
    if value > LARGEST:
        raise BringupError(
            f"{path}:{line}: {names[0]} must be at most {LARGEST:,}, above which doubles skip whole numbers, got "
            f"{short(str(value))}"
        )
    lowest = max(least, 1) if whole and least == 0 else least
    if value < lowest or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise BringupError(f"{path}:{line}: {names[0]} must be {kind} of at least {lowest:g}, got {short(str(value))}")
    return float(value)


def _positive(text: str, what: str, whole: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0) or (whole and value != int(value)):
        raise BringupError(
            f"{what}: must be a positive {'whole ' if whole else ''}number, got {short(text) or 'nothing'}"
        )
    return value
