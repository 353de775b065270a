"""Hooks of the site: README.md is its first page, the gallery is in it, and links to sources lead to the repository."""

import importlib.util
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FIRST = {"index.md": "README.md", "zh/index.md": "README.zh.md"}
GALLERY = ROOT / "build" / "gallery"  # what docs/gallery.py writes
LINK = re.compile(r"(?<!!)\[([^]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the first page of each language, and the gallery."""
    from mkdocs.structure.files import File

    for page, source in FIRST.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    described = importlib.util.spec_from_file_location("gallery", ROOT / "docs" / "gallery.py")
    assert described is not None and described.loader is not None
    gallery = importlib.util.module_from_spec(described)
    sys.modules["gallery"] = gallery  # which dataclasses look for
    described.loader.exec_module(gallery)
    files.append(File.generated(config, "gallery.md", content=gallery.text(GALLERY)))
    for path in sorted(GALLERY.glob("*.html")) + sorted(GALLERY.glob("*.png")):
        files.append(File.generated(config, f"gallery/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite links: to pages of the site, to the repository, or to plain names if its address is unknown."""
    from mkdocs.exceptions import PluginError

    place = page.file.src_uri
    if place == "gallery.md":  # its links lead to pages that are written, not to sources
        return markdown
    folder = "" if place in FIRST else posixpath.join("docs", posixpath.dirname(place))
    first = {source: target for target, source in FIRST.items()}

    def rewrite(match: re.Match[str]) -> str:
        text, target, anchor = match[1], posixpath.normpath(posixpath.join(folder, match[2])), match[3] or ""
        page_there = first.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        if page_there is not None and files.get_file_from_path(page_there):
            return f"[{text}]({posixpath.relpath(page_there, posixpath.dirname(place) or '.')}{anchor})"
        if not (ROOT / target).exists():
            raise PluginError(f"{place}: the link to {target} leads nowhere")
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"[{text}]({config.repo_url.rstrip('/')}/{kind}/main/{target}{anchor})" if config.repo_url else text

    # Links in code stay as they are.
    pieces = re.split(r"(^ *```.*?^ *```|`[^`\n]+`(?!\]))", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(piece if number % 2 else LINK.sub(rewrite, piece) for number, piece in enumerate(pieces))
