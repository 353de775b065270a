"""The rule of left and right: a file imports from its own folder and from those to its left, never in a circle."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
# From left to right; docs/design.md draws them. A file that stands alone has a place of its own.
FOLDERS = (
    *(
        "errors",
        "text",
        "limits",
        "files",
        "paths",
        "process",
        "core",
        "machine",
        "cost",
        "device",
        "recording",
        "pricing",
    ),
    *("timeline", "compile", "triton", "kernels", "analyse", "report", "validation", "scorecard", "check", "cli"),
    *("pytest_checks", "pytest_plugin", "__main__"),
)
FILES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
FILES = {name.removesuffix(".__init__"): path for name, path in FILES.items() if path.name != "_build.py"}


def imports(name: str) -> list[tuple[str, bool]]:
    """Return our own modules that a file imports, at its top or inside functions: (module, is it inside)."""
    own: list[tuple[str, bool]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom) and str(child.module).partition(".")[0] == "bringup":
                targets = {f"{child.module}.{alias.name}" for alias in child.names}
                own.extend((target if target in FILES else str(child.module), inside) for target in sorted(targets))
            elif isinstance(child, ast.Import):
                own.extend((alias.name, inside) for alias in child.names if alias.name.partition(".")[0] == "bringup")
            for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if not for_types:  # no import when the program runs
                visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(ast.parse(FILES[name].read_text(encoding="utf-8")), False)
    return [(module, inside) for module, inside in own if module != "bringup._build"]  # which the build writes


def place(name: str) -> int:
    return FOLDERS.index(name.split(".")[1])


@pytest.mark.parametrize("name", sorted(set(FILES) - {"bringup"}))
def test_file_imports_from_its_own_folder_and_from_the_left(name: str) -> None:
    wrong = [other for other, _ in imports(name) if other == "bringup" or place(other) > place(name)]
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
