"""What Triton calls of a device's runtime library is there, whatever the release."""

import gc
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs bringup[triton]")
compiler = pytest.importorskip("triton.compiler.compiler")

from bringup.triton.driver import Utils  # noqa: E402  (needs triton)
from tests.triton.tutorials import add  # noqa: E402


def test_every_function_that_triton_calls_is_there() -> None:
    called = set(re.findall(r"active\.utils\.(\w+)", inspect.getsource(compiler)))
    assert {"load_binary", "get_device_properties"} <= called
    assert not [name for name in called if not callable(getattr(Utils, name, None))]


def test_dropped_kernels_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    add(torch.ones(8, device="chip"), torch.ones(8, device="chip"))
    kernels = [item for item in gc.get_objects() if type(item) is compiler.CompiledKernel and item.module]
    assert kernels
    if hasattr(kernels[0], "__del__"):  # since 3.9
        kernels[0].__del__()
    assert not ignored


PRETENDED = """
import torch, triton
from bringup.device import load
load.visible_gpus = lambda: 1
from triton.backends import backends
backends["nvidia"].driver.is_active = staticmethod(lambda: True)
import bringup
bringup.use("edge8")
print(type(triton.runtime.driver.active).__name__)
"""


def test_a_chosen_chip_is_tritons_device_beside_a_gpu(python: Callable[..., Any]) -> None:
    done = python(PRETENDED)
    assert done.stdout == "ChipDriver\n", done.stderr
