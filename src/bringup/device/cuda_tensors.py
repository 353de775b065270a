"""Tensors of programs that say cuda: their device, their moves and their old types."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch

from bringup.device import torch_chip as chips
from bringup.device.cuda_names import is_torch, naming, real, shown, translating, used

TYPES = {
    **{"FloatTensor": torch.float32, "DoubleTensor": torch.float64, "HalfTensor": torch.float16},
    **{"BFloat16Tensor": torch.bfloat16, "LongTensor": torch.int64, "IntTensor": torch.int32},
    **{"ShortTensor": torch.int16, "CharTensor": torch.int8, "ByteTensor": torch.uint8, "BoolTensor": torch.bool},
}


class Legacy(type):
    """The type of ``torch.cuda.FloatTensor`` and its like, which create tensors and work in ``isinstance``."""

    name: str
    dtype: torch.dtype
    is_cuda = True

    def __call__(cls, *args: Any) -> torch.Tensor:
        """Create a tensor from sizes or from data, as the old types do."""
        if args and not isinstance(args[0], (int, torch.Size)):  # a list, an array or a tensor
            return torch.as_tensor(args[0], dtype=cls.dtype, device="cuda")
        return torch.empty(*(args or (0,)), dtype=cls.dtype, device="cuda")

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch.Tensor) and instance.is_cuda and instance.dtype == cls.dtype


def patch_tensors() -> None:
    """Patch tensors, modules and storages."""
    tensor: Any = torch.Tensor
    where, to = torch._C.TensorBase.device.__get__, tensor.to

    # torch makes the wrappers of pending collectives on the device that their tensor shows.
    tensor._make_wrapper_subclass = staticmethod(translating(torch.Tensor._make_wrapper_subclass))
    name_of = functools.cache(shown)

    def device(self: torch.Tensor) -> torch.device:
        return where(self) if naming.plain else name_of(where(self))

    def is_cuda(self: torch.Tensor) -> bool:
        return bool(chips.real_device(self).type == "chip")

    @functools.wraps(to)
    def to_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = real(kwargs["device"])
        if args:
            args = (real(args[0]), *args[1:])
        return to(self, *args, **kwargs)

    def cuda(
        self: torch.Tensor,
        device: Any = None,
        non_blocking: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Any:
        if not is_torch(sys._getframe(1)):
            used["Tensor.cuda"] += 1
        index = torch.device("chip", device) if isinstance(device, int) else real(device or "cuda")
        return to(self, device=index, non_blocking=non_blocking, memory_format=memory_format)

    def module_cuda(self: Any, device: Any = None) -> Any:
        used["Module.cuda"] += 1
        return self._apply(lambda item: item.cuda(device))

    module: Any = torch.nn.Module
    module.cuda = functools.wraps(module.cuda)(module_cuda)
    tensor.device, tensor.is_cuda = property(device), property(is_cuda)
    tensor.to, tensor.cuda = to_, cuda
    tensor.pin_memory, tensor.is_pinned = translating(tensor.pin_memory), translating(tensor.is_pinned)
    kinds = {f"torch.cuda.{name}": kind for name, kind in TYPES.items()}
    type_ = tensor.type

    @functools.wraps(type_)
    def as_type(self: torch.Tensor, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        if dtype is None:
            return type_(self).replace("torch.chip.", "torch.cuda.")
        name = f"torch.cuda.{dtype.name}" if isinstance(dtype, Legacy) else dtype if isinstance(dtype, str) else ""
        if name in kinds:
            return to(self, torch.device("chip"), kinds[name], non_blocking=non_blocking)
        return type_(self, dtype, non_blocking, **kwargs)

    tensor.type = as_type
    # The methods of parameters without a shape (torch.nn.LazyLinear), as torch passes them to __torch_function__.
    lazy: Any = torch.nn.parameter
    lazy.UninitializedTensorMixin._allowed_methods += [to_, cuda]
    storage: Any = torch.UntypedStorage
    storage.cuda = lambda self, device=None, non_blocking=False: self.to(
        device=real(device or "cuda"), non_blocking=non_blocking
    )
    _patch_fakes()
    _patch_numpy()


def _patch_fakes() -> None:
    """Patch torch.compile's fake tensors to be on the chip, under which name the dispatcher knows their operators."""
    make = torch._subclasses.FakeTensor.__new__

    @functools.wraps(make)
    def fake(cls: Any, *args: Any, **kwargs: Any) -> Any:  # torch 2.14 has three names for the device
        return make(cls, *map(real, args), **{name: real(value) for name, value in kwargs.items()})

    torch._subclasses.FakeTensor.__new__ = staticmethod(fake)  # type: ignore[method-assign]
    describer = torch._subclasses.meta_utils.MetaTensorDescriber
    describe = describer.describe_tensor

    @functools.wraps(describe)
    def describe_tensor(self: Any, *args: Any, **kwargs: Any) -> Any:  # a view's fake tensor gets its device from here
        description = describe(self, *args, **kwargs)
        object.__setattr__(description, "device", real(description.device))
        return description

    describer.describe_tensor = describe_tensor  # type: ignore[method-assign]


def _patch_numpy() -> None:
    """Patch the conversions to numpy to name the device cuda in their error."""
    tensor: Any = torch.Tensor
    for name in ("numpy", "__array__"):
        original = getattr(tensor, name)

        def convert(self: torch.Tensor, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            try:
                return _original(self, *args, **kwargs)
            except TypeError as error:
                if not self.is_cuda:
                    raise
                raise TypeError(str(error).replace("chip:", "cuda:")) from None

        setattr(tensor, name, functools.wraps(original)(convert))
