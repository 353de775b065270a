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

FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
TF32 = ("matmul", "convolution", "rnn")  # products with a switch of torch: backends.cuda.matmul, backends.cudnn
TF32_DEFAULT = ("convolution", "rnn")  # those that torch allows unless the program says otherwise
PRODUCTS = ("matmul", "convolution")  # families of the matrix engine
CASTS = ("prims::convert_element_type",)  # casts of compiled graphs; eager casts belong to the family copy


def matrix_dtype(dtype: str) -> str:
    """Return the dtype under which a chip file states the peak of products. All float8 formats share one peak."""
    return FLOAT8[0] if dtype in FLOAT8 else dtype


# Every cost rule belongs to one family; `WorkTable.family` is an index into this list.
FAMILIES = (
    *("matmul", "convolution", "attention", "normalization", "softmax", "pointwise", "reduction", "pooling"),
    *("gather", "sort", "copy", "random", "optimizer", "fft", "linalg", "other", "depthwise", "kernel"),
    *("sparse", "rnn", "collective"),
)
