"""The program's own kernels: Triton on the chip. See docs/kernels.md."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Any

from bringup.errors import BringupError


def install() -> None:
    """Register Triton with torch.compile and the redirect. Triton itself is not imported."""
    from bringup import compile
    from bringup.device import load

    compile.compilers["triton"] = _compile
    load.on_redirect.append(choose_for_triton)


def _compile(graph: Any, inputs: Sequence[Any], patches: dict[str, Any]) -> Any:
    require_triton("BRINGUP_COMPILE=triton")
    from bringup.triton import inductor

    return inductor.compile_graph(graph, inputs, patches)


def choose_for_triton() -> None:
    """Let Triton's kernels run on the chip although torch says that there is a GPU: it is the chip."""
    os.environ["TRITON_DEFAULT_BACKEND"] = "chip"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return
    if "triton" in sys.modules or tuple(map(int, version.split(".")[:2])) < (3, 7):  # older ones do not read it
        import triton.runtime

        from bringup.triton.driver import ChipDriver

        triton.runtime.driver.set_active(ChipDriver())


def require_triton(what: str) -> None:
    """Raise unless Triton is installed.

    Raises:
        BringupError: it is not; the message names the extra.
    """
    import importlib.util

    if importlib.util.find_spec("triton") is None:
        raise BringupError(f'{what} needs Triton, which is not installed: pip install "bringup[triton]"')
