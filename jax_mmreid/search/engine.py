"""A trained model over a store: searches, additions and deletions, as plain functions that know nothing of HTTP.

None of them may run at the same time as another; `service` gives them one thread.
"""

import math
import time as clock
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics.similarity import Parts
from jax_mmreid.search.answers import Deleted, Entry, Found, Gallery, Match, RefusedError, Share
from jax_mmreid.search.calibration import Calibration
from jax_mmreid.search.index import Index, choose
from jax_mmreid.search.pictures import UPLOADED, Read, locate, shown
from jax_mmreid.search.segments import Columns
from jax_mmreid.search.store import Store

LONGEST_NAME = 120  # characters of a file name that are kept


class Limits(NamedTuple):
    """What one request may ask for and send."""

    matches: int = 1000
    bytes: int = 32 << 20  # of a whole request
    pixels: int = 32_000_000  # of one picture


class Upload(NamedTuple):
    """A file that was sent."""

    name: str
    data: bytes


class Query(NamedTuple):
    """What was sent to be searched for, or added: a picture and a caption at most for each modality."""

    pictures: Mapping[str, Upload]
    captions: Mapping[str, str]


class Engine:
    """A model, the store of its vectors, and an index of what the store holds now.

    `model` is an `inference.TrainedModel`, or has its `spec`, `identity`, `encode` and `parts`; `captions` are the
    modalities whose captions it reads. `pictures` is the folder that thumbnails are taken from, None for no thumbnails.
    """

    def __init__(
        self,
        model: Any,
        store: Store,
        read: Read,
        *,
        captions: Sequence[str] = (),
        calibration: Calibration | None = None,
        pictures: Path | None = None,
        limits: Limits | None = None,
    ):
        self.model, self.store, self.read, self.calibration = model, store, read, calibration
        self.pictures, self.limits = pictures, Limits() if limits is None else limits
        self.modalities, self.captions = tuple(model.spec.modalities), tuple(captions)
        self.index: Index | None = None
        self.contents = store.read()
        self.version = -1  # of the store, when `index` was made

    def warm_up(self) -> None:
        """Compiles what a search runs. Raises ConfigError for a model that cannot search this store."""
        height, width = self.model.spec.image_size
        blank = np.full((height, width, 3), 128, np.uint8)
        query = self._parts(dict.fromkeys(self.modalities, blank), {})
        if self._current().id.size:
            self.index.search(query, min(10, len(self.index)))

    def gallery(self, caller: str) -> Gallery:
        """What can be searched."""
        columns = self._current()
        known = columns.time[np.isfinite(columns.time)]
        return Gallery(
            model=self.model.identity,
            modalities=list(self.modalities),
            captions=list(self.captions),
            entries=len(columns.id),
            cameras=np.unique(columns.camid[columns.camid >= 0]).tolist(),
            earliest=float(known.min()) if known.size else None,
            latest=float(known.max()) if known.size else None,
            calibrated=self.calibration is not None,
            caller=caller,
            max_matches=self.limits.matches,
            max_bytes=self.limits.bytes,
            max_pixels=self.limits.pixels,
        )

    def entry(self, number: int) -> Entry:
        """The entry with this id; raises RefusedError 404 if there is none."""
        columns = self._current()
        return self._entry(columns, self._row(columns, number))

    def picture(self, number: int) -> Path:
        """The picture file of an entry; raises RefusedError 404 if there is none that may be shown."""
        columns = self._current()
        file = locate(self.pictures, columns.path[self._row(columns, number)])
        if file is None:
            raise RefusedError(404, f"entry {number} has no picture below the folder of pictures")
        return file

    def search(self, query: Query, chosen: Mapping[str, Any], k: int, caller: str) -> Found:
        """The k best matches among the entries that `chosen`, arguments of `index.choose`, lets through.

        Raises RefusedError for an empty gallery and for a query that cannot be read.
        """
        if k > self.limits.matches:
            raise RefusedError(422, f"k={k} matches are too many; ask for {self.limits.matches} at most")
        parts = self._query(query)
        columns = self._current()
        if self.index is None:
            raise RefusedError(409, "the gallery is empty; add entries before searching")
        where = choose(columns, **chosen)
        found = self.index.search(parts, min(k, len(self.index)), where)
        rows = found.rows[0][found.rows[0] >= 0]
        scores, common, shares = (x[0, : len(rows)] for x in found[1:])
        chances = np.full(len(rows), np.nan)
        if self.calibration is not None and len(rows):
            chances = self.calibration.probability(scores, common)
        matches = [
            Match(self._entry(columns, row), float(score), _known(chance), self._shares(counted, adds))
            for row, score, chance, counted, adds in zip(rows, scores, chances, common, shares)
        ]
        self.store.log_search(caller, matches=[columns.id[rows].tolist()], note=f"service: {self._named(query)}")
        return Found(list(query.pictures), list(query.captions), int(where.sum()), matches)

    def add(
        self, query: Query, caller: str, *, pid: int, camid: int, time: float | None, expires: float | None
    ) -> Entry:
        """Adds the vectors of a query to the store, under the name of its first picture; pictures are not kept.

        `time` and `expires` are Unix seconds, None unknown or never; pid and camid are -1 if unknown. Raises
        RefusedError for a query that cannot be read.
        """
        parts = self._query(query)
        name = next((upload.name for upload in query.pictures.values()), "caption")
        times = {name: [math.nan if x is None else x] for name, x in (("times", time), ("expires", expires))}
        columns = {"pids": [pid], "camids": [camid]} | times
        ids = self.store.append(parts, [f"{UPLOADED}{name[-LONGEST_NAME:]}"], **columns, caller=caller)
        return self.entry(int(ids[0]))

    def delete(self, number: int, caller: str) -> Deleted:
        """Removes an entry; raises RefusedError 404 if there is none with this id."""
        if not self.store.delete(ids=[number], caller=caller):
            raise RefusedError(404, f"there is no entry {number}; it may have been deleted")
        return Deleted(number)

    def _current(self) -> Columns:
        """The columns of the store as it is now, with an index to match; entries that have expired are removed."""
        if self.store.version != self.version:
            self._load()
        if np.any(self.contents.columns.expires <= clock.time()):
            self.store.expire(clock.time(), "service")
            self._load()
        return self.contents.columns

    def _load(self) -> None:
        self.index, self.contents = None, self.store.read()
        if len(self.contents.columns.id):
            self.index = Index(self.contents.rows)
        self.version = self.contents.version

    def _query(self, query: Query) -> Parts:
        """The vectors of a query [1,M,D]; raises RefusedError for one that cannot be read."""
        if not query.pictures and not query.captions:
            raise RefusedError(422, f"there is no picture; send one of {', '.join(self.modalities)} at least")
        try:
            pixels = {m: self.read(upload.data, f"{m} {upload.name!r}") for m, upload in query.pictures.items()}
            return self._parts(pixels, query.captions)
        except (ConfigError, DataError) as error:
            raise RefusedError(422, " ".join(str(error).split())) from error

    def _parts(self, pixels: Mapping[str, np.ndarray], captions: Mapping[str, str]) -> Parts:
        """Every modality is given, absent ones as None, so that all queries run one compiled program."""
        texts = {m: [captions.get(m, "")] for m in self.captions} or None
        return self.model.parts(self.model.encode({m: [pixels.get(m)] for m in self.modalities}, captions=texts))

    def _row(self, columns: Columns, number: int) -> int:
        row = int(np.searchsorted(columns.id, number))
        if row == len(columns.id) or columns.id[row] != number:
            raise RefusedError(404, f"there is no entry {number}; it may have been deleted")
        return row

    def _entry(self, columns: Columns, row: int) -> Entry:
        number, path = int(columns.id[row]), columns.path[row]
        pid, camid = (int(x[row]) if x[row] >= 0 else None for x in (columns.pid, columns.camid))
        thumbnail = None if locate(self.pictures, path) is None else f"/api/entries/{number}/thumbnail"
        time, expires = (_known(x[row]) for x in (columns.time, columns.expires))
        return Entry(number, shown(path), pid, camid, time, expires, thumbnail)

    def _shares(self, counted: Sequence[bool], adds: Sequence[float]) -> list[Share]:
        modalities = self.store.identity.modalities
        return [Share(m, float(share)) for m, share, counts in zip(modalities, adds, counted) if counts]

    def _named(self, query: Query) -> str:
        return "+".join([*query.pictures, *(f"caption_{m}" for m in query.captions)])


def _known(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
