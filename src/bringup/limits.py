"""Upper limits for the files that people exchange, each limit with its reason.

Anyone may have written such a file. These limits bound the memory and time that reading one takes, and a file beyond
them is refused with one sentence. Limits of single values stand where they are checked (`machine.schema`,
`recording.trace_check`).
"""

from __future__ import annotations

from typing import NamedTuple


class Limit(NamedTuple):
    """The largest accepted value, and why it is enough."""

    most: int
    why: str


# The size of a file in bytes, by kind of file.
BYTES = {
    "chip file": Limit(1 << 20, "the longest that ships has 4 KiB"),
    "specification": Limit(1 << 20, "a chip file as JSON"),
    "host file": Limit(1 << 20, "the longest that ships has 2 KiB"),
    "node file": Limit(1 << 20, "the longest that ships has 2 KiB"),
    "cluster file": Limit(1 << 20, "the longest that ships has 2 KiB"),
    "baseline": Limit(64 << 20, "600,000 tests at 100 bytes each"),
    "project file": Limit(1 << 20, "pyproject.toml with the settings of all tools"),
    "trace file": Limit(1 << 29, "the rows below, at 32 bytes each"),
    "sweep file": Limit(4 << 20, "an axis of 100,000 values has 1 MiB"),
    "list of parts": Limit(64 << 20, "a million parts have 50 MiB"),
    "script": Limit(16 << 20, "the largest of the standard library has 300 KiB"),
    "plan file": Limit(16 << 20, "a step of 100,000 launches that differ has 10 MiB"),
    "scorecard": Limit(16 << 20, "56 items, and a matrix of 700 operators"),
    "measurement file": Limit(64 << 20, "the measurements of seven publishers have 67,000 rows together"),
    "ONNX model": Limit((1 << 31) - 1, "protobuf reads no larger message, and larger weights are external data"),
    "StableHLO module": Limit(1 << 29, "weights are inputs; a program of 100,000 operations has 40 MB"),
    "request file": Limit(1 << 29, "a million requests have 200 MB"),
    "step table": Limit(16 << 20, "a profile of 100,000 steps has 4 MB"),
    "report": Limit(1 << 29, "a page whose timeline draws 600,000 launches has 80 MiB"),
}

# The contents of a trace file.
TRACE = {
    "rows": Limit(1 << 24, "comparing chips on this many takes 4 GiB"),
    "uses": Limit(1 << 26, "four storages per row"),
    "directory bytes": Limit(1 << 16, "the names of the archive's members; those of a trace take 1 KiB"),
    "description bytes": Limit(1 << 26, "signatures, lines and modules; a thousand kinds of launch take 400 KiB"),
    "signatures": Limit(1 << 18, "kinds of launch that differ in operator, shapes or arguments"),
    "lines": Limit(1 << 18, "lines of source with a launch"),
    "stacks": Limit(1 << 20, "as many as the core keeps"),
    "tensors": Limit(1 << 20, "one launch over the parameters of a hundred thousand experts"),
    "dimensions": Limit(64, "torch allows 64"),
    "nesting": Limit(16, "lists within lists in an operator's arguments"),
    "letters": Limit(4096, "a path or a module's name; PATH_MAX is 4,096"),
    "devices": Limit(64, "the core opens 64"),
    "streams": Limit(128, "the core opens 65 per device"),
}

# The contents of an ONNX model.
ONNX = {
    "nodes": Limit(1 << 18, "a model of a thousand layers with 200 nodes each"),
    "letters": Limit(1024, "a node's name, with the names of ten modules around it"),
    "elements": Limit(1 << 28, "a sparse weight of 16,384 x 16,384"),
    "folded elements": Limit(1 << 24, "constants that are computed when the model is loaded, such as causal masks"),
    "folding operations": Limit(1 << 20, "calls of torch that compute those constants; a node has ten"),
    "dimensions": Limit(32, "numpy before 2.0 allows 32"),
    "nested calls": Limit(
        64, "functions and graphs within each other; exporters make one function per level of modules"
    ),
    "turns": Limit(1 << 20, "a million small turns take a minute"),
}

# The contents of a StableHLO module.
STABLEHLO = {
    "operations": Limit(1 << 20, "a training step of a thousand layers with a thousand operations each"),
    "brackets": Limit(100, "open at once; loops and branches within each other need two each"),
    "nested calls": Limit(200, "functions that call each other; JAX makes one per nested jit"),
    "frames": Limit(10_000, "call frames of one location"),
    "dimensions": Limit(64, "torch allows 64"),
    "results": Limit(1 << 22, "four for each operation"),
    "attribute": Limit(1 << 20, "paddings and groups of devices have few elements"),
    "attributes": Limit(1 << 25, "32 for each operation, with the elements of those that are lists"),
    "runs": Limit(1 << 21, "two for each turn of a loop; a million small turns take a minute"),
}

# The text of a Triton kernel. The largest of 1,600 kernels of FlagGems, Liger and the tutorials has 90,000 letters,
# 1,421 in a line, and brackets 3 deep.
TTIR = {
    "letters": Limit(1 << 23, "some 80,000 operations"),
    "letters in a line": Limit(1 << 17, "a function of a thousand arguments"),
    "brackets": Limit(100, "open at once, in a line"),
    "frames": Limit(10_000, "call frames of one location; shared frames can multiply, so ten may give a thousand"),
}
