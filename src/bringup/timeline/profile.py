"""torch.profiler under a recording: the chip's rows with the timeline's times, instead of the emulation's.

The times of the CPU's rows remain this machine's. Torch measures them itself.
"""

from __future__ import annotations

import numpy as np
import torch

from bringup.recording.recording import current
from bringup.recording.rows import COLUMNS, D2D, D2H, H2D, LAUNCH
from bringup.timeline.clock import clock_of

_COPIES = {H2D: "Memcpy HtoD", D2H: "Memcpy DtoH", D2D: "Memcpy DtoD"}  # the names of CUDA's rows


def place(first: int) -> None:
    """Hand the core the launches and copies recorded since row `first`. It calls this when a profile ends.

    Times are nanoseconds since the row before `first` was issued.
    """
    recording = current()
    if recording is None:
        return
    clock = recording.part(clock_of)
    with clock.lock:
        issued, start, end, _ = clock.follow().results()
        values = [column.numpy() for column in torch.ops.bringup.recorded_columns(first)[: len(COLUMNS)]]
    columns = dict(zip(COLUMNS, values, strict=True))
    rows = np.flatnonzero(np.isin(columns["kind"], [LAUNCH, *_COPIES]))
    rows = rows[rows + first < len(start)]
    origin = issued[first - 1] if first > 0 else 0.0
    kinds = [int(kind) for kind in columns["kind"][rows]]
    torch.ops.bringup.place_profile(
        (rows + first).tolist(),
        [
            _COPIES.get(kind) or str(clock.data[number]["op"])
            for kind, number in zip(kinds, columns["signature"][rows], strict=True)
        ],
        columns["device"][rows].tolist(),
        columns["stream"][rows].tolist(),
        np.rint((start[rows + first] - origin) * 1e9).astype(np.int64).tolist(),
        np.rint((end[rows + first] - origin) * 1e9).astype(np.int64).tolist(),
        [kind in _COPIES for kind in kinds],
    )
