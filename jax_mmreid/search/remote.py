"""Search in a Qdrant collection: one named vector a modality, candidates from there, compared exactly here.

A point is an entry of a store: its id, a vector for each modality that it has and, as "fallback", that of pairs without
a common modality. Qdrant keeps unit vectors; the lengths of the parts, which weigh the modalities, are in the payload
with what else is known of the entry. The model's name is there too, and only its points are searched.

Needs the `qdrant` extra. The client is the caller's: QdrantClient(url=...), or in memory QdrantClient(":memory:").
"""

import contextlib
from collections.abc import Collection as Some
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics.similarity import Parts
from jax_mmreid.search import candidates as exact
from jax_mmreid.search.index import Matches, take
from jax_mmreid.search.manifest import Identity
from jax_mmreid.search.segments import Columns

FALLBACK = "fallback"
BATCH = 256  # points that are sent at once


class Collection:
    """A collection of a server, for the vectors of one model. Methods raise DataError if the server refuses them."""

    def __init__(self, client: Any, name: str, identity: Identity):
        """A collection that exists. Raises ConfigError without Qdrant's client."""
        self.client, self.name, self.identity, self.models = client, name, identity, _models()

    @classmethod
    def create(cls, client: Any, name: str, identity: Identity) -> "Collection":
        """A new, empty collection; raises DataError if there is one of this name."""
        made, (_, D, F) = cls(client, name, identity), identity.packing
        sizes = dict.fromkeys(identity.modalities, D) | ({FALLBACK: F} if F else {})
        params = {m: made.models.VectorParams(size=n, distance=made.models.Distance.COSINE) for m, n in sizes.items()}
        with made._asked():
            if client.collection_exists(name):
                raise DataError(f"there is a collection {name} already; choose another name or delete it")
            client.create_collection(name, vectors_config=params)
        return made

    def __len__(self) -> int:
        """The number of points of this model."""
        with self._asked():
            return self.client.count(self.name, count_filter=self._filter(), exact=True).count

    def upload(self, columns: Columns, rows: Parts) -> None:
        """Sends entries of a store with their vectors; an id that is there already is replaced."""
        with self._asked():
            self.client.upload_points(self.name, self._points(columns, rows), batch_size=BATCH, wait=True)

    def delete(self, ids: Some[int]) -> None:
        """Removes the entries of these ids; those that are not there do no harm."""
        with self._asked():
            self.client.delete(self.name, list(map(int, ids)), wait=True)

    def search(self, query: Parts, k: int, *, candidates: int = 100, **filters: Any) -> Matches:
        """The k best entries for each query among so many candidates a modality; `rows` are their ids.

        `filters` are those of `index.choose`. All is exact if there are no more entries than candidates.
        """
        if query.packing != self.identity.packing:
            raise ConfigError(f"queries have {query.packing}, the collection {self.identity.packing}; use one model")
        exact.check(query)
        found = []
        for i in range(len(query.parts)):
            one = take(query, slice(i, i + 1))
            ids, gallery = self._fetch(self._candidates(one, max(k, candidates), filters))
            matches = exact.rescored(one, gallery, [np.arange(len(ids))], k)
            found.append(matches._replace(rows=np.append(ids, -1)[matches.rows]))
        if not found:
            return exact.rescored(query, query, [], k)
        return Matches(*map(np.concatenate, zip(*found)))

    def _candidates(self, query: Parts, limit: int, filters: dict) -> list[int]:
        """The ids that are nearest to a query by one of its modalities, or by the fallback and have none of them."""
        models, mine = self.models, [m for m, has in zip(self.identity.modalities, query.present[0]) if has]
        vectors = {m: query.parts[0, self.identity.modalities.index(m)] for m in mine}
        apart = [models.HasVectorCondition(has_vector=m) for m in mine]
        if query.fallback is not None:
            vectors[FALLBACK] = query.fallback[0]
        requests = [
            models.QueryRequest(
                query=np.asarray(vector, np.float64).tolist(),
                using=m,
                limit=limit,
                filter=self._filter(**filters, apart=apart if m == FALLBACK else ()),
            )
            for m, vector in vectors.items()
        ]
        with self._asked():
            answers = self.client.query_batch_points(self.name, requests)
        return sorted({point.id for answer in answers for point in answer.points})

    def _fetch(self, ids: list[int]) -> tuple[np.ndarray, Parts]:
        """Entries with their vectors as they were uploaded; those that are gone meanwhile are left out."""
        M, D, F = self.identity.packing
        with self._asked():
            points = self.client.retrieve(self.name, ids, with_payload=["lengths"], with_vectors=True) if ids else []
        points = sorted(points, key=lambda point: point.id)
        parts, fallback = np.zeros((len(points), M, D), np.float32), np.zeros((len(points), F), np.float32)
        present = np.zeros((len(points), M), bool)
        for i, point in enumerate(points):
            for m, name in enumerate(self.identity.modalities):
                if name in point.vector:
                    present[i, m] = True
                    parts[i, m] = _unit(point.vector[name]) * point.payload["lengths"][m]
            if F:
                fallback[i] = point.vector[FALLBACK]
        return np.array([point.id for point in points], np.int64), Parts(parts, present, fallback if F else None)

    def _points(self, columns: Columns, rows: Parts) -> Iterator[Any]:
        for i, id in enumerate(columns.id):
            vector = {
                m: rows.parts[i, j].tolist() for j, m in enumerate(self.identity.modalities) if rows.present[i, j]
            }
            if rows.fallback is not None:
                vector[FALLBACK] = rows.fallback[i].tolist()
            known = {name: getattr(columns, name)[i] for name in ("pid", "camid", "time", "expires")}
            payload = {name: x.item() for name, x in known.items() if x == x}  # JSON has no nan
            payload |= {"path": columns.path[i], "model": self.identity.model}
            payload["lengths"] = np.linalg.norm(np.where(rows.present[i][:, None], rows.parts[i], 0), axis=1).tolist()
            yield self.models.PointStruct(id=int(id), vector=vector, payload=payload)

    def _filter(
        self,
        *,
        cameras: Some[int] = (),
        not_cameras: Some[int] = (),
        since: float | None = None,
        until: float | None = None,
        ids: Some[int] = (),
        not_paths: Some[str] = (),
        apart: Sequence[Any] = (),
    ) -> Any:
        """What `index.choose` lets through, of this model, without what meets a condition of `apart`."""
        models = self.models

        def among(key: str, values: Some) -> Any:
            return models.FieldCondition(key=key, match=models.MatchAny(any=list(values)))

        must = [models.FieldCondition(key="model", match=models.MatchValue(value=self.identity.model))]
        must += [among("camid", map(int, cameras))] if cameras else []
        must += [models.HasIdCondition(has_id=list(map(int, ids)))] if ids else []
        if since is not None or until is not None:
            must.append(models.FieldCondition(key="time", range=models.Range(gte=since, lte=until)))
        must_not = [among("camid", map(int, not_cameras))] if not_cameras else []
        must_not += [among("path", map(str, not_paths))] if not_paths else []
        return models.Filter(must=must, must_not=[*must_not, *apart])

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """Turns what a server refuses into one line."""
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except (ApiException, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise DataError(f"Qdrant collection {self.name}: {reason}") from error


def _models() -> Any:
    try:
        from qdrant_client import models
    except ImportError:
        raise ConfigError("search in Qdrant needs its client; pip install 'jax-mmreid[qdrant]'") from None
    return models


def _unit(vector: Sequence[float]) -> np.ndarray:
    vector = np.asarray(vector, np.float64)
    return vector / max(np.linalg.norm(vector), 1e-15)
