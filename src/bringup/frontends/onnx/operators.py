"""The registry of ONNX's operators: one function per operator, from tensors to tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch

from bringup.frontends.onnx.graph import Graph, Node, OnnxError

Function = Callable[..., Any]
Tensor = torch.Tensor


@dataclass(frozen=True)
class Operator:
    """How nodes of one operator run.

    Attributes:
        function: takes a `Call` and the inputs, None for those left out; returns the output, or a tuple of outputs.
        host: positions of inputs whose values decide shapes, so that the host needs them.
        scalars: positions of inputs that stay on the host if they are constants of one element.
        grows: True if a small input can give a large output, which the host should not compute for the chip.
        foldable: False if the output of constant inputs must not be computed when the model is loaded.
    """

    function: Function
    host: tuple[int, ...] = ()
    scalars: tuple[int, ...] = ()
    grows: bool = False
    foldable: bool = True


def flat(values: Any) -> list[Any]:
    """Return the numbers of nested lists."""
    return [number for item in values for number in flat(item)] if isinstance(values, list) else [values]


class Constant:
    """A constant whose values the host reads, with the methods of a tensor that this needs.

    Reading a tensor would break the graph of torch.compile.
    """

    def __init__(self, values: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.values = values
        self.flat = flat(values)
        self.shape = shape
        self.dtype = dtype

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Constant:
        """Return the values of a tensor."""
        return cls(tensor.tolist(), tuple(tensor.shape), tensor.dtype)

    def on(self, device: torch.device) -> Tensor:
        """Return it as a tensor."""
        return torch.tensor(self.values, dtype=self.dtype, device=device).reshape(self.shape)

    def numel(self) -> int:
        """Return the number of elements."""
        return len(self.flat)

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def tolist(self) -> Any:
        """Return the values as nested lists."""
        return self.values


@dataclass
class Call:
    """What a translation sees of its node.

    Attributes:
        run: runs one of the node's graphs on a list of inputs; returns its outputs.
        constants: the inputs that are constants and that the host reads, by position.
        device: where the node computes.
    """

    node: Node
    run: Callable[[Graph, list[Any]], list[Any]]
    device: torch.device
    constants: dict[int, Constant] = field(default_factory=dict)
    prepared: dict[str, Any] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """Return the version of the node's operators."""
        return self.node.opset

    def __call__(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.node.attributes.get(name, default)

    def has_output(self, number: int) -> bool:
        """Return True if the node has this output."""
        return number < len(self.node.outputs) and bool(self.node.outputs[number])

    def once(self, name: str, make: Callable[[], Any], *sources: Tensor | None) -> Any:
        """Return what `make` makes of these tensors, which is kept until one of them changes."""
        present = [item for item in sources if item is not None]
        if any(item.requires_grad for item in present):
            return make()
        key = [(item.data_ptr(), item._version, item.device) for item in present]
        if name not in self.prepared or self.prepared[name][0] != key:
            self.prepared[name] = key, make(), present
        return self.prepared[name][1]


OPERATORS: dict[str, Operator] = {}


def operator(
    *names: str,
    host: Collection[int] = (),
    scalars: Collection[int] = (),
    grows: bool = False,
    foldable: bool = True,
) -> Callable[[Function], Function]:
    """Register a function as the translation of these operators."""

    def add(function: Function) -> Function:
        for name in names:
            assert name not in OPERATORS, name
            OPERATORS[name] = Operator(function, tuple(host), tuple(scalars), grows, foldable)
        return function

    return add


def ints(value: Tensor | Constant | None) -> list[int] | None:
    """Return the values of a tensor of whole numbers as a list; None stays None."""
    if value is None:
        return None
    return [int(number) for number in (value.flat if isinstance(value, Constant) else value.reshape(-1).tolist())]


def scalar(value: Tensor | Constant) -> Any:
    """Return the only value of a tensor, as in an input that is a scalar or has one element."""
    if value.numel() != 1:
        raise OnnxError(f"an input must have one value, and has {value.numel()}")
    return value.flat[0] if isinstance(value, Constant) else value.reshape(()).item()


def helper_device(x: Tensor) -> torch.device:
    """Return where to compute a small tensor that an operator needs: the host, or meta if only shapes are computed."""
    return x.device if x.device.type == "meta" else torch.device("cpu")


def axes_of(rank: int, axes: list[int] | None) -> list[int]:
    """Return axes counted from the front; None are all axes."""
    return list(range(rank)) if axes is None else [axis % rank if rank else 0 for axis in axes]


_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def widened(function: Function) -> Function:
    """Compute with signed numbers where torch has no kernels for unsigned ones."""

    def run(call: Call, *items: Any) -> Any:
        narrow = next((item.dtype for item in items if isinstance(item, Tensor) and item.dtype in _WIDER), None)
        if narrow is None:
            return function(call, *items)
        wide = _WIDER[narrow]
        result = function(
            call, *(item.to(wide) if item is not None and item.dtype == narrow else item for item in items)
        )
        return result.to(narrow) if result.dtype == wide else result

    return run
