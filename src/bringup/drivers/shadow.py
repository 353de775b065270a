"""The comparison of each kernel of a driver with the CPU, while a program runs (csrc/launch/shadow.cpp)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bringup.device.choose import SCALAR_TYPES

# The largest |a - b| / (1 + |a|) of right results; integers are equal. Chosen: results of sums in another order are
# right, also of long ones. The core adds a few times the CPU's own rounding, which it finds by computing in float64.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
TOLERANCES |= {torch.complex64: 2e-5, torch.complex128: 1e-9}


_on_cpu: Path | None = None  # exists while the CPU computes


def begin(*, thorough: bool = False, file: str = "") -> None:
    """Compare every kernel from now on.

    Args:
        thorough: also compare the memory beside the tensors.
        file: is to name the launch that the driver is at work on. The host then waits for each.
    """
    global _on_cpu
    _on_cpu = cpu_file(file) if file else None
    dtypes = [SCALAR_TYPES[str(dtype).removeprefix("torch.")] for dtype in TOLERANCES]
    torch.ops.bringup.shadow(dtypes, list(TOLERANCES.values()), thorough, file)


def cpu_file(file: str | Path) -> Path:
    """Return the file that exists while the CPU computes what a driver is compared with."""
    return Path(f"{file}.cpu")


@contextmanager
def on_cpu() -> Iterator[None]:
    """Note that the CPU computes: if the process ends, it is not the driver's fault."""
    if _on_cpu:
        _on_cpu.touch()
    try:
        yield
    finally:
        if _on_cpu:
            _on_cpu.unlink()


def report() -> dict[str, Any]:
    """Return what was compared since the last report, and the first divergence of the process."""
    result: dict[str, Any] = json.loads(torch.ops.bringup.shadow_report())
    return result


def sentences(result: dict[str, Any]) -> Iterator[str]:
    """Yield what the shadow of a program says."""
    rows = [row for row in result["rows"] if row["compared"]]
    launches, wrong = (sum(row[key] for row in rows) for key in ("compared", "wrong"))
    if not rows:
        yield "shadow: the driver has launched no kernel, so nothing was compared with the CPU"
        return
    worst = max(rows, key=lambda row: row["worst_error"])
    yield (
        f"shadow: {launches:,} launches of {len({row['op'] for row in rows})} operators compared with the CPU, "
        f"{wrong:,} wrong; the largest error is {worst['worst_error']:.1e} ({worst['op']})"
    )
    if result["first"]:
        yield f"shadow: the first divergence: {result['first']}"
