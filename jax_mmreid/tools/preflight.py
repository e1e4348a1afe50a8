"""Finds what is wrong with a dataset before anyone trains on it.

    python -m jax_mmreid.tools.preflight --dataset=rgbnt201 --data_dir=data/RGBNT201
    python -m jax_mmreid.tools.preflight --dataset=manifest --data_dir=FOLDER --workdir=runs/mine --output=FOUND

Leaks from training into test, duplicates, one picture under two identities, modalities that are shifted against each
other, and cameras that give identities away, from the pictures alone; with --workdir also labels that are likely
wrong, by the features of that run's model. Prints one page; --output writes it and every finding as preflight.md and
preflight.json. Absent files are missing pictures here: input_pipeline.check names them.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline import datasets
from input_pipeline.check import modalities_of, option
from input_pipeline.datasets import synthetic
from input_pipeline.preflight import alignment, labels
from input_pipeline.preflight.alignment import Shifts
from input_pipeline.preflight.cameras import cameras
from input_pipeline.preflight.copies import DUPLICATE, LEAK, TWO_IDENTITIES, Copy, copies
from input_pipeline.preflight.scan import TRAIN, Look, Rows, rows_of, scan
from input_pipeline.records import Records
from jax_mmreid import run
from jax_mmreid.errors import ConfigError, DataError, report_error
from jax_mmreid.report.preflight import page
from jax_mmreid.tools.embed import encode

SUSPECT = ("pid", "likely", "margin")
COPIES = {"leaks": LEAK, "two_identities": TWO_IDENTITIES, "duplicates": DUPLICATE}


def load(dataset: str, data_dir: str, modalities: Sequence[str], options: dict[str, object]) -> dict[str, Records]:
    """The splits of a dataset with all of its modalities unless some are named; nothing is drawn.

    Raises ConfigError for a dataset, modality or option that does not exist, DataError for data that cannot be read.
    """
    if dataset == "synthetic" and not Path(data_dir, synthetic.ARGUMENTS).exists():
        raise DataError(f"synthetic: {data_dir!r} holds no drawn pictures yet; training draws them on first use")
    modalities = tuple(modalities or modalities_of(dataset, data_dir, options))
    given = dict(data_dir=data_dir, modalities=modalities, allow_missing_files=True)
    return datasets.find(dataset, "load", options, **given)()


def preflight(splits: Mapping[str, Records], workdir: str = "", step: str = "last") -> dict:
    """What is found in the splits of a dataset, ready for JSON.

    rows        {split: rows}
    unreadable  what is wrong with each picture that cannot be read
    leaks, two_identities, duplicates
                [{rows: [name, name], splits, pids, likeness: {modality: correlation}}], `copies.copies`
    labels      null without a workdir, else {"train" or "test": {judged, suspects: [{row, pid, likely, margin}]}}
    cameras     {split: {camera: {rows, identities, alone, recognised: {modality: share}}}}, `cameras.Camera`
    alignment   {"rgb/tir": {cameras: {camera: {shift, pixels, rows}}, shifted: [camera],
                rows: [{row, shift, pixels, peak, gain}]}}; shifts (y, x) as fractions of the longer side and in pixels
                of the first modality
    ok          whether nothing was found; what cameras show is left to the reader

    A name is the path of the first picture of a row. Raises as `run.load_model`.
    """
    rows = rows_of(splits)
    judged = _labels(splits, rows, workdir, step) if workdir else None
    seen = scan(rows)
    found = {"rows": {name: len(records) for name, records in splits.items()}, "unreadable": seen.faults}
    every, by_split = copies(rows, seen), cameras(rows, seen.looks)
    found |= {key: [_copy(rows, x) for x in every if x.kind == kind] for key, kind in COPIES.items()}
    shown = {split: {str(camid): x._asdict() for camid, x in each.items()} for split, each in by_split.items()}
    aligned = {"/".join(pair): _shifts(rows, seen.looks[pair[0]], shifts) for pair, shifts in seen.shifts.items()}
    found |= {"labels": judged, "cameras": shown, "alignment": aligned}
    problems = [found[key] for key in ("unreadable", *COPIES)]
    problems += [x["suspects"] for x in (judged or {}).values()]
    problems += [x[key] for x in aligned.values() for key in ("rows", "shifted")]
    return found | {"ok": not any(problems)}


def _copy(rows: Rows, copy: Copy) -> dict:
    pair = list(copy.rows)
    sides = {"splits": rows.split[pair].tolist(), "pids": rows.pid[pair].tolist()}
    return {"rows": [rows.name(row) for row in pair], **sides, "likeness": copy.likeness}


def _shifts(rows: Rows, look: Look, shifts: Shifts) -> dict:
    sides = look.size.max(axis=1)
    typical = float(np.median(sides[look.there])) if look.there.any() else 0.0

    def at(shift: Sequence[float], side: float) -> dict:
        return {"shift": [round(float(x), 3) for x in shift], "pixels": [round(float(x) * side, 1) for x in shift]}

    by_camera = {str(camid): at((y, x), typical) | {"rows": n} for camid, (y, x, n) in shifts.cameras.items()}
    found = [
        {"row": rows.name(row), **at(shifts.rows[row], sides[row])}
        | {"peak": round(float(shifts.peak[row]), 3), "gain": round(float(shifts.gain[row]), 3)}
        for row in alignment.misaligned(shifts).tolist()
    ]
    return {"cameras": by_camera, "shifted": alignment.shifted_cameras(shifts), "rows": found}


def _labels(splits: Mapping[str, Records], rows: Rows, workdir: str, step: str) -> dict:
    """Suspects among the rows of training, and among those of all other splits together."""
    model = run.load_model(workdir, step)
    first, sides = 0, {TRAIN: [], "test": []}
    for name, records in splits.items():
        if not set(records.paths) <= set(model.spec.modalities):
            have, takes = ("/".join(x) for x in (records.paths, model.spec.modalities))
            raise ConfigError(f"the data have {have}, the model in {workdir} takes {takes}; choose with --modalities")
        for done in encode(model, records, np.arange(len(records))):
            sides[TRAIN if name == TRAIN else "test"].append((done.rows + first, done.parts.fallback))
        first += len(records)
    found = {}
    for side, parts in sides.items():
        chosen, vectors = (np.concatenate(x) for x in zip(*parts))
        verdict = labels.suspects(vectors, rows.pid[chosen], rows.camid[chosen])
        listed = [{"row": rows.name(chosen[x.row])} | {k: getattr(x, k) for k in SUSPECT} for x in verdict.suspects]
        found[side] = {"judged": verdict.judged, "suspects": listed}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 nothing found, 2 bad arguments, 3 something found or no data."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mmreid.tools.preflight",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", required=True, help=f"one of: {', '.join(datasets.names())}")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--modalities", default="", help="joined by '/'; default: all that the dataset has")
    parser.add_argument(
        "--option", action="append", default=[], type=option, metavar="KEY=VALUE", help="of the dataset"
    )
    parser.add_argument("--workdir", default="", help="of a run whose model judges the labels")
    parser.add_argument("--step", default="last", help="of --workdir: last, best or a number")
    parser.add_argument("--limit", type=int, default=10, help="how many findings of each kind to print")
    parser.add_argument("--output", default="", help="folder for preflight.json and preflight.md")
    arguments = parser.parse_args(argv)
    try:
        modalities = tuple(filter(None, arguments.modalities.split("/")))
        splits = load(arguments.dataset, arguments.data_dir, modalities, dict(arguments.option))
        found = preflight(splits, arguments.workdir, arguments.step)
        text = page(found, arguments.limit)
        if arguments.output:
            _write(Path(arguments.output), found, text)
    except (ConfigError, DataError) as error:
        return report_error("preflight", error)
    print(text, end="")
    return 0 if found["ok"] else 3


def _write(folder: Path, found: Mapping, text: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "preflight.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (folder / "preflight.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write to {folder} ({error.strerror}); name another --output") from error


if __name__ == "__main__":
    sys.exit(main())
