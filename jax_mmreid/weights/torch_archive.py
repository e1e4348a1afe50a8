"""Tensors out of the files that PyTorch writes, without PyTorch and without running anything that a file may carry.

Such a file holds storages, numbers as raw bytes, and a pickle that describes each tensor as a view of a storage:

- a zip file of `torch.save`: the pickle is of a state dict, tensors by name;
- a zip file of `torch.jit.save` (TorchScript), the form in which OpenAI published CLIP: the pickle is of a module,
  whose code is ignored;
- `torch.save` before PyTorch 1.6: pickles one after the other, then the storages.

The claims of a file are checked before anything is allocated: no tensor may be larger than its storage, all tensors
together no larger than all storages, and those no larger than the file, which has them uncompressed. So reading needs
about as much memory as the file is long.
"""

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from jax_mmreid.errors import DataError
from jax_mmreid.weights.torch_pickle import BrokenError, RefusedError, Storage, Tensor, named_tensors, unpickle

PICKLE_BYTES = 2**24  # limit of a pickle; that of CLIP ViT-L/14 has about 2**17
MAX_MEMBERS = 100_000  # of a zip file
DIRECTORY_BYTES = 200 * MAX_MEMBERS  # limit of a zip file's list of members
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of PyTorch before 1.6
BIG_ENDIAN = "its numbers are big-endian; save the file again on a little-endian machine"
# What the standard library raises for bytes that are no zip file.
NO_ZIP = (zipfile.BadZipFile, ValueError, EOFError, OverflowError, NotImplementedError, RuntimeError, struct.error)


def read(path: str) -> dict[str, np.ndarray]:
    """The tensors of a state dict or a TorchScript file by name, as read-only arrays.

    Raises DataError for a file that is broken, that asks for more than tensors, or that claims more than it holds.
    """
    try:
        with open(path, "rb") as file:
            return _read_zip(file) if _ends_as_zip(file) else _read_legacy(file)
    except RefusedError as error:
        raise DataError(f"weights: {path} is refused, nothing of it was run: {error}") from error
    except (BrokenError, OSError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DataError(f"weights: cannot read {path} ({reason}); get the file again") from error


def _ends_as_zip(file: BinaryIO) -> bool:
    """Whether a file ends as a zip file does; raises RefusedError if its list of members is absurdly long."""
    file.seek(max(0, _length(file) - 98))
    tail = file.read()  # [the record of large files, 56 bytes, and where it stands, 20 bytes,] the record, 22 bytes
    if tail[-22:-18] != b"PK\5\6":
        return False
    (directory,) = struct.unpack_from("<L", tail, len(tail) - 10)
    if len(tail) == 98 and tail[:4] == b"PK\6\6":
        (directory,) = struct.unpack_from("<Q", tail, 40)
    if directory > DIRECTORY_BYTES:
        raise RefusedError(f"its list of members has {directory} bytes, of which at most {DIRECTORY_BYTES} are read")
    return True


def _length(file: BinaryIO) -> int:
    return file.seek(0, io.SEEK_END)


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    try:
        archive = zipfile.ZipFile(file)
    except NO_ZIP as error:
        raise BrokenError(error) from error
    members = {info.filename: info for info in archive.infolist()}
    if len(archive.infolist()) > MAX_MEMBERS:
        raise RefusedError(f"it has {len(archive.infolist())} members, of which at most {MAX_MEMBERS} are read")
    pickled = next((name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")), None)
    if pickled is None:
        raise BrokenError("a zip file without data.pkl, so not of torch.save or torch.jit.save")
    root = pickled.removesuffix("data.pkl")
    for name, info in members.items():
        needed = name == pickled or name.startswith(f"{root}data/")
        if needed and (info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size):
            raise RefusedError(f"{name} is compressed, which torch.save never does; save the file again")

    def member(name: str, limit: int) -> bytes:
        return _member(archive, members.get(root + name), root + name, limit)

    if f"{root}byteorder" in members and member("byteorder", 16) != b"little":
        raise RefusedError(BIG_ENDIAN)
    value, _ = unpickle(member("data.pkl", PICKLE_BYTES))
    return _arrays(named_tensors(value), lambda x: member(f"data/{x.key}", x.nbytes), _length(file))


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo | None, name: str, limit: int) -> bytes:
    """The bytes of a member, which must be no more than `limit`."""
    if info is None:
        raise BrokenError(f"{name} is missing")
    if info.file_size > limit:
        raise RefusedError(f"{name} has {info.file_size} bytes, of which at most {limit} are read")
    try:
        return archive.read(info)
    except NO_ZIP as error:
        raise BrokenError(error) from error


def _read_legacy(file: BinaryIO) -> dict[str, np.ndarray]:
    length = _length(file)
    file.seek(0)

    def next_pickle() -> Any:
        start = file.tell()
        value, size = unpickle(file.read(PICKLE_BYTES))
        file.seek(start + size)
        return value

    if next_pickle() != LEGACY_MAGIC:
        raise BrokenError("neither a zip file nor a file of torch.save")
    next_pickle()  # the version
    system = next_pickle()
    if not isinstance(system, dict) or not system.get("little_endian"):
        raise RefusedError(BIG_ENDIAN)
    tensors, keys = named_tensors(next_pickle()), next_pickle()
    sizes = {tensor.storage.key: tensor.storage.nbytes for tensor in tensors.values()}
    if not isinstance(keys, list) or set(map(type, keys)) - {str} or set(keys) != set(sizes):
        raise BrokenError("its list of storages does not match its tensors")
    offsets, end = {}, file.tell()
    for key in keys:  # each a number of 8 bytes, how many numbers follow, and these
        offsets[key] = end
        end += 8 + sizes[key]

    def stored(storage: Storage) -> bytes:
        file.seek(offsets[storage.key])
        if file.read(8) != struct.pack("<q", storage.size):
            raise BrokenError(f"storage {storage.key} is not where it should be")
        return file.read(storage.nbytes)

    return _arrays(tensors, stored, length)


def _arrays(tensors: Mapping[str, Tensor], stored: Callable[[Storage], bytes], length: int) -> dict[str, np.ndarray]:
    """The tensors as views of what `stored` reads from a file of `length` bytes."""
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    if any(tensor.storage != storages[tensor.storage.key] for tensor in tensors.values()):
        raise RefusedError("it gives one storage two sizes or two types")
    claimed = sum(storage.nbytes for storage in storages.values())
    if claimed > length:
        raise RefusedError(f"its storages claim {claimed} bytes, and the whole file has {length}")
    together = sum(tensor.nbytes for tensor in set(tensors.values()))  # tied weights are one tensor
    if together > claimed:
        raise RefusedError(
            f"its tensors overlap, {together} bytes in storages of {claimed}; save x.clone() of each instead"
        )
    buffers = {key: stored(storage) for key, storage in storages.items()}
    for key, storage in storages.items():
        if len(buffers[key]) != storage.nbytes:
            raise BrokenError(f"storage {key} has {len(buffers[key])} bytes instead of {storage.nbytes}")
    return {name: _array(tensor, buffers[tensor.storage.key]) for name, tensor in tensors.items()}


def _array(tensor: Tensor, buffer: bytes) -> np.ndarray:
    dtype = tensor.storage.dtype
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype)
    # A stride along an axis of one number is never used, and may be any number.
    strides = [dtype.itemsize * (stride if n > 1 else 1) for n, stride in zip(tensor.shape, tensor.strides)]
    return np.ndarray(tensor.shape, dtype, buffer, dtype.itemsize * tensor.offset, strides)
