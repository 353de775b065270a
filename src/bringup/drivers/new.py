"""Writes a new driver: the smallest one with memory of its own, and a Makefile."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from bringup.drivers.names import names
from bringup.errors import BringupError
from bringup.files import OURS, current_directory

SKELETON = Path(__file__).with_name("skeleton.cpp")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_MAKEFILE = """\
# Builds NAME.so, the driver of NAME. driver.h comes with bringup: `bringup driver include` prints its folder.
BRINGUP ?= PYTHON -m bringup
INCLUDE ?= $(shell $(BRINGUP) driver include)
CXX ?= g++
CXXFLAGS ?= -O2 -Wall

NAME.so: NAME.cpp
\t$(CXX) -std=c++20 $(CXXFLAGS) -shared -fPIC -I "$(INCLUDE)" NAME.cpp -o NAME.so

.PHONY: check clean
check: NAME.so
\t$(BRINGUP) driver check ./NAME.so
clean:
\trm -f NAME.so
"""


def write(name: str) -> Path:
    """Write the folder of a new driver, whole or not at all, and return it.

    Raises:
        BringupError: the name is not one, the folder exists, or it cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise BringupError(
            f"{name!r} is no name for a driver: give up to 40 letters, digits, - and _, beginning with a letter"
        )
    if name in names():
        raise BringupError(f"{name} is a driver that comes with bringup: choose another name")
    target = Path(current_directory(), name)
    if os.path.lexists(target):
        raise BringupError(f"{name} exists already: choose another name, or remove it")
    makefile = _MAKEFILE.replace("NAME", name).replace("PYTHON", f"'{sys.executable}'")
    source = SKELETON.read_text(encoding="utf-8").replace("NAME", name)
    stage = ""
    try:
        stage = tempfile.mkdtemp(prefix=OURS, dir=target.parent)
        Path(stage, f"{name}.cpp").write_text(source, encoding="utf-8")
        Path(stage, "Makefile").write_text(makefile, encoding="utf-8")
        os.chmod(stage, 0o777 & ~_umask())
        os.rename(stage, target)
    except OSError as error:
        raise BringupError(f"{name}: cannot be written ({error.strerror or error})") from None
    finally:
        if stage:
            shutil.rmtree(stage, ignore_errors=True)  # it is there only after an error
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
