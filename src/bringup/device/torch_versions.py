"""What differs between the releases of torch, 2.10 to 2.15; for the core, csrc/torch/versions.h says it."""

from __future__ import annotations

from typing import Any


def inductor_options(wrapper: Any, config_patches: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the arguments of Inductor's ``compile_fx`` that torch.compile's own backend passes on.

    Args:
        wrapper: that backend, ``torch._TorchCompileInductorWrapper``.
        config_patches: those of a region, which Dynamo passes since 2.12.
    """
    options: dict[str, Any] = {"config_patches": {**wrapper.config, **(config_patches or {})}}
    if hasattr(wrapper, "name"):  # since 2.12
        options["compile_region_name"] = wrapper.name
    return options
