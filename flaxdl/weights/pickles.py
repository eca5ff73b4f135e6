"""Safe reader for the pickle in a PyTorch file, without executing code.

A pickle is a program for a small stack machine, and Python's unpickler imports and calls whatever
the program names. This reader builds only plain values and descriptions of tensors, and imports and
calls nothing. Any other object, such as the arguments of a training script stored with the weights,
becomes an `OpaqueObject`, which stores only the name of its class. Time and memory are proportional
to the length of the pickle.
"""

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from flaxdl.errors import UserError

DTYPES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
    "torch.storage.UntypedStorage": np.dtype(np.uint8),  # its size is in bytes
}
REBUILD_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
REBUILD_PARAMETER = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
TENSOR_CLASSES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
# Functions whose first argument is the class of their result.
RECONSTRUCTORS = (
    "copyreg._reconstructor",
    "copy_reg._reconstructor",  # Python 2
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
)
# Opcodes that push their argument.
PUSH_OPCODES = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BYTEARRAY8",
}
# About fifty thousand tensors, at forty instructions each.
MAX_INSTRUCTIONS = 2_000_000
MAX_LINE_LENGTH = 1000  # characters in the name of a class or function
MAX_AXES = 64  # limit of NumPy


class Bytes(Protocol):
    """Data to read: bytes or a memory-mapped file."""

    def __len__(self) -> int: ...
    def __getitem__(self, item: slice, /) -> bytes: ...
    def find(self, sub: bytes, start: int, end: int, /) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Storage:
    """Elements that tensors are views of: storage `key`, or a part of it starting at `first`."""

    key: str
    dtype: np.dtype
    num_elements: int
    first: int = 0


@dataclass(frozen=True)
class Tensor:
    """View of a storage, with offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Global:
    """Class or function that the pickle refers to by name."""

    text: str


@dataclass(slots=True)
class OpaqueObject:
    """Placeholder for an object that is neither a plain value nor a tensor, and was not built."""

    name: str
    """Name of the object's class, or of the function that returns the object."""
    is_module: bool = False
    """True if the object has the attributes of a `torch.nn.Module`."""


class Pickle(NamedTuple):
    """Value of a pickle, the storages that it refers to by key, and its end position in bytes."""

    value: Any
    storages: dict[str, Storage]
    end: int


def read_pickle(data: Bytes, start: int) -> Pickle:
    """Reads the pickle that begins at `start`.

    Dictionaries, including ordered ones, become `dict` with strings as keys; sets and objects of
    other classes become `OpaqueObject`.

    Args:
        data: bytes or memory-mapped file that contains the pickle.
        start: position of the first byte.

    Raises:
        UserError: if the pickle is corrupt, or contains instructions that PyTorch does not write.
    """
    stream = _Stream(data, start)
    machine = _Machine()
    for count, (instruction, argument) in enumerate(_instructions(stream)):
        if count == MAX_INSTRUCTIONS:
            raise UserError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")
        machine.step(instruction, argument)
    if machine.marked or len(machine.stack) != 1:
        raise UserError("its pickle is broken: it does not end with one value")
    return Pickle(machine.stack[0], machine.storages, stream.position)


def describe(value: Any) -> str:
    """Returns a short description of a value: its `repr` if that is short, else its type."""
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a large number"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str) and len(value) <= 40:
        return repr(value)
    if isinstance(value, Global):
        return value.text[:100]
    if isinstance(value, OpaqueObject):
        return value.name[:100]
    return f"a {type(value).__name__.lower()}"


class _Stream:
    """Minimal file object for `pickletools.genops`.

    `readline` is allowed only for the module and attribute of a GLOBAL opcode: other text lines
    occur only in protocol 0, which is not supported.
    """

    def __init__(self, data: Bytes, start: int):
        self._data = data
        self._last = b""
        self.position = start

    def read(self, size: int) -> bytes:
        self._last = self._data[self.position : self.position + size]
        self.position += len(self._last)
        return self._last

    def readline(self) -> bytes:
        end = self._data.find(b"\n", self.position, self.position + MAX_LINE_LENGTH)
        line = self._data[self.position : end + 1]
        if self._last != b"c" or end == -1 or b"\\" in line:
            raise UserError("it has a line of text where PyTorch writes none")
        self.position = end + 1
        return line


def _instructions(stream: _Stream) -> Iterator[tuple[str, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
            yield opcode.name, argument
    except ValueError as error:
        raise UserError(f"its pickle is broken: {error}") from error


class _Machine:
    """Stack machine with a stack, the stacks below each mark, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, instruction: str, argument: Any) -> None:
        match instruction:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.marked.append(self.stack)
                self.stack = []
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise _broken(f"its memo has no entry {argument}")
                self.stack.append(self.memo[argument])
            case _ if instruction in PUSH_OPCODES:
                self.stack.append(argument)
            case "TUPLE":
                values = tuple(self.pop_to_mark())
                self.stack.append(values)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self.pop(int(instruction[-1]))))
            case "BINPERSID":
                self.stack.append(self.persistent(*self.pop(1)))
            case "REDUCE":
                self.stack.append(_call(*self.pop(2)))
            case "NONE":
                self.stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                self.stack.append(instruction == "NEWTRUE")
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "APPEND":
                self.extend(self.pop(1))
            case "APPENDS":
                self.extend(self.pop_to_mark())
            case "SETITEM":
                self.set_items(self.pop(2))
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "GLOBAL":
                # pickletools joins the two lines with a space.
                self.stack.append(_global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, name = self.pop(2)
                if not (isinstance(module, str) and isinstance(name, str)):
                    raise _broken("it refers to a name that is not a string")
                # With the memo, long strings could be joined many times.
                if len(module) + len(name) > MAX_LINE_LENGTH:
                    raise _broken("it refers to a name that is too long for a class")
                self.stack.append(_global(f"{module}.{name}"))
            case "BUILD":
                self.set_attributes(*self.pop(1))
            case _:
                self.step_object(instruction)

    def step_object(self, instruction: str) -> None:
        """Executes an instruction that occurs only in objects other than tensors."""
        match instruction:
            case "NEWOBJ":
                self.stack.append(_opaque(self.pop(2)[0]))
            case "NEWOBJ_EX":
                self.stack.append(_opaque(self.pop(3)[0]))
            case "OBJ":
                values = self.pop_to_mark()
                self.stack.append(_opaque(values[0] if values else None))
            case "EMPTY_SET":
                self.stack.append(OpaqueObject("builtins.set"))
            case "ADDITEMS":
                self.pop_to_mark()
                self.check_top(OpaqueObject, instruction)
            case "FROZENSET":
                self.pop_to_mark()
                self.stack.append(OpaqueObject("builtins.frozenset"))
            case "POP":  # like POP_MARK, written for values that contain themselves
                self.pop(1)
            case "POP_MARK":
                self.pop_to_mark()
            case _:
                raise UserError(
                    f"its pickle has the instruction {instruction}, which PyTorch does not write"
                )

    def top(self) -> Any:
        if not self.stack:
            raise _broken("it pops from an empty stack")
        return self.stack[-1]

    def check_top(self, kind: Any, instruction: str) -> Any:
        if not isinstance(self.top(), kind):
            raise _broken(f"it applies {instruction} to {describe(self.top())}")
        return self.stack[-1]

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise _broken("it pops from an empty stack")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def pop_to_mark(self) -> list[Any]:
        if not self.marked:
            raise _broken("it pops to a mark that does not exist")
        values, self.stack = self.stack, self.marked.pop()
        return values

    def extend(self, values: list[Any]) -> None:
        target = self.check_top(list | OpaqueObject, "APPENDS")
        if isinstance(target, list):
            target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise _broken("a dictionary has a key without a value")
        target = self.check_top(dict | OpaqueObject, "SETITEMS")
        if isinstance(target, dict):
            _set_items(target, zip(values[::2], values[1::2], strict=True))

    def set_attributes(self, state: Any) -> None:
        """Ignores attributes, such as a state dict's `_metadata`, except to recognize modules."""
        target = self.check_top(dict | OpaqueObject | Tensor, "BUILD")
        if isinstance(target, OpaqueObject) and isinstance(state, dict):
            target.is_module |= "_parameters" in state and "_modules" in state

    def persistent(self, identity: Any) -> Any:
        """Returns the storage for an ID ("storage", type, key, device, number of elements[, part]).

        PyTorch before 1.6 also wrote ("module", class, file, source), for whole models; the class
        is returned for it.
        """
        match identity:
            case ("storage", Global(kind), str(key), str(), num_elements, *part) if kind in DTYPES:
                whole = Storage(key, DTYPES[kind], _natural_number(num_elements))
            case ("storage", Global(kind), *_) if kind not in DTYPES:
                return OpaqueObject(kind)
            case ("module", Global() as module, *_):
                return module
            case _:
                raise _broken("its reference to a storage is not in PyTorch's form")
        if self.storages.setdefault(key, whole) != whole:
            raise _broken(f"it refers to storage {key[:40]!r} with different types or sizes")
        match part:
            case [] | [None]:
                return whole
            case [(str(), first, num_elements)]:  # key, first element and size of a part
                first, num_elements = _natural_number(first), _natural_number(num_elements)
                if first + num_elements > whole.num_elements:
                    raise _broken(f"a part of storage {key[:40]!r} exceeds its size")
                return Storage(key, whole.dtype, num_elements, first)
            case _:
                raise _broken("its reference to a part of a storage is not in PyTorch's form")


def _broken(reason: str) -> UserError:
    return UserError(f"its pickle is broken: {reason}")


def _global(text: str) -> Global:
    # Python 2's name is __builtin__.
    return Global(text.replace("__builtin__.", "builtins.", 1) if text[0] == "_" else text)


def _opaque(source: Any) -> OpaqueObject:
    """Returns the placeholder for the result of a class, a function or a called object."""
    match source:
        case Global(text):
            return OpaqueObject(text)
        case OpaqueObject(text):
            return OpaqueObject(text)
    raise _broken("its call of a function is not in PyTorch's form")


def _call(function: Any, arguments: Any) -> Any:
    """Returns the result of calling a known function, without calling it, or an opaque object."""
    if not isinstance(arguments, tuple):
        raise _broken("its call of a function is not in PyTorch's form")
    if not isinstance(function, Global):
        return _opaque(function)
    match function.text, arguments:
        case name, _ if name in REBUILD_TENSOR or name in REBUILD_PARAMETER:
            return _tensor(name, arguments)
        case "collections.OrderedDict" | "builtins.dict", ():
            return {}
        case "collections.defaultdict", () | (_,):
            return {}
        case "collections.OrderedDict", (list(pairs),):  # Python 2
            result: dict[str, Any] = {}
            _set_items(result, map(_pair, pairs))
            pairs.clear()  # so that a list cannot be turned into many dictionaries
            return result
        case "torch.Size", (tuple(sizes),):
            return sizes
        # A tensor with additional attributes.
        case "torch._tensor._rebuild_from_type_v2", (
            Global(name),
            Global(kind),
            tuple(inner),
            _,
        ) if name in REBUILD_TENSOR and kind in TENSOR_CLASSES:
            return _tensor(name, inner)
        case name, (Global(kind), *_) if name in RECONSTRUCTORS:
            return OpaqueObject(kind)
    return OpaqueObject(function.text)


def _tensor(function: str, arguments: tuple[Any, ...]) -> Tensor | OpaqueObject:
    """Returns the tensor that a function of PyTorch builds; an opaque object for other dtypes."""
    match arguments:
        case (Storage() as storage, offset, shape, strides, *_) if function in REBUILD_TENSOR:
            return Tensor(
                storage,
                _natural_number(offset),
                _natural_numbers(shape),
                _natural_numbers(strides),
            )
        case (Tensor() as tensor, *_) if function in REBUILD_PARAMETER:
            return tensor
        case (OpaqueObject() as other, *_):
            return other
    raise _broken(f"its call of {function} does not have PyTorch's arguments")


def _pair(pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise _broken("a dictionary has an item that is not a pair")
    return pair[0], pair[1]


def _set_items(target: dict[str, Any], items: Any) -> None:
    """Sets items with their keys as strings, since numbers can be chosen to have the same hash.

    Keys that are neither strings nor integers never refer to tensors that are read.
    """
    for key, value in items:
        if isinstance(key, str | int):
            target[str(key)] = value
        else:
            target[describe(key)] = OpaqueObject(f"a value under the key {describe(key)}")


def _natural_number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise _broken(f"{describe(value)} is not a valid size, offset or stride")
    return value


def _natural_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MAX_AXES:
        raise _broken(f"{describe(values)} is not a shape or strides of at most {MAX_AXES} axes")
    return tuple(map(_natural_number, values))
