"""State dicts out of weight files: safetensors, PyTorch's own, a folder of transformers, the Hub."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from jax_mmreid import hub
from jax_mmreid.errors import DataError
from jax_mmreid.weights import torch_archive

DTYPES = {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}  # of NumPy's own


class StateDict(NamedTuple):
    """Tensors by the names that they have in their files."""

    tensors: Mapping[str, np.ndarray]
    heads: dict[str, int]  # attention heads of "image" and "text" where the files give them
    files: tuple[Path, ...]


def read(source: str, revision: str | None = None) -> StateDict:
    """Reads a file (.safetensors, .pt, .pth, .bin), a folder that transformers wrote, or a repository of the Hub.

    Raises DataError for a source that does not exist, that cannot be read, or whose config.json is not of a CLIP with
    QuickGELU.
    """
    path = Path(source)
    if not path.exists():
        if not hub.is_id(source):
            raise DataError(f"weights: no file or folder {source}")
        path = hub.download(source, ("model*.safetensors*", "config.json"), revision=revision)
        if not any(path.glob("*.safetensors")):
            path = hub.download(source, ("pytorch_model.bin", "config.json"), revision=revision)
    files = list_files(path) if path.is_dir() else (path,)
    tensors: dict[str, np.ndarray] = {}
    heads: dict[str, int] = {}
    for file in files:
        found, metadata = _read_file(file)
        tensors |= found
        heads |= _read_heads(file, metadata)
    of_transformers = files[0].name.startswith(("model", "pytorch_model")) and not heads
    return StateDict(tensors, _read_config(files[0].parent) if of_transformers else heads, files)


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def list_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a folder; raises DataError if there are none."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = tuple(sorted({folder / name for name in _read_index(index)}))
        if not files:
            raise DataError(f"weights: {index} is not an index of weight files; get the file again")
        return files
    for pattern in ("model.safetensors", "*.safetensors", "pytorch_model.bin"):
        found = tuple(sorted(folder.glob(pattern)))
        if len(found) == 1:
            return found
    raise DataError(
        f"weights: folder {folder} holds no weights; expected model.safetensors, pytorch_model.bin, or the about.json "
        "of a converted folder"
    )


def _read_index(index: Path) -> list[str]:
    """The names of the files that an index lists, [] if it is none."""
    try:
        listed = json.loads(index.read_text())
    except (OSError, ValueError):
        return []
    names = listed.get("weight_map") if isinstance(listed, dict) else None
    names = list(names.values()) if isinstance(names, dict) else []
    return names if all(isinstance(name, str) for name in names) else []


def _read_heads(path: Path, metadata: Mapping[str, str]) -> dict[str, int]:
    """The numbers of attention heads in the metadata of a file that `files.export` wrote."""
    found = {part: metadata[part] for part in ("image", "text") if part in metadata}
    bad = [f"{part}={text!r}" for part, text in found.items() if not (text.isdecimal() and int(text[:9]) > 0)]
    if bad:
        raise DataError(f"weights: the metadata of {path} is no number of attention heads: {', '.join(bad)}")
    return {part: int(text[:9]) for part, text in found.items()}


def _read_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of one file."""
    if path.suffix != ".safetensors":
        return torch_archive.read(str(path)), {}
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            unknown = {file.get_slice(name).get_dtype() for name in names} - DTYPES
            if unknown:
                raise DataError(f"weights: {path} has tensors of type {', '.join(sorted(unknown))}; save float16 ones")
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(f"weights: cannot read {path} ({error}); get the file again") from error


def _read_config(folder: Path) -> dict[str, int]:
    """The numbers of attention heads of a folder whose config.json describes a CLIP that our towers can represent."""
    if not (folder / "config.json").exists():
        return {}
    import transformers

    try:
        model = json.loads((folder / "config.json").read_text())["model_type"]
        config = transformers.CLIPConfig.from_pretrained(folder) if model == "clip" else None
    except Exception as error:  # whatever transformers raises for a field that it does not expect
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"weights: cannot read {folder / 'config.json'} ({reason})") from error
    parts = {"image": config.vision_config, "text": config.text_config} if config else {}
    activations = sorted({part.hidden_act for part in parts.values()})
    if activations != ["quick_gelu"]:
        kind = f"{model} with {', '.join(activations)}" if activations else model
        raise DataError(
            f"weights: {folder} holds {kind}; only CLIP with quick_gelu, as OpenAI published it, can be read"
        )
    return {name: part.num_attention_heads for name, part in parts.items()}
