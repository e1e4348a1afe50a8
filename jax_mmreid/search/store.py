"""A store: a folder with the vectors of a gallery, what is known of its entries, and a log of who did what.

    store.json       the manifest: identity of the model, version, segments, committed length of changes.jsonl
    changes.jsonl    one line a change: time, caller, action, ids       searches.jsonl   the same of searches
    NAME/            the arrays of a segment (`search.segments`)         lock             held by the one who writes

A change writes new files, waits until they are on the disk, and then replaces the manifest, which is atomic. A process
that is killed at any moment leaves the state before the change or the one after it. Files that no manifest names
are removed before the next change. A reader sees one state, and keeps it while others write.
"""

import contextlib
import dataclasses
import json
import time as clock
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_mmreid.errors import DataError
from jax_mmreid.metrics.similarity import Packing, Parts
from jax_mmreid.paths import local
from jax_mmreid.search import manifest, segments
from jax_mmreid.search.manifest import LOCK, MANIFEST, Identity, State
from jax_mmreid.search.segments import Columns, Rows

SEGMENTS = 64  # with more, appends merge the small ones
LISTED = 100  # of more added entries the log has the first and the last id
CHANGES, SEARCHES = "changes.jsonl", "searches.jsonl"
UNKNOWN = {"pid": -1, "camid": -1, "time": np.nan, "expires": np.nan}


class Contents(NamedTuple):
    """All entries of a store in one version of it."""

    columns: Columns
    rows: Parts
    version: int


@dataclasses.dataclass(frozen=True)
class Store:
    """A store on disk; nothing of it is kept in memory, so that several processes may use it.

    Methods raise DataError if files are damaged, or if another process writes for longer than `manifest.PATIENCE`.
    """

    folder: Path
    identity: Identity

    @classmethod
    def create(cls, folder: str | Path, identity: Identity) -> "Store":
        """A new store without entries. Raises DataError if the folder holds something, ConfigError for a bucket."""
        folder, identity = local(folder), manifest.identity(**identity._asdict())
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
        if not folder.is_dir() or {path.name for path in folder.iterdir()} - {LOCK, f"{MANIFEST}.new"}:
            raise DataError(f"{folder} holds something already; name an empty or a new folder for the store")
        with manifest.locked(folder):
            if (folder / MANIFEST).exists():
                raise DataError(f"{folder} holds a store already; another process has just made it")
            manifest.replace(folder, State(identity))
        manifest.sync(folder.parent)
        return cls(folder, identity)

    @classmethod
    def open(cls, folder: str | Path, identity: Identity | None = None) -> "Store":
        """A store that exists. Raises DataError if there is none, or if it is of another model than `identity`."""
        folder = local(folder)
        found = manifest.read(folder).identity
        if identity is not None:
            for name, (ours, wanted) in zip(Identity._fields, zip(found, manifest.identity(**identity._asdict()))):
                if ours != wanted:
                    raise DataError(
                        f"store {folder} is of another model: {name} is {ours} there and {wanted} here; "
                        "use the model that made it, or make a new store"
                    )
        return cls(folder, found)

    def __len__(self) -> int:
        """The number of entries."""
        return sum(rows for _, rows in manifest.read(self.folder).segments)

    @property
    def version(self) -> int:
        """How many changes the store has had."""
        return manifest.read(self.folder).version

    def read(self) -> Contents:
        """The entries, ids ascending; vectors are memory-mapped if they are in one segment, else copied to memory."""
        state = manifest.read(self.folder)
        while True:
            try:
                found = [self._segment(name) for name, _ in state.segments]
                break
            except DataError:  # a change since then has removed the files, or they are damaged
                before, state = state, manifest.read(self.folder)
                if state.version == before.version:
                    raise
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
        given = {"pid": pids, "camid": camids, "time": times, "expires": expires}
        columns = {name: _column(name, n, x) for name, x in given.items()} | {"path": _column("path", n, paths)}
        if not n:
            return np.zeros(0, np.int64)
        with self._change() as state:
            ids = np.arange(state.next_id, state.next_id + n)
            new = self._write(state, 0, [(Rows(Columns(id=ids, **columns), vectors), np.ones(n, bool))])
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
        found = [[int(i) for i in row] for row in matches]
        with manifest.locked(self.folder):
            line = _line(manifest.read(self.folder).version, caller, "search", ids=found, note=note)
            manifest.append(self.folder / SEARCHES, line)

    def audit(self) -> list[dict]:
        """Who did what, in order: dicts of time (Unix seconds), version, caller, action, ids; of changes also count.

        Actions are add, delete, expire and search. The ids of a search are lists, one a query; of more than `LISTED`
        added entries ids has the first and the last.
        """
        state = manifest.read(self.folder)
        lines = (self.folder / CHANGES).read_bytes()[: state.changes].splitlines() if state.changes else []
        path = self.folder / SEARCHES
        if path.exists():
            lines += [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        found = sorted(map(json.loads, lines), key=lambda entry: (entry["version"], entry["action"] == "search"))
        return [entry for entry in found if entry["version"] <= state.version]

    def _remove(self, which: Callable[[Columns], np.ndarray], caller: str, action: str) -> int:
        """Writes the segments that have such entries anew, without them."""
        with self._change() as state:
            kept, removed = [], []
            for name, rows in state.segments:
                segment = self._segment(name)
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

    def _merged(self, state: State, parts: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
        """Too many segments with the last ones merged: from the first on that has no more entries than those after it.

        So an entry is copied as often as a store doubles, not once for every few appends.
        """
        if len(parts) <= SEGMENTS:
            return parts
        start = next(i for i in range(len(parts)) if parts[i][1] <= sum(rows for _, rows in parts[i + 1 :]))
        sources = [(self._segment(name), np.ones(rows, bool)) for name, rows in parts[start:]]
        return (*parts[:start], self._write(state, 1, sources))

    def _segment(self, name: str) -> Rows:
        return segments.read(self.folder / name, self.identity.packing)

    def _write(self, state: State, number: int, sources: Sequence[tuple[Rows, np.ndarray]]) -> tuple[str, int]:
        name = f"{state.version + 1:08d}-{number}"
        return name, segments.write(self.folder / name, sources)

    @contextlib.contextmanager
    def _change(self) -> Iterator[State]:
        """The state, while no other process changes it; files that it does not name are gone before and after."""
        with manifest.locked(self.folder):
            manifest.sweep(self.folder)
            yield manifest.read(self.folder)
            manifest.sweep(self.folder)

    def _commit(self, state: State, caller: str, action: str, ids: np.ndarray, count: int) -> None:
        version = state.version + 1
        line = _line(version, caller, action, count=count, ids=ids.tolist())
        length = manifest.append(self.folder / CHANGES, line, state.changes)
        manifest.replace(self.folder, state._replace(version=version, changes=length))


def _column(name: str, n: int, given: Sequence | None) -> np.ndarray:
    """One column of an append; raises DataError if it does not hold a value of its type for each of n rows."""
    if given is None:
        return np.full(n, UNKNOWN[name], segments.FIELDS[name])
    if len(given) != n:
        raise DataError(f"there are {n} rows and {len(given)} of {name}; give one a row")
    if name == "path":
        return np.array([*map(str, given), None], object)[:-1]
    column, kind = np.asarray(given), segments.FIELDS[name]
    if column.dtype.kind not in ("iuf" if kind.kind == "f" else "iu") and n:
        raise DataError(f"{name} is {column.dtype}; expected {'numbers' if kind.kind == 'f' else 'whole numbers'}")
    if not np.array_equal(column.astype(kind), column, equal_nan=kind.kind == "f"):
        raise DataError(f"{name} has a number that is no {kind}")
    return column.astype(kind)


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
    numbers = [parts.reshape(n, M * D), *([] if fallback is None else [fallback])]
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.stack([np.einsum("nd,nd->n", x, x) for x in numbers])
    finite, some = np.isfinite(squares).all(axis=0), squares.any(axis=0)
    for right, what in (
        (finite, "is not finite, or too long to be squared"),
        (some, "has neither a part nor a fallback vector"),
    ):
        if not right.all():
            raise DataError(f"row {right.argmin()} {what} ({np.sum(~right)} such rows); leave such rows out")
    return Parts(parts, present, fallback)


def _line(version: int, caller: str, action: str, **fields: Any) -> bytes:
    entry = {"time": round(clock.time(), 3), "version": version, "caller": caller, "action": action} | fields
    return json.dumps(entry).encode() + b"\n"
