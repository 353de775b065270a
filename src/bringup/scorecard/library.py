"""A library of kernels on the device: FlagGems' operators replace torch's in torch's dispatcher."""

from __future__ import annotations

import collections
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bringup.device.cuda import redirect_cuda
from bringup.scorecard.framework import close, full_name, moved, opinfos
from bringup.triton import flaggems

# Operators of FlagGems 5.0.2 with wrong results on every device, and the reasons, determined on the virtual chip and by
# reading their code. They do not count against a device.
FAULTS = {
    "_upsample_nearest_exact1d": "computes nearest: the half pixel is missing",
    "addr": "beta = 0 multiplies the input, which may be NaN, instead of leaving it out",
    "argmin": "the kernel for the last dimension loads with mask=True: beyond the row, and beyond the memory",
    "linalg_vector_norm": "with a negative order, lanes beyond the row are 0, whose power is infinite",
    "logaddexp": "if both inputs are -inf, the difference of two infinities is NaN",
    "masked_scatter": "with a mask of more dimensions, the result has the shape of the input",
    "mm": "with K = 0, the last block of its loop is peeled and starts before the first column",
    "native_batch_norm": "without training, the saved mean and rstd are not empty, unlike torch's",
    "native_group_norm": "if channels per group are not a power of two, the mask lets lanes reach the next group",
    "native_group_norm_backward": "as native_group_norm, in the gradient",
    "native_layer_norm": "mean and rstd have a different shape from torch's",
    "polar": "refuses an angle that needs broadcasting",
    "rms_norm": "the gradient of a weight with several dimensions has one dimension",
}


class _Reached(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the names of dispatched operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        overload = f".{func._schema.overload_name}" if func._schema.overload_name else ""
        self.names.add(func._schema.name.removeprefix("aten::") + overload)
        return func(*args, **(kwargs or {}))


def enable(device: torch.device) -> set[str]:
    """Replace torch's operators by FlagGems' in this process; return their names.

    Raises:
        BringupError: it cannot be loaded for the chip.
    """
    if device.type == "chip":
        redirect_cuda()  # some of its operators request the device cuda by name
        return set(flaggems.enable())
    module: Any = importlib.import_module("flag_gems")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.enable()
    return set(module.current_work_registrar.all_keys)


def run(
    replaced: set[str],
    device: torch.device,
    *,
    samples: int = 1,
    ordinary: bool = True,
    share: int = 0,
    shares: int = 1,
) -> dict[str, list[str]]:
    """Compare operators with the CPU on torch's own samples: as functions, in place, and their gradients.

    Args:
        replaced: the names that `enable` returned.
        device: the device to check.
        samples: number of samples per operator.
        ordinary: True leaves out samples that have tensors without dimensions or without elements.
        share: number of the part of torch's database to run, from 0.
        shares: number of parts.

    Returns:
        operator -> problems, one text per sample and form that reached it; the text is empty if the result was right.
    """
    problems: dict[str, list[str]] = collections.defaultdict(list)
    floats = list(opinfos(torch.float32))
    float_ops = {id(op) for op in floats}
    tasks = [(op, torch.float32) for op in floats] + [
        (op, torch.int64) for op in opinfos(torch.int64) if id(op) not in float_ops
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op, dtype in tasks[share::shares]:
            names = {_base(name) for name in (op.name, op.aten_name or "", *_ALSO.get(op.name, ()))}
            if not names & {_base(name).removesuffix("_backward") for name in replaced}:
                continue
            for sample in _samples(op, dtype, samples, ordinary):
                for form in (_plain, _in_place, _gradient):
                    reached, problem = _try(op, sample, device, form)
                    for name in reached & replaced:
                        forward_name = _base(name).removesuffix("_backward")
                        if _base(name) in names or (form is _gradient and forward_name in names):
                            problems[name].append(problem)
    return dict(sorted(problems.items()))


# Operators of the database that reach a FlagGems operator with another name.
_ALSO = {
    "nn.functional.group_norm": ("native_group_norm",),
    "nn.functional.layer_norm": ("native_layer_norm",),
    "nn.functional.batch_norm": ("native_batch_norm",),
    "nn.functional.interpolate": ("upsample_nearest_exact1d", "upsample_nearest1d", "upsample_nearest2d"),
    "nn.functional.linear": ("addmm", "mm"),
    "nn.functional.cross_entropy": ("log_softmax", "nll_loss_forward", "nll_loss2d_forward"),
    "nn.functional.pad": ("constant_pad_nd", "pad"),
}


def _base(name: str) -> str:
    """Return an operator's name without module, overload and outer underscores: ``gelu`` for ``gelu_``."""
    parts = name.removeprefix("nn.functional.").removeprefix("special.").split(".")
    return (parts[-1] if parts[0] in ("linalg", "fft", "masked") else parts[0]).strip("_")


def _samples(op: Any, dtype: torch.dtype, most: int, ordinary: bool) -> Iterator[Any]:
    torch.manual_seed(0)
    count = 0
    for sample in op.sample_inputs("cpu", dtype):
        if "device" in sample.kwargs:
            continue
        tensors = _tensors((sample.input, sample.args, sample.kwargs))
        if ordinary and not all(part.dim() and part.numel() for part in tensors):
            continue
        yield sample
        count += 1
        if count == most:
            return


def _tensors(value: Any) -> list[torch.Tensor]:
    return [part for part in torch.utils._pytree.tree_leaves(value) if isinstance(part, torch.Tensor)]


Form = Callable[[Any, Any, Any, Any], Any]


def _plain(op: Any, inputs: Any, args: Any, kwargs: Any) -> Any:
    return op(inputs, *args, **kwargs)


def _in_place(op: Any, inputs: Any, args: Any, kwargs: Any) -> Any:
    if op.inplace_variant is None:
        raise NotImplementedError
    op.inplace_variant(inputs, *args, **kwargs)
    return inputs


def _gradient(op: Any, inputs: Any, args: Any, kwargs: Any) -> Any:
    leaves = [part.requires_grad_() for part in _tensors((inputs, args, kwargs)) if part.is_floating_point()]
    results = [part for part in _tensors(op(inputs, *args, **kwargs)) if part.requires_grad]
    return torch.autograd.grad(results, leaves, [torch.ones_like(part) for part in results], allow_unused=True)


def _try(op: Any, sample: Any, device: torch.device, form: Form) -> tuple[set[str], str]:
    """Return the dispatched operators, and the problem or an empty text."""
    try:
        expected = form(op, *_copied((sample.input, sample.args, sample.kwargs)))
    except Exception:
        return set(), ""
    inputs, args, kwargs = (moved(_copied(part), device) for part in (sample.input, sample.args, sample.kwargs))
    reached = _Reached()
    try:
        with reached:
            result = form(op, inputs, args, kwargs)
        _settle(device)
        if sample.output_process_fn_grad is not None and form is not _gradient:
            result, expected = sample.output_process_fn_grad(result), sample.output_process_fn_grad(expected)
        problem = "" if close(expected, result, 1e-3) else "the result differs from the CPU's"
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        for _ in range(10):  # clear errors of launches of this operator; a permanently broken device keeps failing
            try:
                _settle(device)
                break
            except Exception:
                continue
    return reached.names, f"{full_name(op)}{_FORMS[form]}: {problem}" if problem else ""


_FORMS: dict[Form, str] = {_plain: "", _in_place: " in place", _gradient: ", gradient"}


def _settle(device: torch.device) -> None:
    torch.get_device_module(device).synchronize()


def _copied(value: Any) -> Any:
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda part: part.detach().clone(), value)
