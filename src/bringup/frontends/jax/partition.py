"""Programs of several chips: XLA's own partitioner turns a program with shardings into what each chip runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bringup.frontends.stablehlo.module import StableHloError
from bringup.text import short

_PASS = "spmd-partitioning"  # of XLA; what follows it is meant for CPUs


def devices_of(options: bytes) -> list[int]:
    """Return the numbers of the devices that JAX compiles a program for, in the order of its partitions.

    Raises:
        StableHloError: the program has several replicas, which JAX no longer makes.
    """
    from jax._src.lib import xla_client

    compile_options = xla_client.CompileOptions.ParseFromString(options)
    if compile_options.num_replicas != 1:
        raise StableHloError(
            "a program of several replicas has no translation: use shardings, shard_map or pmap of jax 0.10"
        )
    assignment = compile_options.device_assignment
    if assignment is None:
        return list(range(compile_options.num_partitions))
    partitions = (value for field, value in _fields(assignment.serialize()) if field == 3)  # each has one device
    return [value[2] for value in partitions]


def partitioned(module: Any, options: bytes) -> tuple[Any, bytes]:
    """Return the program of one chip among several, and an xla.HloModuleProtoWithConfig, which has the shardings.

    Raises:
        StableHloError: XLA cannot partition the module.
    """
    from jax._src.lib import _jax, xla_client
    from jaxlib.mlir import ir

    compile_options = xla_client.CompileOptions.ParseFromString(options)
    count = compile_options.num_partitions
    with tempfile.TemporaryDirectory() as folder:
        compile_options.device_assignment = xla_client.DeviceAssignment.create(np.arange(count).reshape(1, count))
        flags = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": _PASS, "xla_dump_hlo_as_proto": True}
        compile_options.env_option_overrides = [*flags.items(), ("xla_backend_optimization_level", 0)]
        reason = "XLA made none"
        client = _cpus(count)
        try:
            chips = xla_client.DeviceList(tuple(client.devices()))
            client.compile_and_load(module, chips, compile_options)
        except Exception as error:  # also of what only CPUs lack, after the pass
            reason = short(" ".join(str(error).split()), 300)
        files = list(Path(folder).glob(f"*after_{_PASS}*.hlo.pb"))
        if len(files) != 1:
            raise StableHloError(f"XLA cannot partition the program ({reason})")
        hlo = dict(_fields(files[0].read_bytes()))[1]
    return ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo)), _with_config(hlo)


@lru_cache
def _cpus(count: int) -> Any:
    """Return a client with so many CPUs, which only compiles."""
    from jax._src.lib import xla_client

    return xla_client.make_cpu_client(num_devices=count)


def _with_config(module: bytes) -> bytes:
    """Return an xla.HloModuleProtoWithConfig of an xla.HloModuleProto, whose field 4 has the types of its inputs."""
    layout = dict(_fields(module))[4]
    return _field(1, module) + _field(2, _field(1, layout))


def _fields(proto: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the numbers and values of a message's fields that are messages or texts, in protobuf's encoding."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = proto[place]
            value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
            if byte < 128:
                return value

    while place < len(proto):
        field, kind = divmod(number(), 8)
        if kind == 2:
            size = number()
            yield field, proto[place : place + size]
            place += size
        elif kind == 0:
            number()
        else:
            place += 8 if kind == 1 else 4


def _field(number: int, value: bytes) -> bytes:
    """Return a field of a message in protobuf's encoding; the number is below 16."""
    size, digits = len(value), bytearray()
    while size > 127:
        digits.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *digits, size]) + value
