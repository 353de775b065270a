"""What torch's CPU kernels refuse is refused at the call, not at the next synchronisation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.testing._internal.opinfo.core import BinaryUfuncInfo, OpInfo, ReductionOpInfo, UnaryUfuncInfo
from torch.utils._pytree import tree_flatten, tree_map

import bringup
from tests.conformance import opinfo

pytestmark = pytest.mark.filterwarnings("ignore")

DTYPES = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
DTYPES += ["complex64", "complex128", "float8_e4m3fn", "uint16"]
# More lenient on purpose: accelerators count integers; ldexp is a product of powers everywhere but on the CPU.
LENIENT = {"histc", "ldexp"}
# Composites of torch that choose other operators by device.
OTHER_PATH = {"nn.functional.linear_cross_entropy.chunked", "nn.functional.linear_cross_entropy.chunked_none"}
CRASHES = {"lu_unpack"}  # torch's own kernel, with too few pivots
# One argument's size is compared with another's content; an index that is out of bounds is content, too.
STAND_INS = {
    "linalg.lstsq",
    "linalg.lstsq.grad_oriented",
}  # waits for its result, which a dry run's stand-ins do not have
BY_CONTENT = {"masked_scatter", "_segment_reduce.lengths", "_segment_reduce.offsets"}
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def converted(sample: Any, dtype: torch.dtype, which: str) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The sample with its first, its other, or all float32 tensors in another dtype; None if that changes nothing."""
    floats = [item for item in tree_flatten((sample.input, sample.args, sample.kwargs))[0] if is_float32(item)]
    chosen = {"all": floats, "first": floats[:1], "others": floats[1:]}[which]
    if not chosen or (which != "all" and len(floats) < 2):
        return None
    replace = {id(item): item.to(dtype) for item in chosen}
    return tree_map(lambda item: replace.get(id(item), item), ((sample.input, *sample.args), sample.kwargs))


def is_float32(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.dtype is torch.float32 and item.layout is torch.strided


def calls_of(op: OpInfo) -> Iterator[Call]:
    """A sample in every dtype, out of place and in place."""
    (sample,) = itertools.islice(op.sample_inputs("cpu", torch.float32), 1)
    for name, which in itertools.product(DTYPES, ("all", "first", "others")):
        arguments = converted(sample, getattr(torch, name), which)
        if arguments is not None:
            for form in (op.op, op.inplace_variant):
                if form is not None:
                    yield form, *arguments


def large_calls_of(op: OpInfo) -> Iterator[Call]:
    """Operators of one or two tensors of any shape, on tensors that are too large to be tried whole."""
    for name in DTYPES:
        x, y = (torch.ones(200, 200).to(getattr(torch, name)) for _ in range(2))
        arguments = (x, y) if isinstance(op, BinaryUfuncInfo) else (x,)
        for form in (op.op, op.inplace_variant):
            if form is not None:
                yield form, arguments, {}


def reshaped(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The same tensor with another size, another number of dimensions, other strides."""
    yield tensor.unsqueeze(0)
    yield tensor.reshape(-1)
    yield torch.cat([tensor, tensor], -1) if tensor.dim() else tensor.repeat(3)
    yield tensor.narrow(0, 0, 0) if tensor.dim() else tensor.reshape(1, 1)
    yield tensor.flatten()[:1].expand(tensor.shape) if tensor.numel() and tensor.dim() else tensor
    yield tensor.transpose(0, -1) if tensor.dim() else tensor


def shapes_of(op: OpInfo) -> Iterator[Call]:
    """A sample with one of its tensors in another shape."""
    (sample,) = itertools.islice(op.sample_inputs("cpu", torch.float32), 1)
    arguments = ((sample.input, *sample.args), sample.kwargs)
    tensors = [
        item for item in tree_flatten(arguments)[0] if isinstance(item, torch.Tensor) and item.layout is torch.strided
    ]
    for tensor in tensors[:3]:
        for other in reshaped(tensor):
            args, kwargs = tree_map(lambda item, old=tensor, new=other: new if item is old else item, arguments)
            for form in (op.op, op.inplace_variant):
                if form is not None:
                    yield form, args, kwargs


def raised(form: Callable[..., Any], args: Any, kwargs: Any) -> Exception | None:
    try:
        opinfo.run(form, args, kwargs)
    except Exception as error:
        return error
    return None


def bits(value: Any) -> Any:
    """Content and metadata of the tensors of a call."""
    found = []
    for item in tree_flatten(value)[0]:
        if isinstance(item, torch.Tensor) and item.layout is torch.strided:
            content = item.detach().cpu().resolve_conj().resolve_neg().reshape(-1).clone().view(torch.uint8)
            found.append((item.dtype, item.shape, item.stride(), item.requires_grad, content.numpy().tobytes()))
    return found


def disagreements(op: OpInfo, calls: Iterator[Call], dry: bool = False) -> tuple[int, list[str]]:
    """How many calls the CPU refuses, and those that the chip refuses later, or not at all, or alone."""
    name, refused, found = opinfo.full_name(op), 0, []
    for form, args, kwargs in calls:
        moved = opinfo.moved_arguments(op, args, kwargs)
        cpu = tree_map(opinfo.Move("cpu"), (args, kwargs))
        before, on_cpu = bits(cpu), raised(form, *cpu)
        refused += on_cpu is not None
        with bringup.dry() if dry else nullcontext():
            at_call = raised(form, *moved)
        try:
            torch.chip.synchronize()
            late = None
        except Exception as error:
            late = error
        said = f"{name}({', '.join(str(getattr(item, 'dtype', item)) for item in tree_flatten(args)[0])})"
        if (
            on_cpu is not None
            and at_call is None
            and "out of bounds" in str(on_cpu) + str(on_cpu).replace("range", "bounds")
        ):
            continue
        if on_cpu is not None and at_call is None:
            found.append(f"{said}: {late or 'never'}: instead of {str(on_cpu).splitlines()[0]:.100}")
        elif (
            on_cpu is not None and not dry and bits(moved) not in (before, bits(cpu))
        ):  # some kernels find out in the middle
            found.append(f"{said}: refused, and has changed its arguments")
        elif on_cpu is None and (late or at_call):
            found.append(f"{said}: only on chip: {str(late or at_call).splitlines()[0]:.100}")
    return refused, found


def all_disagreements(
    choose: Callable[[OpInfo], Iterator[Call]], kinds: Any = OpInfo, dry: bool = False, every: int = 1
) -> tuple[int, list[str]]:
    refused, found = 0, []
    left_out = LENIENT | OTHER_PATH | CRASHES | BY_CONTENT | (STAND_INS if dry else set())
    for op in opinfo.ops(torch.float32)[::every]:
        if isinstance(op, kinds) and opinfo.full_name(op) not in left_out:
            more, late = disagreements(op, choose(op), dry)
            refused, found = refused + more, found + late
    return refused, found


@pytest.mark.parametrize(
    ("dry", "every"),
    [
        (False, 8),
        (True, 8),
        pytest.param(False, 1, marks=pytest.mark.slow),
        pytest.param(True, 1, marks=pytest.mark.slow),
    ],
    ids=["an eighth", "an eighth, dry", "all", "all, dry"],
)
def test_dtypes_that_the_cpu_refuses_are_refused_at_the_call(dry: bool, every: int) -> None:
    refused, found = all_disagreements(calls_of, dry=dry, every=every)
    assert refused > 6000 / every
    assert not found, f"{len(found)}:\n" + "\n".join(found)


def test_dtypes_of_large_tensors_are_refused_at_the_call() -> None:
    refused, found = all_disagreements(large_calls_of, (UnaryUfuncInfo, BinaryUfuncInfo, ReductionOpInfo))
    assert refused > 500
    assert not found, f"{len(found)}:\n" + "\n".join(found)


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)], ids=["a quarter", "all"])
def test_shapes_that_the_cpu_refuses_are_refused_at_the_call(every: int) -> None:
    refused, found = all_disagreements(shapes_of, every=every)
    assert refused > 1500 / every
    assert not found, f"{len(found)}:\n" + "\n".join(found)
