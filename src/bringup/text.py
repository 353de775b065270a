"""Numbers for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Write a time with a fitting unit: ``412.3 ms``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            value = seconds / scale
            return f"{value:,.1f} {unit}" if value < 1e4 else f"{value:,.0f} {unit}"
    return "0 us" if seconds == 0 else f"{seconds * 1e9:.0f} ns"


def size(count: float) -> str:
    """Write bytes with a fitting unit: ``1.50 GiB``."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count:.0f} bytes"
