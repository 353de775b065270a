"""``bringup run --nproc``: one process per rank, the watch over them, and the summary of the whole."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from bringup.errors import BringupError
from bringup.files import write_text
from bringup.process import MAX_DEVICES
from bringup.report import terminal
from bringup.report.lines import tokens_text
from bringup.text import duration, plain, quantity, size

FOLDER = "BRINGUP_RANKS"  # of the ranks' states: set in the process of a rank
SLOT = 512  # bytes per stream in the file of a rank (csrc/torch/collectives.cpp, Note [Watched ranks])
POLL = 0.2  # seconds between two looks at the ranks; chosen
STILL = 4.0  # seconds in which no rank goes on before the watch calls it a deadlock; chosen
BUSY = 0.1  # a rank that computes for this share of the time may still go on; chosen
GRACE = 5.0  # seconds that other ranks have to end after one has failed; chosen


def rank_here() -> int | None:
    """Return the rank of this process, if `bringup run --nproc` started it."""
    return int(os.environ["RANK"]) if FOLDER in os.environ else None


def note(code: int) -> None:
    """Note the exit code of a rank whose program has ended well, but whose report exceeds limits or has findings."""
    Path(os.environ[FOLDER], f"judged{rank_here()}").write_text(str(code), encoding="ascii")


def state_file() -> str:
    """Return the file in which this rank notes what it waits for."""
    return str(Path(os.environ[FOLDER], f"state{rank_here()}"))


@dataclass
class Rank:
    """A running rank: its process, what it waits for, and since when this has not changed."""

    number: int
    process: subprocess.Popen[bytes]
    state: Path
    waits: tuple[str, ...] = ()
    seconds: float = 0.0  # of CPU time
    since: float = field(default_factory=time.monotonic)

    @property
    def code(self) -> int | None:
        """The exit code as a shell has it; None while the rank runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def look(self) -> None:
        """Read what the rank waits for and what it has computed."""
        waits = tuple(_waits(self.state))
        seconds, now = _cpu_seconds(self.process.pid), time.monotonic()
        goes_on = seconds - self.seconds > BUSY * (now - self.since)
        if waits != self.waits or (goes_on and now - self.since > POLL):
            self.waits, self.seconds, self.since = waits, seconds, now

    @property
    def stuck(self) -> bool:
        """True if the rank has waited for others for a while, and computes nothing."""
        return bool(self.waits) and time.monotonic() - self.since > STILL


def run_ranks(count: int, out: str) -> int:
    """Run this command once per rank; return the first failed rank's exit code, else the largest noted one."""
    if not 1 <= count <= MAX_DEVICES:
        raise BringupError(f"--nproc must be between 1 and {MAX_DEVICES}, got {count}")
    os.makedirs(out, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bringup-ranks-") as folder:
        port = _port()
        ranks = [_start(number, count, folder, port) for number in range(count)]
        try:
            code = _watch(ranks)
        except KeyboardInterrupt:
            code = 130
        finally:
            _end(ranks)
        code = code or max((int(path.read_text(encoding="ascii")) for path in Path(folder).glob("judged*")), default=0)
    summarize(count, Path(out), code)
    return code


def _port() -> int:
    """Return MASTER_PORT, or a free port."""
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    try:
        port = int(os.environ["MASTER_PORT"])
    except ValueError:
        raise BringupError(f"MASTER_PORT must be a number, got {plain(os.environ['MASTER_PORT'])!r}") from None
    if not 0 < port < 1 << 16:
        raise BringupError(f"MASTER_PORT must be from 1 to {(1 << 16) - 1}, got {port}")
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the store of the ranks
        try:
            own.bind(("127.0.0.1", port))
        except OSError as error:
            raise BringupError(
                f"MASTER_PORT {port} cannot be used ({error.strerror}): give another one, or unset it for a free one"
            ) from None
    return port


def _start(number: int, count: int, folder: str, port: int) -> Rank:
    environment = {
        **os.environ,
        **{name: str(number) for name in ("RANK", "LOCAL_RANK", "ROLE_RANK")},
        **{name: str(count) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE")},
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_NAME": "default",
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # as torchrun
        "BRINGUP_DEVICES": os.environ.get("BRINGUP_DEVICES", str(count)),  # programs choose device LOCAL_RANK
        FOLDER: folder,
    }
    command = [sys.executable, "-m", "bringup", *sys.argv[1:]]
    return Rank(number, subprocess.Popen(command, env=environment), Path(folder, f"state{number}"))


def _watch(ranks: list[Rank]) -> int:
    """Wait until all ranks have ended, one has failed, or none can go on; return the exit code."""
    while True:
        time.sleep(POLL)
        for rank in ranks:
            rank.look()
        running = [rank for rank in ranks if rank.code is None]
        failed = [rank for rank in ranks if rank.code]
        if failed:
            first = min(failed, key=lambda rank: bool(rank.waits))  # others fail because it is gone
            _await(running, GRACE)
            for rank in ranks:
                rank.look()
            _say_failure(first, ranks)
            return first.code or 1
        if not running:
            return 0
        if all(rank.stuck for rank in running):
            for sentence in deadlock({rank.number: rank.waits for rank in ranks}, {r.number for r in running}):
                _say(sentence)
            return 1


def _say_failure(first: Rank, ranks: list[Rank]) -> None:
    """Say what a failed rank has to do with the others: it left them alone, or they left it."""
    ended = [rank for rank in ranks if rank.code == 0]
    waiting = [rank for rank in ranks if rank is not first and rank.waits]
    if first.waits and ended:
        for sentence in deadlock({rank.number: rank.waits for rank in (first, *ended)}, {first.number}):
            _say(sentence)
    elif not first.waits:
        where = "".join(f", while rank {rank.number} waited in {rank.waits[0]}" for rank in waiting[:1])
        _say(f"rank {first.number} ended with exit code {first.code}{where}: the other ranks are ended, too")


def deadlock(waits: dict[int, tuple[str, ...]], running: set[int]) -> list[str]:
    """Return what each rank waits for, in words; one sentence per collective and line."""
    groups: dict[str, list[int]] = {}
    for number, texts in sorted(waits.items()):
        words = f"waits in {' and in '.join(texts)}" if number in running else "has ended"
        groups.setdefault(words, []).append(number)
    parts = [
        f"{'rank' if len(numbers) == 1 else 'ranks'} {', '.join(map(str, numbers))} "
        f"{words if len(numbers) == 1 else words.replace('waits', 'wait', 1).replace('has', 'have', 1)}"
        for words, numbers in groups.items()
    ]
    return [f"deadlock: {'; '.join(parts)}: all ranks of a group must call the same collectives in one order"]


def _await(ranks: list[Rank], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and any(rank.code is None for rank in ranks):
        time.sleep(POLL)


def _end(ranks: list[Rank]) -> None:
    for number, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        for rank in ranks:
            if rank.code is None:
                with contextlib.suppress(ProcessLookupError):
                    rank.process.send_signal(number)
        _await(ranks, wait)


def _say(sentence: str) -> None:
    print(f"bringup: {plain(sentence)}", file=sys.stderr, flush=True)


def _waits(path: Path) -> list[str]:
    """Return what the streams of a rank wait for."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    slots = (data[start : start + SLOT].split(b"\0")[0] for start in range(0, len(data), SLOT))
    return [slot.decode(errors="replace") for slot in slots if slot]


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


# A step of the whole ends with its slowest rank; memory is that of the fullest one.
_SLOWEST = (
    *("step_seconds", "communication_seconds", "exposed_communication_seconds"),
    *("bubble_seconds", "device_seconds"),
)


def summarize(count: int, out: Path, code: int) -> None:
    """Write the summary of all ranks and print it."""
    by_rank: list[dict[str, Any]] = []
    for number in range(count):
        try:
            by_rank.append(json.loads((out / f"rank{number}" / "summary.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            by_rank.append({})
    reported = [item for item in by_rank if item]
    slowest: dict[str, Any] = max(reported, key=lambda item: item["step_seconds"], default={})
    whole = {
        "ranks": count,
        "exit_code": code,
        "cluster": slowest.get("cluster", ""),
        "chip": slowest.get("chip", ""),
        **{name: slowest.get(name, 0.0) for name in _SLOWEST},
        "peak_bytes": max((item["peak_bytes"] for item in reported), default=0),
        "fits": all(item["fits"] for item in reported),
        "energy_joules": _total(reported, "energy_joules"),
        "cost_usd": _total(reported, "cost_usd"),
        **_tokens_per_second(reported, count, slowest),
        "slowest_rank": by_rank.index(slowest) if slowest else None,
        "collectives": slowest.get("collectives", []),
        "by_rank": [
            {name: item.get(name) for name in (*_SLOWEST, "peak_bytes", "launches", "mfu", "failed")}
            for item in by_rank
        ],
    }
    write_text(str(out / "summary.json"), json.dumps(whole, indent=2, sort_keys=True) + "\n")
    if reported:
        _print(by_rank, whole, out)


def _tokens_per_second(reported: list[dict[str, Any]], count: int, slowest: dict[str, Any]) -> dict[str, float | None]:
    """Return the tokens per second of all ranks, and of a chip. Ranks that share tokens have them once."""
    counted = sum((item["tokens"] or 0) / item["sharing_ranks"] for item in reported)
    whole = counted / slowest["step_seconds"] if counted and slowest["step_seconds"] else None
    return {"tokens_per_second": whole and whole / count, "cluster_tokens_per_second": whole}


def _total(reported: list[dict[str, Any]], name: str) -> float | None:
    values = [item[name] for item in reported]
    return None if not values or None in values else sum(values)


def _print(by_rank: list[dict[str, Any]], whole: dict[str, Any], out: Path) -> None:
    console = terminal.console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("rank", "step", "communication", "exposed", "memory", "launches", "MFU"):
        table.add_column(title, justify="right", no_wrap=True)
    for number, item in enumerate(by_rank):
        if item:
            times = (duration(item[name]) for name in _SLOWEST[:3])
            mfu = "-" if item["mfu"] is None else f"{item['mfu']:.0%}"
            table.add_row(str(number), *times, size(item["peak_bytes"]), f"{item['launches']:,}", mfu)
        else:
            table.add_row(str(number), "no report")
    console.print()
    console.print(table)
    cluster = f" on {whole['cluster']}" if whole["cluster"] else ""
    step, spent, exposed = (duration(whole[name]) for name in _SLOWEST[:3])
    what = f"{quantity(whole['ranks'], 'rank')} of {whole['chip']}{cluster}"
    what_takes = f"a step takes {step}, communication {spent}, of which {exposed} are exposed"
    console.print(terminal.escaped(f"{what}: {what_takes}"), soft_wrap=True)
    if whole["tokens_per_second"]:
        console.print(tokens_text(whole["tokens_per_second"], whole["cluster_tokens_per_second"]))
    console.print(terminal.escaped(f"report: {out / 'summary.json'} and {out / 'rank0'} ..."))
