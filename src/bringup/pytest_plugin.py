"""``pytest --chip NAME``: run a test-suite on a virtual chip, and fail the tests that a real one would break.

Without the option the plug-in does nothing but register its markers. docs/ci.md tells how to use it.
"""

from __future__ import annotations

from typing import Any

import pytest

from bringup.errors import BringupError, ChipWarning

__all__ = ["ChipWarning"]

MARKERS = (
    "max_syncs(n): fail if the test makes the host wait implicitly for the chip more than n times",
    'max_device_memory(size): fail if the test holds more device memory at once, such as "4GiB"',
    'max_chip_time(time, chip=None): fail if the test takes the chip longer than "20ms", as predicted',
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("chip", "a virtual AI chip (bringup)")
    group.addoption("--chip", metavar="NAME|FILE", help="run the tests on this chip, and check them")
    group.addoption("--chip-cuda", action="store_true", help="tests that say cuda mean the chip")
    group.addoption("--chip-strict", action="store_true", help="an operator that the chip does not have is an error")
    group.addoption("--chip-dry", action="store_true", help="launch and allocate, but compute nothing")
    group.addoption("--chip-warn", action="store_true", help="findings are warnings, the tests pass")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Let cuda mean the chip before any conftest or test module asks whether there is one."""
    options = early_config.known_args_namespace
    if not getattr(options, "chip_cuda", False) or options.chip is None:
        return
    from bringup.device.cuda import redirect_cuda  # imports torch

    try:
        redirect_cuda()
    except BringupError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and the checks if a chip was asked for."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    chip = config.getoption("--chip")
    if chip is None:
        for option in ("--chip-cuda", "--chip-strict", "--chip-dry", "--chip-warn"):
            if config.getoption(option):
                raise pytest.UsageError(f"{option} needs --chip NAME")
        return
    from bringup.pytest_checks import ChipPlugin  # imports torch

    try:
        plugin = ChipPlugin(config, chip)
    except BringupError as error:
        raise pytest.UsageError(str(error)) from None
    config.pluginmanager.register(plugin, "bringup-chip")


@pytest.fixture(scope="session")
def chip(request: pytest.FixtureRequest) -> Any:
    """Return the device of the run, ``torch.device("chip", 0)``, or ``cuda`` with ``--chip-cuda``.

    Skips the test without ``--chip``.
    """
    if request.config.getoption("--chip") is None:
        pytest.skip("needs --chip NAME")
    import torch

    return torch.device("cuda" if request.config.getoption("--chip-cuda") else "chip", 0)


@pytest.fixture
def chip_report(request: pytest.FixtureRequest) -> Any:
    """Return a function that prices what the test has launched so far. Skips the test without ``--chip``.

    Its argument is another chip's name or file; it returns a `bringup.Prediction`.
    """
    plugin: Any = request.config.pluginmanager.get_plugin("bringup-chip")
    if plugin is None:
        pytest.skip("needs --chip NAME")
    return plugin.report
