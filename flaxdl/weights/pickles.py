"""The pickle inside a PyTorch file, read without executing anything.

A pickle is a program for a small stack machine, and Python's own machine calls whatever the program
names. This one builds plain values and the descriptions of tensors, and imports and calls nothing.
An object of any other kind, such as the arguments of a training script beside the weights, becomes
a `Foreign`, which holds the name of its class and nothing else. Work and memory stay proportional
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
    "torch.storage.UntypedStorage": np.dtype(np.uint8),  # its size counts bytes
}
REBUILD_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
REBUILD_PARAMETER = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
TENSOR_CLASSES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
# Functions whose first argument is the class of what they return.
RECONSTRUCTORS = (
    "copyreg._reconstructor",
    "copy_reg._reconstructor",  # as Python 2 wrote it
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
)
# Instructions that put their argument on the stack.
PLAIN_VALUES = {
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
# A tensor takes about forty instructions, so these are fifty thousand tensors.
MOST_INSTRUCTIONS = 2_000_000
LONGEST_LINE = 1000  # of the name of a class or function
MOST_AXES = 64  # NumPy's limit


class Bytes(Protocol):
    """What is read: bytes, or a file that is mapped into memory."""

    def __len__(self) -> int: ...
    def __getitem__(self, item: slice, /) -> bytes: ...
    def find(self, sub: bytes, start: int, end: int, /) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Storage:
    """A run of `num_elements` that tensors are views of; it may itself be a part of `key`."""

    key: str
    dtype: np.dtype
    num_elements: int
    first: int = 0


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; the offset and the strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle asks for."""

    text: str


@dataclass(slots=True)
class Foreign:
    """Stands for an object that is neither a plain value nor a tensor; it was not built."""

    name: str
    """Its class, or the function that returns it."""
    is_module: bool = False
    """Whether it holds what only a `torch.nn.Module` does."""


class Pickle(NamedTuple):
    """The value of a pickle, the storages it names, each as a whole, and where it ends."""

    value: Any
    storages: dict[str, Storage]
    end: int


def read_pickle(data: Bytes, start: int) -> Pickle:
    """Reads the pickle that begins at `start`.

    Dictionaries, ordered or not, become `dict`, and their keys text; sets, and objects of other
    classes, become `Foreign`.

    Raises:
        UserError: if the pickle is broken.
    """
    stream = _Stream(data, start)
    machine = _Machine()
    for count, (instruction, argument) in enumerate(_instructions(stream)):
        if count == MOST_INSTRUCTIONS:
            raise UserError(f"its pickle has more than {MOST_INSTRUCTIONS} instructions")
        machine.step(instruction, argument)
    if machine.marked or len(machine.stack) != 1:
        raise UserError("its pickle is broken: it does not end with one value")
    return Pickle(machine.stack[0], machine.storages, stream.position)


def describe(value: Any) -> str:
    """A few words on a value of a pickle: the value if it is short, else what it is."""
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a large number"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str) and len(value) <= 40:
        return repr(value)
    if isinstance(value, Name):
        return value.text[:100]
    if isinstance(value, Foreign):
        return value.name[:100]
    return f"a {type(value).__name__.lower()}"


class _Stream:
    """A file for `pickletools`, which reads lines in names alone: protocol 0 is not spoken."""

    def __init__(self, data: Bytes, start: int):
        self._data = data
        self._last = b""
        self.position = start

    def read(self, size: int) -> bytes:
        self._last = self._data[self.position : self.position + size]
        self.position += len(self._last)
        return self._last

    def readline(self) -> bytes:
        end = self._data.find(b"\n", self.position, self.position + LONGEST_LINE)
        line = self._data[self.position : end + 1]
        if self._last != b"c" or end == -1 or b"\\" in line:
            raise UserError("a line of text where PyTorch writes none")
        self.position = end + 1
        return line


def _instructions(stream: _Stream) -> Iterator[tuple[str, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
            yield opcode.name, argument
    except ValueError as error:
        raise UserError(f"its pickle is broken: {error}") from error


class _Machine:
    """The stack machine: values on a stack, on stacks below it since marks, and remembered."""

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
                    raise _broken(f"it has nothing remembered under {argument}")
                self.stack.append(self.memo[argument])
            case _ if instruction in PLAIN_VALUES:
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
                self.stack.append(_name(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, name = self.pop(2)
                if not (isinstance(module, str) and isinstance(name, str)):
                    raise _broken("it asks for a name that is no text")
                if len(module) + len(name) > LONGEST_LINE:  # remembered, it could be joined often
                    raise _broken("it asks for a name that no class has")
                self.stack.append(_name(f"{module}.{name}"))
            case "BUILD":
                self.set_attributes(*self.pop(1))
            case _:
                self.step_of_objects(instruction)

    def step_of_objects(self, instruction: str) -> None:
        """Runs one of the instructions that are needed only for what stands beside tensors."""
        match instruction:
            case "NEWOBJ":
                self.stack.append(_foreign(self.pop(2)[0]))
            case "NEWOBJ_EX":
                self.stack.append(_foreign(self.pop(3)[0]))
            case "OBJ":
                values = self.pop_to_mark()
                self.stack.append(_foreign(values[0] if values else None))
            case "EMPTY_SET":
                self.stack.append(Foreign("builtins.set"))
            case "ADDITEMS":
                self.pop_to_mark()
                self.check_top(Foreign, instruction)
            case "FROZENSET":
                self.pop_to_mark()
                self.stack.append(Foreign("builtins.frozenset"))
            case "POP":  # with the next, written where a value holds itself
                self.pop(1)
            case "POP_MARK":
                self.pop_to_mark()
            case _:
                raise UserError(
                    f"its pickle has the instruction {instruction}, which PyTorch does not write"
                )

    def top(self) -> Any:
        if not self.stack:
            raise _broken("it takes a value where there is none")
        return self.stack[-1]

    def check_top(self, kind: Any, instruction: str) -> Any:
        if not isinstance(self.top(), kind):
            raise _broken(f"it asks for {instruction} on {describe(self.top())}")
        return self.stack[-1]

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise _broken("it takes a value where there is none")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def pop_to_mark(self) -> list[Any]:
        if not self.marked:
            raise _broken("it goes back to a mark that is not there")
        values, self.stack = self.stack, self.marked.pop()
        return values

    def extend(self, values: list[Any]) -> None:
        target = self.check_top(list | Foreign, "APPENDS")
        if isinstance(target, list):
            target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise _broken("a dictionary has a key without a value")
        target = self.check_top(dict | Foreign, "SETITEMS")
        if isinstance(target, dict):
            _set_items(target, zip(values[::2], values[1::2], strict=True))

    def set_attributes(self, state: Any) -> None:
        """Passes over attributes; PyTorch keeps `_metadata` of modules in those of a dictionary."""
        target = self.check_top(dict | Foreign | Tensor, "BUILD")
        if isinstance(target, Foreign) and isinstance(state, dict):
            target.is_module |= "_parameters" in state and "_modules" in state

    def persistent(self, identity: Any) -> Any:
        """Reads ("storage", type, key, device, number of elements[, part]), a persistent id.

        Of a whole model, PyTorch before 1.6 also wrote ("module", class, file, source).
        """
        match identity:
            case ("storage", Name(kind), str(key), str(), num_elements, *part) if kind in DTYPES:
                whole = Storage(key, DTYPES[kind], _natural_number(num_elements))
            case ("storage", Name(kind), *_) if kind not in DTYPES:
                return Foreign(kind)
            case ("module", Name() as module, *_):
                return module
            case _:
                raise _broken("it names a storage in another way than PyTorch does")
        if self.storages.setdefault(key, whole) != whole:
            raise _broken(f"it names the storage {key[:40]!r} twice, with different types or sizes")
        match part:
            case [] | [None]:
                return whole
            case [(str(), first, num_elements)]:  # a part, its first element and its size
                first, num_elements = _natural_number(first), _natural_number(num_elements)
                if first + num_elements > whole.num_elements:
                    raise _broken(f"a part of the storage {key[:40]!r} lies outside of it")
                return Storage(key, whole.dtype, num_elements, first)
            case _:
                raise _broken("it names a part of a storage in another way than PyTorch does")


def _broken(reason: str) -> UserError:
    return UserError(f"its pickle is broken: {reason}")


def _name(text: str) -> Name:
    # __builtin__ is what Python 2 called it.
    return Name(text.replace("__builtin__.", "builtins.", 1) if text[0] == "_" else text)


def _foreign(source: Any) -> Foreign:
    """What a class or function stands in for, or an object that is called."""
    match source:
        case Name(text):
            return Foreign(text)
        case Foreign(text):
            return Foreign(text)
    raise _broken("it calls something in another way than PyTorch does")


def _call(function: Any, arguments: Any) -> Any:
    """The few calls that are known, none of which runs any code of PyTorch's."""
    if not isinstance(arguments, tuple):
        raise _broken("it calls something in another way than PyTorch does")
    if not isinstance(function, Name):
        return _foreign(function)
    match function.text, arguments:
        case name, _ if name in REBUILD_TENSOR or name in REBUILD_PARAMETER:
            return _tensor(name, arguments)
        case "collections.OrderedDict" | "builtins.dict", ():
            return {}
        case "collections.defaultdict", () | (_,):
            return {}
        case "collections.OrderedDict", (list(pairs),):  # as Python 2 wrote it
            result: dict[str, Any] = {}
            _set_items(result, map(_pair, pairs))
            pairs.clear()  # so that one list cannot be made into many dictionaries
            return result
        case "torch.Size", (tuple(sizes),):
            return sizes
        # A tensor with attributes of its own.
        case "torch._tensor._rebuild_from_type_v2", (Name(name), Name(kind), tuple(inner), _) if (
            name in REBUILD_TENSOR and kind in TENSOR_CLASSES
        ):
            return _tensor(name, inner)
        case name, (Name(kind), *_) if name in RECONSTRUCTORS:
            return Foreign(kind)
    return Foreign(function.text)


def _tensor(function: str, arguments: tuple[Any, ...]) -> Tensor | Foreign:
    """A tensor from what its constructor is called with; `Foreign` if of no supported dtype."""
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
        case (Foreign() as other, *_):
            return other
    raise _broken(f"it calls {function} with other arguments than PyTorch does")


def _pair(pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise _broken("a dictionary has an item that is no pair")
    return pair[0], pair[1]


def _set_items(target: dict[str, Any], items: Any) -> None:
    """Sets items under their keys as text: numbers can be chosen to collide, text cannot.

    Under a key that is neither text nor a whole number, no tensor is ever looked for.
    """
    for key, value in items:
        if isinstance(key, str | int):
            target[str(key)] = value
        else:
            target[describe(key)] = Foreign(f"a value under the key {describe(key)}")


def _natural_number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise _broken(f"{describe(value)} stands for a size, an offset or a stride")
    return value


def _natural_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MOST_AXES:
        raise _broken(f"{describe(values)} stands for sizes or strides of at most {MOST_AXES} axes")
    return tuple(map(_natural_number, values))
