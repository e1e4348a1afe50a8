"""A page of pictures about trained runs: how training went, what was reached, what is found, what is missed, and why.

    python -m jax_mmreid.tools.report --workdir=runs/quickstart
    python -m jax_mmreid.tools.report --workdir=runs/a --workdir=runs/b --output=compared
    python -m jax_mmreid.tools.report --workdir=runs/quickstart --config=configs/quickstart.py:dataset=manifest \\
        --config.data.data_dir=FOLDER

Writes report.html, which needs nothing else, and its pictures as PNG files. The page shows the first run in detail, and
of several runs also their tables, losses, and mAP by missing rate. --config looks at the first run with the data and
the evaluation rows of another config: people and cameras may be others, the modalities are those of the model, and
pictures are read in the size of the model.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils.epath import PathLike

from input_pipeline import DataConfig, OpenedData, load_records
from jax_mmreid import evaluate, experiment, run
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import ConfigDict, config_hash
from jax_mmreid.config_file import load_config, parse_with_overrides, set_data_fields
from jax_mmreid.errors import ConfigError, DataError, report_error
from jax_mmreid.evaluators import runner
from jax_mmreid.evaluators.encoder import Encoder
from jax_mmreid.evaluators.retrieval import Retrieval
from jax_mmreid.inference import TrainedModel
from jax_mmreid.paths import place
from jax_mmreid.recipes import missing_settings
from jax_mmreid.report import (
    attention,
    curves,
    failures,
    occlusion,
    pair_scores,
    projection,
    ranked,
    results,
    runs,
    sides,
)
from jax_mmreid.report.page import Section, page
from jax_mmreid.report.subject import Subject, without_cameras

READING = ("image_size", "resize", "range16", "text")  # fields of config.data that belong to the model
COMMON = "common/pairs"  # the row of pairs by what both have


class Opened(NamedTuple):
    """A checkpoint, and the data and rows that it is looked at with."""

    model: TrainedModel
    step: int
    which: str  # "last", "best" or a number, as it was asked for
    config: ConfigDict  # of the data and the rows
    data: OpenedData
    is_own: bool  # whether data and rows are those of the run


def open_run(workdir: PathLike, step: str = "last", file: str = "", overrides: Sequence[str] = ()) -> Opened:
    """A checkpoint of a workdir with its own data, or with those of a config file.

    `overrides` are fields of that config, without a file only of config.data. Raises ConfigError for a workdir without
    a run or checkpoint and for data that do not fit the model, DataError for data that cannot be used.
    """
    spec, saved = evaluate.load_spec(place(workdir)), run.saved_config(workdir)
    with Checkpoints(workdir, reading=True) as checkpoints:
        number = evaluate.choose_step(checkpoints, step)
    config = saved
    if file:
        config = load_config(file, overrides)
        config.data.update({key: saved.data[key] for key in READING} | {"fit_batch": True})  # nobody trains on it
    else:
        set_data_fields(config, overrides, "without --config, fields of config.data only")
    data = run.open_dataset(config, workdir)
    evaluate.spec_differences(spec, experiment.model_spec(config, data), place(workdir))
    model = run.load_model(workdir, step)
    return Opened(model, number, step, config, data, not file and not overrides)


def subject_of(opened: Opened, names: Sequence[str] = (), seed: int = 0) -> Subject:
    """What sections look at, with the evaluation rows of these names; by default all that can be shown.

    Raises ConfigError for a name that is no such row, and for rows that the model cannot do; DataError for rows that
    the data do not allow.
    """
    model, data, evals = opened.model, opened.data, opened.config.evals.to_dict()
    runner.check(evals, data)
    same = data.spec.fingerprint == model.spec.fingerprint
    method = model.method if same else without_cameras(model.method)
    runner.check_method(evals, method, model.variables, data)
    shown = [name for name, row in evals.items() if _is_shown(row)]
    shown.sort(key=lambda name: _place(evals[name], data.spec.modalities))  # config.json sorts rows by name
    for name in names:
        if name not in shown:
            raise ConfigError(f"--rows: there is no row {name!r} to show; there are {', '.join(shown) or 'none'}")
    shown = {name: evals[name] for name in names or shown}
    uses = [use for row in shown.values() for use in Retrieval(row).uses()]
    levels = dict(mean=model.spec.mean, std=model.spec.std)
    encoder = Encoder(method, model.variables, data, model.mesh, **levels, uses=uses)
    return Subject(method, model.variables, data, model.mesh, **levels, rows=shown, encoder=encoder, seed=seed)


def measured(opened: Opened, subject: Subject, workdir: PathLike) -> dict:
    """The results of the checkpoint, as results.json has them; measured now unless the workdir has them.

    With them are pairs of the settings of missing modalities, by whole vectors and by what both have.
    """
    found = _written(workdir, opened.step) if opened.is_own else None
    every = (subject.method, subject.variables, subject.data, subject.mesh)
    levels, evals = dict(mean=subject.mean, std=subject.std), opened.config.evals.to_dict()
    if found is None:
        found = {
            "step": opened.step,
            "which": opened.which,
            "init": "",
            "config_hash": config_hash(run.saved_config(workdir)),
            "modalities": list(subject.data.spec.modalities),
            **runner.columns(evals),
            "evals": runner.run(evals, *every, **levels),
        }
    more = _pairs(evals, subject)
    if more:
        pairs = runner.run(more, *every, **levels, encoder=subject.encoder)
        found["evals"] = found["evals"] | {name: row for name, row in pairs.items() if "pair" in row}
    return found


def sections(
    workdirs: Sequence[PathLike], opened: Opened, subject: Subject, queries: Sequence[int] = ()
) -> Iterator[Section]:
    """The page, part by part; what has nothing to show is left out. `queries` are rows of `query_split`."""
    found = measured(opened, subject, workdirs[0])
    parts: dict[str, Callable[[], Section | None]] = {
        "model and data": lambda: _about(workdirs[0], opened, subject),
        "results": lambda: results.section(found),
        "pairs": lambda: results.pairs(found),
        "damage": lambda: results.robustness(found),
        "runs": lambda: runs.section(workdirs),
        "ranked lists": lambda: ranked.section(subject, queries),
        "failures": lambda: failures.section(subject),
        "pair scores": lambda: pair_scores.section(subject),
        "attention": lambda: attention.section(subject, queries),
        "occlusion": lambda: occlusion.section(subject, queries),
        "projection": lambda: projection.section(subject),
        "training": lambda: curves.section(list(map(curves.read, workdirs, _names(workdirs)))),
    }
    for name, part in parts.items():
        begin = time.monotonic()
        section = part()
        print(f"{name}: {'nothing to show' if section is None else f'{time.monotonic() - begin:.1f}s'}", flush=True)
        if section is not None:
            yield section


def write(title: str, found: Sequence[Section], output: PathLike) -> str:
    """Writes report.html and its pictures into a folder; returns in words what."""
    output, pictures = place(output), [picture for section in found for picture in section.pictures]
    output.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (output / f"{picture.name}.png").write_bytes(picture.png)
    (output / "report.html").write_bytes(page(title, found).encode())
    return f"{output / 'report.html'}: {len(found)} sections, {len(pictures)} pictures"


def query_split(subject: Subject) -> str:
    """The split that chosen queries are of; raises ConfigError if no row has queries to show."""
    name = sides.widest(subject.rows)
    if not name:
        raise ConfigError("--query: no evaluation row ranks vectors, so there are no queries to choose")
    return subject.rows[name]["query"]["split"]


def find_queries(chosen: Sequence[str], subject: Subject, config: ConfigDict) -> list[int]:
    """Rows of `query_split`, each given as its number or as the path of one of its pictures.

    Raises ConfigError for one that does not exist.
    """
    if not chosen:
        return []
    split = query_split(subject)
    records = load_records(DataConfig.from_dict(config.data.to_dict()))[split]
    there = records.has_file()
    files = {
        Path(records.path(m, row)).resolve(): row
        for i, m in enumerate(records.paths)
        for row in np.flatnonzero(there[:, i])
    }
    rows = []
    for one in chosen:
        row = int(one) if one.isdigit() else files.get(Path(one).resolve(), -1)
        if not 0 <= row < len(records):
            raise ConfigError(
                f"--query={one}: split {split!r} has no such row; give 0 to {len(records) - 1}, or a picture of a row"
            )
        rows.append(int(row))
    return rows


def _is_shown(row: Mapping) -> bool:
    """Whether a row compares vectors of pictures as they are, in an order that follows from their scores."""
    return row.get("kind", "retrieval") == "retrieval" and "query" in row and not row.get("rerank")


def _place(row: Mapping, modalities: Sequence[str]) -> tuple[str, int]:
    """Sorts rows by group, in each of which settings have the order of the published tables."""
    order = [*missing_settings.settings(modalities), row.get("setting")]
    return row.get("group", ""), order.index(row.get("setting"))


def _written(workdir: PathLike, step: int) -> dict | None:
    """The results that a workdir has of a step, on its own data."""
    for file in ("results.json", "results_best.json"):
        path = place(workdir) / file
        found = json.loads(path.read_text()) if path.exists() else {}
        if found.get("step") == step and "forced" not in found and "columns" in found:
            return found
    return None


def _pairs(evals: Mapping[str, Mapping], subject: Subject) -> dict[str, dict]:
    """Rows for pairs of the first group of settings, by whole vectors and by what both have, unless evals have them."""
    known, groups = missing_settings.settings(subject.data.spec.modalities), {}
    for name, row in subject.rows.items():
        if row.get("setting") in known:
            groups.setdefault(row.get("group", ""), []).append(name)
    names = next((tuple(group) for group in groups.values() if len(group) > 1), ())
    there = {row.get("similarity", "embed") for row in evals.values() if "pairs_of" in row}
    wanted = {"embed": ("pairs", {}), "common": (COMMON, {"similarity": "common"})}
    pairs = {name: {"pairs_of": names} | change for how, (name, change) in wanted.items() if names and how not in there}
    return {name: subject.rows[name] for name in names} | pairs if pairs else {}


def _about(workdir: PathLike, opened: Opened, subject: Subject) -> Section:
    """Which model is looked at, and with what."""
    saved, spec = run.saved_config(workdir), opened.model.spec
    facts = [
        ["run", str(workdir)],
        ["method", saved.method],
        ["checkpoint", f"step {opened.step}, model {opened.model.identity}"],
        ["trained on", f"{spec.name}: {len(spec.pids)} identities, {len(spec.cameras)} cameras"],
        ["looked at with", f"{subject.data.spec.name} in {opened.config.data.data_dir}"],
        ["drawn at random by", f"seed {subject.seed}"],
    ]
    counts = [["split", "rows", "identities", "cameras", *spec.modalities]]
    for split in dict.fromkeys(split for row in subject.rows.values() for split, _ in Retrieval(row).uses()):
        columns, present = subject.data.columns(split), subject.data.present(split)
        shares = [f"{100 * present[m].mean():.1f} %" for m in spec.modalities]
        sizes = [len(columns["pid"]), *(len(np.unique(columns[key])) for key in ("pid", "camid"))]
        counts.append([split, *map(str, sizes), *shares])
    tables = [("", [["", ""], *facts]), ("Rows of the test splits, and how many have a picture", counts)]
    return Section("Model and data", tables=tables)


def _names(workdirs: Sequence[PathLike]) -> list[str]:
    """What runs are called: their folders below the one that they share."""
    paths = [Path(workdir).resolve() for workdir in workdirs]
    if len(paths) == 1:
        return [paths[0].name]
    shared = Path(os.path.commonpath(paths))
    return [path.relative_to(shared).as_posix() for path in paths]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad arguments, 3 data that cannot be shown."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mmreid.tools.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", action="append", required=True, help="of a trained run; several are compared")
    parser.add_argument("--step", default="last", help="of the first run: last (default), best or a number")
    parser.add_argument("--config", default="", help="FILE or FILE:ARGUMENT, whose data and rows replace the run's own")
    parser.add_argument("--rows", default="", help="names of evaluation rows that are shown, with commas between")
    parser.add_argument("--query", action="append", default=[], help="shown in ranked lists: its row, or a picture")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random, default %(default)s")
    parser.add_argument("--output", default="", help="a folder; default: report in the first workdir")
    arguments, overrides = parse_with_overrides(parser, argv)
    logging.getLogger("jax_mmreid.evaluators").setLevel(logging.ERROR)  # the page says which rows are left out
    workdirs, names = arguments.workdir, tuple(filter(None, arguments.rows.split(",")))
    try:
        opened = open_run(workdirs[0], arguments.step, arguments.config, overrides)
        subject = subject_of(opened, names, arguments.seed)
        queries = find_queries(arguments.query, subject, opened.config)
        found = list(sections(workdirs, opened, subject, queries))
        title = f"Report on {_names(workdirs[:1])[0]}"
        print(write(title, found, arguments.output or place(workdirs[0]) / "report"))
    except (ConfigError, DataError) as error:
        return report_error("report", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
