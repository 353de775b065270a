"""The signature of a launch, the input of a cost rule: operator, tensors and arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from bringup.machine.vocabulary import ITEM_BYTES, TF32_DEFAULT

if TYPE_CHECKING:
    from collections.abc import Callable

    from bringup.cost.rules import Work


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor argument or result."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: int = -1  # index into the launch's storages; -1 if it is on the host, or a fresh result
    written: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES.get(self.dtype, 4)

    @property
    def nbytes(self) -> int:
        """Bytes of the distinct elements; an expanded dimension, with stride 0, counts once."""
        if 0 not in self.strides:
            return math.prod(self.shape, start=ITEM_BYTES.get(self.dtype, 4))
        sizes = (size for size, stride in zip(self.shape, self.strides, strict=True) if stride or not size)
        return math.prod(sizes, start=ITEM_BYTES.get(self.dtype, 4))

    @property
    def is_integer(self) -> bool:
        """True if the elements are whole numbers, bool included."""
        return "int" in self.dtype or self.dtype == "bool"


@dataclass(frozen=True)
class Signature:
    """One distinct kind of launch; see csrc/launch/signature.h.

    Attributes:
        inner: the operators of a fused kernel.
        tag: torch's tag that selects the rule of an operator without one of its own; see `rules.tag_of`.
        tf32: the products that torch allowed in TF32 at the launch, of `TF32`. The default is torch's.
        cudnn: False for attention that the program keeps from cuDNN (`torch.nn.attention.sdpa_kernel`).
    """

    op: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    args: dict[str, Any]
    inner: tuple[Signature, ...] = ()
    tag: str = ""
    tf32: tuple[str, ...] = TF32_DEFAULT
    cudnn: bool = True

    find_work: ClassVar[Callable[[Signature], Work]]  # set by `rules`, which this module cannot import

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Signature:
        """Build a signature from its JSON form in a trace."""
        inputs = tuple(map(_tensor, data["inputs"]))
        outputs = tuple(map(_tensor, data["outputs"]))
        args = {str(name): _value(value, inputs) for name, value in data["args"].items()}
        inner = tuple(cls.parse(item) for item in data.get("inner", ()))
        tf32 = tuple(data.get("tf32", TF32_DEFAULT))
        return cls(str(data["op"]), inputs, outputs, args, inner, data.get("tag", ""), tf32, data.get("cudnn", True))

    @cached_property
    def work(self) -> Work:
        """The work of the launch, by its cost rule."""
        return type(self).find_work(self)

    @cached_property
    def name(self) -> str:
        """Operator without namespace and overload: ``add`` for ``aten::add.Tensor``."""
        return self.op.split("::")[-1].split(".")[0]

    @cached_property
    def base(self) -> str:
        """Like `name`, without the underscore of the in-place form."""
        name = self.name
        return name[:-1] if name.endswith("_") and not name.endswith("__") else name

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The defined inputs."""
        return tuple([tensor for tensor in self.inputs if tensor is not None])

    @cached_property
    def results(self) -> tuple[Tensor, ...]:
        """The tensors that the launch writes: fresh outputs and written inputs."""
        fresh = [tensor for tensor in self.outputs if tensor is not None]
        return (*fresh, *[tensor for tensor in self.tensors if tensor.written])

    def tensor(self, name: str) -> Tensor | None:
        """Return a tensor argument by name; None if it is absent or undefined."""
        value = self.args.get(name)
        return value if isinstance(value, Tensor) else None

    def required(self, name: str) -> Tensor:
        """Return a tensor argument by name.

        Raises:
            LookupError: the argument is absent or undefined.
        """
        tensor = self.tensor(name)
        if tensor is None:
            raise LookupError(f"there is no tensor {name}")
        return tensor

    @cached_property
    def dtype(self) -> str:
        """The dtype that the launch computes in: that of the first device tensor of the highest kind.

        Kinds are, from high to low, complex, float, integer and bool. Tensors without dimensions count only if all
        tensors are such. The core decides fallbacks by the same rule, ``deciding_dtype`` in csrc/launch/signature.cpp;
        tests/recording/test_trace.py compares the two. A launch without device inputs has the dtype of its results
        here, and no dtype in the core.
        """
        on_chip = [tensor for tensor in self.tensors if tensor.storage >= 0]
        deciding = [tensor for tensor in on_chip if tensor.shape] or on_chip or self.results
        dtypes = [tensor.dtype for tensor in deciding]
        return max(dtypes, key=_rank, default="float32")  # the first of equals

    @cached_property
    def read_bytes(self) -> int:
        """Bytes read from device memory; each input counts once."""
        overwrites = self.overwrites
        read = [tensor for tensor in self.tensors if tensor.storage >= 0 and not (tensor.written and overwrites)]
        return sum([tensor.nbytes for tensor in read])

    @cached_property
    def written_bytes(self) -> int:
        """Bytes written to device memory."""
        return sum([tensor.nbytes for tensor in self.results])

    @property
    def overwrites(self) -> bool:
        """True if the launch does not read the tensors that it writes."""
        return self.op.endswith((".out", "_out")) or self.base in FILLS

    @cached_property
    def shapes(self) -> str:
        """The inputs, or the results if it has none, as text: ``float32[8, 3] int64[8]``."""
        return " ".join(f"{t.dtype}{list(t.shape)}" for t in (self.tensors or self.results))


# Operators whose in-place form overwrites its tensor, with a copy, a constant or random numbers.
FILLS = (
    *("copy", "fill", "zero", "normal", "uniform", "random"),
    *("bernoulli", "exponential", "geometric", "cauchy", "log_normal"),
)


@cache
def _rank(dtype: str) -> int:
    if dtype.startswith("complex"):
        return 3
    if "float" in dtype:
        return 2
    return 0 if dtype == "bool" else 1


def _tensor(item: list[Any] | None) -> Tensor | None:
    if item is None:
        return None
    dtype, shape, strides, storage, written = item
    return Tensor(str(dtype), tuple(shape), tuple(strides), int(storage), bool(written))


def _value(value: Any, inputs: tuple[Tensor | None, ...]) -> Any:
    if isinstance(value, dict):
        return inputs[value["tensor"]] if "tensor" in value else value
    if isinstance(value, list):
        return [_value(item, inputs) if isinstance(item, (dict, list)) else item for item in value]
    return value
