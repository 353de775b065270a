"""The colours of pages, plots and badges."""

from __future__ import annotations

GOOD, MIDDLING, BAD, UNKNOWN = "#2c7a3f", "#8f5f00", "#a8322d", "#6b6b6b"
WHITE, GRID, GUIDE, OTHER = "#ffffff", "#e6e9ef", "#6b7280", "#555555"

# page.css names these as ``$chip``.
PAGE = {
    **{"ink": "#1c2330", "dim": "#4a5263", "line": "#d9dee7", "back": WHITE, "soft": "#f5f7fa", "focus": "#7db0ea"},
    **{"chip": "#2563a8", "link": "#b3561d", "host": "#8b94a3", "fallback": BAD, "between": "#7a4fb0"},
    **{"matrix": "#2563a8", "vector": "#7a9a2e", "special": "#8d3f97", "memory": "#c9822a"},
    **{"good": GOOD, "middling": MIDDLING},
}
# The same on a dark screen, as ``$dark_chip``.
DARK = {
    **{"ink": "#e4e8ef", "dim": "#a9b2c0", "line": "#363d4a", "back": "#14181f", "soft": "#1d232d", "focus": "#7db0ea"},
    **{"chip": "#6aa5e8", "link": "#dd8a52", "host": "#7c8594", "fallback": "#e57670", "between": "#ad8be0"},
    **{"matrix": "#6aa5e8", "vector": "#a3c452", "special": "#c37ccc", "memory": "#dba258"},
    **{"good": "#6cc281", "middling": "#d9a441"},
}
# The families of operators, and the other lanes of the timeline.
FAMILY = {
    **{"matmul": PAGE["chip"], "convolution": "#3b82c4", "attention": "#17406d", "normalization": "#0f8a6d"},
    **{"softmax": "#2f9577", "pointwise": PAGE["vector"], "reduction": "#a08a10", "pooling": "#6f5e12"},
    **{"gather": PAGE["memory"], "sort": "#a85d1a", "copy": PAGE["host"], "random": "#6f5fa8"},
    **{"optimizer": PAGE["special"], "fft": "#b0558a", "kernel": "#1f9fb5", "depthwise": "#5a86b5"},
    **{"linalg": "#c0397b", "other": "#333333", "sparse": "#8c6d1f", "rnn": "#4f6fb0"},
    "collective": "#0b7285",
    **{"fallback": PAGE["fallback"], "link": PAGE["link"], "between chips": PAGE["between"]},
}
# The host's spans in the timeline.
HOST = {
    "launch": "#5f6b7d",
    "copy": "#94603a",
    "other call": "#767d88",
    "computes": PAGE["fallback"],
    "wait": "#c2255c",
}
PHASE = {"forward": "#2563a8", "backward": "#b3561d", "optimizer": "#8d3f97"}
# The kinds of memory, from the ones that live longest to those that come and go.
MEMORY = {
    **{"held before the recording": "#6b7280", "cuBLAS workspace": "#7d5a3c", "parameters": "#2563a8"},
    **{"buffers": "#5a86b5", "optimizer state": "#8d3f97", "kept between calls": "#0f8a9d", "inputs": "#a08a10"},
    **{"gradients": "#b3561d", "activations": "#2f8f57", "workspace": "#c2255c", "tensors outside modules": "#4f5b93"},
}
# Chips, operators and roofs: series that belong to no family.
_SERIES = (
    *("#2563a8", "#b3561d", "#2c7a3f", "#a8322d", "#7a4fb0", "#0f8a9d", "#b83a8a", "#7f7d0e"),
    *("#3d3d91", "#995c00", "#00695c", "#c2255c", "#4a7d12", "#6d214f", "#5b6577", "#7d5a3c"),
)


def series(number: int) -> str:
    """Return the colour of a chart's series by its number; colours repeat after 16."""
    return _SERIES[number % len(_SERIES)]


def dark(colour: str) -> str:
    """Return the colour on a dark screen: mixed with white until it stands out."""
    share = 0.35  # chosen: the darkest of our colours then has a contrast of 3 with the page
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (255 - part)):02x}" for part in parts)


def verdict(score: float | None) -> str:
    """Return the colour for a share of passed items."""
    if score is None:
        return UNKNOWN
    return GOOD if score > 0.9 else MIDDLING if score > 0.6 else BAD
