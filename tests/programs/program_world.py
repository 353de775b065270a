"""What the statements of a random program may call, on the CPU or on the chip, and what is compared of a tensor."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
import queue
import re
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

Names = dict[str, Any]
BY_CONTENT = ": by content"
NOT_AT_THE_CALL = re.compile("out of bounds|not finite")  # the chip reports what depends on content later


def content(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return the same numbers on each call: small, and of every seventh seed some that are no numbers."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if dtype.is_complex:
        return torch.randn(shape, dtype=torch.complex128, generator=generator).to(dtype)
    if dtype.is_floating_point:
        values = torch.randn(shape, dtype=torch.float64, generator=generator)
        if seed % 7 == 0 and values.numel() > 2:
            values.view(-1)[:3] = torch.tensor([torch.inf, torch.nan, -0.0])
        return values.to(dtype)
    return torch.randint(-4 if dtype.is_signed else 0, 5, shape, generator=generator).to(dtype)


class Double(torch.autograd.Function):
    """A function of the program's own, which remembers its input."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = context.saved_tensors
        return gradient * 2 + x * 0


class World:
    """The names of a program's statements on one device. Names that a statement makes belong to its lane."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.handed: dict[str, queue.Queue[Any]] = {}
        self.common = {name: getattr(self, name) for name in dir(type(self)) if not name.startswith("_")}
        self.common |= {"torch": torch, "F": torch.nn.functional, "dev": self.device, "gc": gc}
        self.common |= {"copy": copy, "checkpoint": checkpoint, "Double": Double}
        self.patience = 0.0  # seconds until a tensor of another lane counts as lost
        self.lanes: dict[int, Names] = {}
        self.said: dict[int, str] = {}  # by the last error of a lane

    def _on_chip(self) -> bool:
        return self.device.type == "chip"

    def _names(self, lane: int) -> Names:
        return self.lanes.setdefault(lane, {})

    def _run(self, lane: int, text: str) -> str:
        """Run a statement; return the type of what it raised, and whether that is about content, or nothing."""
        names = self._names(lane)
        try:
            exec(compile(text, "<program>", "exec"), self.common, names)
        except Exception as error:
            self.said[lane] = " ".join(str(error).split())[:200]
            return type(error).__name__ + (BY_CONTENT if NOT_AT_THE_CALL.search(str(error)) else "")
        return ""

    # ---- tensors

    def data(self, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
        return content(shape, dtype, seed).to(self.device, copy=True)

    def index(self, shape: tuple[int, ...], bound: int, seed: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Return numbers below the bound, none of them twice in a row."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, max(bound, 1), shape, generator=generator).to(dtype).to(self.device, copy=True)

    def mask(self, like: torch.Tensor, seed: int) -> torch.Tensor:
        return self.data(tuple(like.shape), torch.bool, seed)

    def host(self, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
        """A tensor on the CPU on either device."""
        return content(shape, dtype, seed)

    def strided(self, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
        """A tensor with these strides whose storage has no byte without content."""
        room = room_of(torch.empty_strided(shape, stride, device="meta"))
        return self.data((room,), dtype, seed).as_strided(shape, stride).detach()

    def drawn(self, seed: int, shape: tuple[int, ...], dtype: torch.dtype, how: str) -> torch.Tensor:
        """Random numbers of a generator of the device."""
        generator = torch.Generator(self.device).manual_seed(seed)
        if how == "randperm":
            return torch.randperm(max(1, sum(shape)), generator=generator, device=self.device)
        return getattr(torch, how)(shape, generator=generator, dtype=dtype, device=self.device)

    def grown(self, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Resize a tensor; what lies behind its old elements is filled."""
        before = (x.storage_offset() + room_of(x)) * x.element_size()
        x.resize_(shape)
        whole = torch.empty(0, dtype=torch.uint8, device=self.device).set_(x.untyped_storage())
        whole[before:].fill_(1)
        return x

    # ---- ways between memories

    def over(self, x: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        """There and back over the link."""
        if self._on_chip():
            return x.to("cpu", non_blocking=False).to(self.device, non_blocking=non_blocking)
        return x.to("cpu", copy=True).to("cpu", copy=True)

    def pinned(self, x: torch.Tensor) -> torch.Tensor:
        """There and back through page-locked memory, without waiting between."""
        halfway = torch.empty_like(x, device="cpu", requires_grad=False)
        if self._on_chip():
            halfway = halfway.pin_memory()
        halfway.copy_(x.detach(), non_blocking=True)
        return halfway.to(self.device, non_blocking=True, copy=True)

    def down(self, x: torch.Tensor, dtype: torch.dtype, transposed: bool) -> torch.Tensor:
        """Into memory of the host with another layout and dtype, and back."""
        shape = tuple(reversed(x.shape)) if transposed else tuple(x.shape)
        there = torch.zeros(shape, dtype=dtype)
        (there.permute(*reversed(range(there.dim()))) if transposed else there).copy_(x.detach())
        return there.to(self.device, copy=True)

    def other_chip(self, x: torch.Tensor) -> torch.Tensor:
        """There and back to a second chip."""
        other = torch.device("chip", 1) if self._on_chip() else self.device
        return x.to(other, copy=True).mul(1).to(self.device, copy=True)

    def pickled(self, x: torch.Tensor) -> torch.Tensor:
        return pickle.loads(pickle.dumps(x))

    def saved(self, x: torch.Tensor) -> torch.Tensor:
        file = io.BytesIO()
        torch.save(x, file)
        file.seek(0)
        return torch.load(file)

    # ---- what a program reads

    def read(self, x: torch.Tensor) -> int:
        return zlib.crc32(bits(x))

    def synchronize(self) -> None:
        if self._on_chip():
            torch.chip.synchronize()

    def empty_cache(self) -> None:
        if self._on_chip():
            torch.chip.empty_cache()

    def record_stream(self, x: torch.Tensor) -> None:
        if self._on_chip():
            x.record_stream(torch.chip.current_stream())

    # ---- streams

    @contextlib.contextmanager
    def side(self, by_event: bool) -> Iterator[None]:
        """Work on a stream of its own that begins after the work before, and ends before the work after."""
        if not self._on_chip():
            yield
            return
        before, stream = torch.chip.current_stream(), torch.chip.Stream()
        if by_event:
            stream.wait_event(before.record_event())
        else:
            stream.wait_stream(before)
        try:
            with torch.chip.stream(stream):
                yield
        finally:
            before.wait_stream(stream)

    def give(self, key: str, x: torch.Tensor) -> None:
        """Hand a copy over to another lane."""
        copied = x.detach().clone()
        event = torch.chip.Event() if self._on_chip() else None
        if event:
            event.record()
        self._queue(key).put((copied, event))

    def taken(self, key: str) -> torch.Tensor:
        """Wait on this lane's stream for what another lane gave."""
        copied, event = self._queue(key).get(timeout=self.patience)
        if copied is None:
            raise LookupError(f"the lane that gives {key} has failed")
        if event:
            event.wait()
            copied.record_stream(torch.chip.current_stream())
        return copied

    def _give_up(self) -> None:
        """Wake the lanes that wait for a lane that has failed."""
        for waiting in self.handed.values():
            waiting.put((None, None))

    def _queue(self, key: str) -> queue.Queue[Any]:
        return self.handed.setdefault(key, queue.Queue())

    # ---- gradients

    def backward(self, x: torch.Tensor, retain: bool = False) -> None:
        """Gradients of the sum of what is real of a tensor."""
        self._scalar(x).backward(retain_graph=retain)

    def gradient(self, x: torch.Tensor, of: torch.Tensor, twice: bool = False) -> torch.Tensor | None:
        (found,) = torch.autograd.grad(self._scalar(x), [of], create_graph=twice, retain_graph=True, allow_unused=True)
        return found

    def _scalar(self, x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(x.resolve_conj()).sum() if x.is_complex() else x.sum()


# ---- comparing


def room_of(x: torch.Tensor) -> int:
    """Return the number of elements from the first to the last. Storages of the CPU's results may be larger."""
    if x.numel() == 0:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))


def bits(x: torch.Tensor) -> bytes:
    """Return the content of a tensor, element after element."""
    with torch.no_grad():
        plain = torch.empty(tuple(x.shape), dtype=x.dtype).copy_(x)  # no view of it: some tensors allow none
        return plain.view(-1).view(torch.uint8).numpy().tobytes()


def of_autograd(x: torch.Tensor) -> tuple[Any, ...]:
    """Return what a tensor says of its place in the graph, which it may refuse: views of the inference mode do."""
    try:
        return x.requires_grad, x.is_leaf, x._is_view(), type(x.grad_fn).__name__
    except RuntimeError as error:
        return (str(error),)


def speaks(x: torch.Tensor) -> bool:
    """Return whether a tensor may still be asked of its place in the graph."""
    return len(of_autograd(x)) > 1


def layout(x: torch.Tensor) -> tuple[Any, ...]:
    """Return all that a tensor says of itself but its content."""
    bits_of_views = (x.is_conj(), x.is_neg(), x.is_inference())
    return tuple(x.shape), x.stride(), x.storage_offset(), x.dtype, bits_of_views, of_autograd(x)


LAYOUT = ("shape", "strides", "offset", "dtype", "(conjugate, negative, inference)", "autograd")


def tensors_in(names: Names) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a lane, with the expressions that reach them; gradients, too."""
    for name, value in names.items():
        parts = [(name, value)]
        if isinstance(value, (tuple, list)):
            parts = [(f"{name}[{place}]", part) for place, part in enumerate(value)]
        for expression, part in parts:
            if isinstance(part, torch.Tensor):
                yield expression, part
                with contextlib.suppress(RuntimeError):  # see of_autograd
                    gradient = part.grad if part.is_leaf else None
                    if gradient is not None:
                        yield f"{expression}.grad", gradient


def facts(names: Names) -> Names:
    """Return layouts, which tensors share memory, and numbers, without waiting for the device."""
    found: Names = {}
    storages: dict[int, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for expression, tensor in tensors_in(names):
            shares = storages.setdefault(tensor.untyped_storage()._cdata, expression)
            found[expression] = (layout(tensor), shares)
    found |= {name: repr(value) for name, value in names.items() if isinstance(value, (bool, int, float, complex))}
    return found


def difference(ours: Names, theirs: Names) -> str:
    """Say the first fact of the chip's that is not the CPU's, or nothing."""
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if a == b:
            continue
        if not (isinstance(a, tuple) and isinstance(b, tuple)):
            return f"{name} is {a}, the CPU's {b}"
        for what, mine, his in zip((*LAYOUT, "memory"), (*a[0], a[1]), (*b[0], b[1]), strict=True):
            if mine != his:
                return f"{what} of {name}: {mine}, the CPU's {his}"
    return ""
