"""Triton's compiler for the chip, which ends at TTIR. Registered by the entry point ``triton.backends``.

Triton's own passes lower tensor pointers, block pointers and descriptors to plain pointers and masks.
"""

from __future__ import annotations

import dataclasses
import hashlib
from types import ModuleType
from typing import Any

from triton._C.libtriton import ir, passes
from triton.backends.compiler import BaseBackend, GPUTarget

from bringup.triton import launcher


@dataclasses.dataclass(frozen=True)
class ChipOptions:
    """The options of `@triton.jit` launches. Options of other backends are accepted and have no effect."""

    num_warps: int = 4
    num_stages: int = 3
    num_ctas: int = 1
    cluster_dims: tuple[int, int, int] = (1, 1, 1)
    warp_size: int = 32
    debug: bool = False
    sanitize_overflow: bool = False
    enable_fp_fusion: bool = True
    launch_cooperative_grid: bool = False
    extern_libs: Any = None
    arch: str = "chip"
    backend_name: str = "chip"
    instrumentation_mode: str = ""
    fpsan_homomorphic_casts: bool = False
    supported_fp8_dtypes: tuple[str, ...] = ("fp8e4nv", "fp8e5", "fp8e5b16", "fp8e4b8")
    deprecated_fp8_dot_operand_dtypes: tuple[str, ...] = ()
    default_dot_input_precision: str = "ieee"
    allowed_dot_input_precisions: tuple[str, ...] = ("ieee", "tf32", "tf32x3", "bf16x3", "bf16x6")
    max_num_imprecise_acc_default: int = 0
    maxnreg: int | None = None
    ir_override: str | None = None
    waves_per_eu: int = 0
    matrix_instr_nonkdim: int = 0
    kpack: int = 1
    launch_pdl: bool = False

    def hash(self) -> str:
        """Return a key that identifies the options."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


class ChipBackend(BaseBackend):  # type: ignore[misc]
    """Compiles for targets whose backend is ``chip``."""

    binary_ext = "chip"

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        """True if the target is a chip of bringup."""
        return bool(target.backend == "chip")

    def hash(self) -> str:
        """Return a key that identifies the compiler, whose output depends only on Triton."""
        return "chip-1"

    def parse_options(self, opts: dict[str, Any]) -> ChipOptions:
        """Return a launch's options without those that this backend does not have."""
        names = {field.name for field in dataclasses.fields(ChipOptions)}
        return ChipOptions(**{name: value for name, value in opts.items() if name in names and value is not None})

    def pack_metadata(self, metadata: Any) -> Any:
        """Return the metadata for the launcher."""
        return metadata

    def get_codegen_implementation(self, options: Any) -> dict[str, Any]:
        """Return the limits of the front end: products may have any size."""
        return {"min_dot_size": lambda lhs, rhs: (1, 1, 1)}

    def get_module_map(self) -> dict[str, ModuleType]:
        """Return the module behind ``tl.extra.libdevice``."""
        from triton.language.extra.cuda import libdevice

        return {"triton.language.extra.libdevice": libdevice}

    def load_dialects(self, ctx: Any) -> None:
        """Do nothing, because this backend has no dialects."""

    def add_stages(self, stages: dict[str, Any], options: Any, language: Any = None) -> None:
        """Add two stages: lowering to TTIR, and reading it, which raises an error for unsupported operations."""
        stages["ttir"] = self._ttir
        stages["chip"] = self._chip

    @staticmethod
    def _ttir(module: Any, metadata: dict[str, Any]) -> Any:
        manager = ir.pass_manager(module.context)
        manager.enable_debug()
        passes.common.add_inliner(manager)
        if hasattr(passes.ttir, "add_rewrite_tensor_pointer"):
            passes.ttir.add_rewrite_tensor_pointer(manager)
        if hasattr(passes.ttir, "add_rewrite_tensor_descriptor_to_pointer"):
            passes.ttir.add_rewrite_tensor_descriptor_to_pointer(manager)
        passes.common.add_canonicalizer(manager)
        passes.ttir.add_combine(manager)
        passes.common.add_cse(manager)
        passes.common.add_symbol_dce(manager)
        try:
            manager.run(module, "make_ttir")
        except TypeError:  # Triton 3.5 and older have no argument for the pipeline
            manager.run(module)
        return module

    @staticmethod
    def _chip(module: Any, metadata: dict[str, Any]) -> bytes:
        text = str(module)
        kernel = launcher.compiled(text)
        metadata["name"] = kernel.name
        metadata["shared"] = 0
        return text.encode()
