"""torch.compile on the chip."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

# The values of BRINGUP_COMPILE beside the default: each compiles a graph of Dynamo with its example inputs and patches
# of Inductor's configuration. Kept here by whoever brings such a compiler.
compilers: dict[str, Callable[[Any, Sequence[Any], dict[str, Any]], Any]] = {}


def install() -> None:
    """Patch torch.compile's default backend so that graphs on the chip come here. Dynamo is not imported."""
    from bringup.compile import lines
    from bringup.recording import about

    inductor: Any = torch._TorchCompileInductorWrapper
    compile_ = inductor.__call__

    @functools.wraps(compile_)
    def __call__(self: Any, model_: Any, inputs_: Any, *, config_patches: Any = None) -> Any:
        from bringup.compile import hook

        if not hook.is_on_chip(inputs_, model_):
            return compile_(self, model_, inputs_, config_patches=config_patches)
        patches = {**self.config, **(config_patches or {})}
        compiler = compilers.get(os.environ.get("BRINGUP_COMPILE", ""))
        if compiler is not None:
            return compiler(model_, inputs_, patches)
        return hook.compile_graph(model_, inputs_, config_patches=patches, compile_region_name=self.name)

    inductor.__call__ = __call__
    about.register(lines.begin_recording)
