"""Tensors out of the files that PyTorch writes, without running anything that such a file may carry.

State dicts (.pth, .bin) go through `torch.load(weights_only=True)`. That refuses TorchScript archives, the form in
which OpenAI published CLIP; `torch.jit.load` would take in their code as well. Such an archive is a zip file of raw
tensors and a pickle that says which is where, so it is read here with an unpickler that knows nothing but tensors.
"""

import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import ml_dtypes
import numpy as np

from jax_mmreid.errors import DataError

STORAGES = {
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "BoolStorage": np.bool_,
}
WRAPPERS = ("state_dict", "model_state_dict")
BROKEN = (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OSError)


def read(path: str) -> dict[str, np.ndarray]:
    """The tensors of a state dict or a TorchScript archive by name.

    Raises DataError for a file that is broken, or that asks for more than tensors.
    """
    try:
        return _read_archive(path) if _is_archive(path) else _read_state_dict(path)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"weights: {path} is refused, nothing of it was run: it holds more than tensors ({reason})"
        ) from error
    except (*BROKEN, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"weights: cannot read {path} ({reason}); get the file again") from error


def _read_state_dict(path: str) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise DataError(f"weights: {path} needs PyTorch to be read; pip install 'jax_mmreid[reference]'") from None

    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, dict) and len(loaded) == 1 and next(iter(loaded)) in WRAPPERS:
        loaded = next(iter(loaded.values()))
    if not isinstance(loaded, dict) or not all(isinstance(x, torch.Tensor) for x in loaded.values()):
        raise DataError(f"weights: {path} is not a state dict; save model.state_dict() and pass that file")
    return {name: _numpy(torch, x) for name, x in loaded.items()}


def _numpy(torch: Any, x: Any) -> np.ndarray:
    x = x.detach().contiguous()
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def _is_archive(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_archive(path: str) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        with archive.open(pickled) as file:
            module = _Unpickler(file, lambda key: archive.read(f"{root}data/{key}")).load()
    return dict(_tensors(module, ""))


class _Module:
    """Stands for every TorchScript class: its attributes, and nothing of its code."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, storage):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch.jit._pickle", "build_tensorlist"): list,
            ("torch.jit._pickle", "build_doublelist"): list,
            ("torch.jit._pickle", "build_boollist"): list,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, tag: value,
        }
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: tuple) -> np.ndarray:
        _, dtype, key, _, size = pid
        return np.frombuffer(self._storage(key), dtype, size)


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray:
    """A view of a storage, which it must not leave."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or (0 not in shape and last >= len(storage)):
        raise ValueError(f"a tensor {shape} lies outside its storage of {len(storage)} numbers")
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, [x * storage.itemsize for x in strides]).copy()


def _tensors(module: Any, prefix: str):
    """Every tensor below a module with its dotted name."""
    for name, value in vars(module).items():
        if isinstance(value, np.ndarray):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
