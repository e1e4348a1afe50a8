"""Retrieval: rank a gallery for every query, with the modalities that each side's row allows it to use.

    row = dict(
        query=dict(split="query", use=("ir", "text")),  # "text": the captions of the split
        gallery=dict(split="gallery", use=("rgb",), draw=dict(cameras=(1, 2, 4, 5), shots=1)),
        trials=10,            # with `draw`: how many galleries are drawn; default 1
        junk="sysu_cameras",  # a rule of metrics.ranking: which gallery rows are hidden from a query
        cmc="identity",       # an identity counts once, where its best row stands; default "picture": every row counts
        options={},           # fields of the method that this row changes, on both sides
        rerank=dict(k1=20, k2=6, lam=0.3),  # constants of metrics.rerank; default {}: none
        incomplete="error",   # the default; or "skip": leave out the rows that lack what their side uses
    )

A gallery without `draw` is its whole split. With it, trial i = 0..trials-1 searches the rows
`metrics.galleries.draw(pid and camid of the split, **draw, trial=i)`, and every number of the result is the mean over trials.

A row of a split has what its side uses if it has a picture of at least one of the modalities in `use`, and its text if
"text" is there: ("ir", "text") needs both. What is skipped is skipped after a draw, and counted in the whole split.
"""

import logging
from collections.abc import Iterator, Mapping

import numpy as np
from jax.sharding import Mesh

from jax_mmreid.batch import Data
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators.encoder import TEXT, Encoder, Use, check_keys, check_split, check_text
from jax_mmreid.metrics import device_ranking, galleries, ranking
from jax_mmreid.metrics import rerank as reranking

log = logging.getLogger(__name__)

COLUMNS = {"mAP": "mAP", "R-1": "rank1", "R-5": "rank5", "R-10": "rank10", "R-20": "rank20", "mINP": "mINP"}
NOT_FRACTIONS = ()
SIDES = ("query", "gallery")
DEFAULTS = dict(kind="retrieval", trials=1, cmc="picture", options={}, rerank={}, incomplete="error")
CHOICES = dict(junk=ranking.JUNK_RULES, cmc=("picture", "identity"), incomplete=("error", "skip"))


def check(name: str, row: dict, data: Data) -> None:
    """Raises ConfigError if the row names what does not exist, DataError for rows of data that lack what it uses."""
    where = f"evals.{name}"
    check_keys(where, row, (*SIDES, "junk"), DEFAULTS)
    row = DEFAULTS | row
    for key, known in CHOICES.items():
        if row[key] not in known:
            raise ConfigError(f"{where}: {key}={row[key]!r}, expected one of {', '.join(known)}")
    for key, optional in (("query", ()), ("gallery", ("draw",))):
        check_keys(f"{where}.{key}", row[key], ("split", "use"), optional)
        _check_side(where, row[key], data)
    drawn = "draw" in row["gallery"]
    if row["trials"] < 1 or (row["trials"] > 1 and not drawn):
        raise ConfigError(f"{where}: trials={row['trials']}, must be 1 or more, and more than 1 needs gallery.draw")
    if row["rerank"]:
        check_keys(f"{where}.rerank", row["rerank"], ("k1", "k2", "lam"))
        try:
            reranking.check(**row["rerank"])
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
    if drawn:
        draw = row["gallery"]["draw"]
        check_keys(f"{where}.gallery.draw", draw, ("cameras", "shots"))
        try:
            galleries.draw(data.columns(row["gallery"]["split"]), **draw, trial=0)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
    for key in SIDES:
        _require(name, row[key], _complete(row[key], data.present(row[key]["split"])), row["incomplete"])


def _check_side(where: str, side: dict, data: Data) -> None:
    use = tuple(side["use"])
    if not use or not set(use) <= {*data.spec.modalities, TEXT}:
        raise ConfigError(
            f"{where} uses {use}; data.modalities are {tuple(data.spec.modalities)}, captions are {TEXT!r}"
        )
    check_split(where, side["split"], data)
    if TEXT in use:
        check_text(where, side["split"], data, "take 'text' out of `use`")


def uses(row: dict) -> list[tuple[str, Use]]:
    """What the row reads of which split."""
    return [(row[key]["split"], tuple(row[key]["use"])) for key in SIDES]


def run(rows: Mapping[str, dict], encoder: Encoder) -> dict[str, dict]:
    """{row name: {the METRICS of metrics.ranking, "protocol", "feature"}}.

    A row that draws adds "trials", their number; one that skips what is incomplete adds "skipped", {"query": n,
    "gallery": n}; `check` has seen that no other needs to. Raises ConfigError for a row that the method cannot do,
    DataError where nothing can match.
    """
    results = {}
    for name, row in rows.items():
        row = DEFAULTS | row
        try:
            vectors = [encoder.vectors(split, use, row["options"]) for split, use in uses(row)]
        except ValueError as error:  # what the method cannot make a vector of
            raise ConfigError(f"evals.{name}: {error}") from error
        results[name] = _measure(name, row, vectors, encoder)
    return results


def note(row: dict, result: dict) -> str:
    """What a table has no room for, as the rest of a sentence that begins with the row's name; "" for nothing."""
    skipped = result.get("skipped", {})
    if not any(skipped.values()):
        return ""
    counts = " and ".join(f"{count} {side} rows" for side, count in skipped.items())
    lack = "no text or no picture" if any(TEXT in row[side]["use"] for side in skipped) else "no picture"
    return f"leaves out {counts}, which have {lack} that it uses."


def _measure(name: str, row: dict, vectors: list[np.ndarray], encoder: Encoder) -> dict:
    """The result of a row, from the vectors [n,D] of its query split and of its gallery split."""
    splits = [encoder.split(row[key]["split"]) for key in SIDES]
    queries, candidates = (_complete(row[key], split.present) for key, split in zip(SIDES, splits))
    trials = []
    for drawn in _galleries(row, candidates, encoder.data):
        query, gallery = (_take(split.columns, kept) for split, kept in zip(splits, (queries, drawn)))
        try:
            relevance = ranking.relevance(row["junk"], query, gallery)
            trials.append(_rank(row, vectors[0][queries], vectors[1][drawn], relevance, encoder.mesh))
        except ValueError as error:
            raise DataError(f"evals.{name}: {error}") from error
    result = {key: float(np.mean([scores[key] for scores in trials])) for key in ranking.METRICS}
    result |= {"protocol": _protocol(row), "feature": _feature(row)}
    if "draw" in row["gallery"]:
        result["trials"] = len(trials)
    skipped = {key: int(np.sum(~some)) for key, some in zip(SIDES, (queries, candidates))}
    if row["incomplete"] == "skip":
        result["skipped"] = skipped
    if any(skipped.values()):
        log.warning("evals.%s leaves out %d incomplete queries and %d gallery rows", name, *skipped.values())
    return result


def _rank(row: dict, query: np.ndarray, gallery: np.ndarray, relevance: ranking.Relevance, mesh: Mesh) -> dict:
    by_identity = row["cmc"] == "identity"
    if row["rerank"]:
        return ranking.rank(reranking.rerank(query, gallery, **row["rerank"]), relevance, by_identity=by_identity)
    return device_ranking.rank(query, gallery, relevance, mesh, by_identity=by_identity)


def _galleries(row: dict, complete: np.ndarray, data: Data) -> Iterator[np.ndarray]:
    """The gallery of every trial, as rows of its split; `complete` [n] bool says which may be in it."""
    side = row["gallery"]
    if "draw" not in side:
        yield np.flatnonzero(complete)
        return
    for trial in range(row["trials"]):
        drawn = galleries.draw(data.columns(side["split"]), **side["draw"], trial=trial)
        yield drawn[complete[drawn]]


def _take(columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: x[rows] for name, x in columns.items()}


def _complete(side: dict, present: dict[str, np.ndarray]) -> np.ndarray:
    """Which rows of a split have what a side uses, [n] bool; see above."""
    rows = len(next(iter(present.values())))
    pictures = [present.get(m, np.zeros(rows, bool)) for m in side["use"] if m != TEXT]
    complete = np.any(pictures, axis=0) if pictures else np.ones(rows, bool)
    return complete & present[TEXT] if TEXT in side["use"] else complete


def _require(name: str, side: dict, complete: np.ndarray, incomplete: str) -> None:
    """Raises DataError for rows that a setting cannot do without: every one, or with "skip" at least one."""
    if complete.all() or (incomplete == "skip" and complete.any()):
        return
    pictures = ", ".join(m for m in side["use"] if m != TEXT)
    lack = f"has none of {pictures}" if pictures else "has no text"
    if pictures and TEXT in side["use"]:
        lack = f"lacks text or a picture of {pictures}"
    skip = "" if incomplete == "skip" else f"set incomplete='skip' in config.evals.{name} to leave such rows out, "
    raise DataError(
        f"evals.{name}: row {np.argmin(complete)} of split {side['split']!r} {lack} ({np.sum(~complete)} such rows); "
        f"give it what it lacks, {skip}or take this setting out of config.evals"
    )


def _protocol(row: dict) -> str:
    query, gallery = row["query"], row["gallery"]
    drawn = ""
    if "draw" in gallery:
        cameras, shots = ", ".join(map(str, gallery["draw"]["cameras"])), gallery["draw"]["shots"]
        drawn = f" (cameras {cameras}; shots {shots}; mean of {row['trials']} trials)"
    counted = ", identity CMC" if row["cmc"] == "identity" else ""
    constants = ", ".join(f"{key} {value}" for key, value in row["rerank"].items())
    reranked = f", re-ranked ({constants})" if constants else ""
    return f"query {query['split']}, gallery {gallery['split']}{drawn}, junk {row['junk']}{counted}{reranked}"


def _feature(row: dict) -> str:
    sides = ["+".join(row[side]["use"]) for side in SIDES]
    options = [f"{key}={value}" for key, value in sorted(row["options"].items())]
    return ", ".join([sides[0] if sides[0] == sides[1] else ">".join(sides), *options])
