"""The codes of a trace's rows: kinds, flags, phases, owners and columns. docs/trace.md describes them."""

from __future__ import annotations

import numpy as np

# In the order of csrc/record/rows.inc. Trace files contain the numbers, so new kinds are only appended.
KINDS = (
    *("launch", "h2d", "d2h", "d2d", "event_record", "event_wait", "stream_sync", "device_sync", "event_sync"),
    *("alloc", "free", "forward", "step", "reserve", "release", "owner", "host", "signal", "resume"),
)
LAUNCH, H2D, D2H, D2D, EVENT_RECORD, EVENT_WAIT, STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC, *_ = range(len(KINDS))
ALLOC, FREE, FORWARD, STEP, RESERVE, RELEASE, OWNER, HOST, SIGNAL, RESUME = range(9, len(KINDS))
PHASES = ("forward", "backward", "optimizer")
IN_FORWARD, IN_BACKWARD, IN_OPTIMIZER = range(len(PHASES))
# Flags; see csrc/record/rows.inc.
PINNED, WAITS, FALLBACK, HOST_INDEX, INITIALISED, OF_ALLOCATOR, OF_UPLOAD, OF_DOWNLOAD = (1 << i for i in range(8))
WAITS_FOR = ("sleep", "descriptor", "process", "lock")  # flags of a host row; see csrc/record/waits.h
# The column bytes of a launch, its part in autograd's graph: none; a node that no backward pass ran; a node that one
# ran; run again by a checkpoint in a backward pass; launched by other Python code in a backward pass.
NO_NODE, NEVER_RAN, RAN, REBUILT, WITHIN, DIFFERENTIABLE = range(6)
BY_PROGRAM = -1  # the object column of a step row recorded by bringup.step()
ON_HOST = -1  # the object column of a launch, or of a copy between host and chip, that a plan puts on the host
# The owners of storages. Owner rows hold the first two and the last, in the column bytes; `analyse.holders` derives the
# others.
OWNERS = (
    *("parameters", "buffers", "gradients", "optimizer state", "activations", "kept between calls", "inputs"),
    *("workspace", "held before the recording", "tensors outside modules", "cuBLAS workspace"),
)
PARAMETERS, BUFFERS, GRADIENTS, OPTIMIZER_STATE, ACTIVATIONS, KEPT, INPUTS, WORKSPACE, *_ = range(len(OWNERS))
BEFORE, OUTSIDE, BLAS_WORKSPACE = range(8, len(OWNERS))

COLUMNS = {
    "kind": np.uint8,
    "flags": np.uint8,
    "phase": np.uint8,
    "device": np.int8,
    "stream": np.int16,
    "thread": np.int32,
    "views": np.int32,
    "signature": np.int32,
    "line": np.int32,
    "module": np.int32,
    "host_ns": np.int64,
    "bytes": np.int64,
    "object": np.int64,
}
# Columns of some recordings: the calls that led to a row, and when a driver's device ran it, from the first launch.
MEASURED = ("measured_begin_ns", "measured_ns")
OPTIONAL = {"stack": np.int32, **dict.fromkeys(MEASURED, np.int64)}
