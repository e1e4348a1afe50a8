"""What would another sensor buy? Retrieval by what query and gallery have, from one encoding of a labelled split."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics import device_ranking, ranking, similarity, vectors
from jax_mmreid.metrics.similarity import Parts
from jax_mmreid.metrics.vectors import Vectors
from jax_mmreid.search.calibration import NONE, Calibration
from jax_mmreid.search.pairs import Labelled, combinations
from jax_mmreid.search.thresholds import FMRS, MIN_FALSE, UNKNOWN

DETECTION = dict(zip(FMRS, ("TPR@1e-2", "TPR@1e-3", "TPR@1e-4")))  # metrics of `ranking`


class Cell(NamedTuple):
    """Retrieval with queries and a gallery that have certain modalities; fractions."""

    mAP: float  # noqa: N815
    rank1: float
    detection: float  # nan where there is no threshold at the false-match rate
    queries: int  # that have a match


class _Side(NamedTuple):
    """Rows as queries or gallery of a cell."""

    vectors: Vectors  # of all n rows
    shown: np.ndarray  # the rows that have all that the side shows
    fallback: np.ndarray  # those of them that have a fallback vector


def measure(
    labelled: Labelled, calibration: Calibration, mesh: Mesh, *, fmr: float, shown: Sequence[str] = ()
) -> dict[tuple[str, str], Cell | None]:
    """{(modalities of the query, of the gallery): cell} for all combinations of `shown`, by default all modalities.

    Queries and gallery are the rows that have all of a combination, of which nothing else is shown; rows of a query's
    own identity and camera are junk, a camera -1 being like no other. The detection rate is the share of matches above
    the cell's own threshold at the false-match rate `fmr`, given where `calibration`, which is of the same rows, has a
    threshold. None where there are no such rows, nothing to compare them by or no match. Raises ConfigError for an
    unknown modality or rate, DataError for vectors that are not finite.
    """
    modalities, views, pids, camids = labelled
    check_shown(shown, modalities)
    if fmr not in DETECTION:
        raise ConfigError(f"no detection rate at a false-match rate of {fmr:g}; there are {', '.join(map(str, FMRS))}")
    camids = np.where(camids < 0, -1 - np.arange(len(camids)), camids)
    sides = {use: _side(views[use], np.isin(modalities, use)) for use in combinations(shown or modalities)}
    cells, known = {}, {}
    for q, g in itertools.product(sides, repeat=2):
        common = tuple(m for m in modalities if m in q and m in g)
        queries, gallery = (sides[use].shown if common else sides[use].fallback for use in (q, g))
        # By what they have in common, pairs have the scores of any other cell with the same rows.
        key = (common or (q, g), queries.tobytes(), gallery.tobytes())
        if key not in known:
            found = [sides[q].vectors[queries], sides[g].vectors[gallery]]
            columns = [dict(pid=pids[rows], camid=camids[rows]) for rows in (queries, gallery)]
            threshold = calibration.thresholds.get("+".join(common) or NONE, {}).get(fmr, UNKNOWN)
            known[key] = _cell(found, columns, mesh, None if np.isnan(threshold.value) else fmr)
        cells["+".join(q), "+".join(g)] = known[key]
    return cells


def check_shown(shown: Sequence[str], modalities: Sequence[str]) -> None:
    """Raises ConfigError for a modality that the model does not have."""
    for name in shown:
        if name not in modalities:
            raise ConfigError(f"no modality named {name!r}; the model has {', '.join(modalities)}")


def markdown(cells: Mapping[tuple[str, str], Cell | None], fmr: float) -> str:
    """The cells as three tables in percent."""
    titles = {"mAP": "mAP", "rank1": "rank-1", "detection": f"detection rate at a false-match rate of {fmr:g}"}
    names = list(dict.fromkeys(query for query, _ in cells))
    lines = []
    for field, title in titles.items():
        lines += ["", f"| {title} in %: query \\ gallery | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for query in names:
            values = (_text(cells[query, gallery], field) for gallery in names)
            lines.append(f"| {query} | {' | '.join(values)} |")
    return "\n".join(lines[1:]) + "\n"


def _side(view: Parts, use: np.ndarray) -> _Side:
    """A view on which the modalities `use` [M] are shown."""
    shown = view.present[:, use].all(axis=1)
    fallback = np.zeros_like(shown) if view.fallback is None else shown & view.fallback.any(axis=1)
    packed = vectors.on_host(np.asarray(similarity.pack(view)), view.packing)
    return _Side(packed, np.flatnonzero(shown), np.flatnonzero(fallback))


def _cell(sides: list[Vectors], columns: list[dict[str, np.ndarray]], mesh: Mesh, fmr: float | None) -> Cell | None:
    """Retrieval of queries in a gallery; None without a match."""
    rows = ranking.relevance("same_camera", *columns)
    try:
        _, count = ranking.positives(rows)
    except DataError:
        return None
    found = device_ranking.rank(*sides, rows, mesh)
    pairs = ranking.num_negative_pairs(rows, count)
    if np.array_equal(sides[0].index, sides[1].index):  # each pair of rows is there twice, either one as the query
        pairs /= 2
    enough = fmr is not None and pairs * fmr >= MIN_FALSE
    return Cell(found["mAP"], found["rank1"], found[DETECTION[fmr]] if enough else np.nan, found["num_valid"])


def _text(cell: Cell | None, field: str) -> str:
    """Percent with one decimal; "–" for what could not be measured."""
    value = np.nan if cell is None else getattr(cell, field)
    return "–" if np.isnan(value) else f"{100 * value:.1f}"
