"""The pages step by step: their commands run as they stand, and the Chinese ones say the same."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, without_bringup

PAGES = ("start-script.md", "start-chip.md", "start-ci.md")


def commands(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("page", PAGES)
def test_commands_run_as_they_stand(page: str, tmp_path: Path) -> None:
    """In a folder with the checkout's examples and chip files, in the page's order."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "src" / "bringup" / "machine", tmp_path / "src" / "bringup" / "machine")
    tools = {"bringup": f"{sys.executable} -m bringup", "pytest": f"{sys.executable} -m pytest -p no:cacheprovider"}
    for command in commands(page):
        name, _, arguments = command.partition(" ")
        line = f"{tools.get(name, name)} {arguments}"
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=without_bringup(), capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert len(commands(page)) >= 5


def outline(path: Path) -> list[str]:
    """The depth of every heading, and the code blocks, in their order."""
    text = path.read_text(encoding="utf-8")
    parts = re.findall(r"^ *```.*?^ *```|^#+ ", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r"^ +", "", part, flags=re.MULTILINE) for part in parts]


@pytest.mark.parametrize(
    ("english", "chinese"),
    [("README.md", "README.zh.md"), *((f"docs/{page}", f"docs/zh/{page}") for page in PAGES)],
)
def test_chinese_pages_have_the_same_headings_and_commands(english: str, chinese: str) -> None:
    assert outline(ROOT / english) == outline(ROOT / chinese)


def figures(path: Path) -> list[list[str]]:
    """The numbers in each row of each table."""
    text = path.read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\|$", text, flags=re.MULTILINE)
    return [re.findall(r"\d[\d.,]*", re.sub(r"\(docs/[^)]*\)", "", row)) for row in rows]


def test_chinese_readme_has_the_same_figures_and_links() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README.zh.md"
    assert figures(english) == figures(chinese)
    link = re.compile(r"\]\(((?:docs/|src/|[A-Z])[^)]*)\)")
    targets = [set(link.findall(path.read_text(encoding="utf-8"))) for path in (english, chinese)]
    own = {target for target in targets[1] if target.startswith("docs/zh/")} | {"README.md"}
    starts = {f"docs/{page}" for page in PAGES} | {"README.zh.md"}
    assert targets[0] - starts == targets[1] - own


@pytest.mark.parametrize("page", ["README.zh.md", *(f"docs/zh/{page}" for page in PAGES)])
def test_links_of_chinese_pages_lead_to_files(page: str) -> None:
    path = ROOT / page
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []
