"""``pytest --chip NAME``: runs a test suite on a virtual chip, and fails the tests that a real chip would break.

Without the option the plug-in only registers its markers. docs/ci.md describes its use.
"""

from __future__ import annotations

from typing import Any

import pytest

from bringup.errors import BringupError, ChipWarning
from bringup.project import settings

__all__ = ["ChipWarning"]

BASELINE = ("--chip-baseline", "--chip-baseline-update", "--chip-max-slower", "--chip-max-memory")
NEED_CHIP = ("--chip-cuda", "--chip-strict", "--chip-dry", "--chip-warn", *BASELINE)
MARKERS = (
    "max_syncs(n): fail if the host waits implicitly for the chip more than n times in the test",
    'max_device_memory(size): fail if the test holds more device memory at once than a size such as "4GiB"',
    'max_chip_time(time, chip=None): fail if the predicted time of the test is longer than a time such as "20ms"',
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the plug-in."""
    group = parser.getgroup("chip", "a virtual AI chip (bringup)")
    group.addoption(
        "--chip",
        metavar="NAME|FILE",
        help="run the tests on this virtual chip and check them; none: on no chip, whatever pyproject.toml says",
    )
    group.addoption("--chip-cuda", action="store_true", help="the device cuda means the chip")
    group.addoption("--chip-strict", action="store_true", help="raise where an operator would run on the host")
    group.addoption("--chip-dry", action="store_true", help="launch and allocate, but compute nothing")
    group.addoption(
        "--chip-baseline", metavar="FILE", help="fail the tests that take more chip time or memory than this file says"
    )
    group.addoption("--chip-baseline-update", action="store_true", help="write that file from the tests that pass")
    for name, what in (("--chip-max-slower", "chip time, such as 5%% or +2ms"), ("--chip-max-memory", "memory")):
        group.addoption(name, metavar="CHANGE", help=f"with --chip-baseline: allowed growth of {what} (default: 5%%)")
    group.addoption("--chip-warn", action="store_true", help="report findings as warnings, so that the tests pass")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Redirect cuda to the chip before a conftest or test module asks whether CUDA is available."""
    options = early_config.known_args_namespace
    if not getattr(options, "chip_cuda", False):
        return
    try:
        if _chip_of(early_config) is None:
            return
        from bringup.device.cuda import redirect_cuda  # imports torch

        redirect_cuda()
    except BringupError as error:
        raise pytest.UsageError(str(error)) from None


def _chip_of(config: pytest.Config) -> str | None:
    """Return the chip of the option, or of the project's settings; None if the tests run without one."""
    project = settings(config.invocation_params.dir).chip
    name: str | None = config.known_args_namespace.chip or (project and project.split(",")[0])  # others are compared
    return None if name == "none" else name


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and, with ``--chip``, the checks."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    try:
        chip = _chip_of(config)
        if chip is None:
            for option in NEED_CHIP:
                if config.getoption(option):
                    raise pytest.UsageError(f"{option} needs --chip NAME")
            return
        from bringup.pytest_checks import ChipPlugin  # imports torch

        plugin = ChipPlugin(config, chip, settings(config.invocation_params.dir))
    except BringupError as error:
        raise pytest.UsageError(str(error)) from None
    config.pluginmanager.register(plugin, "bringup-chip")


@pytest.fixture(scope="session")
def chip(request: pytest.FixtureRequest) -> Any:
    """Return the device of the test run: ``torch.device("chip", 0)``, or ``cuda`` with ``--chip-cuda``.

    Skips the test without ``--chip``.
    """
    if request.config.pluginmanager.get_plugin("bringup-chip") is None:
        pytest.skip("needs --chip NAME")
    import torch

    return torch.device("cuda" if request.config.getoption("--chip-cuda") else "chip", 0)


@pytest.fixture
def chip_report(request: pytest.FixtureRequest) -> Any:
    """Return a function that prices the launches of the test so far. Skips the test without ``--chip``.

    The function takes the name or file of another chip, if any, and returns a `bringup.Prediction`.
    """
    plugin: Any = request.config.pluginmanager.get_plugin("bringup-chip")
    if plugin is None:
        pytest.skip("needs --chip NAME")
    return plugin.report
