"""Sweeps on Ray: a cluster of two workers that starts and ends within each test, on the loopback interface."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bringup import BringupError
from bringup.sweep import parts, ray_engine, runner
from tests.sweep.sweeps import LARGE, cli, environment, needs_extras, scales, sweep_of
from tests.sweep.sweeps import table as rows_of

pytestmark = needs_extras
needs_client = pytest.mark.skipif(not importlib.util.find_spec("grpc"), reason="Ray's client needs ray[client]")
BLOCK = 140  # more parts than workers have in hand, so that a kill always leaves some
PROGRAM = f"from bringup.sweep import grid; grid.BLOCK = {BLOCK}; from bringup.cli import main; main()"
COMMAND = [sys.executable, "-c", PROGRAM, "sweep", "sweep.toml", "--on", "local:2", "--out", "out", "--json"]
PARTS = 36
TEXT = LARGE.replace('"h100-sxm"]', '"h100-sxm", "a40"]')


@pytest.fixture
def sweep_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep in 36 parts, and its table from one process."""
    monkeypatch.setattr("bringup.sweep.grid.BLOCK", BLOCK)
    sweep = sweep_of(folder, TEXT.format(scales(120)))
    assert runner.run(sweep, folder / "whole").parts == PARTS
    return folder


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *options],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_parts(folder: Path, process: subprocess.Popen[str], number: int) -> None:
    end = time.monotonic() + 180
    while len(list((folder / "out").glob("*.parquet"))) < number:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


def ray_processes(folder: Path) -> dict[int, str]:
    """Return the processes of Ray that a test has started: those with its folder in the environment."""
    members = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "environ").read_bytes().split(b"\0")
            if f"SWEEP_TEST={folder}".encode() in words:
                members[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return members


def workers(folder: Path) -> list[int]:
    """Return the workers of Ray that price blocks now."""
    return [number for number, command in ray_processes(folder).items() if command.startswith("ray::_price")]


@pytest.fixture
def no_process_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SWEEP_TEST", str(folder))
    yield
    end = time.monotonic() + 60
    own = os.getpid()
    while left := {number: command for number, command in ray_processes(folder).items() if number != own}:
        if time.monotonic() > end:
            for number in left:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            pytest.fail(f"processes stay: {left}")
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("no_process_stays")
def test_workers_and_driver_die(sweep_folder: Path) -> None:
    folder = sweep_folder
    process = start(folder)
    wait_for_parts(folder, process, 2)
    process.kill()
    process.communicate()
    assert len(list((folder / "out").glob("*.parquet"))) >= 2
    process = start(folder, "--resume")
    killed = 0
    for number in (4, 6, 8):
        wait_for_parts(folder, process, number)
        while not (busy := workers(folder)) and process.poll() is None:
            time.sleep(0.005)
        for worker in busy[:1]:
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(worker, signal.SIGKILL)
                killed += 1
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert killed >= 1
    done = json.loads(output)
    assert done["rows"] == done["priced"] + done["existing"] == 5040 and done["existing"] >= 2 * BLOCK
    assert rows_of(folder / "out") == rows_of(folder / "whole")
    assert {path.name for path in (folder / "out").glob("*.parquet")} == {
        path.name for path in (folder / "whole").glob("*.parquet")
    }


@pytest.mark.slow
@pytest.mark.usefixtures("no_process_stays")
def test_cluster_goes_away(sweep_folder: Path) -> None:
    folder = sweep_folder
    process = start(folder)
    wait_for_parts(folder, process, 2)
    cluster = set(ray_processes(folder)) - {process.pid, os.getpid()}
    assert len(cluster) > 4
    for number in cluster:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 2, (process.returncode, output, errors)
    last = errors.strip().splitlines()[-1]
    assert last.startswith("bringup: --on local:2: ") and "the parts stay, and --resume goes on" in last
    assert len(list((folder / "out").glob("*.parquet"))) >= 2
    done = runner.run(sweep_of(folder, (folder / "sweep.toml").read_text()), folder / "out", resume=True)
    assert done.existing >= 2 * BLOCK and rows_of(folder / "out") == rows_of(folder / "whole")


@needs_client
@pytest.mark.slow
def test_cluster_that_does_not_answer(folder: Path) -> None:
    sweep_of(folder, TEXT.format("1.0"))
    done = cli(folder, "sweep.toml", "--on", "ray://127.0.0.1:9", "--out", "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--on ray://127.0.0.1:9: no cluster answers" in done.stderr


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@needs_client
@pytest.mark.slow
@pytest.mark.usefixtures("no_process_stays")
def test_client_of_a_cluster(folder: Path) -> None:
    sweep = sweep_of(folder, TEXT.format("1.0, 0.5"))
    runner.run(sweep, folder / "whole")
    port, client = free_ports(2)
    session = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # the paths of sockets are short
    options = [f"--port={port}", f"--ray-client-server-port={client}", f"--temp-dir={session}"]
    options += ["--num-cpus=2", "--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats"]
    options += ["--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={100 << 20}"]
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options],
        env={**environment(), ray_engine.LOOPBACK: "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 120
        while not listens(client):
            assert head.poll() is None and time.monotonic() < end, "the head of the cluster does not start"
            time.sleep(0.1)
        done = cli(folder, "sweep.toml", "--on", f"ray://127.0.0.1:{client}", "--out", "out")
        assert done.returncode == 0, done.stderr
    finally:
        for number in set(ray_processes(folder)) - {os.getpid()}:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        head.wait()
        shutil.rmtree(session, ignore_errors=True)
    assert rows_of(folder / "out") == rows_of(folder / "whole")


def listens(port: int) -> bool:
    """Return True if a port of this machine takes connections."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BringupError, match="needs Ray's client, here and on the cluster: pip install"):
        ray_engine.engine("ray://127.0.0.1:9")


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BringupError, match="--on local:2 needs Ray: pip install"):
        ray_engine.engine("local:2")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(BringupError, match="sweeps need DuckDB: pip install"):
        parts.database()
