"""Calls after a program has imported a module."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any


def after_import(name: str, call: Callable[[ModuleType], None], before: Callable[[], None] = lambda: None) -> None:
    """Call a function with a module as soon as the program has imported it.

    Args:
        name: of the module.
        call: the function; its errors are those of the import.
        before: is called before the module is loaded.
    """
    if name in sys.modules:
        call(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, call, before))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as Python does, until it is imported: a program may look for it without an import."""

    def __init__(self, name: str, call: Callable[[ModuleType], None], before: Callable[[], None]) -> None:
        self.name, self.call, self.before = name, call, before
        self._looks = threading.local()  # has `now` while this thread looks for the module

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name != self.name or hasattr(self._looks, "now"):
            return None
        self._looks.now = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            del self._looks.now
        if spec is None or spec.loader is None or spec.origin is None:  # missing, or a folder of that name
            return spec
        spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads a module with its own loader."""

    def __init__(self, own: Any, finder: _Finder) -> None:
        self._own, self._finder = own, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        self._finder.before()
        module: ModuleType | None = self._own.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._own.exec_module(module)
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._own
        self._finder.call(module)
        with suppress(ValueError):  # somebody has removed it
            sys.meta_path.remove(self._finder)
