"""What a driver must do beside its kernels: memory, copies, streams, events, errors. One function per check.

Whether it does them at the same time is not checked here: `bringup check` does, with its items B1, B3 and B5.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import torch

from bringup.scorecard import memory, runtime
from bringup.scorecard.framework import train
from bringup.scorecard.registry import require

Check = Callable[[torch.device], str]
COPIES, LAUNCHES, ROUNDS = 200, 200, 60
MOST_BYTES = 1 << 20  # of a copy
DRAWN, SIGMAS = 1 << 16, 5  # random numbers, and standard errors of their mean: beyond by chance once in a million


def alignment(device: torch.device) -> str:
    """Addresses of device memory are aligned to 512 bytes, and no two tensors overlap."""
    tensors = [torch.empty(1 << bits, dtype=torch.uint8, device=device) for bits in range(0, 25, 3) for _ in range(4)]
    tensors += [torch.empty((1 << 20) + 1, dtype=torch.uint8, device=device) for _ in range(8)]
    places = sorted((tensor.data_ptr(), tensor.numel()) for tensor in tensors)
    require(all(address % 512 == 0 for address, _ in places), "an address is not a multiple of 512")
    beside = itertools.pairwise(places)
    require(all(first + size <= second for (first, size), (second, _) in beside), "two tensors overlap")
    return f"{len(places)} tensors"


def copies(device: torch.device) -> str:
    """Copies of any size at any offset move these bytes and no others, between host and device and on the device."""
    draw = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    expected = torch.randint(256, (2 * MOST_BYTES,), dtype=torch.uint8, generator=generator)
    on_device = expected.to(device)
    for _ in range(COPIES):
        size = draw.choice((1, 3, 63, 64, 511, 4097, draw.randrange(1, MOST_BYTES)))
        source, target = (draw.randrange(half * MOST_BYTES, (half + 1) * MOST_BYTES - size + 1) for half in (0, 1))
        if draw.random() < 0.5:
            fresh = torch.randint(256, (size,), dtype=torch.uint8, generator=generator)
            expected[source : source + size] = fresh
            on_device[source : source + size].copy_(fresh)
        on_device[target : target + size].copy_(on_device[source : source + size])
        expected[target : target + size] = expected[source : source + size]
        part = on_device[target : target + size].cpu()
        require(torch.equal(part, expected[target : target + size]), f"a copy of {size} bytes has other contents")
    require(torch.equal(on_device.cpu(), expected), "a copy has changed bytes beside its own")
    return f"{COPIES} sizes and offsets"


def waits_of_streams(device: torch.device) -> str:
    """A stream that waits for an event of another stream sees what was written before the event, and only then."""
    first, second = torch.Stream(device), torch.Stream(device)
    value = torch.zeros(1 << 12, device=device)
    torch.accelerator.synchronize()
    for number in range(LAUNCHES):
        ahead, behind = (first, second) if number % 2 else (second, first)
        done = torch.Event(device)
        with ahead:
            value.mul_(2).add_(1).remainder_(1 << 20)
            done.record()
        done.wait(behind)
    for stream in (first, second):
        stream.synchronize()
    expected = 0
    for _ in range(LAUNCHES):
        expected = (2 * expected + 1) % (1 << 20)
    require(bool((value.cpu() == expected).all()), f"{LAUNCHES} launches on two streams do not follow their events")
    return f"{LAUNCHES} launches that took turns on two streams"


def events(device: torch.device) -> str:
    """An event that was never recorded is reached, a synchronised one too, and the time between two is not negative."""
    start, end = torch.Event(device, enable_timing=True), torch.Event(device, enable_timing=True)
    require(end.query(), "an event that was never recorded is not reached")
    for _ in range(20):
        start.record()
        torch.ones(1 << 16, device=device).add_(1)
        end.record()
        end.synchronize()
        require(start.query() and end.query(), "an event is not reached after synchronize()")
        milliseconds = start.elapsed_time(end)
        require(0 <= milliseconds < 1e5, f"the time between two events is {milliseconds} ms")
    return "query, synchronize and elapsed_time"


def training(device: torch.device) -> str:
    """A small network trains to the loss of the CPU."""
    expected, loss = train(torch.device("cpu")), train(device)
    require(abs(loss - expected) <= 1e-3 * abs(expected), f"loss {loss:.6f}, on the CPU {expected:.6f}")
    return f"loss {loss:.6f}, on the CPU {expected:.6f}"


def random_numbers(device: torch.device) -> str:
    """Random numbers follow their seed and state, never repeat, and have their distribution's mean and deviation."""
    draws: dict[str, tuple[Callable[[], torch.Tensor], float, float]] = {
        "rand": (lambda: torch.rand(DRAWN, device=device), 0.5, 12**-0.5),
        "randn": (lambda: torch.randn(DRAWN, device=device), 0.0, 1.0),
        "randint": (lambda: torch.randint(10, (DRAWN,), device=device).double(), 4.5, (99 / 12) ** 0.5),
        "bernoulli": (lambda: torch.full((DRAWN,), 0.25, device=device).bernoulli(), 0.25, 0.1875**0.5),
        "exponential": (lambda: torch.empty(DRAWN, device=device).exponential_(2.0), 0.5, 0.5),
        "dropout": (lambda: torch.nn.functional.dropout(torch.ones(DRAWN, device=device), 0.75), 1.0, 3**0.5),
    }
    for name, (draw, mean, deviation) in draws.items():
        torch.manual_seed(1)
        first, state = draw().cpu(), torch.chip.get_rng_state(device)  # type: ignore[attr-defined]
        second = draw().cpu()
        torch.chip.set_rng_state(state, device)  # type: ignore[attr-defined]
        require(torch.equal(second, draw().cpu()), f"{name} is not the same after the state was restored")
        torch.manual_seed(1)
        require(torch.equal(first, draw().cpu()), f"{name} is not the same after the same seed")
        require(not torch.equal(first, second), f"{name} repeats its numbers")
        off = abs(first.double().mean().item() - mean) / (deviation / DRAWN**0.5)
        require(off < SIGMAS, f"the mean of {name} is {first.double().mean():.4f}, not {mean}")
        spread = first.double().std().item()
        require(abs(spread / deviation - 1) < 0.05, f"the deviation of {name} is {spread:.4f}, not {deviation:.4f}")
    return ", ".join(draws)


def long_use(device: torch.device) -> str:
    """Memory that is allocated, used on two streams and freed again and again keeps its contents and does not grow."""
    side = torch.Stream(device)
    reserved = 0
    for number in range(ROUNDS):
        x = torch.full((1 << 18,), float(number), device=device)
        done = torch.Event(device)
        done.record()
        done.wait(side)
        with side:
            total = x.sum()
        x.record_stream(side)
        del x
        torch.full((1 << 18,), -1.0, device=device)
        side.synchronize()
        require(total.item() == number * (1 << 18), f"in round {number}, memory was used again too early")
        if number == ROUNDS // 2:
            reserved = torch.accelerator.memory.memory_reserved(device)
    grown = torch.accelerator.memory.memory_reserved(device) - reserved
    require(grown == 0, f"{grown} bytes more are reserved after {ROUNDS // 2} rounds")
    return f"{ROUNDS} rounds on two streams"


CHECKS: dict[str, Check] = {
    "memory: addresses": alignment,
    "memory: copies": copies,
    "memory: full": memory.capacity,
    "memory: reuse across streams": memory.reused,
    "memory: long use": long_use,
    "streams: order": runtime.ordered,
    "streams: waits for events": waits_of_streams,
    "events": events,
    "errors: an error names its launch": runtime.located,
    "errors: the device works after one": runtime.survives,
    "random numbers": random_numbers,
    "training": training,
}
