"""The words of a chip file: dtypes with the bytes of their elements, and operator families."""

from __future__ import annotations

ITEM_BYTES = {
    **dict.fromkeys(("bool", "uint8", "int8", "float8_e4m3fn", "float8_e5m2", "quint8", "qint8"), 1),
    **dict.fromkeys(("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32", "complex32", "qint32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}
DTYPES = frozenset(ITEM_BYTES)

# Every cost rule belongs to one family; `WorkTable.family` is an index into this list.
FAMILIES = (
    *("matmul", "convolution", "attention", "normalization", "softmax", "pointwise", "reduction", "pooling"),
    *("gather", "sort", "copy", "random", "optimizer", "fft", "linalg", "other", "depthwise", "kernel"),
)
