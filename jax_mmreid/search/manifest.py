"""The state of a store on disk: a manifest that is replaced at once, logs of lines, and a lock."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import time as clock
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jax_mmreid.errors import DataError
from jax_mmreid.metrics.similarity import Packing

FORMAT = 1
PATIENCE = 10.0  # seconds that a change waits for the one before it
MANIFEST, LOCK = "store.json", "lock"
SEGMENT = r"\d{8,}-\d+"  # the name of one: the version that it came with, and a number


class Identity(NamedTuple):
    """The model whose vectors a store has."""

    model: str  # TrainedModel.identity
    spec: str  # the hash of its data spec
    modalities: tuple[str, ...]  # of the parts, M
    packing: Packing


class State(NamedTuple):
    """What the manifest holds."""

    identity: Identity
    version: int = 0
    next_id: int = 0
    segments: tuple[tuple[str, int], ...] = ()  # names and rows
    changes: int = 0  # bytes of the log of changes that are committed


def identity(*, modalities: Any, packing: Any, **names: str) -> Identity:
    """An identity of the same types whether it was read from JSON or not."""
    return Identity(**names, modalities=tuple(modalities), packing=Packing(*packing))


def read(folder: Path) -> State:
    """The committed state. Raises DataError if the folder is no store or its manifest is damaged."""
    try:
        fields = json.loads((folder / MANIFEST).read_text())
        found = fields.pop("format")
        if found != FORMAT:
            raise DataError(f"store {folder} has format {found}, this version reads {FORMAT}; update jax_mmreid")
        segments = tuple((name, rows) for name, rows in fields.pop("segments"))
        return State(identity=identity(**fields.pop("identity")), segments=segments, **fields)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder} is no store (it has no {MANIFEST}); name a store, or make one first") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{folder / MANIFEST} cannot be read ({error}); restore it or make the store anew") from error


def replace(folder: Path, state: State) -> None:
    """Commits a state, whose files are on the disk: before this call the old one is in force, after it the new one."""
    new = folder / f"{MANIFEST}.new"
    new.write_text(json.dumps({"format": FORMAT} | state._asdict() | {"identity": state.identity._asdict()}, indent=1))
    sync(new)
    sync(folder)
    os.replace(new, folder / MANIFEST)
    sync(folder)


def append(path: Path, line: bytes, length: int | None = None) -> int:
    """Writes a line behind the first `length` bytes of a log, None: behind its last whole line; returns its new length.

    What is behind them is of a process that was killed before it committed.
    """
    with open(path, "a+b") as file:
        file.truncate(_whole(file) if length is None else length)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Removes the segments that the manifest does not name."""
    named = {name for name, _ in read(folder).segments}
    for path in folder.iterdir():
        if re.fullmatch(SEGMENT, path.name) and path.name not in named:
            shutil.rmtree(path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a store; raises DataError if another holds it for longer than `PATIENCE`, or files cannot be
    written."""
    try:
        with open(folder / LOCK, "w") as file:
            _wait(file, folder)
            yield
    except OSError as error:
        raise DataError(f"store {folder} cannot be written ({error}); it is as it was before") from error


def _wait(lock: Any, folder: Path) -> None:
    end = clock.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock.monotonic() > end:
                raise DataError(f"store {folder} is being written by another process; try again later") from None
        clock.sleep(0.01)


def _whole(file: Any) -> int:
    """Where the last whole line of a file ends."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
