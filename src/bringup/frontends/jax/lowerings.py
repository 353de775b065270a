"""How JAX lowers for the chip what has a rule of its own for each platform: linear algebra, and callbacks."""

from __future__ import annotations

from typing import Any

from bringup.frontends.stablehlo import callbacks


def register(platform: str) -> None:
    """Lower for the chip as for JAX's CPU where there is no rule for all platforms; allow donations and callbacks."""
    from jax._src import callback
    from jax._src.interpreters import mlir

    for primitive, rule in list(mlir._platform_specific_lowerings["cpu"].items()):
        if primitive not in mlir._lowerings:
            mlir._platform_specific_lowerings[platform].setdefault(primitive, rule)
    if platform not in mlir._platforms_with_donation:
        mlir._platforms_with_donation.append(platform)
    original = callback.emit_python_callback

    def emit_python_callback(
        ctx: Any, function: Any, token: Any, operands: Any, operand_avals: Any, result_avals: Any, **options: Any
    ) -> Any:
        if tuple(ctx.module_context.platforms) != (platform,):
            return original(ctx, function, token, operands, operand_avals, result_avals, **options)
        operation = mlir.custom_call(
            callbacks.TARGET,
            result_types=[mlir.aval_to_ir_type(aval) for aval in result_avals],
            operands=list(operands),
            backend_config=callbacks.add(function),
            has_side_effect=options["has_side_effect"],
        )
        return operation.results, token, None  # the executor calls them in order, with a token or without

    callback.emit_python_callback = emit_python_callback
