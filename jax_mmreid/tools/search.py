"""Searches a store that tools.embed made, with pictures in any combination of the model's modalities, and captions.

    python -m jax_mmreid.tools.search --workdir=runs/quickstart --store=gallery --rgb=a.jpg --tir=a.png
    python -m jax_mmreid.tools.search --workdir=runs/quickstart --store=gallery --nir=a.png --camera=2 --k=5 --json
    python -m jax_mmreid.tools.search --workdir=runs/quickstart --store=gallery --queries=FOLDER --html=matches.html

Pairs are compared by the modalities that both have, and without one by all that each of them has. The probability of
"same identity" is printed if there is a calibration.json of this model in the store or else in the workdir. Every
search is written to the store's log.
"""

import argparse
import functools
import json
import os
import sys
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from input_pipeline import own_pictures
from input_pipeline.reading import images
from jax_mmreid import run
from jax_mmreid.batch import MODALITIES, DataSpec
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluate import load_spec
from jax_mmreid.inference import TrainedModel
from jax_mmreid.metrics.similarity import Parts
from jax_mmreid.paths import place
from jax_mmreid.search import html_report
from jax_mmreid.search.calibration import Calibration
from jax_mmreid.search.index import Index, Matches, choose
from jax_mmreid.search.store import Contents, Store
from jax_mmreid.tools import embed

K = 10  # matches, where the command does not say how many


class Query(NamedTuple):
    """What is searched for."""

    pictures: dict[str, str]  # {modality: file}
    captions: dict[str, str]

    @property
    def name(self) -> str:
        """Its pictures and captions in one line."""
        files = [f"{m}={_short(file)}" for m, file in self.pictures.items()]
        return " ".join([*files, *(f"caption_{m}={json.dumps(text)}" for m, text in self.captions.items())])


def single(model: TrainedModel, query: Query) -> tuple[list[Query], Parts]:
    """One query and its vectors; a picture that cannot be read is left out with a warning.

    Raises DataError if no picture is left and there is no caption, ConfigError for captions that the model does not
    read.
    """
    if query.captions and not embed.reads_captions(model):
        raise ConfigError("this model reads no captions; search with pictures alone")
    read, faults = {}, []
    for m, file in query.pictures.items():
        try:
            read[m] = model.read_image(file)
        except DataError as error:
            faults.append(str(error))
    if not read and not query.captions:
        raise DataError(f"the query has no picture that can be read: {faults[0]}")
    embed.report_faults(faults, sys.stderr)
    given = {m: [pixels] for m, pixels in read.items()}
    captions = {m: [text] for m, text in query.captions.items()}
    parts = model.parts(model.encode(given, captions=captions))
    if given and captions and np.array_equal(parts.fallback, model.parts(model.encode(given)).fallback):
        _warn(f"the caption does not count: with pictures the model needs captions of {', '.join(model.spec.text)}")
    return [Query({m: query.pictures[m] for m in read}, query.captions)], parts


def of_sources(model: TrainedModel, found: own_pictures.Found) -> tuple[list[Query], Parts]:
    """The queries of folders and tables; raises DataError if no picture can be read."""
    records, batches, faults = found.records, [], []
    described = own_pictures.captions(records, model.spec.modalities) if embed.reads_captions(model) else {}
    for done in embed.encode(model, records, np.arange(len(records))):
        batches.append(done)
        faults += done.faults
    embed.report_faults(faults, sys.stderr)
    rows = np.concatenate([done.rows for done in batches])
    if not len(rows):
        raise DataError(f"none of the {len(faults)} pictures of the queries can be read")
    queries = [
        Query(
            {m: str(column[row]) for m, column in records.paths.items() if column[row]},
            {m: str(column[row]) for m, column in described.items() if column[row]},
        )
        for row in rows
    ]
    return queries, jax.tree.map(lambda *x: np.concatenate(x), *(done.parts for done in batches))


def find(
    contents: Contents, queries: Sequence[Query], parts: Parts, k: int, where: np.ndarray, *, exclude_same: bool
) -> Iterator[Matches]:
    """For each query its k best entries where the mask [n] is True, fewer if there are no more: Matches [k',..].

    `exclude_same` leaves out entries of the query's own pictures, whatever their modality.
    """
    own = [{own_pictures.name_of_row(file) for file in query.pictures.values()} for query in queries]
    room = parts.parts.shape[1] if exclude_same else 0  # its pictures may be as many entries
    found = Index(contents.rows).search(parts, min(k + room, len(where)), where)
    for names, *match in zip(own, *found):
        match = Matches(*match)
        kept = match.rows >= 0
        if exclude_same:
            kept &= [own_pictures.name_of_row(contents.columns.path[row]) not in names for row in match.rows]
        yield Matches(*(x[kept][:k] for x in match))


def described(contents: Contents, match: Matches, modalities: Sequence[str], chances: np.ndarray) -> list[dict]:
    """The matches of one query, ready for JSON. `shares` adds up to the score; it is empty where the two sides have no
    modality in common. What is not known is None."""
    columns, found = contents.columns, []
    for rank, (row, score, common, shares) in enumerate(zip(*match), 1):
        time, chance = columns.time[row], chances[rank - 1]
        found.append(
            {
                "rank": rank,
                "id": int(columns.id[row]),
                "path": columns.path[row],
                "pid": int(columns.pid[row]) if columns.pid[row] >= 0 else None,
                "camid": int(columns.camid[row]) if columns.camid[row] >= 0 else None,
                "time": None if np.isnan(time) else datetime.fromtimestamp(time, UTC).isoformat(),
                "score": float(score),
                "probability": None if np.isnan(chance) else float(chance),
                "shares": {m: float(x) for m, x, counts in zip(modalities, shares, common) if counts},
            }
        )
    return found


def table(matches: Sequence[Mapping[str, Any]]) -> str:
    """The matches of one query as lines of text, without columns of which nothing is known."""
    rows = [
        {
            "rank": str(match["rank"]),
            "score": f"{match['score']:.4f}",
            "probability": "" if match["probability"] is None else f"{match['probability']:.3f}",
            "compared by": "+".join(match["shares"]) or "none in common",
            **{key: "" if match[key] is None else str(match[key]) for key in ("id", "pid", "camid", "time")},
            "path": _short(match["path"]),
        }
        for match in matches
    ]
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names[:-1]} | {names[-1]: 0}
    lines = [{name: name for name in names}, *rows]
    return "\n".join("  ".join(line[name].ljust(widths[name]) for name in names).rstrip() for line in lines)


def search(arguments: argparse.Namespace) -> None:
    """What the command does with its parsed arguments."""
    spec = load_spec(place(arguments.workdir))
    query, found = _query(arguments, spec), None
    if not Path(arguments.html).parent.is_dir():
        raise ConfigError(f"--html={arguments.html}: there is no such folder; make it first")
    Store.open(arguments.store)  # the model takes longer to load
    if arguments.queries:
        plain = embed.plain_modality(arguments.modality, spec)
        found = own_pictures.find(arguments.queries, spec.modalities, plain)
        _warn(*own_pictures.summary(found, ", ".join(arguments.queries), plain))
    model = run.load_model(arguments.workdir, arguments.step, part_rows=None if arguments.queries else 1)
    store = embed.open_store(arguments.store, model)
    contents = store.read()
    where, k = _where(contents, arguments), _count(arguments.k, len(contents.columns.id))
    queries, parts = single(model, query) if found is None else of_sources(model, found)
    meaning = Calibration.find([arguments.store, arguments.workdir], model.identity)
    modalities, results = store.identity.modalities, []
    matched = list(find(contents, queries, parts, k, where, exclude_same=arguments.exclude_same_path))
    for one, match in zip(queries, matched):
        chances = np.full(len(match.rows), np.nan)
        if meaning is not None and len(match.rows):
            chances = meaning.probability(match.scores, match.common)
        matches = described(contents, match, modalities, chances)
        results.append({"name": one.name, **one._asdict(), "matches": matches})
    ids = [contents.columns.id[match.rows].tolist() for match in matched]
    note = queries[0].name if len(queries) == 1 else f"{len(queries)} queries of {', '.join(arguments.queries)}"
    store.log_search(arguments.caller, matches=ids, note=f"search: {note}")
    _print(results, contents, arguments, store.identity.modalities, tuple(spec.range16))


def _query(arguments: argparse.Namespace, spec: DataSpec) -> Query:
    """The query of the flags; raises ConfigError for one that is empty or that the model does not take."""
    given = vars(arguments)
    pictures = {m: given[m] for m in MODALITIES if given[m]}
    captions = {m: given[f"caption_{m}"] for m in MODALITIES if given[f"caption_{m}"]}
    if arguments.text:
        captions = {spec.text[0] if spec.text else "rgb": arguments.text} | captions
    if bool(arguments.queries) == bool(pictures or captions):
        flags = ", ".join(f"--{m}" for m in spec.modalities)
        raise ConfigError(f"give one query by {flags} or --text, or --queries=FOLDER for many, and not both")
    for what, names, known in (("picture", pictures, spec.modalities), ("caption", captions, spec.text)):
        for m in names:
            if m not in known:
                raise ConfigError(f"the model takes no {what} of {m}; it takes {', '.join(known) or 'none at all'}")
    return Query(pictures, captions)


def _where(contents: Contents, arguments: argparse.Namespace) -> np.ndarray:
    """The entries [n] bool that may be found; raises DataError if there are none."""
    columns, times = contents.columns, {}
    if not len(columns.id):
        raise DataError(f"store {arguments.store} is empty; add pictures with python -m jax_mmreid.tools.embed")
    for name in ("since", "until"):
        try:
            times[name] = own_pictures.seconds(vars(arguments)[name]) if vars(arguments)[name] else None
        except ValueError as error:
            raise ConfigError(f"--{name}: {error}; write it as 2025-03-14T15:09:26+01:00") from error
    where = choose(columns, cameras=arguments.camera, **times) & ~(columns.expires <= clock.time())
    if not where.any():
        raise DataError(
            f"none of the {len(where)} entries of {arguments.store} is within --camera, --since and --until"
        )
    return where


def _count(k: int | None, rows: int) -> int:
    """How many matches to find among so many entries."""
    if k is not None and not 1 <= k <= rows:
        raise ConfigError(f"--k={k}: the gallery has {rows} entries; ask for 1 to {rows}")
    return min(K, rows) if k is None else k


def _print(
    results: list[dict],
    contents: Contents,
    arguments: argparse.Namespace,
    modalities: Sequence[str],
    range16: tuple[int, int],
) -> None:
    """Prints the results as a table or as JSON, and writes the HTML file if one is named."""
    if arguments.json:
        print(json.dumps(results, indent=1))
    for result in () if arguments.json else results:
        print(result["name"], table(result["matches"]) if result["matches"] else "no other entry", "", sep="\n")
    if not arguments.html:
        return
    listed, rows = {}, {number: row for row, number in enumerate(contents.columns.id.tolist())}
    for match in (match for result in results for match in result["matches"]):
        present = contents.rows.present[rows[match["id"]]]
        match["pictures"] = _pictures(match["path"], [m for m, has in zip(modalities, present) if has], listed)
        match["path"] = _short(match["path"])
    text = html_report.page(results, f"Matches in {arguments.store}", functools.partial(_read, range16=range16))
    try:
        Path(arguments.html).write_text(text, "utf-8")
    except OSError as error:
        raise DataError(f"cannot write {arguments.html} ({error.strerror}); name another --html") from error
    _warn(f"wrote {arguments.html}")


def _pictures(path: str, modalities: Sequence[str], listed: dict) -> dict[str, str]:
    """The pictures of an entry that its name leads to: those of its modalities, or the one that names it."""
    found = own_pictures.companions(path, listed)
    return {m: found[m] for m in modalities if m in found} or {m: path for m in modalities[:1]}


def _short(path: str) -> str:
    """A path as it is called from the current folder, if it lies below that."""
    folder = os.path.join(os.getcwd(), "")
    return path.removeprefix(folder)


def _read(file: str, range16: tuple[int, int]) -> np.ndarray:
    """The pixels of a file; OSError for one that shows no single picture."""
    try:
        pixels = images.read(file, range16)
    except DataError as error:
        raise OSError(str(error)) from error
    if pixels.ndim != 3:
        raise OSError(f"{file} holds several pictures")
    return pixels


def _warn(*lines: str) -> None:
    """Lines beside the results, on standard error."""
    print(*lines, sep="\n", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad arguments, 3 pictures or a store that cannot be used."""
    flags = embed.parser(__doc__, "search")
    embed.add_modality(flags)
    flags.add_argument("--store", required=True, help="folder of the store")
    for m in MODALITIES:
        flags.add_argument(f"--{m}", default="", metavar="FILE", help=f"{m} picture of the query")
    flags.add_argument("--text", default="", help="a caption of what is searched for, for models that read captions")
    for m in MODALITIES:
        flags.add_argument(f"--caption_{m}", default="", metavar="TEXT", help=f"a caption of the {m} picture")
    flags.add_argument("--queries", action="append", default=[], metavar="SOURCE", help="a folder or table of queries")
    flags.add_argument("--k", type=int, help=f"how many matches; default {K}")
    flags.add_argument("--camera", action="append", default=[], type=int, help="only this camera; may be repeated")
    flags.add_argument("--since", default="", metavar="TIME", help="only pictures from this time on, ISO 8601")
    flags.add_argument("--until", default="", metavar="TIME", help="only pictures up to this time")
    flags.add_argument(
        "--exclude_same_path",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out entries of the query's own pictures",
    )
    flags.add_argument("--json", action="store_true", help="print JSON")
    flags.add_argument("--html", default="", metavar="FILE", help="write a page with pictures too")
    arguments = flags.parse_args(argv)
    return embed.command("search", search, arguments)


if __name__ == "__main__":
    sys.exit(main())
