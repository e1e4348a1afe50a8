"""Ranked lists: the gallery rows that a query finds, in order, and what each part of the query adds to their scores."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jax_mmreid.evaluators.encoder import Encoder
from jax_mmreid.evaluators.programs import EMBED
from jax_mmreid.evaluators.retrieval import Retrieval
from jax_mmreid.metrics import device_ranking, ranking
from jax_mmreid.metrics.ranking import Ranks
from jax_mmreid.metrics.similarity import unpack
from jax_mmreid.metrics.vectors import Vectors
from jax_mmreid.report.sides import Sides
from jax_mmreid.search.index import contributions

IMPUTED = "imputed "  # how the names of parts begin that stand in for a modality without a picture
APART = "nothing in common"  # the share of a pair that has no modality in common


class RankedList(NamedTuple):
    """The k best gallery rows of a query, without junk; of equal scores the row that is first in the gallery."""

    query: int  # row of its split
    gallery: np.ndarray  # [k] rows of their split
    scores: np.ndarray  # [k] float32
    matches: np.ndarray  # [k] bool
    shares: dict[str, np.ndarray]  # {part of the query: [k] float64}, which add up to the scores
    typical: dict[str, float]  # the mean of each share over all gallery rows but junk


def ranks(row: Mapping, both: Sides, encoder: Encoder) -> Ranks:
    """The ranks of all matches of the queries of a row, [Q] as in `both`."""
    by_identity = (Retrieval.DEFAULTS | row)["cmc"] == "identity"
    return device_ranking.ranks(*both.vectors, both.relevance, encoder.mesh, by_identity=by_identity)


def read(row: Mapping, both: Sides, encoder: Encoder, places: Sequence[int], k: int) -> list[RankedList]:
    """The lists of the queries at these places of the Q, at most k rows long; they are those that `ranks` ranks."""
    found, gallery = [], _host(both.vectors[1], encoder)
    scores = device_ranking.scores(*both.vectors, both.relevance, encoder.mesh, np.asarray(places, np.int64))
    for place, own in zip(places, scores):
        order = ranking.order(-own, both.relevance, place)
        best, shares = order[:k], _shares(row, both, encoder, place, gallery[order], own[order])
        one = RankedList(
            query=int(both.rows[0][place]),
            gallery=both.rows[1][best],
            scores=own[best],
            matches=both.relevance.gallery_pid[best] == both.relevance.query_pid[place],
            shares={name: x[:k] for name, x in shares.items()},
            typical={name: float(x.mean()) for name, x in shares.items()},
        )
        found.append(one)
    return found


def _shares(
    row: Mapping, both: Sides, encoder: Encoder, place: int, gallery: np.ndarray, scores: np.ndarray
) -> dict[str, np.ndarray]:
    """What parts of the query at a place add to its scores [n] with gallery vectors [n,D], which may be packed."""
    modalities = encoder.method.modalities
    if Retrieval(row).form == EMBED:
        side, options = both.names[0], row.get("options", {})
        terms = encoder.terms(side.split, side.use, options, both.rows[0][[place]], mixed=side.mixed)
        found = {name: np.einsum("nd,d->n", gallery, x[0], dtype=np.float64) for name, x in terms.items() if x.any()}
    else:
        query = both.vectors[0][np.array([place])]
        parts = (unpack(x, query.packing) for x in (_host(query, encoder), gallery))
        common, shares = (x[0] for x in contributions(*parts, np.arange(len(gallery))[None]))
        found = {m: shares[:, i].astype(np.float64) for i, m in enumerate(modalities) if common[:, i].any()}
        apart = ~common.any(axis=1)
        found |= {APART: np.where(apart, scores, 0.0).astype(np.float64)} if apart.any() else {}
    order = [name for m in modalities for name in (m, IMPUTED + m)]
    rest = sorted(found.keys() - {*order}, reverse=True)  # captions before those that are subtracted
    return {name: found[name] for name in (*order, *rest) if name in found}


def _host(found: Vectors, encoder: Encoder) -> np.ndarray:
    return jax.device_get(found.local(encoder.mesh))
