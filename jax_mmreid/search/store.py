"""A store: a folder with the vectors of a gallery, what is known of its entries, and a log of who did what.

    store.json       the manifest: identity of the model, version, segments, committed length of changes.jsonl
    changes.jsonl    one line a change: time, caller, action, ids       searches.jsonl   the same of searches
    NAME/            the arrays of a segment (`search.segments`)         lock             held by the one who writes

A change writes new files, waits until they are on the disk, and then replaces the manifest, which is atomic. A process
that is killed at any moment leaves the state before the change or the one after it. Files that no manifest names
are removed before the next change. Whoever reads sees one state, and keeps it while others write.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time as clock
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_mmreid.errors import DataError
from jax_mmreid.metrics.similarity import Packing, Parts
from jax_mmreid.search import segments
from jax_mmreid.search.segments import Columns, Rows

FORMAT = 1
SEGMENTS = 64  # with more, appends merge the small ones
PATIENCE = 10.0  # seconds that a change waits for the one before it
LISTED = 100  # of more added entries the log has the first and the last id
MANIFEST, CHANGES, SEARCHES, LOCK = "store.json", "changes.jsonl", "searches.jsonl", "lock"
UNKNOWN = {"pid": -1, "camid": -1, "time": np.nan, "expires": np.nan}


class Identity(NamedTuple):
    """The model whose vectors a store has."""

    model: str  # TrainedModel.identity
    spec: str  # the hash of its data spec
    modalities: tuple[str, ...]  # of the parts, M
    packing: Packing


class Contents(NamedTuple):
    """All entries of a store in one version of it."""

    columns: Columns
    rows: Parts
    version: int


class _State(NamedTuple):
    """The manifest."""

    identity: Identity
    version: int
    next_id: int
    segments: tuple[tuple[str, int], ...]  # names and rows
    changes: int  # bytes of changes.jsonl that are committed


@dataclasses.dataclass(frozen=True)
class Store:
    """A store on disk; nothing of it is kept in memory, so that several processes may use it.

    Methods raise DataError if files are damaged, or if another process writes for longer than `PATIENCE`.
    """

    folder: Path
    identity: Identity

    @classmethod
    def create(cls, folder: str | Path, identity: Identity) -> "Store":
        """A new store without entries. Raises DataError if the folder holds something."""
        folder, identity = Path(folder), _identity(identity._asdict())
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
        if not folder.is_dir() or {path.name for path in folder.iterdir()} - {LOCK, f"{MANIFEST}.new"}:
            raise DataError(f"{folder} holds something already; name an empty or a new folder for the store")
        with _locked(folder):
            if (folder / MANIFEST).exists():
                raise DataError(f"{folder} holds a store already; another process has just made it")
            _replace(folder, _State(identity, 0, 0, (), 0))
        segments.sync(folder.parent)
        return cls(folder, identity)

    @classmethod
    def open(cls, folder: str | Path, identity: Identity | None = None) -> "Store":
        """A store that exists. Raises DataError if there is none, or if it is of another model than `identity`."""
        found = _read(Path(folder)).identity
        if identity is not None:
            for name, (ours, wanted) in zip(Identity._fields, zip(found, _identity(identity._asdict()))):
                if ours != wanted:
                    raise DataError(
                        f"store {folder} is of another model: {name} is {ours} there and {wanted} here; "
                        "use the model that made it, or make a new store"
                    )
        return cls(Path(folder), found)

    def __len__(self) -> int:
        """The number of entries."""
        return sum(rows for _, rows in _read(self.folder).segments)

    @property
    def version(self) -> int:
        """How many changes the store has had."""
        return _read(self.folder).version

    def read(self) -> Contents:
        """The entries, ids ascending; vectors are memory-mapped if they are in one segment, else copied to memory."""
        state = _read(self.folder)
        while True:
            try:
                found = [segments.read(self.folder / name) for name, _ in state.segments]
                break
            except (OSError, ValueError) as error:  # a change since then removed the files, or they are damaged
                before, state = state, _read(self.folder)
                if state.version == before.version:
                    raise DataError(f"store {self.folder} is damaged ({error}); restore it or make it anew") from error
        rows = segments.join(found, self.identity.packing)
        return Contents(rows.columns, rows.vectors, state.version)

    def append(
        self,
        rows: Parts,
        paths: Sequence[str],
        *,
        pids: Sequence[int] | None = None,
        camids: Sequence[int] | None = None,
        times: Sequence[float] | None = None,
        expires: Sequence[float] | None = None,
        caller: str,
    ) -> np.ndarray:
        """Adds n entries; returns their ids [n]. `times` and `expires` are Unix seconds, nan if unknown or never.

        Raises DataError for rows that have nothing, are not finite, or do not fit the store or each other.
        """
        vectors = _checked(rows, self.identity.packing)
        n = len(vectors.parts)
        given = {"path": paths, "pid": pids, "camid": camids, "time": times, "expires": expires}
        for name, column in given.items():
            if column is not None and len(column) != n:
                raise DataError(f"store {self.folder}: there are {n} rows and {len(column)} of {name}; give one a row")
            if name in UNKNOWN:
                fill = np.full(n, UNKNOWN[name]) if column is None else column
                given[name] = np.asarray(fill).astype(segments.FIELDS[name])
        given["path"] = np.array([*map(str, paths), None], object)[:-1]
        if not n:
            return np.zeros(0, np.int64)
        with self._change() as state:
            ids = np.arange(state.next_id, state.next_id + n)
            new = self._write(state, 0, [(Rows(Columns(id=ids, **given), vectors), np.ones(n, bool))])
            kept = self._merged(state, (*state.segments, new))
            state = state._replace(next_id=state.next_id + n, segments=kept)
            self._commit(state, caller, "add", ids if n <= LISTED else ids[[0, -1]], n)
        return ids

    def delete(self, *, ids: Collection[int] = (), paths: Collection[str] = (), caller: str) -> int:
        """Removes the entries of these ids and those of these paths from the disk; returns their number."""
        ids, paths = np.array(list(ids), np.int64), set(map(str, paths))
        return self._remove(
            lambda columns: np.isin(columns.id, ids) | np.array([p in paths for p in columns.path], bool),
            caller,
            "delete",
        )

    def expire(self, now: float, caller: str) -> int:
        """Removes the entries whose `expires` is `now` (Unix seconds) or earlier; returns their number."""
        return self._remove(lambda columns: columns.expires <= now, caller, "expire")

    def log_search(self, caller: str, *, matches: Sequence[Sequence[int]], note: str = "") -> None:
        """Logs a search: the ids that it found for each query."""
        with _locked(self.folder):
            state, found = _read(self.folder), [[int(i) for i in row] for row in matches]
            line = _line(state.version, caller, "search", ids=found, note=note)
            path = self.folder / SEARCHES
            whole = path.read_bytes().rfind(b"\n") + 1 if path.exists() and not _ends_whole(path) else None
            _append(path, line, whole)

    def audit(self) -> list[dict]:
        """Who did what, in order: dicts of time (Unix seconds), version, caller, action, ids; of changes also count.

        Actions are add, delete, expire and search. The ids of a search are lists, one a query; of more than `LISTED`
        added entries ids has the first and the last.
        """
        state = _read(self.folder)
        lines = (self.folder / CHANGES).read_bytes()[: state.changes].splitlines() if state.changes else []
        path = self.folder / SEARCHES
        if path.exists():
            lines += [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        found = sorted(map(json.loads, lines), key=lambda entry: (entry["version"], entry["action"] == "search"))
        return [entry for entry in found if entry["version"] <= state.version]

    def _remove(self, which: Any, caller: str, action: str) -> int:
        """Writes the segments that have such entries anew, without them."""
        with self._change() as state:
            kept, removed = [], []
            for name, rows in state.segments:
                segment = segments.read(self.folder / name)
                gone = which(segment.columns)
                removed.append(segment.columns.id[gone])
                if not gone.any():
                    kept.append((name, rows))
                elif not gone.all():
                    kept.append(self._write(state, len(kept), [(segment, ~gone)]))
            ids = np.concatenate([*removed, np.zeros(0, np.int64)])
            if len(ids):
                self._commit(state._replace(segments=tuple(kept)), caller, action, ids, len(ids))
        return len(ids)

    def _merged(self, state: _State, parts: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
        """Too many segments with the last ones merged: from the first on that has no more entries than those after it.

        So an entry is copied as often as a store doubles, not once for every few appends.
        """
        if len(parts) <= SEGMENTS:
            return parts
        start = next(i for i in range(len(parts)) if parts[i][1] <= sum(rows for _, rows in parts[i + 1 :]))
        sources = [(segments.read(self.folder / name), np.ones(rows, bool)) for name, rows in parts[start:]]
        return (*parts[:start], self._write(state, 1, sources))

    def _write(self, state: _State, number: int, sources: Sequence[tuple[Rows, np.ndarray]]) -> tuple[str, int]:
        name = f"{state.version + 1:08d}-{number}"
        return name, segments.write(self.folder / name, sources)

    @contextlib.contextmanager
    def _change(self) -> Iterator[_State]:
        """The state, while no other process changes it; files that it does not name are gone before and after."""
        with _locked(self.folder):
            _sweep(self.folder)
            yield _read(self.folder)
            _sweep(self.folder)

    def _commit(self, state: _State, caller: str, action: str, ids: np.ndarray, count: int) -> None:
        version = state.version + 1
        line = _line(version, caller, action, count=count, ids=ids.tolist())
        length = _append(self.folder / CHANGES, line, state.changes)
        _replace(self.folder, state._replace(version=version, changes=length))


def _checked(rows: Parts, packing: Packing) -> Parts:
    """The rows as a store keeps them, absent parts zero; raises DataError for what it cannot keep."""
    parts, present = np.asarray(rows.parts, np.float32), np.asarray(rows.present, bool)
    fallback = None if rows.fallback is None else np.asarray(rows.fallback, np.float32)
    found = Parts(parts, present, fallback)
    shapes = [None if x is None else x.shape for x in found]
    M, D, F = packing
    n = len(parts)
    if shapes != [(n, M, D), (n, M), (n, F) if F else None]:
        expected = f"parts (n, {M}, {D}), present (n, {M}) and " + (f"fallback (n, {F})" if F else "no fallback")
        raise DataError(f"rows have the shapes {shapes}; this store takes {expected}")
    parts = np.where(present[..., None], parts, np.float32(0))
    numbers = [parts.reshape(n, -1), *([] if fallback is None else [fallback])]
    finite = np.all([np.isfinite(x).all(axis=1) for x in numbers], axis=0)
    some = np.any([x.any(axis=1) for x in numbers], axis=0)
    for right, what in ((finite, "is not finite"), (some, "has neither a part nor a fallback vector")):
        if not right.all():
            raise DataError(f"row {right.argmin()} {what} ({np.sum(~right)} such rows); leave such rows out")
    return Parts(parts, present, fallback)


def _identity(fields: dict) -> Identity:
    return Identity(**fields | {"modalities": tuple(fields["modalities"]), "packing": Packing(*fields["packing"])})


def _read(folder: Path) -> _State:
    try:
        fields = json.loads((folder / MANIFEST).read_text())
        found = fields.pop("format")
        if found != FORMAT:
            raise DataError(f"store {folder} has format {found}, this version reads {FORMAT}; update jax_mmreid")
        parts = tuple((name, rows) for name, rows in fields.pop("segments"))
        return _State(identity=_identity(fields.pop("identity")), segments=parts, **fields)
    except FileNotFoundError:
        raise DataError(f"{folder} is no store (it has no {MANIFEST}); name a store, or make one first") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder / MANIFEST} cannot be read ({error}); restore it or make the store anew") from error


def _replace(folder: Path, state: _State) -> None:
    """The moment of a change."""
    new = folder / f"{MANIFEST}.new"
    new.write_text(json.dumps({"format": FORMAT} | state._asdict() | {"identity": state.identity._asdict()}, indent=1))
    segments.sync(new)
    segments.sync(folder)
    os.replace(new, folder / MANIFEST)
    segments.sync(folder)


def _append(path: Path, line: bytes, length: int | None) -> int:
    """Writes a line behind the first `length` bytes of a file, all if None; returns where it ends."""
    with open(path, "ab") as file:
        if length is not None:
            file.truncate(length)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
        return file.seek(0, os.SEEK_END)


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read(1) in (b"", b"\n")


def _line(version: int, caller: str, action: str, **fields: Any) -> bytes:
    entry = {"time": round(clock.time(), 3), "version": version, "caller": caller, "action": action} | fields
    return json.dumps(entry).encode() + b"\n"


def _sweep(folder: Path) -> None:
    """Removes the segments that the manifest does not name."""
    named = {name for name, _ in _read(folder).segments}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in named:
            shutil.rmtree(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a store; raises DataError if another holds it for too long."""
    end = clock.monotonic() + PATIENCE
    with open(folder / LOCK, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock.monotonic() > end:
                    raise DataError(f"store {folder} is being written by another process; try again later") from None
            clock.sleep(0.01)
        yield
