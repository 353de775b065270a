"""Prices the blocks of a sweep on Ray, in workers on this machine or on a cluster."""

from __future__ import annotations

import atexit
import importlib.util
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError
from bringup.sweep.grid import Grid
from bringup.sweep.prices import Pricer
from bringup.sweep.programs import Source
from bringup.sweep.runner import Engine, Priced, Task
from bringup.text import short

Array = npt.NDArray[Any]
RETRIES = 5  # of a task whose worker died; Ray's default is 3, chosen larger for clusters whose nodes come and go
AHEAD = 2  # tasks per worker that are handed out: so no worker waits for the driver, and few rows are lost with it
# Ray reads it when it is imported: with 0, processes of a cluster on one machine listen on the loopback interface.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
SILENT = 5  # attempts to connect, a second apart, after which a cluster is gone; chosen
PATIENCE = 10.0  # seconds for a cluster to end; chosen: it takes two
STORE_BYTES = 256 << 20  # of a local cluster: a hundred recordings; the results are small
_SOURCE = str(Path(__file__).parents[2])
_pricers: dict[str, Pricer] = {}  # of a worker: that of the sweep under way


def engine(on: str) -> Engine:
    """Return the engine for ``local:N``, workers of a cluster on this machine, ``auto``, or ``ray://HOST:PORT``.

    Raises:
        BringupError: Ray or its client is missing.
    """
    if on.startswith("local:"):
        os.environ[LOOPBACK] = "0"
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        raise BringupError(f'--on {on} needs Ray: pip install "bringup[sweep]", or use --on process') from None
    if on.startswith("ray://") and not importlib.util.find_spec("grpc"):
        raise BringupError(
            f'--on {on} needs Ray\'s client, here and on the cluster: pip install "ray[client]", or use --on auto on a '
            "machine of the cluster"
        )

    def prices(grid: Grid, traces: Sequence[Source], tasks: Iterator[Task]) -> Iterator[Priced]:
        with redirect_stdout(sys.stderr):  # Ray prints there that a worker died; stdout is for the answer
            yield from _on_ray(on, grid, traces, tasks)

    return prices


def _on_ray(on: str, grid: Grid, traces: Sequence[Source], tasks: Iterator[Task]) -> Iterator[Priced]:
    import ray

    workers = _start(on)
    silent = 0  # seconds without an answer
    address = "" if on.startswith("ray://") else ray.get_runtime_context().gcs_address
    try:
        shared = ray.put((grid, list(traces)))  # travels once to every node
        name = f"{os.getpid()}-{time.time_ns()}"
        price = ray.remote(num_cpus=1, max_retries=RETRIES)(_price)
        under_way: dict[Any, Task] = {}
        while True:
            while len(under_way) < AHEAD * workers and (task := next(tasks, None)) is not None:
                under_way[price.remote(name, [shared], task)] = task
            if not under_way:
                return
            ready, _ = ray.wait(list(under_way), num_returns=1, timeout=1.0)
            silent = 0 if ready or _answers(address) else silent + 1
            if silent >= SILENT:
                raise ConnectionError("the cluster went away")
            for reference in ready:
                values, seconds = ray.get(reference)
                yield under_way.pop(reference), values, seconds
    except (ray.exceptions.RayTaskError, ray.exceptions.RayError, ConnectionError, OSError) as error:
        raise BringupError(f"--on {on}: {_reason(error)}; the parts stay, and --resume goes on") from None
    finally:
        # A cluster that went away would hold the shutdown for minutes, and Ray's hook at the exit as well.
        ending = threading.Thread(target=ray.shutdown, daemon=True)
        ending.start()
        ending.join(PATIENCE)
        if ending.is_alive():
            atexit.unregister(ray.shutdown)


def _answers(address: str) -> bool:
    """Return True if the head of a cluster takes connections; Ray itself waits for it for a minute, and then exits."""
    if not address:  # Ray's client notices by itself
        return True
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1.0):
            return True
    except OSError:
        return False


def _start(on: str) -> int:
    """Connect to a cluster, or start one; return the number of its workers."""
    import ray

    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    try:
        if on.startswith("local:"):
            workers = int(on.removeprefix("local:"))
            paths = [_SOURCE, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
            environment["PYTHONPATH"] = os.pathsep.join(paths)
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                runtime_env={"env_vars": environment},
                _node_ip_address="127.0.0.1",
                _system_config={
                    "worker_niceness": 0
                },  # as a sweep in one process; else workers starve on a busy machine
                **common,
            )
            return workers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a client that waits in vain; the error says it
            ray.init(address=on, runtime_env={"env_vars": environment}, **common)
        return max(int(ray.cluster_resources().get("CPU", 1)), 1)
    except (ray.exceptions.RayError, ConnectionError, OSError, RuntimeError, ValueError, ImportError) as error:
        raise BringupError(f"--on {on}: no cluster answers ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    cause = getattr(error, "cause", None)
    if isinstance(cause, BringupError):
        return str(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return short(f"{type(error).__name__}: {lines[0] if lines else 'no reason'}", 200)


def _price(name: str, shared: list[Any], task: Task) -> tuple[dict[str, Array], float]:
    """Price a block in a worker, which reads the recordings once."""
    import ray

    begin = time.process_time()
    if name not in _pricers:
        _pricers.clear()
        grid, traces = ray.get(shared[0])
        _pricers[name] = Pricer(grid, traces)
    values = _pricers[name].price(task.block, task.rows)
    return {key: np.ascontiguousarray(column) for key, column in values.items()}, time.process_time() - begin
