"""How shared files name a line of source: below the program's folder or in a package, never where a home is.

Traces and reports are passed on. A path below the directory that the program was started from, or below the script's,
is relative to it; one in a package begins with the package. Of any other file the name is kept, after ``...``.
"""

from __future__ import annotations

import ntpath
import os
import re
import sys
import sysconfig

_LINE = re.compile(r"(.*?)((?::\d+)?(?: \(backward\))?)", re.S)
_PACKAGE = re.compile(r".*/(?:site|dist)-packages/(.+)", re.S)
# Within a text; what comes after the scheme of another URL is none.
_ABSOLUTE = re.compile(r"(?:(?<![\w./:])(?:/+|[A-Za-z]:\\+|(?:\.\./)+)|(?<=file:)/+)[^\s'\"(),:;<>]+")
_HOMES = ("/", "/home", "/Users")  # what is relative to these says whose home it is in
MOST_LETTERS = 4096  # of a name, as trace files have it


class Places:
    """Names the files of one recording. Files that have only their name in common stay apart.

    Args:
        start: the directory that the program was started from.
        script: the program; its directory is the other one that paths are relative to.
    """

    def __init__(self, start: str, script: str) -> None:
        self.start = start
        folders = start, os.path.dirname(os.path.join(start, script))
        self.roots = [found for folder in folders for found in (folder, os.path.realpath(folder))]
        self.known: dict[str, str] = {}
        self.taken: dict[str, str] = {}  # name -> file

    @classmethod
    def of_process(cls) -> Places:
        """Take the current directory and the program of this process."""
        try:
            return cls(os.getcwd(), sys.argv[0])
        except OSError:  # the directory was removed
            return cls(os.sep, sys.argv[0])

    def line(self, text: str) -> str:
        """Shorten ``/home/me/train.py:12 (backward)``; a relative path is below the current directory."""
        match = _LINE.fullmatch(text)
        if match is None or not match[1]:
            return as_text(text)
        if match[1].startswith(("<", "file:")):
            return self.within(text)
        return as_text(self.file(match[1]) + match[2])

    def file(self, path: str) -> str:
        """Shorten a path."""
        if path not in self.known:
            try:
                whole = os.path.abspath(path)
            except OSError:  # the current directory was removed
                whole = os.path.join(self.start, path)
            name, number = self._name(whole), 1
            shown = name
            while self.taken.setdefault(shown, os.path.realpath(whole)) != os.path.realpath(whole):
                number += 1
                shown = f".../{number}/{name.removeprefix('.../')}"
            self.known[path] = shown
        return self.known[path]

    def within(self, text: str) -> str:
        """Shorten the absolute paths in a text."""
        for root in self.roots:
            if root not in _HOMES:
                text = re.sub(rf"(?<![\w./-]){re.escape(root)}/", "", text)
        return as_text(_ABSOLUTE.sub(lambda match: self.file(match[0]), text))

    def _name(self, path: str) -> str:
        base = ntpath.basename(os.path.basename(path))
        if re.match(r"[A-Za-z]:\\", os.path.basename(path)):  # of another system
            return f".../{base}"
        if package := _PACKAGE.fullmatch(path):
            return package[1]
        library = sysconfig.get_path("stdlib") + os.sep
        if path.startswith(library):
            return f"python{sys.version_info[0]}.{sys.version_info[1]}/{path.removeprefix(library)}"
        imported = sorted((item.rstrip(os.sep) for item in sys.path if os.path.isabs(item)), key=len, reverse=True)
        for root in (*self.roots, *imported):
            rest = path.removeprefix(root.rstrip(os.sep) + os.sep)
            if rest != path and (os.sep not in rest or not _is_above_home(root)) and not _is_home(path):
                return rest
        return "..." if _is_home(path) else f".../{base}"


def _is_above_home(folder: str) -> bool:
    home = os.path.expanduser("~")
    within = (each.startswith(folder.rstrip(os.sep) + os.sep) for each in (home, os.path.realpath(home)))
    return folder in _HOMES or any(within)


def _is_home(path: str) -> bool:
    """Whether the last part of a path is a user's name."""
    home = os.path.expanduser("~")
    return path in (home, os.path.realpath(home)) or os.path.dirname(path) in _HOMES[1:]


def as_text(name: str) -> str:
    """Return a name as files can hold it: bytes that are no UTF-8 are escaped, and its length is bounded."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 3]}..."
