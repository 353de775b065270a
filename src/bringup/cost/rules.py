"""The registry of cost rules."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter

from bringup.cost.signature import Signature
from bringup.errors import BringupError
from bringup.machine.vocabulary import FAMILIES
from bringup.text import short


@dataclass(frozen=True, slots=True)
class Gemm:
    """``batch`` products of [m, k] by [k, n], computed by a tuned library or inside a fused kernel.

    ``gathers`` is True if the elements along k are gathered one by one, as for the gradient of a convolution's filter.
    ``whole`` is True if the library's kernels do not divide k between cores. ``outer`` is True if k is the outer
    dimension of both factors in memory, as for the gradient of a layer's weights.
    """

    batch: int
    m: int
    n: int
    k: int
    gathers: bool = False
    whole: bool = False
    outer: bool = False

    @property
    def flops(self) -> int:
        """Number of multiplications and additions."""
        return 2 * self.batch * self.m * self.n * self.k


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of one launch, independent of the chip.

    Attributes:
        gemms: products for the matrix engine.
        vector_flops: operations of the vector units.
        special: evaluations of exp, log, tanh, sqrt, ...
        read_bytes, written_bytes: traffic with device memory if nothing is cached.
        items: number of independent results, which bounds the part of the chip that can work at once.
        kernels: number of device kernels in the launch.
        streams: fraction of the streaming bandwidth that this access pattern reaches.
        again_bytes: bytes that later passes of the kernel read again, from the cache if the bytes in flight fit there.
        in_flight: bytes that one core has in flight between such passes.
        passes: number of further passes, each of which waits for the one before.
        offsets: integer instructions that find the elements in memory, beyond a plain walk.
        sectors: sectors of the last cache that are moved where neighbours in a warp lie apart; see `SECTOR`.
        waits: memory latencies that blocks wait in sequence, summed over blocks, as a share of a core's threads. Other
            blocks run meanwhile, and memory works.
        chain: memory latencies in sequence that nothing hides.
        cells: number of launches on a chip without a kernel for the whole, cell by cell; 0 if there is no such form.
        winograd: True if the products may use Winograd's minimal filtering.
        tf32: the switch of torch that allowed float32 products in TF32, of `vocabulary.TF32`; "" if none did.
        converted_bytes, conversions: bytes and kernels that change layouts around the products if the library wants
            the other layout: channels last for TF32, channels first for plain float32.
        channels_last: True for convolutions of data with channels last.
        bias_bytes: bytes that a kernel for the bias alone moves, on chips whose library has none together with the
            product.
        aligned: False if a row of a product's matrices does not start at a multiple of 16 bytes.
        hides_softmax: True for attention whose products can run while the softmax does; a mask prevents it.
        torchs_own: True for attention that the program keeps from cuDNN, so that torch's own kernels compute it.
        own_flops: `vector_flops` of PyTorch's own depthwise kernels, with what finding addresses is worth; else 0.
    """

    family: str
    dtype: str
    gemms: tuple[Gemm, ...] = ()
    vector_flops: float = 0.0
    special: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    items: float = 1.0
    kernels: int = 1
    streams: float = 1.0
    again_bytes: float = 0.0
    in_flight: float = 0.0
    passes: int = 0
    offsets: float = 0.0
    sectors: float = 0.0
    waits: float = 0.0
    chain: float = 0.0
    cells: int = 0
    winograd: bool = False
    tf32: str = ""
    converted_bytes: float = 0.0
    conversions: int = 0
    channels_last: bool = False
    bias_bytes: float = 0.0
    aligned: bool = True
    hides_softmax: bool = False
    torchs_own: bool = False
    own_flops: float = 0.0

    @property
    def flops(self) -> float:
        """Number of operations on all engines."""
        return sum(gemm.flops for gemm in self.gemms) + self.vector_flops + self.special

    @property
    def bytes(self) -> float:
        """Number of bytes read and written."""
        return self.read_bytes + self.written_bytes


# Kernels for 16-bit floats compute in float32 (torch's opmath type); only the values in memory have 16 bits.
OPMATH = {"float16": "float32", "bfloat16": "float32"}
# Elements in flight on one core of a GPU that hide the memory latency: 2,048 threads with one element each.
ITEMS_PER_CORE = 2048
SECTOR = 32  # bytes of a cache sector, the least that a GPU moves (CUDA C++ Best Practices Guide, coalesced access)

Rule = Callable[[Signature], Work]
_rules: dict[str, tuple[str, Rule]] = {}


def names(text: str) -> list[str]:
    """Split a text into operator names at spaces and line ends."""
    return text.split()


def rule(family: str, *operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators, named without namespace, overload and the underscore of the in-place form."""
    assert family in FAMILIES, family

    def register(function: Rule) -> Rule:
        for operator in operators:
            if operator in _rules:
                raise BringupError(
                    f"{operator} already has a cost rule, in family {_rules[operator][0]}: change that rule"
                )
            _rules[operator] = (family, function)
        return function

    return register


def streaming(signature: Signature, family: str, *, flops: float = 1.0, special: float = 0.0) -> Work:
    """Return the work of an operator that reads its inputs and writes its results once.

    Args:
        signature: the launch.
        family: its family.
        flops: vector operations per element of the largest input or of the results, whichever has more elements.
        special: special functions per such element.
    """
    results = sum(tensor.numel for tensor in signature.results)
    elements = max([results, *(tensor.numel for tensor in signature.tensors)])
    return Work(
        family=family,
        dtype=OPMATH.get(signature.dtype, signature.dtype),
        vector_flops=flops * elements,
        special=special * elements,
        read_bytes=signature.read_bytes,
        written_bytes=signature.written_bytes,
        items=max(elements, 1),
    )


@cache
def _load_families() -> None:
    """Import the modules of all families, which register their rules."""
    families = "matmul convolution attention normalization pointwise reduction memory algebra fused own_kernel"
    for name in names(f"{families} sparse recurrent collective"):
        importlib.import_module(f"bringup.cost.{name}")


@cache
def tags(op: str) -> frozenset[str]:
    """Return torch's tags for an operator (``pointwise``, ...), or an empty set if torch has no such operator."""
    import torch

    namespace, _, rest = op.partition("::")
    name, _, overload = rest.partition(".")
    try:
        operator = getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")
    except (AttributeError, RuntimeError, TypeError):  # no operator can have this name
        return frozenset()
    if not isinstance(operator, torch._ops.OpOverload):
        return frozenset()
    return frozenset(str(tag).split(".")[-1] for tag in operator.tags)


TAGS = ("pointwise", "reduction", "nondeterministic_seeded")  # those that have a rule, the first decides


@cache
def tag_of(op: str) -> str:
    """Return the tag of `TAGS` that torch gives an operator, "" if it gives none."""
    return next((tag for tag in TAGS if tag in tags(op)), "")


def _base(op: str) -> str:
    name = op.split("::")[-1].split(".")[0]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


@cache
def _rule_of(op: str, tag: str) -> tuple[str, Rule]:
    _load_families()
    base = _base(op)
    if op.startswith("fused::"):
        return _rules["fused"]
    if op.startswith("triton::"):
        return _rules["triton"]
    if op.startswith("sparse::"):
        return _rules["sparse"]
    if op.startswith("c10d::"):
        return _rules["collective"]
    if base in _rules:
        return _rules[base]
    for prefix in ("_foreach_", "_fused_", "_fft_", "linalg_"):
        if base.startswith(prefix):
            return _rules[prefix]
    if tag:
        return _rules[tag]
    if base.endswith("_copy"):
        return _rules["copy"]
    return ("other", _other)


def _other(signature: Signature) -> Work:
    return streaming(signature, "other")


def family_of(op: str) -> str:
    """Return the family of an operator (``aten::add.Tensor``); ``other`` if it has no rule."""
    return _rule_of(op, tag_of(op))[0]


def named_family_of(op: str) -> str | None:
    """Return the family of an operator that has a rule by name; None if torch's tags decide, which takes longer."""
    _load_families()
    entry = _rules.get(_base(op))
    return None if entry is None else entry[0]


# The exceptions of a rule whose tensors or arguments are not those of its operator.
_MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, StopIteration, TypeError, ValueError)
MOST_WORK = 1e60  # far beyond any launch, and small enough that no price overflows
AMOUNTS = (
    *("vector_flops", "special", "read_bytes", "written_bytes", "items", "again_bytes", "passes"),
    *("offsets", "sectors", "waits", "chain", "converted_bytes", "conversions", "bias_bytes", "cells"),
)
_amounts = attrgetter(*AMOUNTS)


def _check(work: Work) -> None:
    """Raise ValueError if a launch's work cannot be priced: negative, infinite or not a number."""
    sides = min([min(gemm.batch, gemm.m, gemm.n, gemm.k) for gemm in work.gemms], default=0)
    in_flight = min(work.in_flight, 1.0)  # infinity stands for a whole tensor
    amounts = (*_amounts(work), work.flops, in_flight, sides)
    for name, amount in zip((*AMOUNTS, "flops", "in_flight", "product"), amounts, strict=True):
        if not 0 <= amount < MOST_WORK:
            raise ValueError(f"{name} is {float(amount):g}")
    if not (0 < work.streams <= 1 and 1 <= work.kernels < MOST_WORK):
        raise ValueError(f"{work.kernels} kernels reach {work.streams} of the bandwidth")


def work_of(signature: Signature) -> Work:
    """Return the work of a launch. `Signature.work` caches it.

    A loaded trace may hold any arguments for an operator. This function checks them, so rules need not do so.

    Raises:
        BringupError: the rule cannot use the arguments; the message names the operator.
    """
    family, function = _rule_of(signature.op, signature.tag)
    try:
        work = function(signature)
        _check(work)
    except _MISFITS as error:
        shapes, reason = short(signature.shapes), short(str(error) or type(error).__name__)
        raise BringupError(
            f"{short(signature.op)} ({shapes}) cannot be priced, because its cost rule does not fit its arguments "
            f"({reason}): "
            "record the program again"
        ) from error
    # The rule of convolutions also returns the family depthwise, which depends on the shapes.
    return work if work.family in (family, "depthwise") else replace(work, family=family)


Signature.find_work = staticmethod(work_of)
