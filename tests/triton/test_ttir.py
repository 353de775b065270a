"""What three releases of Triton print for the tutorials' kernels: read, and run without Triton."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from bringup.errors import BringupError
from bringup.triton import require_triton, ttir
from bringup.triton.executor import Kernel
from bringup.triton.memory import Buffer, KernelError, Memory
from bringup.triton.values import Pointer

FOLDER = Path(__file__).parent / "ttir"
FILES = sorted(FOLDER.glob("*/*.ttir"))
RELEASES = ["3.5.1", "3.6.0", "3.7.1"]


def read(release: str, name: str) -> Kernel:
    return Kernel(ttir.parse((FOLDER / release / f"{name}.ttir").read_text()))


def launch(kernel: Kernel, grid: tuple[int, int, int], *given: Any) -> Any:
    function = kernel.module.kernel
    buffers, arguments = {}, []
    for place, value in enumerate(given):
        if not isinstance(value, torch.Tensor):
            arguments.append(value)
            continue
        storage = value.untyped_storage()
        memory = torch.empty(0, dtype=torch.uint8).set_(storage)
        start = value.data_ptr() - storage.data_ptr()
        buffers[place] = Buffer(function.names[place], memory, start, storage.data_ptr())
        arguments.append(Pointer(place, 0, function.types[function.arguments[place]].element))
    return kernel.run(grid, arguments, Memory(buffers, kernel.written))


def test_every_release_has_the_same_kernels() -> None:
    names = [sorted(path.name for path in (FOLDER / release).iterdir()) for release in RELEASES]
    assert names[0] == names[1] == names[2] and len(names[0]) == 11


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_file_is_read_with_types_and_lines(path: Path) -> None:
    module = ttir.parse(path.read_text())
    function = module.kernel
    assert function.name == path.stem
    ops = list(function.walk())
    memory = [op for op in ops if op.name in ("tt.load", "tt.store")]
    assert memory and all(op.line.startswith("tutorials.py:") for op in memory)
    for op in ops:
        assert len(set(op.results)) == len(op.results) and max((*op.operands, *op.results), default=0) < len(
            function.types
        )
    assert Kernel(module).written, "every kernel writes something"


@pytest.mark.parametrize("release", RELEASES)
def test_vector_add_runs_from_its_text(release: str) -> None:
    x, y, out = torch.rand(1500), torch.rand(1500), torch.zeros(1500)
    launch(read(release, "add_kernel"), (2, 1, 1), x, y, out, 1500)
    assert torch.equal(out, x + y)
    with pytest.raises(KernelError, match=r"'x_ptr' at element 1500.*program \(1, 0, 0\).*tutorials.py:\d+"):
        launch(read(release, "add_kernel"), (2, 1, 1), x, y, out, 1600)


@pytest.mark.parametrize("release", RELEASES)
def test_softmax_runs_from_its_text(release: str) -> None:
    x = torch.randn(8, 100)
    out = torch.zeros(8, 100)
    launch(read(release, "softmax_kernel"), (3, 1, 1), out, x, 100, 100, 8, 100)
    torch.testing.assert_close(out, torch.softmax(x, 1))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("i32", ttir.Type("i32")),
        ("tensor<16x32xf32>", ttir.Type("f32", (16, 32))),
        ("!tt.ptr<bf16>", ttir.Type("bf16", (), True)),
        ("tensor<8x!tt.ptr<f8E4M3FN>>", ttir.Type("f8E4M3FN", (8,), True)),
        ("!tt.ptr<!tt.ptr<f32>>", ttir.Type("i64", (), True)),
        ("index", ttir.Type("i64")),
    ],
)
def test_types(text: str, kind: ttir.Type) -> None:
    assert ttir.parse_type(text) == kind


def test_infinity_is_read_from_its_bits() -> None:
    text = (FOLDER / "3.7.1" / "softmax_kernel.ttir").read_text()
    constants = [op.attributes["value"] for op in ttir.parse(text).kernel.walk() if op.name == "arith.constant"]
    assert float("-inf") in constants


def test_without_triton_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BringupError, match=r"--compile triton needs Triton.*pip install \"bringup\[triton\]\""):
        require_triton("--compile triton")


@pytest.mark.parametrize("text", ["", "module {\n}", "hello"])
def test_text_without_a_kernel_is_refused(text: str) -> None:
    with pytest.raises(BringupError, match="no public function"):
        ttir.parse(text)


@pytest.mark.parametrize("loops", [1, 3, 4, 9])
def test_pointer_carried_out_of_nested_loops_is_written(loops: int) -> None:
    lines = ["module {", "tt.func public @nested(%a: !tt.ptr<f32>, %b: !tt.ptr<f32>, %n: i32, %v: f32) {"]
    for i in range(loops):
        outer = f"%p{i - 1}" if i else "%a"
        lines.append(f"%r{i} = scf.for %i{i} = %n to %n step %n iter_args(%p{i} = {outer}) -> (!tt.ptr<f32>) : i32 {{")
    for i in reversed(range(loops)):
        given = "%b" if i == loops - 1 else f"%r{i + 1}"
        lines += [f"scf.yield {given} : !tt.ptr<f32>", "}"]
    lines += ["tt.store %r0, %v : !tt.ptr<f32>", "tt.return", "}", "}"]
    assert Kernel(ttir.parse("\n".join(lines))).written == {0, 1}


K = "module {\ntt.func public @k(%a: !tt.ptr<f32>) {\n"
CALLS = "\n".join(f"#loc{i} = loc(callsite(#loc{i - 1} at #loc{i - 1}))" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (K + "%0 = arith.constant 1 : i32\n", "the text ends early.*%0 = arith.constant 1 : i32"),
        ("tt.func public k(%a: i32) {\n}\n", "a function has no name.*tt.func public k"),
        (K + "%c = arith.constant dense<3x2> : tensor<16xi32>\ntt.return\n}\n", "ValueError.*dense<3x2>"),
        (K + "%c = arith.constant " + "9" * 5000 + " : i32\ntt.return\n}\n", "ValueError"),
        (K + "%c = arith.constant 0x" + "f" * 99 + " : f32\ntt.return\n}\n", "cannot read TTIR at this line"),
        (K + "scf.if %a {\n" * 2000, "RecursionError"),
        (K + "%0 = tt.load %a " + "(" * 200 + "\n", "brackets do not match, or are nested too deeply"),
        (K + "%0 = tt.load %a }}}} : f32\n", "brackets do not match"),
        (K + "%0 = tt.load %a, " + "a" * 2**17 + "\n", "131,089 letters in a line, but bringup reads at most 131,072"),
        (K + "\n" * 2**23, "letters, but bringup reads at most 8,388,608"),
        (K + "tt.return loc(#loc59)\n}\n}\n#loc0 = loc(unknown)\n" + CALLS, "a location has too many frames"),
        (K + "tt.return loc(#loc0)\n}\n}\n#loc0 = loc(#loc0)\n", "RecursionError"),
    ],
)
def test_text_that_is_not_ttir_is_one_sentence(text: str, problem: str) -> None:
    with pytest.raises(BringupError, match=problem) as caught:
        ttir.parse(text)
    assert "\n" not in str(caught.value)


def test_letters_without_an_assignment_are_read_in_time_that_grows_with_their_number() -> None:
    with pytest.raises(BringupError, match="%b is not defined"):
        ttir.parse(K + "%0 = tt.load %b " + "a" * 120_000 + "\n")


@pytest.mark.parametrize("operation", ["tt.store %a", "%0 = tt.make_range : tensor<4xi32>", "%0 = arith.addf %a : f32"])
def test_operation_that_lacks_something_is_one_sentence(operation: str) -> None:
    with pytest.raises(
        BringupError, match=r"^k: bringup cannot read (tt|arith)\.\w+, used at an unknown line \("
    ) as caught:
        Kernel(ttir.parse(f"{K}{operation}\ntt.return\n}}\n}}\n"))
    assert "\n" not in str(caught.value)


def test_unknown_operation_is_refused_with_its_line() -> None:
    text = (FOLDER / "3.7.1" / "add_kernel.ttir").read_text().replace("arith.addf", "arith.surprise")
    with pytest.raises(BringupError, match=r"arith.surprise: bringup does not support .* used at tutorials.py:\d+"):
        Kernel(ttir.parse(text))
