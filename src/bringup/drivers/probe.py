"""Opens a driver's library without torch: ``python -m bringup.drivers.probe NAME|FILE`` prints its devices as JSON."""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

from bringup.core import driver_path
from bringup.errors import BringupError

MARK = "BRINGUP-DRIVER "  # precedes the JSON, because a driver may print other lines
MOST_DEVICES = 64  # BRINGUP_MAX_DEVICES in csrc/driver.h
ABI, OK = 3, 0  # BRINGUP_DRIVER_ABI, BRINGUP_OK
OLD_ABI = 2  # which the core loads, too: without a size, and without the entries from `prepare` on
SMALL = 1 << 20  # bytes of memory to open a device with
_ENTRIES = (  # the function pointers of bringup_driver, in order
    *("open", "close", "last_error", "alloc", "free", "range_reserve", "range_release", "range_map", "range_unmap"),
    *("map", "unmap", "host_alloc", "host_free", "stream_create", "stream_destroy", "stream_synchronize"),
    *("stream_query", "copy_h2d", "copy_d2h", "copy_d2d", "launch_host", "event_create", "event_destroy"),
    *("event_record", "event_wait", "event_query", "event_synchronize", "event_elapsed", "prepare", "launch"),
    *("release", "failed_launch", "device_name"),
)


class _Config(ctypes.Structure):
    _fields_ = (("device_bytes", ctypes.c_uint64), ("check", ctypes.c_int))


class _Driver(ctypes.Structure):
    _fields_ = (
        ("abi", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        *((name, ctypes.c_void_p) for name in _ENTRIES),
    )


_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Config), ctypes.POINTER(ctypes.c_void_p))
_CLOSE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_LAST_ERROR = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))
_DEVICE_NAME = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)


def probe(name: str) -> dict[str, Any]:
    """Return a driver's devices, and why it cannot be used, or an empty text."""
    try:
        library = ctypes.CDLL(driver_path(name))
        entry = library.bringup_driver_entry
    except (BringupError, OSError) as error:
        return _answer([], str(error))
    except AttributeError:
        return _answer([], f"{name} does not export bringup_driver_entry (see csrc/driver.h)")
    entry.restype = ctypes.POINTER(_Driver)
    address = entry()
    if not address:
        return _answer([], "its bringup_driver_entry returns null")
    abi = address.contents.abi
    if abi not in (ABI, OLD_ABI):
        return _answer([], f"it was built for driver ABI {abi}; this bringup needs ABI {ABI}")
    driver = _Driver()
    size = _Driver.prepare.offset if abi == OLD_ABI else address.contents.size
    ctypes.memmove(ctypes.byref(driver), address, min(ctypes.sizeof(_Driver), size))
    names, why = _names(driver), _open_and_close(driver)
    return _answer(names or ([] if why else [f"device 0 of {(driver.name or b'').decode(errors='replace')}"]), why)


def _answer(devices: list[str], why_not: str) -> dict[str, Any]:
    return {"devices": devices, "why_not": why_not}


def _names(driver: _Driver) -> list[str]:
    if not driver.device_name:
        return []
    name_of = _DEVICE_NAME(driver.device_name)
    names = []
    for index in range(MOST_DEVICES):
        name = name_of(index)
        if name is None:
            break
        names.append(name.decode(errors="replace"))
    return names


def _open_and_close(driver: _Driver) -> str:
    """Open the first device; return why that fails."""
    config, device = _Config(SMALL, 0), ctypes.c_void_p()
    if _OPEN(driver.open)(0, ctypes.byref(config), ctypes.byref(device)) != OK:
        is_old = driver.abi == OLD_ABI  # its `last_error` needs a device
        sentence = None if is_old else _LAST_ERROR(driver.last_error)(None, ctypes.byref(ctypes.c_void_p()))
        return (sentence or b"its device does not open, and the driver does not say why").decode(errors="replace")
    _CLOSE(driver.close)(device)
    return ""


if __name__ == "__main__":
    print(MARK + json.dumps(probe(sys.argv[1])), flush=True)
