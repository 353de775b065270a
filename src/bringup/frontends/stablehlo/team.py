"""Programs of several chips, which exchange values: each chip's program runs in a thread, one at a time.

A program runs until it waits for others in a collective. Then the next one runs, in the order of the chips, so that a
recording does not depend on the scheduler of the machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from bringup.frontends.stablehlo.module import StableHloError

_here = threading.local()


class Ended(BaseException):
    """Ends a program because that of another chip has failed."""


class Member:
    """The program of one chip while it runs.

    Attributes:
        place: its number in the program's order of chips.
    """

    def __init__(self, team: Team, place: int) -> None:
        self.team, self.place = team, place
        self.go = threading.Semaphore(0)
        self.waits_for: tuple[Any, tuple[int, ...]] | None = None
        self.gives: Any = None
        self.gets: list[Any] = []
        self.error: BaseException | None = None
        self.is_done = False

    def exchange(self, key: Any, members: Sequence[int], value: Any) -> list[Any]:
        """Wait for all members of a group; return their values in the group's order."""
        self.waits_for, self.gives = (key, tuple(members)), value
        self.team.pause(self)
        gets, self.gets, self.gives = self.gets, [], None
        return gets


class Team:
    """The programs of several chips that run together."""

    def __init__(self, count: int) -> None:
        self.members = [Member(self, place) for place in range(count)]
        self._back = threading.Semaphore(0)
        self._is_ending = False

    def pause(self, member: Member) -> None:
        """Let other programs run until this one can go on."""
        self._back.release()
        member.go.acquire()
        if self._is_ending:
            raise Ended

    def run(self, programs: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run a program for each member; return their results.

        Raises:
            StableHloError: programs wait for different collectives.
        """
        results: list[Any] = [None] * len(programs)

        def work(member: Member) -> None:
            member.go.acquire()
            _here.member = member
            try:
                if not self._is_ending:
                    results[member.place] = programs[member.place]()
            except BaseException as error:
                member.error = error
            member.is_done = True
            self._back.release()

        threads = [threading.Thread(target=work, args=(member,), daemon=True) for member in self.members]
        for thread in threads:
            thread.start()
        error = self._schedule()
        self._is_ending = True
        for member, thread in zip(self.members, threads, strict=True):
            member.go.release()
            thread.join()
        if error is not None:
            raise error
        return results

    def _schedule(self) -> BaseException | None:
        """Let members run in turns until all are done, or one fails; return its error."""
        while not all(member.is_done for member in self.members):
            ready = [member for member in self.members if not member.is_done and member.waits_for is None]
            if not ready:
                return StableHloError(
                    "chips wait for different collectives: a loop or branch with a collective needs the same condition "
                    "on all chips"
                )
            for member in ready:
                member.go.release()
                self._back.acquire()
                if member.error is not None:
                    return member.error
            self._meet()
        return None

    def _meet(self) -> None:
        """Hand out the values of groups whose members all wait."""
        for member in self.members:
            if member.waits_for is None:
                continue
            group = [self.members[place] for place in member.waits_for[1]]
            if all(other.waits_for == member.waits_for and not other.is_done for other in group):
                values = [other.gives for other in group]
                for other in group:
                    other.waits_for, other.gets = None, values


def here() -> Member | None:
    """Return the chip's program that runs in this thread, if there are several."""
    return getattr(_here, "member", None)
