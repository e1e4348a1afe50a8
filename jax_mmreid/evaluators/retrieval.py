"""Retrieval: rank a gallery for every query, with the modalities that each side's row allows it to use.

    row = dict(
        query=dict(split="query", use=("ir", "text")),  # "text/rgb": captions of RGB pictures; "text": all captions
        gallery=dict(split="gallery", use=("rgb",), draw=dict(cameras=(1, 2, 4, 5), shots=1)),
        trials=10,            # with `draw`: how many galleries are drawn; default 1
        junk="sysu_cameras",  # a rule of metrics.ranking: which gallery rows are hidden from a query
        cmc="identity",       # an identity counts once, at its best row; default "picture": every row counts
        options={},           # options of the method that this row changes, on both sides
        rerank=dict(k1=20, k2=6, lam=0.3),  # constants of metrics.rerank; default {}: none
        incomplete="error",   # the default; or "skip": leave out the rows that lack what their side uses
        similarity="common",  # pairs are compared by the modalities that both have (metrics.similarity); default
                              # "embed": by the vectors of `Method.embed`
        fallback="available", # the default: pairs without a common modality are compared by the vectors of
                              # `Method.embed_available`; "none": they come last
    )

A side with mixed=SEED shows of each of its rows a random non-empty subset of the pictures that it has of `use`, as a
gallery whose entries come from different sensors.

A gallery without `draw` is its whole split. With it, trial i = 0..trials-1 searches the rows
`metrics.galleries.draw(columns of the split, **draw, trial=i)`, and every number of the result is the mean over trials.

A row of a split has what its side uses if it has a picture of at least one of the modalities in `use`, and all the
captions in `use`: ("ir", "text/rgb") needs both. Rows are skipped after a draw, and counted in the whole split.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from jax_mmreid.batch import Data
from jax_mmreid.config import flat
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import TEXT, Evaluator, Result, Use, check_keys, check_use
from jax_mmreid.evaluators.encoder import Encoder, Side, check_vectors, shown_pictures
from jax_mmreid.evaluators.programs import COMMON, COMMON_OR_AVAILABLE, EMBED, packing_of
from jax_mmreid.methods import Features, Method
from jax_mmreid.metrics import device_ranking, galleries, ranking
from jax_mmreid.metrics import rerank as reranking
from jax_mmreid.metrics.vectors import Vectors
from jax_mmreid.ranges import check_types

log = logging.getLogger(__name__)

SIDES = ("query", "gallery")
TYPES = {
    "query.use": tuple[str, ...],
    "gallery.use": tuple[str, ...],
    "query.mixed": int,
    "gallery.mixed": int,
    "gallery.draw.cameras": tuple[int, ...],
    "gallery.draw.shots": int,
    "trials": int,
    "rerank.k1": int,
    "rerank.k2": int,
    "rerank.lam": float,
}
HIDDEN = {"same_camera": "camera", "same_view": "view", "sysu_cameras": "location"}  # what of a match makes it junk
CHOICES = dict(
    junk=ranking.JUNK_RULES,
    cmc=("picture", "identity"),
    incomplete=("error", "skip"),
    similarity=("embed", "common"),
    fallback=("available", "none"),
)


class Retrieval(Evaluator):
    """See the module. The result has the METRICS of metrics.ranking.

    A row that draws adds "trials", their number; one that skips incomplete rows adds "skipped", {"query": n, "gallery":
    n}; `check` has seen that no other row needs to. A row with similarity="common" adds "no_common", the fraction of
    all pairs that have no modality in common. Rows that take part must have vectors with a direction.
    """

    COLUMNS = {"mAP": "mAP", "R-1": "rank1", "R-5": "rank5", "R-10": "rank10", "R-20": "rank20", "mINP": "mINP"}
    REQUIRED: ClassVar[tuple[str, ...]] = (*SIDES, "junk")
    DEFAULTS: ClassVar[dict] = dict(
        trials=1,
        cmc="picture",
        options={},
        rerank={},
        incomplete="error",
        similarity="embed",
        fallback="available",
    )

    def check(self, data: Data) -> None:
        self.check_keys(self.REQUIRED, self.DEFAULTS)
        row, modalities = self.DEFAULTS | self.row, data.spec.modalities
        for key, known in CHOICES.items():
            if row[key] not in known:
                raise ConfigError(f"{key}={row[key]!r}, expected one of {', '.join(known)}")
        check_types({key: x for key, x in flat(row).items() if key in TYPES}, TYPES, prefix="")
        for key, optional in (("query", ("mixed",)), ("gallery", ("draw", "mixed"))):
            check_keys(key, row[key], ("split", "use"), optional)
            if not row[key]["use"]:
                raise ConfigError(f"{key}.use is empty; name modalities, or captions as 'text/rgb'")
            check_use(row[key]["split"], row[key]["use"], data)
            if row[key].get("mixed", 0) < 0 or ("mixed" in row[key] and not set(row[key]["use"]) & set(modalities)):
                raise ConfigError(f"{key}.mixed needs a seed of 0 or more, and pictures in {key}.use")
        if row["similarity"] == "embed" and "fallback" in self.row:
            raise ConfigError("fallback belongs to similarity='common'; leave it out")
        drawn = "draw" in row["gallery"]
        if row["trials"] < 1 or (row["trials"] > 1 and not drawn):
            raise ConfigError(f"trials={row['trials']}, must be 1 or more, and more than 1 needs gallery.draw")
        if row["rerank"]:
            check_keys("rerank", row["rerank"], ("k1", "k2", "lam"))
            if row["similarity"] != "embed":
                raise ConfigError("rerank needs vectors, so similarity='embed'; take one of the two out")
            reranking.check(**row["rerank"])
        if drawn:
            check_keys("gallery.draw", row["gallery"]["draw"], ("cameras", "shots"))
            galleries.draw(data.columns(row["gallery"]["split"]), **row["gallery"]["draw"], trial=0)
        some = [complete(row[key]["use"], data.present(row[key]["split"])) for key in SIDES]
        for key, own in zip(SIDES, some):
            require_complete(row[key], own, row["incomplete"])
        if not drawn:  # a drawn gallery holds what its trial draws
            columns = (data.columns(row[key]["split"]) for key in SIDES)
            sides = ({name: x[own] for name, x in side.items()} for side, own in zip(columns, some))
            _check_matches(row["junk"], *sides)

    def uses(self) -> list[tuple[str, Use]]:
        return [(self.row[key]["split"], tuple(self.row[key]["use"])) for key in SIDES]

    @property
    def form(self) -> str:
        """Which of the encoder's FORMS of vectors the row compares."""
        row = self.DEFAULTS | self.row
        if row["similarity"] == EMBED:
            return EMBED
        return COMMON if row["fallback"] == "none" else COMMON_OR_AVAILABLE

    def check_method(self, method: Method, variables: Any, features: Mapping[str, Features]) -> None:
        if self.form == EMBED:
            return super().check_method(method, variables, features)
        method = method.with_options(self.row.get("options", {}), "options")
        for split, use in self.uses():
            packing_of(method, variables, features[split], use, self.form)  # traces all that the row needs

    def run(self, encoder: Encoder) -> Result:
        row, data = self.DEFAULTS | self.row, encoder.data
        sides = [Side(split, use, row[key].get("mixed")) for key, (split, use) in zip(SIDES, self.uses())]
        query, gallery = (
            encoder.vectors(side.split, side.use, row["options"], mixed=side.mixed, form=self.form) for side in sides
        )
        queries, candidates = (complete(use, data.present(split)) for split, use in self.uses())
        result = self.scores(query, gallery, queries, encoder) | self.described()
        if row["incomplete"] == "skip":
            result["skipped"] = {key: int(np.sum(~some)) for key, some in zip(SIDES, (queries, candidates))}
        if self.form != EMBED:
            result["no_common"] = _no_common(*(shown_pictures(side, data) for side in sides))
        return result | self.note(result.get("skipped", {}))

    def scores(self, query: Vectors, gallery: Vectors, queries: np.ndarray, encoder: Encoder) -> dict[str, float]:
        """METRICS of the rows `queries` [n] bool of the query's split, means over trials; DataError as for `run`.

        `query` and `gallery` are the vectors of all rows of the two splits.
        """
        row, data = self.DEFAULTS | self.row, encoder.data
        columns = [data.columns(row[key]["split"]) for key in SIDES]
        (split, use), (of_gallery, shown) = ((row[key]["split"], tuple(row[key]["use"])) for key in SIDES)
        check_vectors(query, np.flatnonzero(queries), split, use)
        trials = []
        for drawn in _galleries(row, complete(shown, data.present(of_gallery)), columns[1]):
            check_vectors(gallery, drawn, of_gallery, shown)
            numbers = ({name: x[rows] for name, x in side.items()} for side, rows in zip(columns, (queries, drawn)))
            relevance = ranking.relevance(row["junk"], *numbers)
            trials.append(_rank(row, query[queries], gallery[drawn], relevance, encoder))
        return {key: float(np.mean([scores[key] for scores in trials])) for key in ranking.METRICS}

    def described(self) -> Result:
        """What the result says in words: "protocol" and "feature"; with a drawn gallery also "trials"."""
        row = self.DEFAULTS | self.row
        trials = {"trials": row["trials"]} if "draw" in row["gallery"] else {}
        return {"protocol": _protocol(row), "feature": _feature(row)} | trials

    def note(self, skipped: dict[str, int]) -> dict[str, str]:
        """The "note" of the result on rows that are left out, by side; {} if there are none."""
        if not any(skipped.values()):
            return {}
        counts = " and ".join(f"{count} {side} rows" for side, count in skipped.items())
        captions = any(_is_caption(name) for _, use in self.uses() for name in use)
        lack = "no picture or no caption" if captions else "no picture"
        log.warning("%s are left out, which have %s that the row uses", counts, lack)
        return {"note": f"leaves out {counts}, which have {lack} that it uses."}


def complete(use: Use, present: dict[str, np.ndarray]) -> np.ndarray:
    """Which rows of a split have what a side uses, [n] bool; see the module."""
    rows = len(next(iter(present.values())))
    pictures = [present.get(name, np.zeros(rows, bool)) for name in use if not _is_caption(name)]
    captions = [present[name] for name in use if _is_caption(name)]
    return np.all([*captions, np.any(pictures, axis=0) if pictures else np.ones(rows, bool)], axis=0)


def _is_caption(name: str) -> bool:
    return name.partition("/")[0] == TEXT


def require_complete(side: dict, some: np.ndarray, incomplete: str) -> None:
    """Raises DataError for rows that a setting cannot do without: every one, or with "skip" at least one."""
    if some.all() or (incomplete == "skip" and some.any()):
        return
    pictures = " or ".join(name for name in side["use"] if not _is_caption(name))
    captions = " and ".join(name for name in side["use"] if _is_caption(name))
    lack = ", or ".join(
        filter(None, (pictures and f"no picture of {pictures}", captions and f"no caption ({captions})"))
    )
    skip = "" if incomplete == "skip" else "set incomplete='skip' to leave such rows out, "
    raise DataError(
        f"row {np.argmin(some)} of split {side['split']!r} has {lack} ({np.sum(~some)} such rows); add it to the "
        f"data, {skip}or take this row out of config.evals"
    )


def _check_matches(junk: str, query: dict[str, np.ndarray], gallery: dict[str, np.ndarray]) -> None:
    """Raises DataError with the numbers of both sides if no query has a match that is not junk."""
    try:
        ranking.positives(ranking.relevance(junk, query, gallery))
    except DataError:
        what, column = ("views", "view") if junk == "same_view" else ("cameras", "camid")
        sides = []
        for name, side in zip(SIDES, (query, gallery)):
            identities, seen = (len(np.unique(side[key])) for key in ("pid", column))
            sides.append(f"the {name} has {len(side['pid'])} rows, identities: {identities}, {what}: {seen}")
        way = "add images of identities that both sides have"
        if junk != "none":
            way = f"junk={junk!r} leaves out matches of the query's {HIDDEN[junk]}; add others, or set junk='none'"
        raise DataError(f"no query has a match ({'; '.join(sides)}): {way}") from None


def _no_common(query: dict[str, np.ndarray], gallery: dict[str, np.ndarray]) -> float:
    """The fraction of pairs without a common modality, of rows that have pictures {modality: [n] bool}."""
    names = [m for m in query if m in gallery]
    if not names:
        return 1.0
    (q, q_counts), (g, g_counts) = (
        np.unique(np.stack([side[m] for m in names]), axis=1, return_counts=True) for side in (query, gallery)
    )
    apart = ~(q[:, :, None] & g[:, None]).any(axis=0)
    return float(q_counts @ apart @ g_counts / (q_counts.sum() * g_counts.sum()))


def _galleries(row: dict, some: np.ndarray, columns: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    """The gallery of every trial, as rows of its split; those with `some` [n] True may be in it."""
    side = row["gallery"]
    if "draw" not in side:
        yield np.flatnonzero(some)
        return
    for trial in range(row["trials"]):
        drawn = galleries.draw(columns, **side["draw"], trial=trial)
        yield drawn[some[drawn]]


def _rank(row: dict, query: Vectors, gallery: Vectors, relevance: ranking.Relevance, encoder: Encoder) -> dict:
    by_identity = row["cmc"] == "identity"
    if row["rerank"]:
        dist = reranking.rerank(query.local(encoder.mesh), gallery.local(encoder.mesh), **row["rerank"])
        return ranking.rank(dist, relevance, by_identity=by_identity)
    return device_ranking.rank(query, gallery, relevance, encoder.mesh, by_identity=by_identity)


def _protocol(row: dict) -> str:
    gallery, drawn = row["gallery"], ""
    if "draw" in gallery:
        cameras, shots = ", ".join(map(str, gallery["draw"]["cameras"])), gallery["draw"]["shots"]
        drawn = f" (cameras {cameras}; shots {shots}; mean of {row['trials']} trials)"
    counted = ", identity CMC" if row["cmc"] == "identity" else ""
    constants = ", ".join(f"{key} {value}" for key, value in row["rerank"].items())
    reranked = f", re-ranked ({constants})" if constants else ""
    splits = ", ".join(f"{key} {row[key]['split']}{_mixed(row[key])}" for key in SIDES)
    return f"{splits}{drawn}, junk {row['junk']}{counted}{reranked}"


def _mixed(side: dict) -> str:
    return f" (a random subset of each row's pictures, seed {side['mixed']})" if "mixed" in side else ""


def _feature(row: dict) -> str:
    sides = ["+".join(row[side]["use"]) for side in SIDES]
    options = [f"{key}={value}" for key, value in sorted(row["options"].items())]
    if row["similarity"] != "embed":
        options += [f"similarity={row['similarity']}", f"fallback={row['fallback']}"]
    return ", ".join([sides[0] if sides[0] == sides[1] else ">".join(sides), *options])
