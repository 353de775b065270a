"""Drivers in Python, for the first hour of a chip: a class whose methods are kernels on numpy arrays.

``--driver acme.py`` loads the class of a file::

    class Acme(Driver):
        @kernel("aten::relu")
        def relu(self, x, out):
            np.maximum(x, 0, out=out)

A kernel gets the arguments of the operator's schema in order, then its new tensors. Tensors are arrays on the memory of
the device, with the strides that they have in torch. So a kernel may also give them to a vendor's library with ctypes.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.errors import BringupError

OK, FAILED, UNSUPPORTED = 0, 2, 3  # of csrc/driver.h, as are the numbers below
# Numbers of c10/core/ScalarType.h. numpy has no bfloat16 and no 8-bit floats.
_DTYPES = {
    **{0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64"},
    **{9: "complex64", 10: "complex128", 11: "bool", 27: "uint16", 28: "uint32", 29: "uint64"},
}
_NONE, _TENSOR, _TENSORS, _SCALAR, _SCALARS, _INT, _DOUBLE, _BOOL, _INTS, _DOUBLES, _STRING = range(11)
_GENERATOR = 12


class Driver:
    """A device whose kernels are methods with the decorator `kernel`. Operators without one run on the host.

    Attributes:
        name: of the driver, in lists and reports; the name of the class in lower case if it is empty.
    """

    name = ""


def kernel(
    *operators: str, when: Callable[..., str | None] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a method the kernel of operators such as ``aten::add.Tensor``.

    The method gets an array for a tensor, None for an absent argument, and a list for a list of tensors. The rest are
    Python's numbers, tuples and strings. It writes its results into the arrays of its last arguments; an operator in
    place writes into its first one. What it returns is not used.

    Args:
        operators: their names, with overload.
        when: is called once per kind of call with the same arguments. Tensors are `Tensor` there, and numbers that may
            change with each launch are None. It returns why the host shall compute this kind, None if the kernel does.

    Raises:
        BringupError: no operator is named.
    """
    if not operators or not all(isinstance(name, str) for name in operators):
        raise BringupError('kernel needs the names of operators: write @kernel("aten::relu")')

    def mark(method: Callable[..., None]) -> Callable[..., None]:
        method.bringup_operators = operators  # type: ignore[attr-defined]
        method.bringup_when = when  # type: ignore[attr-defined]
        return method

    return mark


@dataclass(frozen=True)
class Tensor:
    """A tensor of a kind of call.

    Attributes:
        dtype: of numpy.
        shape: its sizes.
        strides: in elements.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        """True if the elements lie in memory in their order, without gaps."""
        dense = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != dense and 0 not in self.shape:
                return False
            dense *= size
        return True

    def at(self, pointer: int | None) -> npt.NDArray[Any]:
        """Return the array of a launch, at the address of its first element."""
        reach = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape or pointer is None:
            return np.empty(self.shape, self.dtype)
        memory = (ctypes.c_char * ((reach + 1) * self.dtype.itemsize)).from_address(pointer)
        strides = tuple(stride * self.dtype.itemsize for stride in self.strides)
        return np.ndarray(self.shape, self.dtype, memoryview(memory), 0, strides)


class _CTensor(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("dtype", "dims", "storage", "written")),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("sizes", "strides")),
    )


class _CArgument(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "count", "first")),
        ("integer", ctypes.c_int64),
        ("number", ctypes.c_double),
        ("integers", ctypes.POINTER(ctypes.c_int64)),
        ("doubles", ctypes.POINTER(ctypes.c_double)),
        ("string", ctypes.c_char_p),
    )


class _CCall(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("op", ctypes.c_char_p),
        *((name, ctypes.c_int32) for name in ("argument_count", "tensor_count", "output_count")),
        ("arguments", ctypes.POINTER(_CArgument)),
        *((name, ctypes.POINTER(_CTensor)) for name in ("tensors", "outputs")),
        ("draws", ctypes.c_void_p),
    )


_PREPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_CCall), ctypes.c_int64, ctypes.POINTER(ctypes.c_char_p))
_RUN = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_double)
)


# Returns an argument of a launch from its pointers and values.
_Reader = Callable[[Any, Any], Any]


class _Refused(Exception):
    """The host shall compute this kind of call; the text says why."""


def _described(tensor: _CTensor) -> Tensor | None:
    if tensor.dims < 0:
        return None
    if tensor.dtype not in _DTYPES:
        raise _Refused("a dtype that numpy does not have")
    return Tensor(
        np.dtype(_DTYPES[tensor.dtype]), tuple(tensor.sizes[: tensor.dims]), tuple(tensor.strides[: tensor.dims])
    )


def _tensor(index: int, tensor: _CTensor) -> tuple[Tensor | None, _Reader]:
    described = _described(tensor)
    if described is None:
        return None, lambda pointers, values: None
    return described, lambda pointers, values: described.at(pointers[index])


def _argument(place: int, argument: _CArgument, call: _CCall) -> tuple[Any, _Reader]:
    """Return what `when` gets for an argument, and how a launch reads it."""
    kind, count, first = argument.kind, argument.count, argument.first
    if kind == _TENSOR:
        if call.tensors[first].storage < 0:  # a number on the host
            return None, lambda pointers, values: values[place]
        return _tensor(first, call.tensors[first])
    if kind == _TENSORS:
        listed = [_tensor(index, call.tensors[index]) for index in range(first, first + count)]
        return [one for one, _ in listed], lambda pointers, values: [read(pointers, values) for _, read in listed]
    if kind == _SCALAR:
        return None, lambda pointers, values: values[place]
    if kind == _SCALARS:
        return None, lambda pointers, values: tuple(values[first : first + count])
    constants: dict[int, Callable[[], Any]] = {
        _NONE: lambda: None,
        _INT: lambda: argument.integer,
        _DOUBLE: lambda: argument.number,
        _BOOL: lambda: bool(argument.integer),
        _INTS: lambda: tuple(argument.integers[:count]),
        _DOUBLES: lambda: tuple(argument.doubles[:count]),
        _STRING: lambda: argument.string.decode(),
    }
    if kind == _GENERATOR:
        raise _Refused("it draws random numbers")
    if kind not in constants:
        raise _Refused("an argument is of a kind that drivers do not get")
    constant = constants[kind]()
    return constant, lambda pointers, values: constant


class _Kernels:
    """The kernels of a driver, as the library of csrc/drivers/python.cpp calls them."""

    def __init__(self, driver: Driver) -> None:
        self.by_operator: dict[str, Callable[..., object]] = {}
        self.plans: dict[int, Callable[[Any, Any], object]] = {}
        self.texts: dict[str, ctypes.Array[ctypes.c_char]] = {}  # C reads them for as long as it likes
        for _, method in inspect.getmembers(driver, callable):
            for name in getattr(method, "bringup_operators", ()):
                if name in self.by_operator:
                    raise BringupError(f"{type(driver).__name__} has two kernels for {name}: remove one")
                self.by_operator[name] = method
        self.prepare, self.run = _PREPARE(self._prepare), _RUN(self._run)

    def _prepare(self, call_pointer: Any, number: int, why: Any) -> int:
        try:
            call = call_pointer.contents
            method = self.by_operator.get(call.op.decode())
            if method is None:
                return UNSUPPORTED
            self.plans[number] = self._plan(method, call)
            return OK
        except _Refused as refused:
            why[0] = self._address(str(refused))
            return UNSUPPORTED
        except BaseException as error:
            why[0] = self._address(_sentence(error))
            return FAILED

    def _address(self, text: str) -> int:
        """Return the address of a text for C."""
        return ctypes.addressof(self.texts.setdefault(text, ctypes.create_string_buffer(text.encode())))

    @staticmethod
    def _plan(method: Callable[..., object], call: _CCall) -> Callable[[Any, Any], object]:
        described = [_argument(place, call.arguments[place], call) for place in range(call.argument_count)]
        described += [_tensor(call.tensor_count + index, call.outputs[index]) for index in range(call.output_count)]
        when = method.bringup_when  # type: ignore[attr-defined]
        reason = when(*(one for one, _ in described)) if when is not None else None
        if reason is not None:
            raise _Refused(str(reason))
        readers = [read for _, read in described]
        return lambda pointers, values: method(*(read(pointers, values) for read in readers))

    def _run(self, number: int, pointers: Any, values: Any) -> int | None:
        try:
            self.plans[number](pointers, values)
            return None
        except BaseException as error:
            return self._address(_sentence(error))


def _sentence(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = next((frame for frame in reversed(frames) if frame.filename != __file__), frames[-1])
    text = " ".join(str(error).split()) or "no message"
    return f"a kernel raised {type(error).__name__}: {text} ({os.path.basename(where.filename)}:{where.lineno})"


def _class_of(file: str) -> type[Driver]:
    """Return the only driver of a file, which is run.

    Raises:
        BringupError: it cannot be run, or has no driver or several.
    """
    names: dict[str, Any] = {"__name__": Path(file).stem, "__file__": file}
    sys.path.insert(0, os.path.dirname(os.path.abspath(file)))  # for modules beside it
    try:
        exec(compile(Path(file).read_bytes(), file, "exec"), names)
    except Exception as error:
        raise BringupError(f"driver {file} cannot be loaded: {type(error).__name__}: {error}") from None
    finally:
        sys.path.pop(0)
    own = [
        named
        for named in names.values()
        if inspect.isclass(named) and issubclass(named, Driver) and named.__module__ == names["__name__"]
    ]
    if len(own) != 1:
        raise BringupError(f"driver {file} has {len(own)} classes derived from bringup.driver.python.Driver: write one")
    return own[0]


def load(file: str, library: str) -> None:
    """Load the driver of a Python file into the library of Python drivers, once. A process has one such driver.

    Raises:
        BringupError: the file has no driver, or another Python driver is loaded.
    """
    if file in _loaded:
        return
    cls = _class_of(file)
    try:
        kernels = _Kernels(cls())
    except BringupError as error:
        raise BringupError(f"driver {file} cannot be loaded: {error}") from None
    name = cls.name or cls.__name__.lower()
    if _loaded:
        raise BringupError(f"this process has the driver {next(iter(_loaded))}: a process has one driver in Python")
    _loaded[file] = kernels
    ctypes.CDLL(library).bringup_python_device(name.encode(), kernels.prepare, kernels.run)


_loaded: dict[str, _Kernels] = {}  # the callbacks live as long as the library
