"""One engine: it puts requests into batches, computes a step at a time, and keeps its KV cache within its blocks.

Note [A step]
The rules are those of vLLM (vllm/v1/core/sched/scheduler.py). A step has a budget of tokens. Running requests come
first: those that decode take one token each, and prompts that are under way take what is left, in chunks. If the blocks
do not suffice, the request that was admitted last is preempted, and the step admits none. Otherwise the first waiting
requests are admitted, as long as budget, places and blocks for their whole prompt suffice.

A step that only decodes is like the next one until a request ends, another arrives, or the blocks run out. The engine
computes all of them in one expression, so a simulation takes time per request and not per token.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bringup.serving.blocks import Blocks
from bringup.serving.requests import Request
from bringup.serving.steps import Chunk, StepTable

Array = npt.NDArray[Any]
LONGEST_RUN = (
    4096  # steps that are computed in one expression; chosen: arrays of this size stay in the processor's cache
)


@dataclass(frozen=True)
class Speculation:
    """Drafted tokens per decode step, the probability that one is accepted after the others, and seconds per draft."""

    tokens: int
    acceptance: float
    draft_seconds: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What an engine is told.

    Attributes:
        budget: tokens in a step.
        requests: requests that run at the same time.
        prefill: ``chunked`` mixes chunks of prompts with decoding; ``separate`` steps compute whole prompts or decode.
        policy: ``fcfs``, or ``priority``: smaller numbers are admitted first and preempted last.
        preemption: a preempted request is computed again (``recompute``), or copied to the host and back (``swap``).
        swap_seconds: for one block, in one direction.
        speculation: drafts per decode step, if there are any.
    """

    budget: int = 2048
    requests: int = 256
    prefill: Literal["chunked", "separate"] = "chunked"
    policy: Literal["fcfs", "priority"] = "fcfs"
    preemption: Literal["recompute", "swap"] = "recompute"
    swap_seconds: float = 0.0
    speculation: Speculation | None = None


@dataclass
class History:
    """The state of an engine at the start of each step, at the end of a run of equal ones, and when it becomes idle."""

    time: list[float] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    preemptions: list[float] = field(default_factory=list)


class Decoding:
    """The requests that decode, as arrays: tokens in the cache, tokens still to generate, and blocks."""

    def __init__(self, most: int) -> None:
        self.requests: list[Request] = []
        self.place: dict[Request, int] = {}
        self._columns = np.zeros((3, most), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def context(self) -> Array:
        """Tokens in the cache, of each request."""
        context: Array = self._columns[0, : len(self.requests)]
        return context

    @property
    def left(self) -> Array:
        """Tokens that each request still generates."""
        left: Array = self._columns[1, : len(self.requests)]
        return left

    @property
    def blocks(self) -> Array:
        """Blocks that each request reads, with those of a shared prefix."""
        blocks: Array = self._columns[2, : len(self.requests)]
        return blocks

    def add(self, request: Request, blocks: int) -> None:
        """Let a request decode."""
        place = len(self.requests)
        self.place[request] = place
        self.requests.append(request)
        self._columns[:, place] = request.computed, request.output - request.generated, blocks

    def remove(self, request: Request) -> int:
        """Bring a request up to date, take it out, and return its blocks."""
        place, last = self.place.pop(request), len(self.requests) - 1
        computed, left, blocks = self._columns[:, place].tolist()
        request.computed, request.generated = computed, request.output - left
        if place != last:
            moved = self.requests[last]
            self.requests[place], self.place[moved] = moved, place
            self._columns[:, place] = self._columns[:, last]
        self.requests.pop()
        return int(blocks)


class Engine:
    """An engine with its waiting and running requests.

    Attributes:
        clock: when its next step can start.
        busy_seconds: in which it computed.
        steps: how many it computed.
        width: tokens that a decoding request takes of a step.
        ended: called with each request that has all its tokens.
    """

    def __init__(
        self,
        table: StepTable,
        limits: Limits,
        blocks: Blocks,
        random: np.random.Generator,
        *,
        stops_after_prompt: bool = False,
    ) -> None:
        self.table = table
        self.limits = limits
        self.blocks = blocks
        self.random = random
        self.stops_after_prompt = stops_after_prompt
        self.width = 1 + (limits.speculation.tokens if limits.speculation else 0)  # tokens of a decode step
        self.clock = 0.0
        self.busy_seconds = 0.0
        self.steps = 0
        self.preemptions = 0
        self.history = History()
        self._copied = 0  # blocks that the current step copies between chip and host
        self.ended: Callable[[Request], None] = lambda request: None
        self._waiting: list[tuple[int, int, int, Request]] = []
        self._running: OrderedDict[Request, None] = OrderedDict()  # in the order of admission
        self._prompts: OrderedDict[Request, None] = OrderedDict()  # those whose prompt is not computed yet
        self._decoding = Decoding(limits.requests)
        self._joined: dict[Request, int] = {}  # shared blocks that a request reads

    # ---- what others see

    @property
    def busy(self) -> bool:
        """True if a request waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def load(self) -> int:
        """Requests that wait and run."""
        return len(self._waiting) + len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def submit(self, request: Request, time: float) -> None:
        """Let a request wait from a time on."""
        if not self.busy:
            self.clock = max(self.clock, time)
        heapq.heappush(self._waiting, self._key(request, 1))

    def _key(self, request: Request, again: int) -> tuple[int, int, int, Request]:
        """Return the order of waiting: by priority, preempted requests before the others, then by arrival."""
        return (request.priority if self.limits.policy == "priority" else 0, again, request.number, request)

    # ---- a step

    def advance(self, until: float = float("inf"), single: bool = False) -> None:
        """Compute one step, or a run of equal ones of which the last one starts before `until`."""
        limits, decoding = self.limits, self._decoding
        separate = limits.prefill == "separate"
        self._copied = 0
        chunks = self._admit(limits.budget) if separate else {}
        decodes = not chunks
        before = self.preemptions
        if decodes:
            chunks = self._fit()
            if not separate and self.preemptions == before:
                left = limits.budget - len(decoding) * self.width - sum(chunks.values())
                chunks |= self._admit(left)
        active = len(decoding) if decodes else 0
        assert chunks or active, "each step computes something"
        self._note()
        # A step that preempts admits none, but the next one may.
        if chunks or single or self._copied or limits.speculation or self.preemptions > before:
            self._step(chunks, active)
        else:
            self._run(active, until)
        if not self.busy:
            self._note()

    def _fit(self) -> dict[Request, int]:
        """Take the blocks for decoding requests and for the next chunks of prompts under way; return the chunks.

        Requests are preempted until both fit.
        """
        decoding = self._decoding
        while True:
            blocks = self._blocks_of_step()
            grows = int(blocks.sum() - decoding.blocks.sum())
            budget = self.limits.budget - len(decoding) * self.width
            chunks: dict[Request, int] = {}
            needed = grows
            for request in self._prompts:
                chunk = min(request.to_compute - request.computed, budget)
                if chunk <= 0:
                    break
                chunks[request] = chunk
                needed += self._blocks_for(request, chunk)
                budget -= chunk
            if needed <= self.blocks.free:
                break
            self._preempt()
        self.blocks.take(grows)
        if grows:
            decoding.blocks[:] = blocks
        for request, chunk in chunks.items():
            self._hold(request, chunk)
        return chunks

    def _blocks_of_step(self) -> Array:
        """Return the blocks that each decoding request needs for its next step."""
        decoding = self._decoding
        tokens = decoding.context + np.minimum(decoding.left, self.width)
        needed: Array = np.maximum(decoding.blocks, -(-tokens // self.blocks.size))
        return needed

    def _blocks_for(self, request: Request, chunk: int) -> int:
        has = request.blocks + self._joined.get(request, 0)
        return max(self.blocks.count(request.computed + chunk) - has, 0)

    def _hold(self, request: Request, chunk: int) -> None:
        count = self._blocks_for(request, chunk)
        if not self.blocks.take(count):
            raise AssertionError("the caller has compared with the free blocks")
        request.blocks += count

    def _preempt(self) -> None:
        """Take the blocks of the request that was admitted last, or that has the least priority."""
        if self.limits.policy == "priority":
            victim = max(self._running, key=lambda request: (request.priority, request.number))
        else:
            victim = next(reversed(self._running))
        assert len(self._running) > 1, "one request alone always fits: the caller has compared it with the cache"
        del self._running[victim]
        self.preemptions += 1
        victim.preemptions += 1
        self.history.preemptions.append(self.clock)
        if victim in self._decoding.place:
            victim.blocks = self._decoding.remove(victim) - self._joined.get(victim, 0)
        else:
            del self._prompts[victim]
        if self.limits.preemption == "swap" and victim.computed:
            self._copied += self.blocks.count(victim.computed)
            self._free(victim, keep=False)
            victim.swapped = True
        else:
            self._free(victim, keep=True)
            victim.computed = 0
        heapq.heappush(self._waiting, self._key(victim, 0))

    def _free(self, request: Request, keep: bool) -> None:
        """Free a request's blocks; with `keep`, it may read what is left of them when it comes back."""
        size = self.blocks.size
        joined = self._joined.pop(request, 0)
        # Its own blocks follow those of its prefix, so they are of use only with all of these.
        keep = keep and (not request.joined or joined == request.shared // size)
        full = min(max(request.computed // size - joined, 0), request.blocks) if keep else 0
        self.blocks.give_back(request.blocks, ("request", request.number) if keep else None, full)
        request.blocks = 0
        if request.joined:
            self.blocks.leave(("prefix", request.prefix))
            request.joined = False

    def _admit(self, budget: int) -> dict[Request, int]:
        """Admit waiting requests, and return their first chunks."""
        limits = self.limits
        whole = limits.prefill == "separate"
        chunks: dict[Request, int] = {}
        while self._waiting and len(self._running) < limits.requests and budget > 0:
            request = self._waiting[0][-1]
            # Where prompts are not divided, one that is longer than the budget has a step of its own.
            if whole and chunks and request.to_compute - request.computed > budget:
                break
            carried = request.computed > 0  # it comes with its keys and values
            if not self._start(request):
                break
            heapq.heappop(self._waiting)
            self._running[request] = None
            if carried and self._decodes(request):
                self._decoding.add(request, request.blocks)
                budget -= self.width
                continue
            left = request.to_compute - request.computed
            chunks[request] = left if whole else min(left, budget)
            self._hold(request, chunks[request])
            self._prompts[request] = None
            budget -= chunks[request]
        return chunks

    @staticmethod
    def _decodes(request: Request) -> bool:
        """Return False for a request that was preempted within its prompt."""
        return request.generated > 0 and request.computed >= request.to_compute - 1

    def _start(self, request: Request) -> bool:
        """Let a request read what is in the cache, and return True if there are blocks for the rest of its prompt."""
        blocks, size = self.blocks, self.blocks.size
        if request.computed:  # from the host or from another engine
            count = blocks.count(request.computed + min(self.width, request.output - request.generated))
            if not self._decodes(request):
                count = blocks.count(request.computed)
            if not blocks.take(count):
                return False
            request.blocks = count
            if request.swapped:
                self._copied += blocks.count(request.computed)
                request.swapped = False
            return True
        prefix, own = ("prefix", request.prefix), ("request", request.number)
        most = (request.to_compute - 1) // size  # at least one token is computed
        whole = request.shared // size
        shares = blocks.caching and whole > 0
        shared = min(blocks.cached(prefix), whole, most) if shares else 0
        alone = min(blocks.cached(own), most - shared) if not shares or shared == whole else 0
        retaken = max(blocks.retakes(prefix) - shared, 0) if shares else 0
        if blocks.count(request.to_compute) - shared + retaken + min(blocks.retakes(prefix), shared) > blocks.free:
            return False
        if shares:
            blocks.join(prefix)
            request.joined = True
            self._joined[request] = shared
        if alone:
            more = blocks.retake(own) - alone
            blocks.give_back(more)
            request.blocks = alone
        request.computed = (shared + alone) * size
        if not request.preemptions:
            request.read = request.computed
        if request.begun < 0:
            request.begun = self.clock
        return True

    def _note(self) -> None:
        history = self.history
        history.time.append(self.clock)
        history.blocks.append(self.blocks.used)
        history.running.append(len(self._running))
        history.waiting.append(len(self._waiting))

    def _step(self, chunks: dict[Request, int], active: int) -> None:
        """Compute one step with chunks of prompts, or with drafts."""
        decoding, speculation = self._decoding, self.limits.speculation
        parts = [
            Chunk(chunk, request.computed, request.computed + chunk == request.to_compute)
            for request, chunk in chunks.items()
        ]
        seconds = self.table.seconds(parts, active, int(decoding.context[:active].sum()), self.width)
        if speculation and active:
            seconds += speculation.tokens * speculation.draft_seconds
        self._spend(seconds + self._copied * self.limits.swap_seconds, 1)
        if active:
            self._decode(active)
        for request, chunk in chunks.items():
            request.computed += chunk
            self._share(request)
            if request.computed < request.to_compute:
                continue
            del self._prompts[request]
            request.generated += 1
            if request.first < 0:
                request.first = self.clock
            if request.ended or self.stops_after_prompt:
                self._end(request)
            else:
                decoding.add(request, request.blocks + self._joined.get(request, 0))

    def _share(self, request: Request) -> None:
        """Hand the computed blocks of a shared prefix over to it, unless another request was faster."""
        if not request.joined:
            return
        blocks = min(request.computed, request.shared) // self.blocks.size
        joined = self._joined[request]
        if blocks > joined and self.blocks.cached(("prefix", request.prefix)) == joined:
            handed = self.blocks.extend(("prefix", request.prefix), blocks)
            request.blocks -= handed
            self._joined[request] = blocks

    def _decode(self, active: int) -> None:
        """Give each decoding request its token, or as many as were accepted."""
        decoding, speculation = self._decoding, self.limits.speculation
        tokens: Any = 1
        if speculation:
            refused = 1 - speculation.acceptance
            accepted = self.random.geometric(refused, active) - 1 if refused > 0 else speculation.tokens
            tokens = np.minimum(1 + np.minimum(accepted, speculation.tokens), decoding.left)
        decoding.context[:] += tokens
        decoding.left[:] -= tokens
        self._end_decoding()

    def _end_decoding(self) -> None:
        decoding = self._decoding
        for request in [decoding.requests[place] for place in np.flatnonzero(decoding.left <= 0).tolist()]:
            request.blocks = decoding.remove(request) - self._joined.get(request, 0)
            self._end(request)

    def _run(self, active: int, until: float) -> None:
        """Compute equal steps that only decode, until a request ends, a time comes, or the blocks run out."""
        decoding, blocks = self._decoding, self.blocks
        most = min(int(decoding.left.min()), LONGEST_RUN)
        # The blocks of the first step are taken already; after `room` steps, a request needs the next one.
        room = decoding.blocks * blocks.size - decoding.context
        needed = np.resize(np.bincount(room % blocks.size, minlength=blocks.size), most)
        needed[0] = 0
        total = np.cumsum(needed)
        most = int(np.searchsorted(total, blocks.free, side="right"))
        contexts = int(decoding.context.sum()) + active * np.arange(most)
        ends = np.cumsum(self.table.decode_seconds(active, contexts))
        count = 1 + int(np.searchsorted(self.clock + ends[:-1], until, side="left"))
        blocks.take(int(total[count - 1]))
        self._spend(float(ends[count - 1]), count)
        self._note()
        decoding.blocks[:] = np.maximum(decoding.blocks, -(-(decoding.context + count) // blocks.size))
        decoding.context[:] += count
        decoding.left[:] -= count
        self._end_decoding()

    def _spend(self, seconds: float, steps: int) -> None:
        self.clock += seconds
        self.busy_seconds += seconds
        self.steps += steps

    def _end(self, request: Request) -> None:
        request.last = self.clock
        del self._running[request]
        self._free(request, keep=False)
        self.ended(request)
