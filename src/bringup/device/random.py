"""Random numbers of the device ``chip``: one generator per chip, with the algorithm of torch's CPU generator."""

from __future__ import annotations

import torch

from bringup.device.devices import DeviceLike, checked, current_device, device_count, index_of

_ops = torch.ops.bringup

seedings = 0  # number of calls that seeded a generator


def manual_seed(seed: int) -> None:
    """Seed the current chip's generator."""
    global seedings
    seedings += 1
    _ops.manual_seed(current_device(), _signed(seed))


def manual_seed_all(seed: int) -> None:
    """Seed every chip's generator."""
    global seedings
    seedings += 1
    for index in range(device_count()):
        _ops.manual_seed(index, _signed(seed))


def _signed(seed: int) -> int:
    """Wrap a 64-bit seed into the range of an operator's int argument."""
    seed = int(seed) & 0xFFFFFFFFFFFFFFFF
    return seed - 2**64 if seed >= 2**63 else seed


def seed() -> int:
    """Seed the current chip's generator with a random number and return it."""
    return int(_ops.seed(current_device())) & 0xFFFFFFFFFFFFFFFF


def seed_all() -> None:
    """Seed every chip's generator with one random number."""
    manual_seed_all(seed())


def initial_seed() -> int:
    """Return the seed of the current chip's generator."""
    return int(_ops.initial_seed(current_device())) & 0xFFFFFFFFFFFFFFFF


def get_rng_state(device: DeviceLike = "chip") -> torch.Tensor:
    """Return the state of a chip's generator as a CPU tensor of bytes, after pending launches have drawn from it."""
    state: torch.Tensor = _ops.rng_state(checked(index_of(device)))
    return state


def set_rng_state(new_state: torch.Tensor, device: DeviceLike = "chip") -> None:
    """Set the state of a chip's generator."""
    _ops.set_rng_state(checked(index_of(device)), new_state)


def get_rng_state_all() -> list[torch.Tensor]:
    """Return the state of every chip's generator."""
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state_all(new_states: list[torch.Tensor]) -> None:
    """Set the state of every chip's generator."""
    for index, state in enumerate(new_states):
        set_rng_state(state, index)
