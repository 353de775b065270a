"""ONNX models on the chip: their numbers, the names of their nodes in a recording, and the command line."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bringup
from tests.conftest import NO_ONNX
from tests.frontends.families import FAMILIES, export

try:
    import onnx
except ImportError:
    pytest.skip(NO_ONNX, allow_module_level=True)

from onnx import TensorProto, helper, numpy_helper

Run = Callable[..., "subprocess.CompletedProcess[str]"]
FLOAT = TensorProto.FLOAT


def save(path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: list[str], weights: dict[str, Any]) -> Path:
    """Write a model of these nodes; an input is given by its shape and, unless it is float, its type."""
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


@pytest.mark.parametrize("name", FAMILIES)
def test_model_computes_what_the_original_does(name: str, tmp_path: Path) -> None:
    original, inputs = export(name, tmp_path / "model.onnx")
    with torch.no_grad():
        wanted = original(*inputs)
    results = bringup.load_onnx(tmp_path / "model.onnx")(*inputs)
    for result, want in zip(*(item if isinstance(item, tuple) else (item,) for item in (results, wanted)), strict=True):
        assert result.device.type == "chip"
        torch.testing.assert_close(result.cpu(), want, rtol=1e-5, atol=1e-6 * float(want.abs().max()))


def test_computed_shapes_do_not_break_a_compiled_graph(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "places"], ["ends"]),
        helper.make_node("Gather", ["shape", "last"], ["length"]),
        helper.make_node("Mul", ["ends", "twice"], ["more"]),
        helper.make_node("Concat", ["more", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["x", "sizes"], ["halves"]),
        helper.make_node("Cast", ["length"], ["factor"], to=FLOAT),
        helper.make_node("Mul", ["halves", "factor"], ["y"]),
    ]
    weights = {"places": [0], "last": np.int64(-1), "twice": [2], "rest": [-1, 3]}
    path = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["batch", 4, 6])}, ["y", "sizes"], weights)
    torch.compiler.reset()
    compiled = torch.compile(bringup.load_onnx(path), fullgraph=True)
    for batch in (2, 3, 5):
        x = torch.rand(batch, 4, 6)
        result, sizes = compiled(x)
        torch.testing.assert_close(result.cpu(), x.reshape(2 * batch, -1, 3) * 6)
        assert sizes.tolist() == [2 * batch, -1, 3]


def test_product_and_bias_are_one_launch_unless_others_read_the_product(tmp_path: Path) -> None:
    weights = {
        **{"w": np.random.rand(4, 3).astype(np.float32), "bias": np.arange(3, dtype=np.float32)},
        "row": np.ones((1, 3), dtype=np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "joined"),
        helper.make_node("Add", ["bias", "p"], ["y"]),
        helper.make_node("MatMul", ["x", "w"], ["q"], "read twice"),
        helper.make_node("Add", ["q", "bias"], ["z"]),
        helper.make_node("MatMul", ["x", "w"], ["r"], "no bias"),
        helper.make_node("Add", ["r", "row"], ["v"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [2, 5, 4])}, ["y", "q", "z", "v"], weights)
    model, x = bringup.load_onnx(path), torch.rand(2, 5, 4)
    assert [(step.node.op, len(step.node.inputs)) for step in model.graph.steps] == [
        *(("MatMul", 3), ("MatMul", 2), ("Add", 2), ("MatMul", 2), ("Add", 2))
    ]
    product = x @ torch.from_numpy(weights["w"])
    biased = product + torch.from_numpy(weights["bias"])
    for result, wanted in zip(model(x), (biased, product, biased, product + 1), strict=True):
        torch.testing.assert_close(result.cpu(), wanted)


@pytest.mark.parametrize(("name", "opset"), [("bert", 13), ("gpt", 20), ("speech", 13), ("vit", 20)])
def test_opsets_agree(name: str, opset: int, tmp_path: Path) -> None:
    original, inputs = export(name, tmp_path / "model.onnx", opset)
    result = bringup.load_onnx(tmp_path / "model.onnx")(*inputs).cpu()
    torch.testing.assert_close(result, original(*inputs).detach(), rtol=1e-5, atol=1e-5)


def test_dynamic_axes_take_any_size(tmp_path: Path) -> None:
    axes = {"ids": {0: "batch", 1: "length"}}
    original, _ = export("tagger", tmp_path / "model.onnx", input_names=["ids"], dynamic_axes=axes)
    model = bringup.load_onnx(tmp_path / "model.onnx")
    for shape in ((1, 3), (4, 7)):
        ids = torch.randint(0, 50, shape)
        torch.testing.assert_close(model(ids=ids).cpu(), original(ids).detach(), rtol=1e-5, atol=1e-6)


def test_shapes_are_computed_without_a_look_at_the_chip(tmp_path: Path) -> None:
    axes = {"ids": {0: "batch", 1: "length"}}
    export("gpt", tmp_path / "model.onnx", input_names=["ids"], dynamic_axes=axes)
    model, ids = bringup.load_onnx(tmp_path / "model.onnx"), torch.zeros(2, 5, dtype=torch.int64, device="chip")
    model(ids)
    before = bringup.launch_stats()["synchronizations"]
    model(ids)
    assert bringup.launch_stats()["synchronizations"] == before


def test_nodes_are_the_lines_of_a_recording(tmp_path: Path) -> None:
    _, inputs = export("resnet", tmp_path / "model.onnx")
    model, x = bringup.load_onnx(tmp_path / "model.onnx"), inputs[0].to("chip")
    with bringup.record() as trace:
        model(x)
    launched = trace.columns["kind"] == 0
    lines = {trace.lines[line] for line in trace.columns["line"][launched]}
    assert "model.onnx:/layer1/conv2/Conv:6" in lines
    assert {line.partition(":")[0] for line in lines} == {"model.onnx"}


def test_weights_have_the_names_of_the_file(tmp_path: Path) -> None:
    original, _ = export("bert", tmp_path / "model.onnx")
    model = bringup.load_onnx(tmp_path / "model.onnx")
    assert {"words.weight", "layers.0.norm1.weight", "pooler.bias"} <= set(dict(model.named_parameters()))
    assert not any(item.requires_grad for item in model.parameters())
    weights = dict(model.named_parameters())
    for name, weight in original.named_parameters():
        if name in weights:
            assert torch.equal(weights[name].cpu(), weight), name


def test_values_are_freed_when_no_node_reads_them_any_more(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], f"relu{i}") for i in range(20)]
    path = save(tmp_path / "model.onnx", nodes, {"v0": (FLOAT, [1 << 20])}, ["v20"], {})
    model, x = bringup.load_onnx(path), torch.zeros(1 << 20, device="chip")
    torch.chip.reset_peak_memory_stats()  # type: ignore[attr-defined]
    before = torch.chip.memory_allocated()  # type: ignore[attr-defined]
    model(x)
    peak = torch.chip.max_memory_allocated() - before  # type: ignore[attr-defined]
    assert peak == 2 * 4 * 2**20  # the input and the output of one node


def test_model_can_be_trained_copied_and_moved(tmp_path: Path) -> None:
    _, inputs = export("resnet", tmp_path / "model.onnx")
    model = bringup.load_onnx(tmp_path / "model.onnx").requires_grad_(True)
    model(*inputs).sum().backward()
    assert all(item.grad is not None for item in model.parameters())
    moved = copy.deepcopy(model).to("cpu")
    torch.testing.assert_close(moved(*inputs), model(*inputs).cpu())


def test_compiled_model_keeps_the_names_of_nodes(tmp_path: Path) -> None:
    _, inputs = export("recommender", tmp_path / "model.onnx")
    model = bringup.load_onnx(tmp_path / "model.onnx")
    x = [item.to("chip") for item in inputs]
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(*x).cpu(), model(*x).cpu(), rtol=1e-5, atol=1e-6)
    with bringup.record() as trace:
        compiled(*x)
    with bringup.record() as eager:
        model(*x)
    assert trace.launches < eager.launches
    assert any(line.startswith("model.onnx:/deep/deep.0/Gemm:") for line in trace.lines)


def test_quantized_convolution_equals_the_reference(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight = generator.integers(-127, 127, (8, 3, 3, 3), dtype=np.int8)
    weights = {
        "w": weight,
        "w_scale": np.linspace(0.01, 0.02, 8, dtype=np.float32),
        "w_zero": np.zeros(8, dtype=np.int8),
        "x_scale": np.float32(0.03),
        "x_zero": np.uint8(120),
        "y_scale": np.float32(0.4),
        "y_zero": np.uint8(7),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"], "quantize"),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], "weight", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "y_scale", "y_zero"], ["y"], "requantize"),
    ]
    path = save(tmp_path / "model.onnx", nodes, {"x": (FLOAT, [1, 3, 8, 8])}, ["y"], weights)
    x = generator.normal(size=(1, 3, 8, 8)).astype(np.float32)
    from onnx.reference import ReferenceEvaluator

    (wanted,) = ReferenceEvaluator(str(path)).run(None, {"x": x})
    model = bringup.load_onnx(path)
    result = model(x).cpu().numpy()
    assert result.dtype == np.uint8 and np.abs(result.astype(int) - wanted).max() <= 1  # a half may round either way
    assert (result != wanted).mean() < 0.01
    assert {str(item.dtype) for item in model.buffers()} == {"torch.int8", "torch.float32"}, "weights stay quantized"


def test_loops_and_branches_follow_values(tmp_path: Path) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["value", "two"], ["doubled"], "double"),
            helper.make_node("ReduceSum", ["doubled"], ["total"], "sum", keepdims=0),
            helper.make_node("Less", ["total", "limit"], ["again"], "again"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", FLOAT, [2]),
        ],
        [helper.make_empty_tensor_value_info(name) for name in ("again", "doubled")],
    )
    nodes = [helper.make_node("Loop", ["", "", "x"], ["y"], "loop", body=body)]
    weights = {"two": np.float32(2), "limit": np.float32(100)}
    model = bringup.load_onnx(save(tmp_path / "model.onnx", nodes, {"x": (FLOAT, [2])}, ["y"], weights))
    assert model(torch.tensor([1.0, 2.0])).tolist() == [64.0, 128.0]  # 3 * 2**6 is the first sum above 100


@pytest.mark.parametrize("kind", ["weight", "Constant"])
def test_branches_may_use_the_same_names(kind: str, tmp_path: Path) -> None:
    def branch(value: float) -> Any:
        tensor = numpy_helper.from_array(np.float32([value]), "w")
        nodes = [helper.make_node("Add", ["x", "w"], ["r"], "add")]
        if kind == "Constant":
            nodes.insert(0, helper.make_node("Constant", [], ["w"], "constant", value=tensor))
        result = [helper.make_empty_tensor_value_info("r")]
        return helper.make_graph(nodes, "branch", [], result, [tensor] if kind == "weight" else [])

    node = helper.make_node("If", ["c"], ["y"], "if", then_branch=branch(1), else_branch=branch(2))
    path = save(tmp_path / "model.onnx", [node], {"c": (TensorProto.BOOL, []), "x": (FLOAT, [1])}, ["y"], {})
    model = bringup.load_onnx(path)
    assert [model(np.bool_(c), np.zeros(1, dtype=np.float32)).tolist() for c in (True, False)] == [[1], [2]]


@pytest.mark.parametrize("op", ["InstanceNormalization", "GroupNormalization", "BatchNormalization"])
def test_normalization_of_one_element_gives_the_bias(op: str, tmp_path: Path) -> None:
    weights = {"s": np.ones(2, dtype=np.float32), "b": np.float32([3, 4])}
    names = ["x", "s", "b", *(["s", "s"] if op == "BatchNormalization" else [])]
    options = {"GroupNormalization": {"num_groups": 2}, "BatchNormalization": {"training_mode": 1}}.get(op, {})
    nodes = [helper.make_node(op, names, ["y"], "normalize", **options)]
    path = save(tmp_path / "model.onnx", nodes, {"x": (FLOAT, [1, 2, 1, 1])}, ["y"], weights)
    result = bringup.load_onnx(path)(np.full((1, 2, 1, 1), 7, dtype=np.float32))
    result = result[0] if isinstance(result, tuple) else result
    # 7 / sqrt(1e-5) is 2,214, and float32 has a number there every 2**-12.
    assert result.reshape(-1).tolist() == pytest.approx([3, 4], abs=2**-12)


def test_model_is_loaded_where_torch_does_not_load_devices(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": (FLOAT, [1])}, ["y"], {})
    code = f"import bringup; print(bringup.load_onnx({str(path)!r})._place.device.type)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "chip\n", done.stderr


def test_external_data_is_mapped(tmp_path: Path) -> None:
    original, inputs = export("resnet", tmp_path / "inline.onnx")
    onnx.save(
        onnx.load(tmp_path / "inline.onnx"),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert (tmp_path / "weights.bin").stat().st_size > 40_000
    result = bringup.load_onnx(tmp_path / "model.onnx")(*inputs).cpu()
    torch.testing.assert_close(result, original(*inputs).detach(), rtol=1e-5, atol=1e-6)


def test_prediction_takes_a_path(tmp_path: Path) -> None:
    export("resnet", tmp_path / "model.onnx")
    prediction = bringup.predict(tmp_path / "model.onnx", chip="t4")
    assert prediction.framework == "onnx" and prediction.launches == 21 and prediction.samples == 2
    with_inputs = bringup.predict(str(tmp_path / "model.onnx"), torch.zeros(2, 3, 64, 64), chip="t4")
    assert with_inputs.step_seconds == prediction.step_seconds


def test_run_takes_a_model(tmp_path: Path, bringup_run: Run) -> None:
    axes = {"x": {0: "batch"}}
    export("resnet", tmp_path / "model.onnx", input_names=["x"], output_names=["y"], dynamic_axes=axes)
    done = bringup_run("--chip", "t4", "model.onnx", "--input", "x=4x3x64x64:float32", "--steps", "2")
    assert done.returncode == 0 and "y 4x10:float32" in done.stdout, done.stderr
    summary = json.loads((tmp_path / "bringup-model" / "summary.json").read_text())
    assert (summary["framework"], summary["steps"], summary["samples"]) == ("onnx", 2, 4)
    assert ("parameters", "fc") in {(owner["kind"], owner["module"]) for owner in summary["memory"]["owners"]}
    assert all(kernel["line"].startswith("model.onnx:/") for kernel in summary["kernels"])
    dry = bringup_run("--chip", "t4", "--dry", "--out", "dry", "model.onnx", "--input", "x=4x3x64x64", "--steps", "2")
    assert dry.returncode == 0, dry.stderr
    assert json.loads((tmp_path / "dry" / "summary.json").read_text())["step_seconds"] == summary["step_seconds"]


def test_chip_time_belongs_to_nodes(tmp_path: Path) -> None:
    _, inputs = export("bert", tmp_path / "model.onnx")
    prediction = bringup.predict(tmp_path / "model.onnx", *inputs, chip="t4")
    timeline, trace = prediction.timeline, prediction.trace
    launched = np.flatnonzero(trace.columns["kind"] == 0)
    seconds = (timeline.end - timeline.start)[launched]
    named = [trace.lines[line].startswith("model.onnx:") for line in trace.columns["line"][launched]]
    assert seconds[named].sum() >= 0.95 * seconds.sum()
