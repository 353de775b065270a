"""The rule of left and right: a file imports from its own folder and from those to its left, never in a circle."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
# The picture of the house, from left to right. A file that stands alone has a place of its own.
LAYOUT = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("## Layout")[2].split("```")
FOLDERS = (*(name for line in LAYOUT[1].strip().splitlines() for name in line.split("  ")[0].split()), "__main__")
FILES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
FILES = {name.removesuffix(".__init__"): path for name, path in FILES.items() if path.name != "_build.py"}


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
    own = [(module, inside) for module, inside in own if module != folder]
    return [(module, inside) for module, inside in own if module != "bringup._build"]  # which the build writes


def place(name: str) -> int:
    return FOLDERS.index(name.split(".")[1] if "." in name else "__init__")


def test_design_draws_the_folders() -> None:
    package = list((SOURCE / "bringup").iterdir())
    entries = {path.stem for path in package if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert entries - {"_build"} == set(FOLDERS)
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
