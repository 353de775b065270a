"""Inputs that may end the process, one after the other in processes of their own."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from typing import Any

Outcome = tuple[int, str, str]  # number of the input, outcome, reason
TO_START = TO_END = 120.0  # seconds


def _work(outcome_of: Callable[[int], tuple[str, str]], numbers: list[int], seconds: float, pipe: Any) -> None:
    for number in numbers:
        pipe.send((number, None, ""))
        faulthandler.dump_traceback_later(seconds * 0.9)  # says where it hangs
        pipe.send((number, *outcome_of(number)))
    faulthandler.dump_traceback_later(TO_END * 0.9)
    pipe.close()


def campaign(outcome_of: Callable[[int], tuple[str, str]], numbers: list[int], seconds: float) -> Iterator[Outcome]:
    """Read inputs in a process; if it dies or takes too long over one, another goes on with the next.

    Yields the outcome of each, in order; `crash` and `hang` are those of the input that was under way. A process that
    does not end after its last input is that input's hang.
    """
    pending = list(numbers)
    while pending:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(outcome_of, pending, seconds, theirs))
        process.start()
        theirs.close()
        under_way, ended = pending[0], "crash"
        patience = TO_START
        with contextlib.suppress(EOFError):
            while True:
                if not ours.poll(patience):
                    ended = "hang"
                    process.kill()
                    break
                under_way, outcome, reason = ours.recv()
                patience = seconds
                if outcome is not None:
                    pending.remove(under_way)
                    yield under_way, outcome, reason
        process.join(TO_END)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
            yield under_way, "hang", "does not end"
        elif pending:
            pending.remove(under_way)
            yield under_way, ended, signal.Signals(-code).name if code < 0 else f"exit code {code}"
