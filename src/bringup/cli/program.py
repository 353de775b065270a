"""Runs a script or module as ``__main__``, as python does."""

from __future__ import annotations

import builtins
import gc
import importlib.util
import io
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bringup.errors import BringupError
from bringup.files import current_directory
from bringup.paths import is_package

# These stand for the exit code 1 of a program that ended with an error: torch.OutOfMemoryError, or any other.
OUT_OF_MEMORY, FAILED = -1, -2


class Program:
    """A program to run as ``__main__``: its file, its folder for ``sys.path``, and its code.

    Attributes:
        framework: the framework that it is written in.
        names: variables that its code finds.
    """

    def __init__(
        self,
        file: str,
        folder: str,
        code: Callable[[], types.CodeType],
        spec: object = None,
        framework: str = "torch",
        names: Mapping[str, object] | None = None,
    ) -> None:
        self.file = file
        self.folder = folder
        self.code = code
        self.spec = spec
        self.framework = framework
        self.names = names or {}


def stem(script: str, module: bool) -> str:
    """Return the name for a report's directory: the script's name without suffix, or the module's last part."""
    return script.rsplit(".", 1)[-1] if module else Path(script).stem


def script_program(script: str) -> Program:
    """Read a script.

    Raises:
        BringupError: it does not exist or cannot be read.
    """
    path = Path(script)
    if not os.path.isfile(path):
        problem = "is a directory" if os.path.isdir(path) else "there is no such script"
        raise BringupError(f"{script}: {problem}: give the path of a Python file, or -m and a module")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise BringupError(f"{script}: cannot be read ({error.strerror})") from None
    file = os.path.abspath(script)  # as python names it in tracebacks and __file__
    return Program(file, str(path.resolve().parent), lambda: compile(source, file, "exec", dont_inherit=True))


def model_program(file: str, arguments: Sequence[str]) -> Program:
    """Read an ONNX model or a StableHLO module, whose steps are then the program.

    Raises:
        BringupError: the model is malformed, or an argument does not fit it.
    """
    model: object
    if file.endswith(".onnx"):
        from bringup.frontends.onnx.program import onnx_program  # imports torch and onnx

        model, framework = onnx_program(file, arguments), "onnx"
    else:
        from bringup.frontends.stablehlo.program import stablehlo_program  # imports torch and jaxlib

        model, framework = stablehlo_program(file, arguments), "stablehlo"
    path = os.path.abspath(file)
    code = partial(compile, "model.run()", path, "exec", dont_inherit=True)
    return Program(path, os.path.dirname(path), code, framework=framework, names={"model": model})


def module_program(name: str) -> Program:
    """Find a module as ``python -m`` does.

    Raises:
        BringupError: it does not exist or cannot be run.
    """
    folder = current_directory()
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError):
        spec = None
    finally:
        sys.path.pop(0)
    if spec is None or spec.origin is None or spec.loader is None or not hasattr(spec.loader, "get_code"):
        raise BringupError(
            f"-m {name}: there is no such module, or it cannot be run: install it, or change to its directory"
        )
    loader, full = spec.loader, spec.name

    def code() -> types.CodeType:
        compiled = loader.get_code(full)
        if not isinstance(compiled, types.CodeType):  # an extension module
            raise ImportError(f"No code object available for {full}")
        return compiled

    return Program(spec.origin, folder, code, spec)


def execute(program: Program) -> int | None:
    """Run a program as ``__main__``; return its exit code.

    It is None after an interrupt, which the caller passes on, and `OUT_OF_MEMORY` or `FAILED` after a traceback.
    """
    main = types.ModuleType("__main__")
    main.__dict__.update(program.names)
    main.__dict__.update(__file__=program.file, __builtins__=builtins, __spec__=program.spec, __annotations__={})
    if program.spec is not None:
        main.__dict__["__package__"] = str(getattr(program.spec, "parent", ""))
        main.__dict__["__loader__"] = getattr(program.spec, "loader", None)
    sys.modules["__main__"] = main
    sys.path[0] = program.folder
    try:
        exec(program.code(), main.__dict__)
    except SystemExit as error:
        return _exit_code(error)
    except KeyboardInterrupt:
        _print_traceback()
        return None
    except BaseException as error:
        _print_traceback()
        return OUT_OF_MEMORY if _is_out_of_memory(error) else FAILED
    finally:
        if pools := sys.modules.get("concurrent.futures.thread"):
            pools._python_exit()  # as python does at exit: idle threads of pools would never end
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
    return 0


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    print(error.code, file=sys.stderr)
    return 1


def _print_traceback() -> None:
    """Print the error as python does, starting at the first frame of the program."""
    kind, value, trace = sys.exc_info()
    assert kind is not None and value is not None
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    if sys.excepthook is not sys.__excepthook__:
        sys.excepthook(kind, value, trace)
    else:
        traceback.print_exception(kind, value, trace)


def skip_last_collections() -> None:
    """Take all objects from the garbage collector, whose collections at the exit would take up to a second.

    They stay with it if one of them has a finalizer that a collection may have to call: python calls it at the exit.
    """
    if not any(map(_needs_finalizer, gc.get_objects())):
        gc.freeze()


def _needs_finalizer(item: object) -> bool:
    kind = type(item)
    if not hasattr(kind, "__del__") or kind is types.GeneratorType:
        return False
    if isinstance(item, io.IOBase):  # an open file may have text that is not yet in it
        return not item.closed and item.writable()
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file is None or not is_package(file)
