"""The test cases of the package onnx, one or more for each operator, on the chip."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import NO_ONNX

try:
    import onnx
except ImportError:
    pytest.skip(NO_ONNX, allow_module_level=True)

from bringup.frontends.onnx.graph import OPSETS, OnnxError, parse_model
from bringup.frontends.onnx.model import OnnxModel, check_operators
from bringup.frontends.onnx.tensors import as_array, as_tensor

# No chip has these: texts, and images in files. The cases must be refused with a sentence.
NOT_ON_A_CHIP = {"ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"}
RANDOM = ("test_bernoulli", "test_training_dropout")  # other random numbers than those that are stored
HALF = {
    np.dtype(np.float16): 1e-3,
    onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16): 8e-3,
}  # one bit of the largest


def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, on their data
        from onnx.backend.test.loader import load_model_tests

        loaded = load_model_tests(kind="node")
    return [case for case in loaded if opset(case) in OPSETS]


def opset(case: Any) -> int:
    return next((item.version for item in case.model.opset_import if item.domain in ("", "ai.onnx")), 0)


def difference(case: Any, wanted: Any, result: Any) -> str:
    """What is wrong with a result; empty if it is right."""
    if isinstance(wanted, list):
        if not isinstance(result, list) or len(result) != len(wanted):
            return "another number of items"
        return "".join(difference(case, *pair) for pair in zip(wanted, result, strict=True))
    if wanted is None:
        return "" if result is None else "a value"
    array = as_array(result)
    if array.shape != wanted.shape:
        return f"shape {array.shape}, not {wanted.shape}"
    if wanted.dtype.kind in "biufc" and wanted.dtype != array.dtype:
        return f"{array.dtype}, not {wanted.dtype}"
    rounding = HALF.get(wanted.dtype, 0.0) * float(np.abs(wanted.astype(np.float64)).max(initial=0))
    wide = wanted if wanted.dtype.kind in "bc" else wanted.astype(np.float64)
    if np.allclose(wide, array, rtol=case.rtol, atol=max(case.atol, 1e-6, rounding), equal_nan=True):
        return ""
    return "other values"


def run(case: Any) -> str:
    """Run a case on the chip; return what is wrong."""
    graph = parse_model(case.model, f"{case.name}.onnx")
    check_operators(graph, case.name)
    model = OnnxModel(graph, f"{case.name}.onnx").to("chip")
    wrong = ""
    for inputs, outputs in case.data_sets:
        values = [read(item) for item in inputs]
        results = model(*([as_tensor(part) for part in item] if isinstance(item, list) else item for item in values))
        results = results if isinstance(results, tuple) else (results,)
        assert len(results) == len(outputs)
        wrong += "".join(difference(case, read(item), own) for item, own in zip(outputs, results, strict=True))
    return wrong


def read(value: Any) -> Any:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def is_text(case: Any) -> bool:
    texts = [item.type.tensor_type.elem_type == onnx.TensorProto.STRING for item in case.model.graph.input]
    return any(texts) or bool({node.op_type for node in case.model.graph.node} & NOT_ON_A_CHIP)


def test_cases_give_what_onnx_says() -> None:
    torch.manual_seed(0)
    wrong: dict[str, str] = {}
    passed = 0
    numeric = [case for case in cases() if not is_text(case) and not case.name.startswith(RANDOM)]
    for case in numeric:
        try:
            problem = run(case)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"[:200]
        if problem:
            wrong[case.name] = problem
        passed += not problem
    assert not wrong
    assert passed >= 1200


def test_texts_and_files_of_images_are_refused() -> None:
    for case in cases():
        if is_text(case):
            with pytest.raises(OnnxError, match=r"without a translation|counterpart in torch|data type string"):
                run(case)
