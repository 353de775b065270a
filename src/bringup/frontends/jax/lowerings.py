"""How JAX lowers for the chip what would be taken apart on the way, or has a rule of its own for each platform."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bringup.frontends.stablehlo import callbacks
from bringup.frontends.stablehlo.operators import OPERATORS


def register(platform: str) -> None:
    """Lower for the chip as for JAX's CPU, but keep CHLO's operators whole; allow donations and callbacks."""
    from jax._src import callback
    from jax._src.interpreters import mlir
    from jax._src.lax import lax
    from jax._src.random import threefry2x32
    from jaxlib.mlir.dialects import chlo

    rules = mlir._platform_specific_lowerings
    rules[platform] = {**rules["cpu"], **rules[platform]}
    names = {getattr(chlo, name): name for name in OPERATORS if hasattr(chlo, name)}
    for primitive, entry in mlir._lowerings.items():
        rule = entry.rule
        if isinstance(rule, partial) and rule.func is lax._nary_lower_hlo and rule.args[0] in names:
            whole = partial(lax._nary_lower_hlo, _operator(mlir, names[rule.args[0]]))
            rules[platform][primitive] = mlir.LoweringRuleEntry(partial(_lowered, whole, rule), entry.inline)
    keys = threefry2x32.threefry2x32_p
    usual = rules["cpu"].get(keys) or mlir._lowerings[keys]
    rules[platform][keys] = mlir.LoweringRuleEntry(partial(_lowered, partial(_threefry, mlir), usual.rule), True)
    if platform not in mlir._platforms_with_donation:
        mlir._platforms_with_donation.append(platform)
    callback.emit_python_callback = _emitter(callback.emit_python_callback, mlir, platform)


def _lowered(whole: Callable[..., Any], usual: Callable[..., Any], context: Any, *operands: Any, **options: Any) -> Any:
    """Lower an operator as a custom call; in a program of several chips, as XLA's partitioner knows it."""
    return (whole if _chips(context.module_context) == 1 else usual)(context, *operands, **options)


def _chips(module: Any) -> int:
    """Return the number of chips that a program is lowered for."""
    axes = module.axis_context
    return int(axes.num_devices if hasattr(axes, "num_devices") else axes.mesh.size)


def _operator(mlir: Any, name: str) -> Callable[..., Any]:
    """Return a function that writes an operator of CHLO as a custom call, which nothing takes apart."""

    def write(*operands: Any, **_accuracy: Any) -> Any:
        kinds = [operands[0].type]
        return mlir.custom_call(f"chlo.{name}", result_types=kinds, operands=operands).result

    return write


def _threefry(mlir: Any, context: Any, *operands: Any) -> Any:
    kinds = [mlir.aval_to_ir_type(context.module_context, aval) for aval in context.avals_out]
    return mlir.custom_call("bringup.threefry2x32", result_types=kinds, operands=operands).results


def _emitter(original: Callable[..., Any], mlir: Any, platform: str) -> Callable[..., Any]:
    """Return what JAX is to call instead of ``emit_python_callback``."""

    def emit_python_callback(
        context: Any, function: Any, token: Any, operands: Any, operand_avals: Any, result_avals: Any, **options: Any
    ) -> Any:
        module = context.module_context
        if tuple(module.platforms) != (platform,):
            return original(context, function, token, operands, operand_avals, result_avals, **options)
        if _chips(module) > 1:
            raise NotImplementedError("callbacks in a program of several chips are not supported on the chip")
        if token is not None:
            raise NotImplementedError(
                "ordered=True is not supported on the chip: leave it out, callbacks are called in the program's order"
            )
        operation = mlir.custom_call(
            "bringup.callback",
            result_types=[mlir.aval_to_ir_type(module, aval) for aval in result_avals],
            operands=operands,
            backend_config=callbacks.add(function),
            has_side_effect=options["has_side_effect"],
        )
        return operation.results, None, None

    return emit_python_callback
