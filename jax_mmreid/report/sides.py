"""The two sides of a retrieval row: the vectors that it compares, their rows, what matches and what is junk."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jax_mmreid.evaluators.encoder import Encoder, Side, check_vectors
from jax_mmreid.evaluators.retrieval import SIDES, Retrieval, complete
from jax_mmreid.metrics import galleries, ranking
from jax_mmreid.metrics.ranking import Relevance
from jax_mmreid.metrics.vectors import Vectors


class Sides(NamedTuple):
    """Q queries and G gallery rows; of what comes in two, the query's is first."""

    names: tuple[Side, Side]
    rows: tuple[np.ndarray, np.ndarray]  # [Q] and [G], of their splits
    vectors: tuple[Vectors, Vectors]  # of these rows
    relevance: Relevance


def widest(rows: Mapping[str, dict]) -> str:
    """The name of the row whose queries use the most and show all that they have of it; "" if there is none."""
    whole = [name for name, row in rows.items() if "mixed" not in row["query"]]
    return max(whole, key=lambda name: len(rows[name]["query"]["use"]), default="")


def names(row: Mapping) -> tuple[Side, Side]:
    """What a retrieval row compares."""
    query, gallery = (Side(row[key]["split"], tuple(row[key]["use"]), row[key].get("mixed")) for key in SIDES)
    return query, gallery


def read(row: Mapping, encoder: Encoder) -> Sides:
    """The sides of a row that `Retrieval.check` has accepted; a gallery that is drawn is that of the first trial.

    Raises DataError for a vector without a direction.
    """
    row, form = Retrieval.DEFAULTS | row, Retrieval(row).form
    both, data = names(row), encoder.data
    found = [encoder.vectors(side.split, side.use, row["options"], mixed=side.mixed, form=form) for side in both]
    some = [complete(side.use, data.present(side.split)) for side in both]
    columns = [data.columns(side.split) for side in both]
    query, gallery = (np.flatnonzero(x) for x in some)
    if "draw" in row["gallery"]:
        drawn = galleries.draw(columns[1], **row["gallery"]["draw"], trial=0)
        gallery = drawn[some[1][drawn]]
    rows = query, gallery
    for vectors, own, side in zip(found, rows, both):
        check_vectors(vectors, own, side.split, side.use)
    numbers = ({name: x[own] for name, x in side.items()} for side, own in zip(columns, rows))
    relevance = ranking.relevance(row["junk"], *numbers)
    query, gallery = (x[own] for x, own in zip(found, rows))
    return Sides(both, rows, (query, gallery), relevance)


def grouped(rows: Mapping[str, dict], *fields: str) -> dict[str, dict[str, dict]]:
    """{group: {label: row}} of rows that compare different vectors, or differ in one of these fields."""
    found, seen = {}, []
    for name, row in rows.items():
        whole = Retrieval.DEFAULTS | row
        key = names(row), whole["options"], Retrieval(row).form, [whole[field] for field in fields]
        if key not in seen:
            seen.append(key)
            group = row.get("group", "")
            found.setdefault(group, {})[row.get("setting", name.removeprefix(f"{group}/"))] = row
    return found


def used(row: Mapping) -> str:
    """What a row compares, in words: "rgb+tir", or with another gallery "ir > rgb"."""
    query, gallery = ("+".join(side.use) for side in names(row))
    return query if query == gallery else f"{query} > {gallery}"
