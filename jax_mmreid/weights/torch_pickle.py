"""The tensors that the pickle in a file of PyTorch describes, read without PyTorch and without running any of it.

The unpickler knows tensors and their containers, and refuses every other name. It returns descriptions of tensors,
views of storages whose bytes are elsewhere in the file, so that nothing is allocated before their claims are checked.
"""

import io
import math
import pickle
import pickletools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

STORAGES = {
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "ByteStorage": np.uint8,
    "CharStorage": np.int8,
    "ShortStorage": np.int16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "BoolStorage": np.bool_,
}
WRAPPERS = ("state_dict", "model_state_dict")  # the only key of a dict around a state dict
MAX_ATTRIBUTES = 100_000  # of a module
MAX_NAME = 1000  # letters, with those of the modules around it
MAX_DIMS = 32
# What the standard library raises for bytes that are no pickle.
NO_PICKLE = (
    *(pickle.UnpicklingError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError),
    *(OverflowError, MemoryError),
)


class RefusedError(Exception):
    """The file asks for something that is not read; the message names it."""


class BrokenError(Exception):
    """The file is incomplete, or not one that PyTorch wrote."""


class Storage(NamedTuple):
    """A run of numbers of one type; `key` names its bytes in the file."""

    dtype: np.dtype
    key: str
    size: int  # in numbers, as are offsets and strides

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize


def unpickle(data: bytes) -> tuple[Any, int]:
    """The object of the pickle at the beginning of `data`, and the pickle's length in bytes.

    Raises BrokenError for bytes that are no pickle, RefusedError for a pickle that asks for more than tensors.
    """
    try:
        for opcode, argument, position in pickletools.genops(data):  # noqa: B007 (the last is used)
            # Python's unpickler allocates a table as long as the largest number of an object.
            if opcode.name == "LONG_BINPUT" and argument > len(data):
                raise RefusedError(f"its pickle gives an object the number {argument}")
        return _Unpickler(io.BytesIO(data)).load(), position + 1
    except NO_PICKLE as error:
        raise BrokenError((str(error).splitlines() or [type(error).__name__])[0]) from error


def named_tensors(value: Any) -> dict[str, Tensor]:
    """The tensors of an unpickled module or state dict by name, each a view inside its storage and no larger than it.

    Raises RefusedError for anything else.
    """
    if isinstance(value, _Module):
        named = _attributes(value)
    else:
        if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in WRAPPERS:
            (value,) = value.values()
        if not isinstance(value, dict) or not all(isinstance(x, Tensor) for x in value.values()):
            raise RefusedError("it is not a state dict; save model.state_dict() and pass that file")
        named = value
    for name, tensor in named.items():
        if not isinstance(name, str):
            raise RefusedError("it has a tensor whose name is no text")
        _check(name[:80], tensor)
    return named


def _check(name: str, tensor: Tensor) -> None:
    storage, offset, shape, strides = tensor
    sizes = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= MAX_DIMS
    if not sizes or not isinstance(storage, Storage) or not all(map(_is_int64, (offset, *shape, *strides))):
        raise RefusedError(f"{name!r} is not a tensor as PyTorch writes one")
    what = f"{name!r}, of shape {shape} and strides {strides} at {offset},"
    if min(offset, *shape, *strides, 0) < 0:
        raise RefusedError(f"{what} has a negative number")
    if math.prod(max(n, 1) for n in shape) > max(storage.size, 1):
        raise RefusedError(f"{what} is larger than its storage of {storage.size} numbers; save x.clone() instead")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if 0 not in shape and last >= storage.size:
        raise RefusedError(f"{what} lies outside its storage of {storage.size} numbers")


def _is_int64(x: Any) -> bool:
    return type(x) is int and -(2**63) <= x < 2**63


def _attributes(module: "_Module") -> dict[str, Tensor]:
    """Every tensor below a module by its dotted name."""
    found, waiting, seen = {}, [("", module)], 0
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.attributes.items():
            if not isinstance(name, str) or len(prefix) + len(name) > MAX_NAME:
                raise RefusedError(f"its module has an attribute whose name is no text of {MAX_NAME} letters at most")
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
        seen += 1  # counted, as modules may hold each other
        if seen + len(waiting) + len(found) > MAX_ATTRIBUTES:
            raise RefusedError(f"its module has more than {MAX_ATTRIBUTES} attributes")
    return found


class _Module:
    """Stands for every TorchScript class: its attributes, and nothing of its code."""

    def __init__(self):
        self.attributes = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Dict(dict):
    """Stands for OrderedDict, without the metadata that PyTorch attaches to a state dict."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Type(NamedTuple):
    """Stands for the class of a storage."""

    dtype: np.dtype


# What a pickle may call. Lists are returned as they are, since `list` would copy a long one each time it is called.
CALLABLES = {
    ("collections", "OrderedDict"): lambda: _Dict(),
    ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: Tensor(
        storage, offset, shape, strides
    ),
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
    **{("torch.jit._pickle", f"build_{kind}list"): lambda x: x for kind in ("int", "tensor", "double", "bool")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in STORAGES:
            return _Type(np.dtype(STORAGES[name]))
        if (module, name) not in CALLABLES:
            asked = " ".join(f"{module}.{name}".split())[:80]
            raise RefusedError(f"it holds more than tensors (it asks for {asked})")
        return CALLABLES[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, of, key, _, size, *view = pid  # `view` is (None,) in old files
        if kind != "storage" or not isinstance(of, _Type) or type(key) is not str or any(view):
            raise RefusedError("it holds a storage that is not as PyTorch writes one")
        if not _is_int64(size) or size < 0:
            raise RefusedError(f"its storage {key[:80]!r} has no size")
        return Storage(of.dtype, key, size)
