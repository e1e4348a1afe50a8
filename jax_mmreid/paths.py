"""Folders and files of this machine and of buckets, read and written alike.

`place("runs/a")` and `place("gs://bucket/runs/a")` are paths with the methods of pathlib, those of `etils.epath`. A
library that knows the files of this machine alone reads a copy, `on_disk`, and writes one, `written_on_disk`.
"""

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from jax_mmreid.errors import ConfigError


def place(name: epath.PathLike) -> epath.Path:
    """A path on this machine or in a gs:// bucket; raises ConfigError for other buckets, and if gcsfs is missing."""
    scheme, found, _ = str(name).partition("://")
    if found and scheme != "gs":
        raise ConfigError(
            f"{name}: of buckets, only gs:// works, for Orbax and ArrayRecord know no other; mount the bucket and name "
            "the folder"
        )
    if found and importlib.util.find_spec("gcsfs") is None:
        raise ConfigError(f"{name}: buckets need gcsfs; pip install 'jax-mmreid[gcs]'")
    return epath.Path(name)


def absolute(name: epath.PathLike) -> epath.Path:
    """The same place whatever the current folder is, as Orbax demands."""
    path = place(name)
    return path if in_bucket(path) else path.absolute()


def local(name: epath.PathLike) -> Path:
    """A path on this machine; raises ConfigError for a bucket, whose files cannot be opened in part or added to."""
    if in_bucket(name):
        raise ConfigError(f"{name}: this must be on this machine; name a folder or file that is not in a bucket")
    return Path(name)


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path is one of a bucket, whose files can be replaced, but not be added to."""
    return "://" in str(path)


@contextlib.contextmanager
def on_disk(path: epath.Path) -> Iterator[Path]:
    """The file or folder if it is on this machine, else a copy that lasts as long as the context."""
    if not in_bucket(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        if path.is_dir():
            _copy_folder(path, epath.Path(copy))
        else:
            path.copy(copy)
        yield copy


@contextlib.contextmanager
def written_on_disk(name: epath.PathLike) -> Iterator[Path]:
    """A new folder on this machine to write into: that of this name, or one that is copied there at the end."""
    path = place(name)
    if not in_bucket(path):
        path.mkdir(parents=True, exist_ok=True)
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        _copy_folder(epath.Path(folder), path)


def _copy_folder(source: epath.Path, target: epath.Path) -> None:
    """Copies a folder with all below it; files that the target has are replaced."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy_folder(path, target / path.name)
        else:
            path.copy(target / path.name, overwrite=True)
