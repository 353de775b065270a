"""TensorFlow's functions on the chip: XLA translates them to StableHLO, whose operators launch torch's operators.

TensorFlow calls each of its functions by `Context.call_function`: those of ``tf.function``, of Keras, of saved models,
and the parts of them that a gradient needs. What XLA cannot compile runs in TensorFlow on the host.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch

from bringup.errors import BringupError
from bringup.frontends.stablehlo.execution import executed
from bringup.frontends.stablehlo.executor import Program
from bringup.frontends.stablehlo.module import StableHloError, bindings, new_context, read_module
from bringup.frontends.stablehlo.tensors import Type
from bringup.frontends.tensorflow import host, memory
from bringup.lines import at_line, calling_line
from bringup.text import plain, quantity, short

FEW = 64  # elements of an input whose values XLA may need when it compiles, such as a shape; chosen
_ALIASES = "mhlo.input_output_alias"
_CPU = "/job:localhost/replica:0/task:0/device:CPU:0"
_NAME = re.compile(r"__inference_(?!__)(.+?)(?:_\d+)?")
_PART = re.compile(r"(?:__inference_)?__(forward|backward)_(.+?)(?:_\d+){0,2}")  # of a function, for a gradient
_UNSUPPORTED = re.compile(r"(\w+) \(No registered")
_MADE_AT = re.compile(r'File "([^"]+)", line (\d+)')

_initializes: ContextVar[bool] = ContextVar("_initializes", default=False)  # True while TensorFlow makes variables


@dataclass(frozen=True)
class Compiled:
    """A function as a program on the chip.

    Attributes:
        takes: the places of the program's inputs among those of the function.
        written: the places of the variables that the program's last results are written to.
    """

    program: Program
    takes: tuple[int, ...]
    written: tuple[int, ...]


class Functions:
    """The functions that the process has called, by their names in TensorFlow.

    Args:
        call_function: TensorFlow's own method.
        strict: raise an error for functions that cannot run on the chip.
    """

    def __init__(self, call_function: Callable[..., Any], strict: bool) -> None:
        self._call_function = call_function
        self._strict = strict
        self._known: dict[bytes, dict[Any, Compiled | host.OnHost]] = {}  # by shapes, and values of constants
        self._constants: dict[bytes, tuple[int, ...]] = {}  # inputs whose values XLA has compiled into a function
        self._before_values: dict[bytes, host.OnHost] = {}  # called while a variable had no value

    def forget(self, name: bytes) -> None:
        """Forget a function that TensorFlow has removed."""
        self._known.pop(name, None)
        self._constants.pop(name, None)
        self._before_values.pop(name, None)

    def call(self, context: Any, name: bytes, inputs: list[Any], count: int) -> Any:
        """Call a function with tensors and handles of variables; return its results, of which there are so many.

        It is called from the line of the program that called TensorFlow.
        """
        line = calling_line()
        call = at_line(readable(name), *line) if line else lambda run, arguments: run(*arguments)
        return call(self._call, (context, name, inputs, count))

    def _call(self, context: Any, name: bytes, inputs: list[Any], count: int) -> Any:
        own = partial(self._call_function, context, name, inputs, count)
        if _initializes.get():
            return own()
        try:
            function = self._find(context, name, inputs, count)
            arguments = _arguments(function, inputs) if isinstance(function, Compiled) else []
        except host.UninitializedError as error:
            function = self._before_values.setdefault(name, host.OnHost(readable(name), str(error)))
        if isinstance(function, host.OnHost):
            return host.called(function, inputs, own, self._strict)
        return _run(function, inputs, arguments, count)

    def _find(self, context: Any, name: bytes, inputs: list[Any], count: int) -> Compiled | host.OnHost:
        variants = self._known.setdefault(name, {})
        key = _key(inputs, self._constants.get(name, ()))
        if key not in variants:
            function, constants = _compiled(context, name, inputs, count)
            if constants:
                self._constants[name] = constants
            key = _key(inputs, self._constants.get(name, ()))
            variants[key] = function
        return variants[key]


def _arguments(function: Compiled, inputs: Sequence[Any]) -> list[torch.Tensor]:
    """Return a program's inputs on the chip.

    Raises:
        host.UninitializedError: one is a variable that has no value yet.
    """
    pairs = zip(function.takes, function.program.inputs, strict=True)
    return [_argument(inputs[place], kind) for place, kind in pairs]


def _run(function: Compiled, inputs: Sequence[Any], arguments: list[torch.Tensor], count: int) -> list[Any] | None:
    """Run a program, whose arguments are freed early; return the function's results.

    After a failure, variables have their old values, or the new ones if the program has run. Those whose old value was
    freed by then are empty, and the error names them.
    """
    kinds, outputs = function.program.inputs, function.program.outputs
    old: dict[int, _Old] = {}  # by the place of the variable
    tensors: list[torch.Tensor] = []
    try:
        for at, place in _places(function):
            old[place] = _Old(inputs[place], arguments[at], kinds[at])
            old[place].free()
        tensors = memory.unshared(executed(function.program, arguments, "tensorflow"))
        _settle()
        results = [memory.share(*item) for item in zip(tensors, outputs, strict=True)]
        for place, value in zip(function.written, results[count:], strict=True):
            old[place].replace(value)
    except BaseException as error:
        for place, tensor, kind in zip(function.written, tensors[count:], outputs[count:], strict=False):
            with suppress(Exception):  # what is known of the failure is that of `error`
                old[place].replace(memory.share(tensor, kind))
        if lost := [variable.name for variable in old.values() if not variable.restore()]:
            error.add_note(
                f"bringup: {quantity(len(lost), 'variable')} empty now, whose old value the call had freed before it "
                f"failed: {', '.join(lost[:FEW])}"
            )
        raise
    return results[:count] or None


class _Old:
    """The old value of a variable that a function writes: it is freed once it is read, and restored after a failure."""

    def __init__(self, handle: Any, value: torch.Tensor, kind: Type) -> None:
        self._handle, self._value, self._kind = handle, weakref.ref(value), kind
        self._has_value = True

    @property
    def name(self) -> str:
        """Return the variable's name in the program."""
        return host.name_of_variable(self._handle)

    def free(self) -> None:
        """Empty the variable, so that the function may free its old value."""
        self._has_value = False
        _assign(self._handle, _nothing(host.type_of_variable(self._handle)))

    def replace(self, value: Any) -> None:
        """Give the variable its new value."""
        _assign(self._handle, value)
        self._has_value = True

    def restore(self) -> bool:
        """Give the variable its old value, unless it has the new one; return False if it has none."""
        value = self._value()
        if not self._has_value and value is not None:
            self.replace(memory.share(value, self._kind))
        return self._has_value


def _places(function: Compiled) -> Iterator[tuple[int, int]]:
    """Yield the written variables: the place among the program's inputs, and among the function's."""
    return ((at, place) for at, place in enumerate(function.takes) if place in function.written)


def _key(inputs: Sequence[Any], constants: Sequence[int]) -> tuple[Any, ...]:
    """Return what a program of a function depends on: the shapes of inputs, and the values of some."""
    values = (inputs[place]._numpy_internal().tobytes() for place in constants)
    shapes = (host.shape_of_varying(item) or item._shape_tuple() for item in inputs)
    return (*shapes, *values)


def activate(strict: bool = False) -> None:
    """Take over the calls of TensorFlow's functions in this process; if strict, refuse those that stay on the host."""
    from tensorflow.python.eager.context import Context
    from tensorflow.python.eager.polymorphic_function.polymorphic_function import Function
    from tensorflow.python.framework import ops

    functions = Functions(Context.call_function, strict)
    Context.call_function = lambda *arguments: functions.call(*arguments)
    remove_function = Context.remove_function

    def removed(self: Any, name: bytes) -> None:
        functions.forget(name)
        remove_function(self, name)

    Context.remove_function = removed
    Function._initialize_uninitialized_variables = _initializing(Function._initialize_uninitialized_variables)
    tensor = ops._EagerTensorBase
    own_numpy = tensor._numpy

    def numpy(self: Any) -> Any:
        if host.is_numeric(self):
            memory.read(self)
        return own_numpy(self)

    tensor._numpy = numpy


def _initializing(initialize: Callable[..., Any]) -> Callable[..., Any]:
    """Return TensorFlow's own method that gives new variables their values, marked: it computes them on the host."""

    def marked(*arguments: Any, **options: Any) -> Any:
        before = _initializes.set(True)
        try:
            return initialize(*arguments, **options)
        finally:
            _initializes.reset(before)

    return marked


def _compiled(
    context: Any, name: bytes, inputs: Sequence[Any], count: int
) -> tuple[Compiled | host.OnHost, tuple[int, ...]]:
    """Return a function for inputs of these shapes, and the inputs whose values XLA has compiled into it."""
    shown = readable(name)
    try:
        for item in inputs:
            if not host.is_numeric(item) and host.type_of_variable(item) is None:
                raise StableHloError(f"an input is {item.dtype.name}, which no chip has")
        program, aliases = _translated(context, name, shown, inputs)
        takes, constants = _matched(program, inputs)
        written = tuple(takes[aliases[place]] for place in sorted(aliases))
        if sorted(aliases) != list(range(count, len(program.outputs))):
            raise StableHloError("XLA has left out results, or written variables")
    except host.UninitializedError:
        raise
    except BringupError as error:
        return host.OnHost(shown, str(error)), ()
    return Compiled(program, takes, written), constants


def _translated(context: Any, name: bytes, shown: str, inputs: Sequence[Any]) -> tuple[Program, dict[int, int]]:
    """Return a function's program, and for each result that is a variable's new value the place of its old one.

    Raises:
        BringupError: XLA cannot compile it, or operators have no translation.
    """
    try:
        code = context.get_compiler_ir(
            device_name=_CPU,
            platform_name=None,
            function_name=name,
            flat_args=list(inputs),
            captured_inputs=[],
            stage="stablehlo_serialized",
        )
    except Exception as error:  # of many types
        raise StableHloError(_why(str(error))) from None
    mlir = bindings()
    new = new_context(mlir)
    new.allow_unregistered_dialects = True  # of the module's attributes
    with new:
        module = mlir.stablehlo.deserialize_portable_artifact(new, code)
        program = Program(read_module(module, shown, _Lines(shown)), memory.DEVICE)
        attributes = module.operation.attributes
        listed = attributes[_ALIASES] if _ALIASES in attributes else ()  # noqa: SIM401  (they have no `get`)
        aliases = {
            next(iter(item["output_index"])) if len(program.outputs) > 1 else 0: int(item["alias"]["parameter_number"])
            for item in listed
        }
    return program, aliases


def _why(text: str) -> str:
    """Return in one line why XLA cannot compile a function, with the line of the program if TensorFlow has it."""
    if names := dict.fromkeys(_UNSUPPORTED.findall(text)):
        text, where = f"XLA cannot compile {', '.join(names)}", _MADE_AT.findall(text)
        return text + (f" ({where[-1][0]}:{where[-1][1]})" if where else "")
    return f"XLA cannot compile it ({short(' '.join(text.split()), 200)})"


def _matched(program: Program, inputs: Sequence[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the places of a program's inputs among those of the function, and the places of what it does not take.

    XLA keeps the order. It leaves out inputs whose values it has compiled into the program.

    Raises:
        StableHloError: there are several ways, or none.
    """
    kinds = [host.type_of(item) for item in inputs]
    left_out = len(inputs) - len(program.inputs)
    ways: list[tuple[int, ...]] = [()]  # of taking the first inputs
    for place, (item, kind) in enumerate(zip(inputs, kinds, strict=True)):
        grown = []
        for way in ways:
            if len(way) < len(program.inputs) and program.inputs[len(way)] == kind:
                grown.append((*way, place))
            if left_out and host.is_numeric(item) and item._num_elements() <= FEW and place - len(way) < left_out:
                grown.append(way)
        ways = grown
        if len(ways) > FEW:
            break
    ways = [way for way in ways if len(way) == len(program.inputs)]
    if len(ways) != 1:
        raise StableHloError("XLA has compiled values of inputs into it, and it is not known of which")
    return ways[0], tuple(place for place in range(len(inputs)) if place not in ways[0])


def _argument(item: Any, kind: Type) -> torch.Tensor:
    """Return an input on the chip. What was copied there stays there: values of variables, and captured constants."""
    if host.type_of_variable(item) is not None:
        value = host.value_of(item)
        tensor = memory.on_chip(value, kind)
        if tensor is None:
            tensor = memory.copied(value)
            _settle()
            _assign(item, memory.share(tensor, kind))
        return tensor
    tensor = memory.on_chip(item, kind)
    if tensor is None:
        tensor = getattr(item, "_bringup_copy", None)
    if tensor is None:
        tensor = item._bringup_copy = memory.copied(item)
    return tensor


def _assign(handle: Any, value: Any) -> None:
    from tensorflow.python.ops.gen_resource_variable_ops import assign_variable_op

    assign_variable_op(handle, value)


@lru_cache
def _nothing(kind: Any) -> Any:
    """Return an empty tensor of one of TensorFlow's types."""
    import tensorflow

    return tensorflow.zeros([0], kind)


def _settle() -> None:
    """Wait until the emulated chip has computed what TensorFlow now shares. The program's host does not wait."""
    ops = torch.ops.bringup
    ops.be_quiet(True)
    try:
        torch.chip.synchronize()  # type: ignore[attr-defined]
    finally:
        ops.be_quiet(False)
        ops.skip_host_time()


def readable(name: bytes) -> str:
    """Return the name of a function as the program has it: ``train_step`` for ``__inference_train_step_123``."""
    text = plain(name.decode("utf-8", "replace"))
    if match := _PART.fullmatch(text):
        return f"{match[2]} backward" if match[1] == "backward" else match[2]
    match = _NAME.fullmatch(text)
    return match[1] if match else text


class _Lines:
    """Returns the lines of operations: the names of TensorFlow's operations, numbered in their order."""

    def __init__(self, function: str) -> None:
        self._function = function
        self._numbers: dict[str, int] = {}

    def __call__(self, location: Any) -> tuple[str, int] | None:
        name = next(_names(location), None)
        if name is None:  # the line that calls the function
            return None
        return f"tf.{self._function}:{name}", self._numbers.setdefault(name, len(self._numbers) + 1)


def _names(location: Any) -> Iterator[str]:
    kind = type(location).__name__
    if kind == "FusedLoc":  # the name of an operation of TensorFlow, and its line in TensorFlow
        for inner in location.locations:
            yield from _names(inner)
    elif kind == "NameLoc":
        yield location.name_str.rpartition(";")[2]  # of an operation in a function, those of its calls are before it
