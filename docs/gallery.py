"""Runs example programs, takes a picture of each of their pages, and describes them: the gallery of the site.

``python docs/gallery.py DIR`` writes the pages and pictures into DIR. Without a browser there are no pictures.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
WIDTH, HEIGHT = 1280, 800  # of a picture, in pixels


@dataclass(frozen=True)
class Page:
    """One page of the gallery.

    Attributes:
        name: of its files.
        title, text: what it shows.
        commands: that write it, in order; they may read what those of earlier pages wrote.
        written: the page that they write.
    """

    name: str
    title: str
    text: str
    commands: tuple[str, ...]
    written: str


PAGES = (
    Page(
        "host-bound",
        "A small CNN that is bound by the host",
        "The chip waits for launches most of the time. The report says what a graph, or a larger batch, would save.",
        ("bringup run --chip t4 --out digits examples/digits.py",),
        "digits/report.html",
    ),
    Page(
        "gpt",
        "A GPT that says cuda",
        "An unmodified training script with autocast and a gradient scaler. The page shows where a step goes.",
        ("bringup run --cuda --chip h100-sxm --out gpt examples/gpt.py",),
        "gpt/report.html",
    ),
    Page(
        "chips",
        "One recording on every chip",
        "The GPT above is priced on all chips that ship with bringup, without running again.",
        ("bringup compare gpt",),
        "gpt/compare.html",
    ),
    Page(
        "diff",
        "Two runs, compared",
        "The same program with another batch size. The page shows which modules, lines and operators take longer.",
        (
            "bringup run --chip t4 --out small examples/train.py",
            "bringup run --chip t4 --out large examples/train.py --batch-size 512",
            "bringup diff small large --html diff.html",
        ),
        "diff.html",
    ),
    Page(
        "placement",
        "What is better left on the host",
        "The division of a step between chip and host, before and after.",
        ("bringup place digits --out plan.toml",),
        "plan.html",
    ),
)


def write(folder: Path) -> None:
    """Run the programs, and write a page and a picture for each of `PAGES`."""
    folder.mkdir(parents=True, exist_ok=True)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(ROOT / "examples", Path(place, "examples"))
        for page in PAGES:
            for command in page.commands:
                subprocess.run(
                    [sys.executable, "-m", *shlex.split(command)], cwd=place, check=True, capture_output=True
                )
            shutil.copyfile(Path(place, page.written), folder / f"{page.name}.html")
            if browser:
                take_picture(browser, folder / f"{page.name}.html", folder / f"{page.name}.png")


def take_picture(browser: str, page: Path, picture: Path) -> None:
    """Write what a browser shows of a page first."""
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        size = [f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=10000", f"--screenshot={picture}"]
        subprocess.run([browser, *flags, *size, page.absolute().as_uri()], check=True, capture_output=True, timeout=120)


def text(folder: Path) -> str:
    """Return the gallery in Markdown, with links to what `folder` has; the site has it as ``gallery/``."""
    parts = [
        "# Gallery",
        "Each page is what the commands below it wrote when this site was built. It is one file that loads nothing.",
    ]
    for page in PAGES:
        parts += [f"## {page.title}", page.text]
        if (folder / f"{page.name}.png").exists():
            parts.append(f"[![{page.title}](gallery/{page.name}.png)](gallery/{page.name}.html)")
        elif (folder / f"{page.name}.html").exists():
            parts.append(f"[The page](gallery/{page.name}.html)")
        parts.append("\n".join(["```console", *(f"$ {command}" for command in page.commands), "```"]))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/gallery.py DIR")
    write(Path(sys.argv[1]))
