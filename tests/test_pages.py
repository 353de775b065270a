"""The Chinese pages say the same as the English ones."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = ("start-script.md", "start-chip.md", "start-ci.md")


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
