"""Tensors as they stand in weight files: safetensors, PyTorch's own, a folder of transformers, the Hub."""

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


class Source(NamedTuple):
    """Tensors as they stand in files, and the attention heads of "image" and "text" where the files say so."""

    tensors: Mapping[str, np.ndarray]
    heads: dict[str, int]
    files: tuple[Path, ...]


def read(place: str, revision: str | None = None) -> Source:
    """Reads a file (.safetensors, .pt, .pth, .bin), a folder that transformers wrote, or a repository of the Hub.

    Raises DataError for what is not there, cannot be read, or is no CLIP with QuickGELU according to its config.json.
    """
    path = Path(place)
    if not path.exists():
        if not hub.is_id(place):
            raise DataError(f"weights: no file or folder {place}")
        path = hub.download(place, ("model*.safetensors*", "config.json"), revision=revision)
        if not any(path.glob("*.safetensors")):
            path = hub.download(place, ("pytorch_model.bin", "config.json"), revision=revision)
    files = list_files(path) if path.is_dir() else (path,)
    tensors: dict[str, np.ndarray] = {}
    heads: dict[str, int] = {}
    for file in files:
        found, metadata = _read_file(file)
        tensors |= found
        heads |= {part: int(metadata[part]) for part in ("image", "text") if part in metadata}
    of_transformers = files[0].name.startswith(("model", "pytorch_model")) and not heads
    return Source(tensors, _read_config(files[0].parent) if of_transformers else heads, files)


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def list_files(folder: Path) -> tuple[Path, ...]:
    """The files that a folder keeps its weights in; raises DataError if there are none."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            return tuple(sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"weights: {index} is not an index of weight files; get the file again") from error
    for pattern in ("model.safetensors", "*.safetensors", "pytorch_model.bin"):
        found = tuple(sorted(folder.glob(pattern)))
        if len(found) == 1:
            return found
    raise DataError(
        f"weights: folder {folder} holds no weights; expected model.safetensors, pytorch_model.bin, or the about.json "
        "of a converted folder"
    )


def _read_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of one file."""
    if path.suffix != ".safetensors":
        return torch_archive.read(str(path)), {}
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        raise DataError(f"weights: cannot read {path} ({error}); get the file again") from error


def _read_config(folder: Path) -> dict[str, int]:
    """Attention heads, of a folder whose config.json describes a CLIP that our towers can hold."""
    if not (folder / "config.json").exists():
        return {}
    import transformers

    try:
        model = json.loads((folder / "config.json").read_text())["model_type"]
        config = transformers.CLIPConfig.from_pretrained(folder) if model == "clip" else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"weights: cannot read {folder / 'config.json'} ({str(error).splitlines()[0]})") from error
    parts = {"image": config.vision_config, "text": config.text_config} if config else {}
    activations = sorted({part.hidden_act for part in parts.values()})
    if activations != ["quick_gelu"]:
        kind = f"{model} with {', '.join(activations)}" if activations else model
        raise DataError(
            f"weights: {folder} holds {kind}; only CLIP with quick_gelu, as OpenAI published it, can be read"
        )
    return {name: part.num_attention_heads for name, part in parts.items()}
