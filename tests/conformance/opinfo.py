"""torch's own operator database, run on chip and compared with the CPU."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch.testing._internal import common_utils
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo import core
from torch.testing._internal.opinfo.core import OpInfo, SampleInput
from torch.utils._pytree import tree_flatten, tree_map

SAMPLES = 12
SEED = 1234

# Two runs on the CPU itself already differ: results are compared by shape and dtype alone.
VALUES_UNDEFINED = {
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
}


def seed(value: int = SEED) -> None:
    """Seed all generators but those of absent accelerators: torch.manual_seed notes the stack for each of these."""
    random.seed(value)
    numpy.random.seed(value)
    torch.default_generator.manual_seed(value)
    torch.chip.manual_seed_all(value)


# Before each sample, torch's databases seed all generators, and look for a unittest of torch's in all frames.
# There is none, and looking takes longer than most checks.
common_utils.set_rng_seed = seed
common_utils.extract_test_fn = core.extract_test_fn = lambda: None


def full_name(op: OpInfo) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def ops(dtype: torch.dtype, *, backward: bool = False) -> list[OpInfo]:
    """The operators of the database that the CPU supports with a dtype (and differentiates)."""
    found = [op for op in op_db if dtype in op.supported_dtypes("cpu") and not op.name.startswith("jiterator")]
    if backward:
        found = [op for op in found if op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")]
    return found


class Move:
    """Move tensors and device arguments of one call to a device.

    Keeps requires_grad, strides, storage offset, the whole storage, and which tensors share one. Meta tensors stay.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not value.is_meta:
            return self.tensor(value.detach()).requires_grad_(value.requires_grad)
        if isinstance(value, torch.device) and value.type != "meta":
            return self.device
        return self.device.type if isinstance(value, str) and value == "cpu" else value

    def tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is not torch.strided:
            return tensor.to(self.device, copy=True)
        if tensor.is_conj():
            return self.tensor(tensor.conj()).conj()
        if tensor.is_neg():
            return torch._neg_view(self.tensor(torch._neg_view(tensor)))
        storage = tensor.untyped_storage()
        if storage._cdata not in self.storages:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            self.storages[storage._cdata] = whole.to(self.device, copy=True).untyped_storage()
        empty = torch.empty(0, dtype=tensor.dtype, device=self.device)
        return empty.set_(self.storages[storage._cdata], tensor.storage_offset(), tensor.shape, tensor.stride())


def to_chip(value: Any) -> Any:
    """Move one value; use tree_map(Move("chip"), ...) where values may share storage."""
    return Move("chip")(value)


def moved_arguments(op: OpInfo, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The sample's arguments on chip."""
    if op.name == "tensor_split":  # its indices are on the CPU for every device
        return (to_chip(args[0]), *args[1:]), kwargs
    return tree_map(Move("chip"), (args, kwargs))


def to_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, torch.Tensor) and value.device.type == "chip" else value


def samples(op: OpInfo, dtype: torch.dtype, *, requires_grad: bool) -> Iterator[SampleInput]:
    seed()
    return itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=requires_grad), SAMPLES)


def arguments(sample: SampleInput) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (sample.input, *sample.args), dict(sample.kwargs)


def run(function: Any, args: Any, kwargs: Any) -> Any:
    seed()
    return function(*args, **kwargs)


def compare(on_chip: Any, on_cpu: Any, what: str, *, values: bool = True) -> None:
    ours, theirs = tree_flatten(on_chip)[0], tree_flatten(on_cpu)[0]
    assert len(ours) == len(theirs), f"{what}: {len(ours)} results, the CPU has {len(theirs)}"
    for a, b in zip(ours, theirs, strict=True):
        if not isinstance(b, torch.Tensor):
            assert not isinstance(a, torch.Tensor), f"{what}: {a.dtype}{list(a.shape)}, the CPU has {b!r}"
            assert a == b or (a != a and b != b), f"{what}: {a!r}, the CPU has {b!r}"
            continue
        a, b = to_cpu(a), b.detach()
        assert a.shape == b.shape and a.dtype == b.dtype, (
            f"{what}: {a.dtype}{list(a.shape)}, CPU {b.dtype}{list(b.shape)}"
        )
        if values:
            torch.testing.assert_close(a, b, equal_nan=True, msg=lambda m: f"{what}: {m}")


def clone(value: Any) -> Any:
    """Copy every tensor with its whole storage, so that views of views stay in bounds."""
    return tree_map(lambda v: Move(str(v.device)).tensor(v.detach()) if isinstance(v, torch.Tensor) else v, value)


def check_forward(op: OpInfo, dtype: torch.dtype, most: int = SAMPLES) -> None:
    """Function, in-place variant and out= variant of an operator, on the first samples of the database."""
    values = op.name not in VALUES_UNDEFINED
    for number, sample in enumerate(itertools.islice(samples(op, dtype, requires_grad=False), most)):
        args, kwargs = arguments(sample)
        chip_args, chip_kwargs = moved_arguments(op, args, kwargs)
        expected = run(op.op, clone(args), clone(kwargs))
        result = run(op.op, clone(chip_args), clone(chip_kwargs))
        compare(result, expected, f"sample {number}", values=values)
        _check_out(op, number, chip_args, chip_kwargs, expected, values)
        inplace = op.inplace_variant
        if inplace is None or sample.broadcasts_input or number > 3:
            continue
        try:
            expected_inplace = run(inplace, clone(args), clone(kwargs))
        except Exception:  # the CPU refuses: a result dtype that cannot be cast back, for example
            continue
        compare(
            run(inplace, clone(chip_args), clone(chip_kwargs)), expected_inplace, f"in-place {number}", values=values
        )


def _check_out(op: OpInfo, number: int, args: Any, kwargs: Any, expected: Any, values: bool) -> None:
    if not op.supports_out or number > 1:
        return

    def outs(device: str) -> Any:
        return tree_map(
            lambda t: torch.empty(t.shape, dtype=t.dtype, device=device) if isinstance(t, torch.Tensor) else t, expected
        )

    on_cpu, on_chip = outs("cpu"), outs("chip")
    try:
        run(op.op, clone(tree_map(to_cpu, args)), {**clone(tree_map(to_cpu, kwargs)), "out": on_cpu})
    except Exception:  # the CPU refuses: this operator wants another form of out=
        return
    run(op.op, clone(args), {**clone(kwargs), "out": on_chip})
    compare(on_chip, on_cpu, f"out= {number}", values=values)


def _differentiable(result: Any) -> list[torch.Tensor]:
    return [t for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor) and t.requires_grad]


def _gradients(op: OpInfo, args: Any, kwargs: Any, sample: SampleInput) -> list[Any]:
    leaves = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor) and t.requires_grad]
    result = run(op.op, args, kwargs)
    result = sample.output_process_fn_grad(result)
    outputs = _differentiable(result)
    if not outputs or not leaves:
        return []
    directions = [torch.ones_like(t) for t in outputs]
    return list(torch.autograd.grad(outputs, leaves, directions, allow_unused=True))


def check_backward(op: OpInfo, dtype: torch.dtype, most: int = SAMPLES) -> None:
    """Gradients of an operator with respect to every differentiable input."""
    for number, sample in enumerate(itertools.islice(samples(op, dtype, requires_grad=True), most)):
        args, kwargs = arguments(sample)
        chip_args, chip_kwargs = moved_arguments(op, args, kwargs)
        try:
            expected = _gradients(op, args, kwargs, sample)
        except RuntimeError:
            if op.name in VALUES_UNDEFINED:
                continue
            raise
        compare(_gradients(op, chip_args, chip_kwargs, sample), expected, f"gradient of sample {number}")


def raised(op: OpInfo, sample: SampleInput, move: Any) -> Exception | None:
    """What an erroneous sample raises, at the call or at the next synchronisation; None if nothing."""
    args, kwargs = arguments(sample)
    try:
        run(op.op, *tree_map(move, (args, kwargs)))
        torch.chip.synchronize()
    except Exception as error:
        return error
    return None


def same_message(ours: Exception, theirs: Exception) -> bool:
    """Compare the first lines, without the names of devices and backends."""

    def plain(error: Exception) -> str:
        first = str(error).splitlines()[0] if str(error) else ""
        return re.sub(r"\s*\(aten::.*", "", re.sub(r"chip(:\d)?|cpu|CPU|PrivateUse1", "DEVICE", first)).strip()

    return plain(ours) == plain(theirs)
