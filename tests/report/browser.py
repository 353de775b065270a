"""Opens a page in a headless browser, uses its charts, and has axe-core look for problems of accessibility."""

import html
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
CHECK = Path(__file__).with_name("check_page.js")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


AXE_PACKAGE = importlib.util.find_spec("axe_core_python")
AXE = AXE_PACKAGE and Path(str(AXE_PACKAGE.origin)).with_name("axe.min.js")

# A window is at least 500 pixels wide; a frame may be as narrow as a telephone.
FRAME = """<!doctype html><title></title>
<script>addEventListener("message", (event) => (document.title = event.data))</script>
<iframe src="page.html" width="{width}" height="1200" style="border: 0"></iframe>"""
Task = Literal["use", "read", "pick", "labels", "sort", "axe"]


def look(
    text: str, folder: Path, task: Task, *, width: int, parts: Iterable[str] = (), dark: bool = False
) -> dict[str, Any]:
    """Open a page and return the outcome of check_page.js.

    Args:
        text: the page.
        folder: an empty one.
        task: use all controls of the charts, read their texts by cursor and table, select marks, read the labels
            that they draw, sort tables, or have axe-core look for problems.
        width: of the page.
        parts: selectors, whose elements are counted.
        dark: True for a screen that prefers dark colours.
    """
    scripts = [f"const PARTS = {json.dumps([*parts])}, TASK = {json.dumps(task)};", CHECK.read_text(encoding="utf-8")]
    if task == "axe":
        assert AXE is not None
        scripts.append(AXE.read_text(encoding="utf-8"))
    # Before the page's security policy, which refuses scripts that are not the page's own.
    assert text.count("<head>") == 1
    page, frame = folder / "page.html", folder / "frame.html"
    page.write_text(text.replace("<head>", "<head>" + "".join(f"<script>{script}</script>" for script in scripts)))
    frame.write_text(FRAME.format(width=width))
    flags = [*FLAGS, f"--user-data-dir={folder}/profile", "--window-size=2600,1300", "--virtual-time-budget=60000"]
    if dark:
        flags.append("--blink-settings=preferredColorScheme=0")
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=240, check=True
    )
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout, re.DOTALL)
    assert title is not None, done.stderr
    seen: dict[str, Any] = json.loads(html.unescape(title[1]))
    assert seen["width"] == width
    return seen
