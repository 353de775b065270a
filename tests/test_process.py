"""The choices of a process: one parser per environment variable, and a reset for tests."""

import pytest

from bringup.errors import BringupError
from bringup.machine.files import load_chip
from bringup.process import Process, asked_chip, asked_compiler, asked_devices, process


def test_environment_that_says_nothing_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BRINGUP_CHIP", "BRINGUP_DEVICES", "BRINGUP_COMPILE"):
        monkeypatch.delenv(name, raising=False)
    assert (asked_chip(), asked_devices(), asked_compiler()) == (None, 1, "graph")


@pytest.mark.parametrize("text", ["0", "65", "abc", "-1", "2.5", "\u0663"])
def test_number_of_devices_that_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BRINGUP_DEVICES", text)
    with pytest.raises(BringupError, match="BRINGUP_DEVICES must be a whole number from 1 to 64, got"):
        asked_devices()


def test_compiler_of_the_command_line_goes_before_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRINGUP_COMPILE", "triton")
    assert asked_compiler() == "triton"
    monkeypatch.setattr(process, "compiler", "graph")
    assert asked_compiler() == "graph"
    monkeypatch.setattr(process, "compiler", None)
    monkeypatch.setenv("BRINGUP_COMPILE", "inductor")
    with pytest.raises(BringupError, match="BRINGUP_COMPILE must be graph or triton, got 'inductor'"):
        asked_compiler()


def test_reset_forgets_every_choice() -> None:
    chosen = Process(chip=load_chip("t4"), named_cuda=True, compiler="triton")
    chosen.reset()
    assert chosen == Process()
