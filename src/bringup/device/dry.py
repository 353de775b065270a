"""Dry runs: launches and allocations are recorded, but nothing is computed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Union

import torch

from bringup.device import load
from bringup.device.devices import real_device
from bringup.errors import BringupError
from bringup.paths import BACKWARD

Value = Union[float, Literal["random"]]
_strict = False
_value: Value = 0.0
_noticed: set[str] = set()
_showing = threading.local()


class DryWarning(UserWarning):
    """A program read a value that its dry run did not compute; the warning names the line and the stand-in."""


class DryFloat(float):
    """The stand-in for a number that was not computed. Its text ends in ``(dry)``, as do those of its results."""

    def __repr__(self) -> str:
        """Return the value followed by ``(dry)``."""
        return f"{float(self)!r} (dry)"

    def __str__(self) -> str:
        """Return the value followed by ``(dry)``."""
        return repr(self)

    def __format__(self, spec: str) -> str:
        """Return the formatted value followed by ``(dry)``."""
        return f"{float(self):{spec}} (dry)"


def _calculating(name: str) -> Callable[..., Any]:
    function = getattr(float, name)

    def method(*operands: Any) -> Any:
        result = function(*operands)
        return DryFloat(result) if type(result) is float else result

    return method


for _name in ("add", "sub", "mul", "truediv", "pow", "mod"):
    setattr(DryFloat, f"__{_name}__", _calculating(f"__{_name}__"))
    setattr(DryFloat, f"__r{_name}__", _calculating(f"__r{_name}__"))
for _name in ("neg", "pos", "abs", "round"):
    setattr(DryFloat, f"__{_name}__", _calculating(f"__{_name}__"))


@contextmanager
def dry(*, strict: bool = False, value: Value = 0.0, seed: int = 0) -> Iterator[None]:
    """Launch, allocate and record inside the block, but compute nothing and copy nothing to the chip.

    A dry run works for programs larger than this machine, because the chip's memory is reserved but not touched. CPU
    tensors are computed as usual. Integer and boolean tensors of at most 16 MiB (token numbers, masks, positions) are
    also computed, as long as they depend only on other such tensors. A stand-in replaces every other value:

    - a floating-point number is `value`, and the text of a number from ``item()`` ends in "(dry)";
    - an index (``argmax``, ``topk``, ``multinomial``, ``sort``) is drawn from its range;
    - a comparison or a conversion to an integer uses `value` for every number;
    - a mask that decides a size (``nonzero``, ``x[mask]``) selects all elements.

    Each Python line that reads a stand-in warns once (`DryWarning`). Blocks may be nested; the arguments of the
    outermost block apply.

    Args:
        strict: raise an error at such a line.
        value: the stand-in; ``"random"`` draws from [0, 1).
        seed: seed of the drawn stand-ins.
    """
    global _strict, _value
    if value != "random" and not isinstance(value, (int, float)):
        raise BringupError(f"value must be a number or 'random', got {value!r}")
    load.register()
    outermost = not torch.ops.bringup.is_dry()
    if outermost:
        _strict, _value = strict, value
        _noticed.clear()
    torch.ops.bringup.start_dry(0.0 if value == "random" else float(value), value == "random", seed)
    try:
        if outermost:
            with _marked():
                yield
        else:
            yield
    finally:
        torch.ops.bringup.stop_dry()


def notice(where: str, what: str) -> None:
    """Warn, or raise under ``strict``, that a line reads a value that was not computed. The core calls it."""
    if _strict:
        raise BringupError(
            f"{where or 'the program'} reads {what} from the chip, which a dry run does not compute: "
            "do not read it, or leave out strict to get a stand-in"
        )
    if where in _noticed:
        return
    _noticed.add(where)
    file, _, line = where.removesuffix(BACKWARD).rpartition(":")
    number = int(line) if line.isdigit() else 1
    stand_in = "a number from [0, 1)" if _value == "random" else f"{_value:g}"
    message = f"{what} was not computed (dry run): this line reads a stand-in, {stand_in}; an index is in its range"
    warnings.warn_explicit(message, DryWarning, file or "<unknown>", number)


def _unknown(tensor: Any) -> bool:
    return bool(real_device(tensor).type == "chip" and (tensor.is_floating_point() or tensor.is_complex()))


@contextmanager
def _marked() -> Iterator[None]:
    """Patch tensors so that their numbers and their text show that they are dry."""
    patched: Any = torch.Tensor
    item, tolist, show = patched.item, patched.tolist, patched.__repr__

    def dry_item(self: Any) -> Any:
        value = item(self)
        plain = type(value) is not float or getattr(_showing, "now", False) or not _unknown(self)
        return value if plain else DryFloat(value)

    def dry_tolist(self: Any) -> Any:
        values = tolist(self)
        return _as_dry(values) if _unknown(self) else values

    def dry_show(self: Any, *, tensor_contents: Any = None) -> str:
        _showing.now = True
        try:
            text = show(self, tensor_contents=tensor_contents)
        finally:
            _showing.now = False
        return f"{text[:-1]}, dry)" if _unknown(self) and text.endswith(")") else text

    patched.item, patched.tolist, patched.__repr__ = dry_item, dry_tolist, dry_show
    try:
        yield
    finally:
        del patched.item, patched.tolist  # the originals belong to the base class
        patched.__repr__ = show


def _as_dry(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_dry(item) for item in value]
    return DryFloat(value) if type(value) is float else value
