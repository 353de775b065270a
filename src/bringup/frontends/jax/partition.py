"""Programs of several chips: XLA's own partitioner turns a program with shardings into what each chip runs."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bringup.frontends.stablehlo.module import StableHloError
from bringup.protobuf import field, fields
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
    partitions = (value for number, value in fields(assignment.serialize()) if number == 3)  # each has one device
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
        hlo = dict(fields(files[0].read_bytes()))[1]
    return ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo)), _with_config(hlo)


@lru_cache
def _cpus(count: int) -> Any:
    """Return a client with so many CPUs, which only compiles."""
    from jax._src.lib import xla_client

    return xla_client.make_cpu_client(num_devices=count)


def _with_config(module: bytes) -> bytes:
    """Return an xla.HloModuleProtoWithConfig of an xla.HloModuleProto, whose field 4 has the types of its inputs."""
    layout = dict(fields(module))[4]
    return field(1, module) + field(2, field(1, layout))
