"""Shortened paths for traces and reports, which must not contain a user's home directory.

Traces and reports are shared. A path below the current directory or the script's directory becomes relative to it. A
path in a package begins with the package's name. Any other path is reduced to ``...`` and the file's name.
"""

from __future__ import annotations

import ntpath
import os
import re
import sys
import sysconfig

_LINE = re.compile(r"(.*?)((?::\d+)?(?: \(backward\))?)", re.S)
_NO_FILE = re.compile(r"<[^<>]*>(?=:|$)")  # <string>, <frozen runpy>
_PACKAGE = re.compile(r".*/(?:site|dist)-packages/(.+)", re.S)
# An absolute path within a text. The path of a URL does not match, except after ``file:``.
_ABSOLUTE = re.compile(r"(?:(?<![\w./:])(?:/+|[A-Za-z]:\\+|(?:\.\./)+)|(?<=file:)/+)[^\s'\"(),:;<>]+")
_NODE = re.compile(r"[^/]+\.onnx:")  # a node of a model stands for a line; its name is no path
_HOMES = ("/", "/home", "/Users")  # a path relative to one of these would still contain a user's name
BACKWARD = " (backward)"  # ends a line whose launches autograd makes
MOST_LETTERS = 4096  # in one name; the limit of trace files


def is_library(line: str) -> bool:
    """Return True if a line such as ``/home/me/train.py:12`` is in a package or in Python's standard library."""
    in_python = _NO_FILE.match(line) is not None or line.startswith(sysconfig.get_path("stdlib") + os.sep)
    return in_python or is_package(line)


def is_package(path: str) -> bool:
    """Return True if a file is in an installed package."""
    return _PACKAGE.fullmatch(path) is not None


def _cell(path: str) -> str | None:
    """Return the name of a notebook's cell, such as ``In[3]``; None for other files."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    described = shell.compile.format_code_name(path) if shell else None
    return described[1] if described else None


class Places:
    """Shortens the paths of one recording. Different files get different names, even if their base names are equal.

    Args:
        start: the directory in which the program was started.
        script: the program; paths may also be relative to its directory.
    """

    def __init__(self, start: str, script: str) -> None:
        self.start = start
        folders = start, os.path.dirname(os.path.join(start, script))
        self.roots = [root for folder in folders for root in (folder, os.path.realpath(folder))]
        self.names: dict[str, str] = {}  # path -> shortened name
        self.files: dict[str, str] = {}  # shortened name -> real path

    @classmethod
    def of_process(cls) -> Places:
        """Return the places of this process: its current directory and its program."""
        try:
            return cls(os.getcwd(), sys.argv[0])
        except OSError:  # the directory was removed
            return cls(os.sep, sys.argv[0])

    def line(self, text: str) -> str:
        """Shorten ``/home/me/train.py:12 (backward)``; a relative path is below the current directory."""
        match = _LINE.fullmatch(text)
        if match is None or not match[1]:
            return as_text(text)
        if _NODE.match(match[1]):
            return as_text(text)
        if match[1].startswith(("<", "file:")):
            return self.within(text)
        return as_text(self.file(match[1]) + match[2])

    def file(self, path: str) -> str:
        """Shorten a path."""
        if path not in self.names:
            try:
                whole = os.path.abspath(path)
            except OSError:  # the current directory was removed
                whole = os.path.join(self.start, path)
            name, number = _cell(path) or self._name(whole), 1
            shown = name
            while self.files.setdefault(shown, os.path.realpath(whole)) != os.path.realpath(whole):
                number += 1
                shown = f".../{number}/{name.removeprefix('.../')}"
            self.names[path] = shown
        return self.names[path]

    def within(self, text: str) -> str:
        """Shorten the absolute paths in a text."""
        for root in self.roots:
            if root not in _HOMES:
                text = re.sub(rf"(?<![\w./-]){re.escape(root)}/", "", text)
        return as_text(_ABSOLUTE.sub(lambda match: self.file(match[0]), text))

    def _name(self, path: str) -> str:
        base = ntpath.basename(os.path.basename(path))
        if re.match(r"[A-Za-z]:\\", os.path.basename(path)):  # a Windows path
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
    """Return True if the last part of a path is a user's name."""
    home = os.path.expanduser("~")
    return path in (home, os.path.realpath(home)) or os.path.dirname(path) in _HOMES[1:]


def as_text(name: str) -> str:
    """Return a name that a file can hold: bytes outside UTF-8 are escaped, and long names are cut."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 3]}..."
