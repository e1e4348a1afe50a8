"""Pictures to their captions and back: R@1, R@5, R@10 and the median rank, as CLIP's successors report them.

    row = dict(
        kind="image_text",
        split="test",
        modality="rgb",             # whose pictures, and the captions that describe them
        direction="image_to_text",  # or "text_to_image"
    )

Pairs are the rows of the split that have the picture and a caption of it that says something. Captions that are equal,
token by token, are one: a picture searches the captions that differ for its own, a caption searches the pictures for
any that it describes, of which the best ranked counts. The higher dot product ranks first, and of equal ones the
candidate that comes first in the split.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jax_mmreid.batch import Data, has_caption
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators.encoder import TEXT, Encoder, Use, check_described, check_keys, check_vectors
from jax_mmreid.metrics import device_ranking, ranking

COLUMNS = {"R@1": "rank1", "R@5": "rank5", "R@10": "rank10", "median rank": "median_rank", "chance": "chance"}
NOT_FRACTIONS = ("median_rank",)
DIRECTIONS = ("image_to_text", "text_to_image")
RANKS = (1, 5, 10)


class Pairs(NamedTuple):
    """What pictures and captions of one modality of a split are to each other."""

    pictures: np.ndarray  # [P,D]
    captions: np.ndarray  # [C,D], those that differ, in the order of their first pictures
    which: np.ndarray  # [P], the caption of each picture
    left_out: int  # pictures of which nothing is said


def check(name: str, row: dict, data: Data) -> None:
    """Raises ConfigError if the row names what does not exist, DataError for a split without such pictures."""
    where = f"evals.{name}"
    check_keys(where, row, ("split", "modality", "direction"), ("kind",))
    if row["direction"] not in DIRECTIONS:
        raise ConfigError(f"{where}: direction={row['direction']!r}, expected one of {', '.join(DIRECTIONS)}")
    check_described(where, row["split"], row["modality"], data)


def uses(row: dict) -> list[tuple[str, Use]]:
    """What the row reads of which split."""
    return [(row["split"], _uses(row["modality"]))]


def run(rows: Mapping[str, dict], encoder: Encoder) -> dict[str, dict]:
    """{row name: {"rank1", "rank5", "rank10", "median_rank", "chance", "pictures", "captions", "left_out", "protocol",
    "feature"}}.

    A median rank counts from 1. "chance" is the rank1 of a random order, 1 / captions in both directions: a caption
    has P/C of P pictures on average. "left_out" counts pictures without a caption. Raises ConfigError for a row that
    the method cannot do, DataError where there is no pair or a vector is not finite.
    """

    @functools.cache
    def pairs(split: str, modality: str) -> Pairs:
        ids, there = encoder.captions(split, modality), encoder.split(split).present[modality]
        told = has_caption(ids)
        kept = np.flatnonzero(there & told)
        first, which = _distinct(ids[kept])
        pictures, captions = (encoder.vectors(split, (use,), {})[kept] for use in _uses(modality))
        return Pairs(pictures, captions[first], which, int(np.sum(there & ~told)))

    results = {}
    for name, row in rows.items():
        try:
            found = pairs(row["split"], row["modality"])
        except ValueError as error:  # what the split does not say, or the method cannot make a vector of
            raise ConfigError(f"evals.{name}: {error}") from error
        results[name] = _measure(name, row, found, encoder)
    return results


def note(row: dict, result: dict) -> str:
    """What a table has no room for, as the rest of a sentence that begins with the row's name; "" for nothing."""
    left_out = result.get("left_out", 0)
    return f"leaves out {left_out} pictures, of which nothing is said." if left_out else ""


def _uses(modality: str) -> Use:
    return modality, f"{TEXT}/{modality}"


def _measure(name: str, row: dict, pairs: Pairs, encoder: Encoder) -> dict:
    split, modality = row["split"], row["modality"]
    if not len(pairs.which):
        raise DataError(f"evals.{name}: no picture of {modality} in split {split!r} has a caption of it")
    check_vectors(f"evals.{name}", pairs.pictures, pairs.captions)
    sides = (pairs.pictures, pairs.which), (pairs.captions, np.arange(len(pairs.captions)))
    names = row["modality"], TEXT
    if row["direction"] == "text_to_image":
        sides, names = sides[::-1], names[::-1]
    (queries, own), (candidates, keys) = sides
    relevance = ranking.relevance("none", {"pid": own}, {"pid": keys})
    ranks = device_ranking.ranks(queries, candidates, relevance, encoder.mesh).first
    return {
        **{f"rank{r}": float(np.mean(ranks <= r)) for r in RANKS},
        "median_rank": float(np.median(ranks)),
        "chance": 1 / len(pairs.captions),
        "pictures": len(pairs.pictures),
        "captions": len(pairs.captions),
        "left_out": pairs.left_out,
        "protocol": f"split {split}, {row['direction'].replace('_', ' ')}",
        "feature": ">".join(names),
    }


def _distinct(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of captions ids [n,L]: the rows [C] that equal none before them, and which of those each row equals, [n]."""
    _, first, which = np.unique(ids, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[which.reshape(-1)]
