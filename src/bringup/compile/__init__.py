"""torch.compile for graphs on the chip."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from bringup.process import FACTS, asked_compiler

# Value of BRINGUP_COMPILE -> compiler, called with Dynamo's graph, its example inputs and patches of Inductor's
# configuration. The default, ``graph``, has no entry.
compilers: dict[str, Callable[[Any, Sequence[Any], dict[str, Any]], Any]] = {}


def install() -> None:
    """Patch torch.compile's default backend to compile graphs on the chip by bringup. Dynamo is not imported."""
    import torch  # not at the top: `import torch` imports this package, so torch would be half-imported

    from bringup.compile import lines  # imports torch
    from bringup.device.torch_versions import inductor_options  # imports torch

    inductor: Any = torch._TorchCompileInductorWrapper
    compile_ = inductor.__call__

    @functools.wraps(compile_)
    def __call__(self: Any, model_: Any, inputs_: Any, **options: Any) -> Any:
        from bringup.compile import hook  # imports Dynamo

        if not hook.is_on_chip(inputs_, model_):
            return compile_(self, model_, inputs_, **options)
        options = inductor_options(self, **options)
        compiler = compilers.get(asked_compiler())
        if compiler is not None:
            return compiler(model_, inputs_, options["config_patches"])
        return hook.compile_graph(model_, inputs_, **options)

    inductor.__call__ = __call__
    FACTS.append(lines.begin_recording)
