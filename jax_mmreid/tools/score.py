"""Scores the features of any model under a named protocol, and prints the metrics as JSON.

    python -m jax_mmreid.tools.score --query=q.npz --gallery=g.npz --protocol=rgbnt100
    python -m jax_mmreid.tools.score --query=test.npz --protocol=rgbnt201     # without --gallery, queries are searched
    python -m jax_mmreid.tools.score --query=ir.npz --gallery=rgb.npz --protocol=sysu_mm01 --search=indoor --shots=10
    python -m jax_mmreid.tools.score ... --rerank --k1=50 --k2=15 --lam=0.3   # as the TransReID family does

A feature file is an .npz without pickles of n pictures, with the numbers of the dataset's own file names:

    features [n,D] numbers          pids [n], camids [n] whole numbers      views [n], for msvr310: the scene
    paths [n] str, may be absent    relative to the dataset; with paths a query that finds itself is noticed

Results of draws are averaged. Draws of one shot are the official ones if the rows of an identity and camera are in the
order of their file names, so rows are sorted by `paths`. Without paths they stay as they are, and "order" is "file".

A picture on both sides must be junk for itself under the protocol, as it is where the queries are a part of the gallery
and the numbers agree. Otherwise it would be found first, and is refused. num_identities is that of the queries.
"""

import argparse
import json
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jax_mmreid import __version__, sharding
from jax_mmreid.errors import ConfigError, DataError, report_error
from jax_mmreid.metrics import galleries, protocols, ranking
from jax_mmreid.metrics import rerank as reranking
from jax_mmreid.metrics.device_ranking import rank
from jax_mmreid.metrics.protocols import PROTOCOLS, Protocol

Arrays = Mapping[str, np.ndarray]
KEYS = ("features", "pids", "camids", "views", "paths")
METRICS = ("cosine", "euclidean")
UNIT = 1e-6  # unit vectors, whose squared lengths are within this of 1, keep their bits: near ties keep their order
RERANK = reranking.rerank.__kwdefaults__


class Side(NamedTuple):
    """The queries or the gallery rows."""

    features: np.ndarray  # [n,D] float32
    columns: dict[str, np.ndarray]  # pid, camid and, where the file has it, view: [n] int64
    paths: np.ndarray | None  # [n] str


def score(
    query: Arrays,
    gallery: Arrays | None,
    protocol: str,
    *,
    metric: str = "cosine",
    search: str | None = None,
    shots: int | None = None,
    trials: int | None = None,
    rerank: Mapping[str, float] | None = None,
) -> dict:
    """The metrics that the command prints, from the arrays of a query file and a gallery file; None: the queries.

    `trials=0` takes the gallery as it is, for one that was drawn already. `rerank` is {k1, k2, lam}, with the defaults
    of `RERANK`. Raises ConfigError for an option that the protocol does not have, DataError for arrays that cannot be
    scored.
    """
    if metric not in METRICS:
        raise ConfigError(f"no metric named {metric!r}; there are {', '.join(METRICS)}")
    unknown = ", ".join(set(rerank or {}) - set(RERANK))
    if unknown:
        raise ConfigError(f"re-ranking has no constant {unknown}; there are {', '.join(RERANK)}")
    rules = protocols.find(protocol)
    draw = _draw(protocol, search, shots, trials)
    queries = _side("query", query, protocol, metric)
    rows = queries if gallery is None else _side("gallery", gallery, protocol, metric)
    _check_sides(queries, rows, rules.junk)
    drawn = [_trial(queries, part, rules, metric, rerank) for part in _galleries(rows, draw)]
    plain, reranked, sizes = zip(*drawn)
    result = {"protocol": protocol, "metric": metric} | _mean(plain)
    result |= {"num_query": len(queries.features), "num_gallery": sizes[0]}
    result["num_identities"] = len(np.unique(queries.columns["pid"]))
    if draw:
        result |= draw | {"drawn_from": len(rows.features), "order": "file" if rows.paths is None else "paths"}
    if rerank is not None:
        result["reranked"] = _mean(reranked) | RERANK | rerank
    return result | {"versions": {"jax_mmreid": __version__, "jax": jax.__version__, "numpy": np.__version__}}


def _draw(protocol: str, search: str | None, shots: int | None, trials: int | None) -> dict:
    """{"trials", "cameras", "shots"} of the galleries that are drawn, {} if none is.

    Raises ConfigError for what the protocol does not leave to choose.
    """
    rules = PROTOCOLS[protocol]
    if trials is not None and (trials < 0 or (trials and not rules.trials)):
        raise ConfigError(f"trials={trials}: expected 0{' or more' if rules.trials else ''} for {protocol}")
    trials = rules.trials if trials is None else trials
    for name, value in (("search", search), ("shots", shots)):
        known = getattr(rules, name) if trials else ()
        if value is not None and (len(known) < 2 or value not in known):
            choice = " or ".join(map(str, known)) if len(known) > 1 else "none"
            raise ConfigError(f"{name}={value}: expected {choice} for {protocol} with trials={trials}")
    if not trials:
        return {}
    drawn = protocols.draw(protocol, search, shots)
    return dict(trials=trials, cameras=list(drawn["cameras"]), shots=drawn["shots"])


def _side(name: str, arrays: Arrays, protocol: str, metric: str) -> Side:
    """One side, checked; features are unit rows unless the metric is euclidean."""
    rules = PROTOCOLS[protocol]
    needed = ("features", "pids", "camids", *(("views",) if rules.junk == "same_view" else ()))
    for key in needed:
        if key not in arrays:
            raise DataError(f"{name}: no array {key!r}; {protocol} needs {', '.join(needed)}")
    arrays = {key: np.asarray(arrays[key]) for key in KEYS if key in arrays}
    features = _features(name, arrays.pop("features"), metric)
    for key, x in arrays.items():
        kinds, wanted = ("U", "strings") if key == "paths" else ("iu", "whole numbers")
        if x.shape != features.shape[:1] or x.dtype.kind not in kinds:
            raise DataError(f"{name}: {key} is {x.dtype}{x.shape}, expected {wanted} of shape ({len(features)},)")
    paths = arrays.pop("paths", None)
    columns = {key.removesuffix("s"): x.astype(np.int64) for key, x in arrays.items()}
    _refuse(name, columns["pid"] < 0, "has an identity below 0, which no protocol counts; leave it out")
    if rules.cameras:
        strange = (columns["camid"] < 1) | (columns["camid"] > rules.cameras)
        _refuse(
            name,
            strange,
            f"has a camera other than 1 to {rules.cameras}, the numbers of the dataset; renumber it",
        )
    if paths is not None:
        again = np.ones(len(paths), bool)
        again[np.unique(paths, return_index=True)[1]] = False
        what = f"has the path '{paths[again.argmax()]}' of an earlier one; give a picture once, by its path in the data"
        _refuse(name, again, what)
    return Side(features, columns, paths)


def _features(name: str, x: np.ndarray, metric: str) -> np.ndarray:
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "fiu":
        raise DataError(f"{name}: features is {x.dtype}{x.shape}, expected numbers of shape (n, D)")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    _refuse(name, ~np.isfinite(x).all(axis=1), "of features is not finite in float32")
    squares = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    if metric == "euclidean":  # a squared distance is at most four times the greatest square
        _refuse(name, squares >= np.finfo(np.float32).max / 4, "of features is too large to be squared in float32")
        return x
    _refuse(name, squares == 0, "of features is zero, which has no cosine; leave it out, or use metric=euclidean")
    squares[np.abs(squares - 1) < UNIT] = 1
    return (x / np.sqrt(squares)[:, None]).astype(np.float32)


def _refuse(name: str, wrong: np.ndarray, why: str) -> None:
    """Raises DataError if any of the rows is wrong [n]."""
    if wrong.any():
        raise DataError(f"{name}: row {wrong.argmax()} {why} ({wrong.sum()} such rows)")


def _check_sides(query: Side, gallery: Side, junk: str) -> None:
    """Raises DataError if the sides do not fit, or a picture that is on both would find itself."""
    shapes = query.features.shape, gallery.features.shape
    if shapes[0][1] != shapes[1][1]:
        raise DataError(f"features are {shapes[0]} of queries and {shapes[1]} of the gallery; use one model for both")
    if query is gallery:
        left = right = np.arange(len(query.features))
    elif query.paths is not None and gallery.paths is not None:
        _, left, right = np.intersect1d(query.paths, gallery.paths, assume_unique=True, return_indices=True)
    else:
        return
    rows = ranking.relevance(junk, query.columns, gallery.columns)
    seen = np.zeros(len(query.features), bool)
    seen[left] = rows.query_junk[left] != rows.gallery_junk[right]
    path = "" if query.paths is None else f" ('{query.paths[seen.argmax()]}')"
    _refuse("query", seen, f"{path} is a gallery row too, and no junk under this protocol; take one out".strip())


def _galleries(rows: Side, draw: dict) -> Iterator[Side]:
    """The gallery of every trial."""
    if not draw:
        yield rows
        return
    order = np.arange(len(rows.features)) if rows.paths is None else np.argsort(rows.paths)
    columns = {name: rows.columns[name][order] for name in ("pid", "camid")}
    if not np.isin(columns["camid"], draw["cameras"]).any():
        cameras = ", ".join(map(str, draw["cameras"]))
        raise DataError(f"gallery: no row has one of the cameras {cameras}, which galleries are drawn from")
    for trial in range(draw["trials"]):
        drawn = order[galleries.draw(columns, cameras=draw["cameras"], shots=draw["shots"], trial=trial)]
        yield Side(rows.features[drawn], {name: x[drawn] for name, x in rows.columns.items()}, None)


def _trial(query: Side, gallery: Side, rules: Protocol, metric: str, rerank: Mapping | None) -> tuple[dict, dict, int]:
    """The metrics of one gallery, those after re-ranking ({} without `rerank`), and its number of rows."""
    by_identity = rules.cmc == "identity"
    rows = ranking.relevance(rules.junk, query.columns, gallery.columns)
    sides, reranked = (query.features, gallery.features), {}
    if rerank is not None:
        reranked = ranking.rank(reranking.rerank(*sides, **RERANK | rerank), rows, by_identity=by_identity)
    if metric == "euclidean":
        # -|q - g|^2 / 2 = q.g - |q|^2 / 2 - |g|^2 / 2. The order needs no |q|; a TPR, which compares queries, does.
        halves = [-np.einsum("nd,nd->n", x, x, dtype=np.float64) / 2 for x in sides]
        columns = (halves[0], np.ones(len(sides[0]))), (np.ones(len(sides[1])), halves[1])
        sides = [np.column_stack([x, *more]).astype(np.float32) for x, more in zip(sides, columns)]
    plain = rank(*sides, rows, sharding.make_mesh(data=-1, model=1), by_identity=by_identity)
    return plain, reranked, len(gallery.features)


def _mean(trials: Sequence[dict]) -> dict:
    """The mean of every metric. All draws have the same identities and cameras, so their valid queries agree."""
    cmc = np.mean([trial["cmc"] for trial in trials], axis=0).tolist()
    means = {name: float(np.mean([trial[name] for trial in trials])) for name in ranking.METRICS}
    return means | {"cmc": cmc, "num_valid": trials[0]["num_valid"]}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a feature file that `KEYS` names; raises DataError for one that cannot be read."""
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("a single array")
        with file:
            return {key: file[key] for key in KEYS if key in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise DataError(f"cannot read {path} ({reason}); expected an .npz of {', '.join(KEYS)}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad arguments, 3 features that cannot be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mmreid.tools.score",
        description=f"{__doc__}\n{protocols.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--query", required=True)
    parser.add_argument("--gallery", help="default: the query file")
    parser.add_argument("--protocol", required=True, choices=PROTOCOLS)
    parser.add_argument("--metric", default="cosine", choices=METRICS)
    parser.add_argument("--search", help="of sysu_mm01: all (default) or indoor")
    parser.add_argument("--shots", type=int, help="of sysu_mm01: 1 (default) or 10 pictures of every person and camera")
    parser.add_argument("--trials", type=int, help="how many galleries to draw; 0: the gallery is drawn already")
    parser.add_argument("--rerank", action="store_true", help="k-reciprocal re-ranking too")
    for name, value in RERANK.items():
        parser.add_argument(f"--{name}", type=type(value), help=f"of --rerank, default {value}")
    arguments = vars(parser.parse_args(argv))
    options = {name: value for name in RERANK if (value := arguments.pop(name)) is not None}
    files = [arguments.pop("query"), arguments.pop("gallery")]
    try:
        if options and not arguments["rerank"]:
            raise ConfigError(f"--{next(iter(options))} belongs to --rerank; add it")
        arguments["rerank"] = options if arguments["rerank"] else None
        same = files[1] is None or Path(files[0]).resolve() == Path(files[1]).resolve()
        result = score(read(files[0]), None if same else read(files[1]), **arguments)
    except (ConfigError, DataError) as error:
        return report_error("score", error)
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items()]
    print("{", ",\n".join(lines), "}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
