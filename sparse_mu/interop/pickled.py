"""A reader of the pickle inside PyTorch's archives that can build tensors and nothing else.

The pickle machine is written out here: it knows the opcodes of plain data, and calling means one of
the few cases of :meth:`_Machine._call`. No class is imported, no attribute is set, no code runs.
"""

import math
import pickletools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sparse_mu.interop.errors import StateDictError

Load = Callable[[str, int], bytes]  # (key, bytes expected) -> the storage's content
Value = Any  # whatever a pickle may hold

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_STORAGES = {f"torch.{name}": np.dtype(dtype) for name, dtype in _DTYPES.items()}
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
# a state dict, and the milestones of a learning-rate schedule beside it in official checkpoints
_DICTS = ("collections.OrderedDict", "collections.Counter")
_ALLOWED = {*_STORAGES, _TENSOR, _PARAMETER, *_DICTS}
# a tuple of tuples of one tuple, thirty deep, takes an hour to hash
_KEYS = (str, int, float)
_MOST_AXES = 32


class _Global(NamedTuple):
    """The *name* of something a pickle refers to; it is never looked up."""

    name: str


class _Mark:
    """Where a run of items on the stack begins."""


def load(pickled: bytes, read: Load) -> Value:
    """Builds what a pickle describes: dicts, lists, tuples, numbers, strings and arrays.

    Tensors are read-only views of their storages, so none takes memory of its own.

    Args:
        pickled: content of ``data.pkl``.
        read: gives a storage's bytes by key.

    Raises:
        StateDictError: it is damaged, or names a global or an opcode that is not plain data.
    """
    try:
        return _Machine(read).run(pickled)
    except StateDictError:
        raise
    # what damaged or hostile pickles lead to, whichever operation they break first
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise StateDictError(f"its pickle is damaged ({type(error).__name__})") from error


class _Machine:
    def __init__(self, read: Load) -> None:
        self.read = read
        self.stack: list[Value] = []
        self.memo: dict[int, Value] = {}
        self.storages: dict[str, bytes] = {}

    def run(self, pickled: bytes) -> Value:
        with warnings.catch_warnings():  # of escape sequences in the names of a damaged file
            warnings.simplefilter("ignore", DeprecationWarning)
            # one after another: a list of all would take a hundred times the file
            for opcode, argument, _ in pickletools.genops(pickled):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._one(opcode.name, argument)
        raise ValueError("no STOP")

    def _one(self, name: str, argument: Value) -> None:
        stack, memo = self.stack, self.memo
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_Mark)
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT"
                | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8"
                | "BINBYTES" | "SHORT_BINBYTES"
            ):  # fmt: skip
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(self._to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS":
                self._extend(self._to_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._to_mark())
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_allowed(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if not (isinstance(attribute, str) and isinstance(module, str)):
                    raise TypeError("a global of no name")
                stack.append(_allowed(f"{module}.{attribute}"))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "BUILD":  # the attributes of a state dict (its _metadata): not read
                stack.pop()
                if not isinstance(stack[-1], OrderedDict):
                    raise StateDictError("its pickle sets attributes of something else than a dict")
            case _:
                raise StateDictError(
                    f"its pickle holds the opcode {name}, which tensors, containers and numbers "
                    "have no use for"
                )

    def _to_mark(self) -> list[Value]:
        items = []
        while (item := self.stack.pop()) is not _Mark:
            items.append(item)
        return items[::-1]

    def _extend(self, items: list[Value]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError("items for something else than a list")
        self.stack[-1].extend(items)

    def _set(self, items: list[Value]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise TypeError("items for something else than a dict")
        if not all(type(key) in _KEYS for key in items[::2]):
            raise TypeError("a key that is no text or number")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _storage(self, identity: Value) -> np.ndarray:
        """A storage's content, flat and read-only, by ``("storage", type, key, device, count)``."""
        kind, storage, key, _, count = identity
        if kind != "storage" or not isinstance(key, str) or not _is_count(count):
            raise TypeError("not a storage")
        dtype = _STORAGES[storage.name]
        expected = count * dtype.itemsize
        if key not in self.storages:
            self.storages[key] = self.read(key, expected)
        if len(self.storages[key]) != expected:
            raise StateDictError(f"its storage '{key}' has two sizes")
        return np.frombuffer(self.storages[key], dtype)


def _allowed(name: str) -> _Global:
    if name not in _ALLOWED:
        raise StateDictError(
            f"its pickle refers to the global '{name}': only tensors, containers and numbers are "
            "read, no code"
        )
    return _Global(name)


def _call(function: Value, arguments: Value) -> Value:
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise TypeError("a call of no global")
    if function.name == _TENSOR:
        return _tensor(*arguments[:4])
    if function.name == _PARAMETER:
        if not isinstance(arguments[0], np.ndarray):
            raise TypeError("a parameter of no tensor")
        return arguments[0]
    if function.name in _DICTS:
        if not all(isinstance(given, dict) for given in arguments):
            raise TypeError("a dict of something else than a dict")
        return OrderedDict(*arguments[:1])
    raise StateDictError(f"its pickle calls the global '{function.name}'")


def _tensor(storage: Value, offset: Value, shape: Value, strides: Value) -> np.ndarray:
    """A view of a storage that stays inside it and is no larger than it."""
    if not (isinstance(storage, np.ndarray) and storage.ndim == 1):
        raise TypeError("a tensor of no storage")
    if not (isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise TypeError("no shape")
    if len(shape) > _MOST_AXES:  # the product of a million of them would not end
        raise TypeError("no shape")
    if len(shape) != len(strides) or not all(map(_is_count, (offset, *shape, *strides))):
        raise TypeError("no shape")
    size = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if size > storage.size or (size and last >= storage.size):
        raise StateDictError(
            f"it holds a tensor of shape {shape} that is larger than its storage of "
            f"{storage.size} entries"
        )
    if not size:
        return np.zeros(shape, storage.dtype)
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [s * storage.itemsize for s in strides], writeable=False
    )


def _is_count(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48
