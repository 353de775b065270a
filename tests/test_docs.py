"""The prose of README.md and docs/ stays readable, and its links lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LIMIT = 22  # mean words in a sentence


def without_code_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def sentences(text: str) -> list[str]:
    """The sentences of a page's paragraphs and list items, without code blocks, tables and headings."""
    text = re.sub(r"^ *[|#].*$", "", without_code_blocks(text), flags=re.MULTILINE)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    blocks = re.split(r"\n\s*\n|^ *(?:[-*]|\d+\.) ", text, flags=re.MULTILINE)
    parts = [part for block in blocks for part in re.split(r"(?<=[.!?])[)*_\"]*\s+", block)]
    return [part for part in parts if re.search(r"\w", part)]


def test_sentences_end_where_a_reader_ends_them() -> None:
    text = "# A heading\n\nOne two. Three\nfour? (Five, 1.5 six.)\n\n- [seven](a.md) eight:\n\n```\nx. y.\n```\n| a |\n"
    assert [len(sentence.split()) for sentence in sentences(text)] == [2, 2, 3, 2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    prose = sentences(page.read_text(encoding="utf-8"))
    longest = sorted(prose, key=lambda sentence: -len(sentence.split()))[:5]
    assert mean(len(sentence.split()) for sentence in prose) <= LIMIT, longest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", without_code_blocks(page.read_text(encoding="utf-8")))
    relative = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in relative if not (page.parent / target).exists()] == []


def test_gallery_links_to_the_pages_that_are_written(tmp_path: Path) -> None:
    module = runpy.run_path(str(ROOT / "docs" / "gallery.py"))
    names = [page.name for page in module["PAGES"]]
    assert "gallery/" not in module["text"](tmp_path)
    (tmp_path / f"{names[0]}.html").touch()
    (tmp_path / f"{names[1]}.html").touch()
    (tmp_path / f"{names[1]}.png").touch()
    shown = module["text"](tmp_path)
    assert re.findall(r"\((gallery/.*?)\)", shown) == [
        *(f"gallery/{names[0]}.html", f"gallery/{names[1]}.png", f"gallery/{names[1]}.html")
    ]
    scripts = re.findall(r"\S+\.py", shown)
    assert scripts and all((ROOT / script).exists() for script in scripts)
