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


def ranks(row: Mapping, both: Sides, encoder: Encoder) -> Ranks:
    """The ranks of all matches of the queries of a row, [Q] as in `both`."""
    by_identity = (Retrieval.DEFAULTS | row)["cmc"] == "identity"
    return device_ranking.ranks(*both.vectors, both.relevance, encoder.mesh, by_identity=by_identity)


def read(row: Mapping, both: Sides, encoder: Encoder, places: Sequence[int], k: int) -> list[RankedList]:
    """The lists of the queries at these places of the Q, at most k rows long; they are those that `ranks` ranks."""
    found = []
    scores = device_ranking.scores(*both.vectors, both.relevance, encoder.mesh, np.asarray(places, np.int64))
    for place, own in zip(places, scores):
        best = ranking.order(-own, both.relevance, place)[:k]
        matches = both.relevance.gallery_pid[best] == both.relevance.query_pid[place]
        shares = _shares(row, both, encoder, place, best, own[best])
        found.append(RankedList(int(both.rows[0][place]), both.rows[1][best], own[best], matches, shares))
    return found


def _shares(
    row: Mapping, both: Sides, encoder: Encoder, place: int, best: np.ndarray, scores: np.ndarray
) -> dict[str, np.ndarray]:
    """What parts of the query at a place add to its scores [k] with the gallery rows at the places `best` [k]."""
    query, gallery = both.vectors[0][np.array([place])], both.vectors[1][best]
    modalities = encoder.method.modalities
    if Retrieval(row).form == EMBED:
        side, options = both.names[0], row.get("options", {})
        terms = encoder.terms(side.split, side.use, options, both.rows[0][[place]], mixed=side.mixed)
        others = _host(gallery, encoder).astype(np.float64)
        found = {name: others @ x[0].astype(np.float64) for name, x in terms.items() if x.any()}
    else:
        parts = (unpack(_host(x, encoder), query.packing) for x in (query, gallery))
        common, shares = (x[0] for x in contributions(*parts, np.arange(len(best))[None]))
        found = {m: shares[:, i].astype(np.float64) for i, m in enumerate(modalities) if common[:, i].any()}
        apart = ~common.any(axis=1)
        found |= {APART: np.where(apart, scores, 0.0).astype(np.float64)} if apart.any() else {}
    order = [name for m in modalities for name in (m, IMPUTED + m)]
    rest = sorted(found.keys() - {*order}, reverse=True)  # captions before those that are subtracted
    return {name: found[name] for name in (*order, *rest) if name in found}


def _host(found: Vectors, encoder: Encoder) -> np.ndarray:
    return jax.device_get(found.local(encoder.mesh))
