"""torch.distributed on the chip: the backend ``chip``, and what the core has to know of a process group.

The core runs collectives (csrc/torch/collectives.cpp): on the group's stream, by gloo on CPU tensors over the chip's
memory. A group whose backend is for devices only has no gloo for CPU tensors. A second group, which has, stands in for
it below torch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from bringup.device.pretended_stages import patch_stages


def install() -> None:
    """Make ``chip`` the backend of groups on the chip, and describe each new group to the core."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        return
    c10d: Any = torch.distributed.distributed_c10d

    class ProcessGroupChip(c10d.ProcessGroupGloo):  # type: ignore[misc]
        """The backend of a group called chip."""

        def name(self) -> str:
            return "chip"

    def create(options: Any, _: Any) -> Any:
        backend = ProcessGroupChip(options.store, options.group_rank, options.group_size, timeout=options.timeout)
        backend._set_sequence_number_for_group()
        return backend

    c10d.Backend.register_backend("chip", create, extended_api=True, devices=["chip"])
    helper = c10d._new_process_group_helper

    @functools.wraps(helper)
    def _new_process_group_helper(*args: Any, **kwargs: Any) -> Any:
        if _pretended:
            patch_stages()
            _patch_checkpoints()
            args, kwargs = (*args[:3], "fake", *args[4:]), {**kwargs, "backend_options": None}
        _patch_random()
        group, store = helper(*args, **kwargs)
        if isinstance(group, torch.distributed.ProcessGroup):
            ranks = kwargs["global_ranks_in_group"] if "global_ranks_in_group" in kwargs else args[2]
            _describe(group, store, list(ranks))
        return group, store

    c10d._new_process_group_helper = _new_process_group_helper


@functools.cache
def _patch_random() -> None:
    """Patch DTensor to draw random numbers on the chip as on the CPU: each rank has those of its own generator.

    DTensor moves the state of CUDA's generators, Philox, which counts. The chip's generators are the CPU's.
    """
    from torch.distributed.tensor import _dispatch, _random

    dispatch: Any = _dispatch
    ours = ("chip", "cuda")  # the chip, under the name that the program uses
    is_supported, manual_seed = _random.is_rng_supported_mesh, _random.manual_seed

    @functools.wraps(is_supported)
    def is_rng_supported_mesh(device_mesh: Any) -> bool:
        return device_mesh.device_type not in ours and is_supported(device_mesh)

    @functools.wraps(manual_seed)
    def seed_all(seed: int, device_mesh: Any) -> None:
        if device_mesh.device_type in ours:
            torch.manual_seed(seed)
        else:
            manual_seed(seed, device_mesh)

    _random.is_rng_supported_mesh = dispatch.is_rng_supported_mesh = is_rng_supported_mesh
    _random.manual_seed = seed_all


@functools.cache
def _patch_checkpoints() -> None:
    """Patch distributed checkpoints to have the parts of this rank alone: there are no others to agree with."""
    from torch.distributed.checkpoint import utils

    wrapper: Any = utils._DistWrapper
    begin = wrapper.__init__

    @functools.wraps(begin)
    def __init__(self: Any, group: Any, use_dist: bool, coordinator_rank: int) -> None:
        begin(self, group, use_dist=False, coordinator_rank=0)

    wrapper.__init__ = __init__


_pretended: list[int] = []  # the number of ranks, of which only this one runs


def pretend_ranks(rank: int, ranks: int) -> None:
    """Make every process group one of torch's fake groups, whose other ranks do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend fake

    def meet(*_: Any, **__: Any) -> Any:
        yield FakeStore(), rank, ranks

    from torch.distributed.rendezvous import _rendezvous_handlers as handlers

    handlers.update(dict.fromkeys(("env", "tcp", "file"), meet))
    _pretended.append(ranks)


def _describe(group: Any, store: Any, ranks: list[int]) -> None:
    """Tell the core the group's ranks, and which group runs its collectives."""
    if type(group) is not torch.distributed.ProcessGroup:  # a program's own group, written in Python
        return
    devices = {device.type for device in group._device_types}
    chip = torch.device("chip")
    if "cpu" in devices:
        backend = group._get_backend(torch.device("cpu"))
        if "chip" not in devices:  # point-to-point operations look for it
            group._register_backend(chip, _kind("CUSTOM"), backend)
            stand_in, alone = group, backend.name() == "fake"
        else:
            stand_in, alone = _gloo(group, store, group._get_backend(chip)), False
    else:
        backend = group._get_backend(chip if "chip" in devices else next(iter(group._device_types)))
        if "chip" in devices:  # torch takes a group without a named backend for one of gloo
            group._set_default_backend(_kind("CUSTOM"))
        alone = backend.name() == "fake"
        stand_in = group if alone else _gloo(group, store, backend)
    torch.ops.bringup.describe_group(group.boxed(), stand_in.boxed(), ranks, alone)


def _kind(name: str) -> Any:
    return getattr(torch.distributed.ProcessGroup.BackendType, name)


def _gloo(group: Any, store: Any, backend: Any) -> Any:
    """Return a group whose backend for CPU tensors is this one."""
    stand_in = torch.distributed.ProcessGroup(store, group.rank(), group.size())
    stand_in._set_default_backend(_kind("GLOO"))
    stand_in._register_backend(torch.device("cpu"), _kind("GLOO"), backend)
    return stand_in
