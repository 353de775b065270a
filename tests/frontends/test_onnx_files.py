"""Model files that are malformed, incomplete or hostile: one sentence each, and nothing is executed."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bringup
from tests.conftest import NO_ONNX
from tests.frontends.families import export

try:
    import onnx
except ImportError:
    pytest.skip(NO_ONNX, allow_module_level=True)

from onnx import TensorProto, helper, numpy_helper

from bringup.frontends.onnx import graph
from bringup.frontends.onnx.graph import OnnxError
from bringup.frontends.onnx.program import onnx_program, stand_ins
from bringup.limits import ONNX, Limit

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def model(nodes: list[Any], weights: list[Any] | None = None, **options: Any) -> Any:
    """A model of these nodes, from x to y."""
    float_vector = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    result = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph(nodes, "model", [float_vector], [result], weights or [])
    return helper.make_model(graph, **{"opset_imports": [helper.make_opsetid("", 21)], **options})


def relu(source: str, target: str, name: str = "") -> Any:
    return helper.make_node("Relu", [source], [target], name)


def refusal(path: Path, content: Any) -> str:
    """The sentence with which a model is refused."""
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with pytest.raises(OnnxError) as caught:
        bringup.load_onnx(path)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(str(path)), text
    return text.removeprefix(f"{path}: ")


def test_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(OnnxError, match="there is no such ONNX model"):
        bringup.load_onnx(path)
    assert "is not an ONNX model" in refusal(path, b"import os\n")
    assert "is not an ONNX model: it has no graph" in refusal(path, b"")


def test_operators_without_translation_are_all_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("StringSplit", ["x"], ["a", "b"], "texts")]
    nodes += [helper.make_node("Fancy", [f"v{i}" if i else "x"], [f"v{i + 1}"], domain="my.own") for i in range(3)]
    nodes += [relu("v3", "y")]
    text = refusal(tmp_path / "m.onnx", model(nodes))
    assert text == (
        "2 operators without a translation: my.own.Fancy (3 nodes, m.onnx:my.own.Fancy_2), "
        "StringSplit (1 node, m.onnx:texts)"
    ).replace("m.onnx:my.own.Fancy_2", "m.onnx:Fancy_2")


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([relu("x", "a"), relu("b", "c", "first"), relu("c", "b"), relu("b", "y")], "cycle, which holds back 3 nodes"),
        ([relu("x", "a"), relu("missing", "y", "reader")], "node 2 (reader) reads missing, which nothing produces"),
        ([relu("x", "a")], "nothing produces the output y"),
        ([relu("x", "y"), relu("x", "y")], "two nodes, inputs or weights have the name y"),
    ],
)
def test_malformed_graphs_are_explained(nodes: list[Any], text: str, tmp_path: Path) -> None:
    assert text in refusal(tmp_path / "m.onnx", model(nodes))


def test_nodes_in_another_order_are_sorted(tmp_path: Path) -> None:
    onnx.save(model([relu("a", "y"), relu("x", "a")]), tmp_path / "m.onnx")
    assert bringup.load_onnx(tmp_path / "m.onnx")(np.array([-1, 2], dtype=np.float32)).tolist() == [0, 2]


def test_unsupported_opsets_are_named(tmp_path: Path) -> None:
    for version in (12, 25):
        old = model([relu("x", "y")], opset_imports=[helper.make_opsetid("", version)])
        assert f"has opset {version}, and 13 to 24 are supported" in refusal(tmp_path / "m.onnx", old)


def external(**entries: str) -> Any:
    """A model whose weight lies in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    return model([helper.make_node("Add", ["x", "w"], ["y"])], [weight])


def test_external_data_stays_in_the_models_folder(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(8))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "short").write_bytes(bytes(4))
    path = folder / "m.onnx"
    assert "weight w is in the external file gone, which is missing" in refusal(path, external(location="gone"))
    for location in ("../secret", str(tmp_path / "secret"), "link", ""):
        assert "outside of the model's folder" in refusal(path, external(location=location))
    assert "does not hold its 8 bytes at offset 0" in refusal(path, external(location="short"))
    (folder / "long").write_bytes(bytes(16))
    for offset in ("-4", "12", "99"):
        assert "does not hold its 8 bytes" in refusal(path, external(location="long", offset=offset))
    assert "no number" in refusal(path, external(location="long", offset="many"))
    for location in ("a\0b", "a" * 5000):
        assert "which cannot be opened" in refusal(path, external(location=location))
    (folder / "empty").write_bytes(b"")
    content = external(location="empty")
    content.graph.initializer[0].dims[:] = [0, 1 << 62, 1 << 62]
    assert "fewer values than its shape" in refusal(path, content)
    content.graph.initializer[0].dims[:] = [1] * 70
    assert "weight w has 70 dimensions, and 32 are supported" in refusal(path, content)


def test_weights_that_are_damaged_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    huge = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40, 1 << 40], raw_data=bytes(8))
    assert "weight w has fewer values than its shape" in refusal(path, model(nodes, [huge]))
    negative = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[-2], raw_data=bytes(8))
    assert "weight w has a negative dimension" in refusal(path, model(nodes, [negative]))
    value = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    place = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    for sizes, problem in (([-2], "negative dimension"), ([0, 1 << 62], "fewer values"), ([1 << 30], "elements")):
        sparse = model(nodes)
        sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(value, place, sizes))
        assert "sparse weight w" in refusal(path, sparse) and problem in refusal(path, sparse)
    short = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], raw_data=bytes(8))
    assert "weight w is damaged" in refusal(path, model(nodes, [short]))
    texts = numpy_helper.from_array(np.array(["a", "b"], dtype=object), "w")
    assert "weight w has the data type string" in refusal(path, model(nodes, [texts]))
    unknown = TensorProto(name="w", data_type=99, dims=[2], raw_data=bytes(8))
    assert "data type 99, which ONNX does not define" in refusal(path, model(nodes, [unknown]))


def test_functions_that_call_themselves_or_multiply_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    def function(name: str, nodes: list[Any], overload: str = "") -> Any:
        opset = [helper.make_opsetid("", 21)]
        return helper.make_function("own", name, ["a"], ["b"], nodes, opset, overload=overload)

    def call(name: str, source: str, target: str, overload: str = "") -> Any:
        return helper.make_node(name, [source], [target], domain="own", overload=overload)

    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    path = tmp_path / "m.onnx"
    itself = model([call("f", "x", "y")], functions=[function("f", [call("f", "a", "b")])], opset_imports=opsets)
    assert "its function f calls itself" in refusal(path, itself)
    levels = [function("f0", [relu("a", "b")])]
    levels += [function(f"f{i}", [call(f"f{i - 1}", "a", "c"), call(f"f{i - 1}", "c", "b")]) for i in range(1, 60)]
    bomb = model([call("f59", "x", "y")], functions=levels, opset_imports=opsets)
    assert "its functions expand to more than 262,144 nodes" in refusal(path, bomb)
    other = [function("f0", [relu("a", "b")], "a")]
    for i in range(1, 40):
        doubled = [call(f"f{i - 1}", "a", "c", "a"), call(f"f{i - 1}", "c", "b", "a")]
        other += [function(f"f{i}", doubled, "a")]
    trivial = [function(f"f{i}", [relu("a", "b")], "b") for i in range(40)]
    hidden = model([call("f39", "x", "y", "a")], functions=other + trivial, opset_imports=opsets)
    assert "its functions expand to more than 262,144 nodes" in refusal(path, hidden)
    same = model([call("f0", "x", "y")], functions=[levels[0], levels[0]], opset_imports=opsets)
    assert "two of its functions have the same name and overload" in refusal(path, same)
    chain = [levels[0], *(function(f"f{i}", [call(f"f{i - 1}", "a", "b")]) for i in range(1, 1500))]
    deep = model([call("f1499", "x", "y")], functions=chain, opset_imports=opsets)
    assert "its calls of functions are nested deeper than 64" in refusal(path, deep)
    onnx.save(model([call("f2", "x", "y")], functions=levels[:3], opset_imports=opsets), path)
    assert bringup.load_onnx(path)(np.array([-1, 2], dtype=np.float32)).tolist() == [0, 2]


def test_call_with_more_inputs_than_its_function_has(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "f", ["a"], ["b"], [relu("a", "b")], opsets[:1])
    for inputs, outputs, what in ((["x", "x"], ["y"], "input"), (["x"], ["y", "z"], "output")):
        call = helper.make_node("f", inputs, outputs, "call", domain="own")
        text = refusal(tmp_path / "m.onnx", model([call], functions=[function], opset_imports=opsets))
        assert text == f"its function f has 1 {what}, and node call has 2"


def test_branch_with_fewer_outputs_than_its_node_is_named(tmp_path: Path) -> None:
    graphs = [helper.make_graph([], name, [], []) for name in ("yes", "no")]
    node = helper.make_node("If", ["c"], ["y"], "choose", then_branch=graphs[0], else_branch=graphs[1])
    onnx.save(model([node], [numpy_helper.from_array(np.array(True), "c")]), tmp_path / "m.onnx")
    loaded = bringup.load_onnx(tmp_path / "m.onnx")
    with pytest.raises(OnnxError, match=r"m.onnx:choose \(If, node 1\): gives 0 outputs, not 1"):
        loaded(np.zeros(2, dtype=np.float32))


def test_loop_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ONNX, "turns", Limit(100, "of the test"))
    names = ("number", "go", "state")
    body = helper.make_graph(
        [relu("state", "next"), helper.make_node("Identity", ["go"], ["again"])],
        "body",
        [helper.make_empty_tensor_value_info(name) for name in names],
        [helper.make_empty_tensor_value_info(name) for name in ("again", "next")],
    )
    count = numpy_helper.from_array(np.array(1 << 40), "count")
    onnx.save(
        model([helper.make_node("Loop", ["count", "", "x"], ["y"], "l", body=body)], [count]), tmp_path / "m.onnx"
    )
    loaded = bringup.load_onnx(tmp_path / "m.onnx")
    with pytest.raises(OnnxError, match=r"m.onnx:l \(Loop, node 1\): its loops run their graphs more than 100 times"):
        loaded(np.zeros(2, dtype=np.float32))


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "MatMul", "Add", "Concat"])
def test_large_constants_are_not_computed_when_a_model_is_loaded(op: str, tmp_path: Path) -> None:
    million = 1 << 20
    constants = {
        "size": np.array([million, million]),
        "one": np.ones(1, dtype=np.float32),
        "column": np.ones((million, 1), dtype=np.float32),
        "row": np.ones((1, million), dtype=np.float32),
    }
    inputs = {"ConstantOfShape": ["size"], "Expand": ["one", "size"], "Concat": ["row", "row"]}
    names = inputs.get(op, ["column", "row"])
    nodes = [helper.make_node(op, names, ["v0"], "big", **({"axis": 1} if op == "Concat" else {}))]
    if op == "Concat":  # twice as long with every node
        nodes += [helper.make_node(op, [f"v{i}"] * 2, [f"v{i + 1}"], axis=1) for i in range(20)]
    weights = [numpy_helper.from_array(constants[name], name) for name in dict.fromkeys(names)]
    onnx.save(model([*nodes, relu(nodes[-1].output[0], "y")], weights), tmp_path / "m.onnx")
    bringup.load_onnx(tmp_path / "m.onnx", device="cpu")  # 4 TiB only if it runs


def test_large_helpers_are_not_computed_when_a_model_is_loaded(tmp_path: Path) -> None:
    many = 1 << 40  # elements, of which no host has the memory
    constants = {
        "one": np.ones((1, 1), dtype=np.float32),
        "none": np.ones((1, 0), dtype=np.float32),
        "pads": np.array([0, 0, many, 0]),
        "sizes": np.array([1 << 20, 1 << 20]),
        "numbers": np.array(many),
    }
    nodes = [
        helper.make_node("Pad", ["one", "pads"], ["a"], "pad", mode="edge"),
        helper.make_node("Pad", ["none", "pads"], ["b"], "empty", mode="edge"),
        helper.make_node("Resize", ["one", "", "", "sizes"], ["c"], "resize", mode="cubic"),
        helper.make_node("MelWeightMatrix", ["numbers"] * 5, ["d"], "mel"),
        helper.make_node("AveragePool", ["image"], ["e"], "pool", kernel_shape=[1, 1], pads=[0, 0, many, 0]),
        relu("x", "y"),
    ]
    constants["image"] = np.ones((1, 1, 1, 1), dtype=np.float32)
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    onnx.save(model(nodes, weights), tmp_path / "m.onnx")
    loaded = bringup.load_onnx(tmp_path / "m.onnx", device="cpu")
    assert len(loaded.graph.steps) == len(nodes)


def test_constants_have_a_total_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ONNX, "folded elements", Limit(100, "of the test"))
    size = numpy_helper.from_array(np.array([30]), "size")
    nodes = [helper.make_node("ConstantOfShape", ["size"], [f"c{i}"], f"c{i}") for i in range(10)]
    onnx.save(model([*nodes, relu("x", "y")], [size]), tmp_path / "m.onnx")
    loaded = bringup.load_onnx(tmp_path / "m.onnx", device="cpu")
    assert len(loaded.graph.steps) == 10 - 3 + 1  # 3 of 30 elements fit into 102


def test_weight_with_a_long_name_is_in_few_modules(tmp_path: Path) -> None:
    name = "a." * 3000 + "weight"
    weight = numpy_helper.from_array(np.ones(2, dtype=np.float32), name)
    onnx.save(model([helper.make_node("Add", ["x", name], ["y"])], [weight]), tmp_path / "m.onnx")
    assert bringup.load_onnx(tmp_path / "m.onnx")(np.zeros(2, dtype=np.float32)).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("op", "inputs", "reason"),
    [
        ("Range", [0.0, 1.0, 0.0], "division"),
        ("Range", [0.0, np.inf, 1.0], "infinity"),
        ("Resize", [[1.0]], "it needs scales or sizes"),
        ("Einsum", [[1.0]], "it needs an equation"),
        ("Split", [[1.0]], "as many parts as outputs"),
    ],
)
def test_node_that_python_refuses_is_named(op: str, inputs: list[Any], reason: str, tmp_path: Path) -> None:
    options = {"num_outputs": 1 << 40} if op == "Split" else {}
    weights = [numpy_helper.from_array(np.float32(value), f"w{i}") for i, value in enumerate(inputs)]
    nodes = [helper.make_node(op, [item.name for item in weights], ["y"], "wrong", **options)]
    onnx.save(model(nodes, weights), tmp_path / "m.onnx")
    loaded = bringup.load_onnx(tmp_path / "m.onnx")
    with pytest.raises(OnnxError, match=rf"m.onnx:wrong \({op}, node 1\).*{reason}"):
        loaded(np.zeros(2, dtype=np.float32))


def test_error_of_a_node_names_it(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((3, 3), dtype=np.float32), "w")
    onnx.save(model([helper.make_node("MatMul", ["x", "w"], ["y"], "/layer/MatMul")], [weight]), tmp_path / "m.onnx")
    loaded = bringup.load_onnx(tmp_path / "m.onnx")
    with pytest.raises(OnnxError, match=r"m.onnx:/layer/MatMul \(MatMul, node 1\) cannot run on float32\[2\], float32"):
        loaded(np.zeros(2, dtype=np.float32))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "input x has shape batchx3x64x64: give its size, as in --input x=1x3x64x64"),
        (["--input", "z=1x3x64x64"], "has no input z; its inputs: x"),
        (["--input", "x=1x4x64x64"], "input x has shape batchx3x64x64, got 1x4x64x64"),
        (["--input", "x=1x3x64x64:int7"], "there is no data type int7"),
        (["--input", "x=1x3x64x64:int64"], "has the data type float32, got int64"),
        (["--input", "x=99999999999999999999"], "--input must be NAME=1x3x224x224:float32"),
        (["--input", f"x={'9' * 5000}"], "--input must be NAME=1x3x224x224:float32"),
        (["--input", "x"], "--input must be NAME=1x3x224x224:float32"),
        (["--steps", "none"], "'none' is not a valid integer"),
        (["--what"], "No such option '--what'"),
    ],
)
def test_options_that_do_not_fit_are_explained(arguments: list[str], text: str, tmp_path: Path) -> None:
    export("resnet", tmp_path / "m.onnx", input_names=["x"], dynamic_axes={"x": {0: "batch"}})
    with pytest.raises(OnnxError) as caught:
        onnx_program(str(tmp_path / "m.onnx"), arguments)
    assert text in str(caught.value)


def test_mistakes_end_with_exit_code_2(tmp_path: Path, refused: Run, bringup_run: Run) -> None:
    onnx.save(model([relu("x", "a")]), tmp_path / "m.onnx")
    done = refused("run", "m.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bringup: m.onnx: nothing produces the output y\n"
    weight = numpy_helper.from_array(np.zeros((3, 3), dtype=np.float32), "w")
    onnx.save(model([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], [weight]), tmp_path / "m.onnx")
    done = bringup_run("m.onnx")
    assert done.returncode == 2
    assert "bringup: m.onnx:product (MatMul, node 1) cannot run on float32[2], float32[3, 3]" in done.stderr


def test_input_without_memory_is_named() -> None:
    sizes = [10**17, 10**17]
    with pytest.raises(OnnxError, match="input x=100000000000000000x100000000000000000 does not fit into memory"):
        stand_ins([("x", sizes, torch.float32)])


def test_input_larger_than_the_machine_is_only_described_in_a_dry_run() -> None:
    inputs = [("x", [1 << 45], torch.int8)]  # 32 TiB
    with pytest.raises(OnnxError, match="it is larger than what this machine has"):
        stand_ins(inputs)
    few, many = stand_ins([("few", [2], torch.int64), ("many", [1 << 21], torch.int64)], dry=True)
    assert few.tolist() == [1, 1] and many.shape == (1 << 21,)


def test_damaged_files_end_in_a_sentence(tmp_path: Path) -> None:
    export("speech", tmp_path / "whole.onnx")
    whole, chance = (tmp_path / "whole.onnx").read_bytes(), random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            place = chance.randrange(len(damaged))
            if chance.random() < 0.7:
                damaged[place] = chance.randrange(256)
            else:
                del damaged[place : place + chance.randrange(1, 30)]
        (tmp_path / "m.onnx").write_bytes(damaged)
        try:
            program = onnx_program(str(tmp_path / "m.onnx"))
            bringup.load_onnx(tmp_path / "m.onnx", device="cpu")(*stand_ins(program.inputs))
        except OnnxError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_reader_imports_no_code_of_the_model() -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in Path(graph.__file__).parent.glob("*.py")}
    assert {"graph.py", "model.py", "tensors.py"} <= set(files)
    for name, source in files.items():
        words = re.findall(r"\b(?:eval|exec|__import__)\(|pickle|torch\.load|importlib", source)
        assert not words, name
        compiled = re.findall(r"(?<!re\.)(?<!torch\.)\bcompile\((.*)", source)
        assert len(compiled) <= (name == "model.py"), name  # the line that stands for a node, which is a constant
    assert "torch" not in files["graph.py"]
