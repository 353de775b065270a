"""The rule of left and right: a file imports from its own folder and from those to its left, never in a circle."""

import ast
import re
import subprocess
import sys
from functools import cache

import pytest

from bringup import core_build
from bringup.files import tomllib
from tests.conftest import ROOT

SOURCE = ROOT / "src"
# The picture of the house, from left to right. A file that stands alone has a place of its own.
LAYOUT = (
    (ROOT / "docs" / "design.md")
    .read_text(encoding="utf-8")
    .partition("## Layout")[2]
    .replace("```text", "```")
    .split("```")
)
FOLDERS = (*(name for line in LAYOUT[1].strip().splitlines() for name in line.split("  ")[0].split()), "__main__")
FILES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
FILES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}
# A test is named after the file that it tests, or after its folder. These test neither one file nor the whole folder.
OTHER_TESTS = {
    "device/test_fused.py": "the operators that are one kernel on accelerators (csrc/torch/fused.cpp)",
    "device/test_layouts.py": "the strides of results, which trials on the host find (csrc/launch/probe.cpp)",
    "frontends/test_onnx.py": "models on the chip: numbers, names of nodes, the command line",
    "frontends/test_onnx_cases.py": "the test cases of the package onnx",
    "frontends/test_onnx_files.py": "model files that are malformed or hostile",
    "frontends/test_jax.py": "programs of JAX on the chip: numbers, lines, predictions",
    "frontends/test_jax_platform.py": "scripts of JAX, which compile and run on the chip themselves",
    "frontends/test_stablehlo.py": "StableHLO's operators, compared with jaxlib's CPU",
    "frontends/test_tensorflow.py": "programs of TensorFlow and Keras, beside TensorFlow's own CPU",
    "machine/test_capacity.py": "the memory that chip files offer, as torch reports it on hardware",
    "placement/test_programs.py": "whole programs: the exact optimum, wrong prices, plans in force",
    "recording/test_trace_format.py": "docs/trace.md, which describes the file of a recording",
    "triton/test_blocks.py": "operations on blocks: descriptors, and products with scales",
    "triton/test_counters.py": "the counts of a launch, from the kernel to its price",
    "triton/test_diagnostics.py": "mistakes in kernels: bounds, races, uninitialised memory, limits",
    "triton/test_language.py": "Triton's language, statement by statement",
    "triton/test_libraries.py": "libraries of kernels, in whole programs",
    "triton/test_prices.py": "the prices of kernels beside those of torch's operators",
    "triton/test_sweep.py": "Triton's language, by operation and dtype",
    "triton/test_tutorials.py": "the kernels of Triton's tutorials",
}
# Words that do not name the value they stand for.
EMPTY_NAMES = {"found", "given", "known", "made", "kept", "every", "of", "asked", "said", "taken", "there"}


@cache
def imports(name: str) -> list[tuple[str, bool]]:
    """Return our own modules that a file imports, at its top or inside functions: (module, is it inside)."""
    own: list[tuple[str, bool]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            assert not (isinstance(child, ast.ImportFrom) and child.level), "imports name the whole module"
            if isinstance(child, ast.ImportFrom) and str(child.module).partition(".")[0] == "bringup":
                targets = {f"{child.module}.{alias.name}" for alias in child.names}
                own.extend((target if target in FILES else str(child.module), inside) for target in sorted(targets))
            elif isinstance(child, ast.Import):
                own.extend((alias.name, inside) for alias in child.names if alias.name.partition(".")[0] == "bringup")
            for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if not for_types:  # no import when the program runs
                visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(ast.parse(FILES[name].read_text(encoding="utf-8")), False)
    own += [(parent, inside) for module, inside in own if (parent := module.rpartition(".")[0]) not in ("", "bringup")]
    folder = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]  # is there already
    return [(module, inside) for module, inside in own if module != folder]


def place(name: str) -> int:
    return FOLDERS.index(name.split(".")[1] if "." in name else "__init__")


def test_design_draws_the_folders() -> None:
    package = list((SOURCE / "bringup").iterdir())
    entries = {path.stem for path in package if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert entries == set(FOLDERS)
    layers = {line.replace("csrc/driver.h", "").split()[0].rstrip("/") for line in LAYOUT[3].strip().splitlines()[1:]}
    assert layers == {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()}


def test_tour_names_every_file() -> None:
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    sources = [path for path in (SOURCE / "bringup").rglob("*.py") if not path.name.startswith("_")]
    sources += [path for path in (ROOT / "csrc").rglob("*.*") if path.suffix == ".cpp"]
    assert not [path.name for path in sources if path.name not in tour]
    named = re.findall(r"`((?:csrc/|tests/|src/bringup/)?(?:\w+/)*\w+\.(?:py|cpp|h|inc))`", tour)
    roots = (SOURCE / "bringup", ROOT / "csrc")
    places = [ROOT, *roots, *(path for root in roots for path in root.rglob("*") if path.is_dir())]
    assert not [name for name in named if not any((place / name).is_file() for place in places)]


def test_developers_build_writes_what_is_loaded() -> None:
    command = ["make", "--dry-run", "--always-make", "-f", "csrc/core.mk", f"PYTHON={sys.executable}"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    torch = core_build.find_torch()
    assert torch is not None
    for library in (core_build.core_library(torch), core_build.replay_library(), core_build.jax_library()):
        assert f" src/bringup/{library.file}\n" in printed
    drivers = {f"csrc/drivers/{path.name}" for path in (ROOT / "csrc" / "drivers").glob("*.cpp")}
    assert {driver for driver in drivers if driver in printed} == {"csrc/drivers/virtual.cpp"}  # others are libraries


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = sorted(path.parent for path in (SOURCE / "bringup").rglob("__init__.py"))
    assert sorted(listed) == [".".join(folder.relative_to(SOURCE).parts) for folder in folders]


def test_tests_are_named_after_what_they_test() -> None:
    tests = {f"{path.parent.name}/{path.name}" for path in (ROOT / "tests").glob("*/test_*.py")}
    folders = [path for path in (SOURCE / "bringup").iterdir() if path.is_dir()]
    tested = {f"{path.parent.name}/test_{path.name}" for path in FILES.values()}
    whole = {f"{folder.name}/test_{folder.name}.py" for folder in folders}
    own = {test for test in tests if test.partition("/")[0] in {folder.name for folder in folders}}
    assert own - tested - whole == set(OTHER_TESTS), "rename it after the tested file, or add its reason to OTHER_TESTS"


@pytest.mark.parametrize("name", sorted(set(FILES) - {"bringup"}))
def test_file_imports_from_its_own_folder_and_from_the_left(name: str) -> None:
    wrong = [other for other, _ in imports(name) if place(other) > place(name)]
    assert not wrong, f"{name} is to the left of what it imports"


def test_no_imports_in_a_circle() -> None:
    remaining = {name: {other for other, _ in imports(name)} - {name} for name in FILES if name != "bringup"}
    while leaves := [name for name, others in remaining.items() if not others & set(remaining)]:
        for name in leaves:
            del remaining[name]
    assert not remaining


def test_imports_inside_functions_are_few() -> None:
    own = [(name, *found) for name in FILES for found in imports(name)]
    inside = [(name, other) for name, other, is_inside in own if is_inside]
    assert len(inside) <= 0.05 * len(own), inside


def test_the_core_has_no_streams_of_the_standard_library() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "csrc").rglob("*.*")}
    streams = re.compile(r"stringstream|std::ostream|std::cout|std::cerr|<iostream>|<sstream>")
    assert not [path.name for path, text in sources.items() if streams.search(text)]


def test_modules_that_the_core_calls_are_there() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "csrc").rglob("*.cpp"))
    called = set(re.findall(r'"(bringup\.[a-z_.]+)"', sources))
    assert called and called <= set(FILES)


def identifiers(tree: ast.AST) -> set[str]:
    """Return the names of values in a file: variables, parameters, attributes, functions, classes, imports."""
    names: set[str] = set()
    for node in ast.walk(tree):
        for field in ("id", "arg", "attr", "name", "asname", "rest"):
            names.add(str(getattr(node, field, None)))
        if isinstance(node, ast.Global | ast.Nonlocal):
            names.update(node.names)
    return names


@pytest.mark.parametrize("part", sorted(set(FOLDERS) - {"__main__"}))
def test_names_say_what_they_hold(part: str) -> None:
    own = {name: path.read_text(encoding="utf-8") for name, path in FILES.items() if FOLDERS[place(name)] == part}
    names = {name: identifiers(ast.parse(text)) for name, text in own.items()}
    assert names
    assert not {name: words & EMPTY_NAMES for name, words in names.items() if words & EMPTY_NAMES}
