"""The colours of pages, plots and badges."""

from __future__ import annotations

GOOD, MIDDLING, BAD, UNKNOWN = "#2c7a3f", "#b07a12", "#a8322d", "#777777"
WHITE, GRID, GUIDE, OTHER = "#ffffff", "#e6e9ef", "#6b7280", "#555555"

# page.css names these as ``$chip``.
PAGE = {
    **{"ink": "#1c2330", "dim": "#5b6577", "line": "#d9dee7", "back": WHITE, "soft": "#f5f7fa", "focus": "#7db0ea"},
    **{"chip": "#2563a8", "link": "#b3561d", "host": "#8b94a3", "fallback": BAD, "between": "#7a4fb0"},
    **{"matrix": "#2563a8", "vector": "#7a9a2e", "special": "#8d3f97", "memory": "#c9822a"},
}
# The families of operators, and the other lanes of the timeline.
FAMILY = {
    **{"matmul": PAGE["chip"], "convolution": "#3b82c4", "attention": "#17406d", "normalization": "#0f8a6d"},
    **{"softmax": "#45b08f", "pointwise": PAGE["vector"], "reduction": "#b8a11f", "pooling": "#8f7a1a"},
    **{"gather": PAGE["memory"], "sort": "#a85d1a", "copy": PAGE["host"], "random": "#6f5fa8"},
    **{"optimizer": PAGE["special"], "fft": "#b0558a", "kernel": "#1f9fb5", "depthwise": "#6aa5dd"},
    **{"linalg": "#c0397b", "other": "#333333"},
    **{"fallback": PAGE["fallback"], "link": PAGE["link"], "between chips": PAGE["between"]},
}


def verdict(score: float | None) -> str:
    """Return the colour for a share of passed items."""
    if score is None:
        return UNKNOWN
    return GOOD if score > 0.9 else MIDDLING if score > 0.6 else BAD
