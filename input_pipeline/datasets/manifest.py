"""Your own pictures, listed in a table: CSV with a header, or JSON Lines with one object per row, in UTF-8.

    split,pid,camid,rgb,nir,tir
    train,anna,1,a/000.jpg,a/000n.png,a/000t.png
    train,anna,2,a/001.jpg,,a/001t.png           an empty cell: there is no such picture

    split                      train, and either test or both query and gallery
    pid                        a whole number, or any name
    camid, view                whole numbers, optional; without a camid every test picture is its own camera
    rgb, nir, tir, ir          files below the folder of the table, relative to it: the modalities of jax_mmreid.batch
    caption_rgb, caption_nir   captions of the picture, optional; caption_tir, caption_ir likewise
    time                       when the pictures were taken, optional; not read here, but by `own_pictures`

A row holds the pictures of one moment. Rows are sorted by their files, whatever their order in the table.
"""

import logging
import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import NamedTuple

import numpy as np

from input_pipeline.parsing import tables
from input_pipeline.records import Counts, Records
from jax_mmreid.batch import MODALITIES
from jax_mmreid.errors import ConfigError, DataError

CAPTIONS = {m: f"caption_{m}" for m in MODALITIES}
COLUMNS = ("split", "pid", "camid", "view", *MODALITIES, *CAPTIONS.values(), "time")
SPLITS = (("train", "test"), ("train", "query", "gallery"))
NUMBER = re.compile(r"[0-9]{1,9}")  # fits int32

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A row of the table; `camid` is -1 where the cell is empty."""

    line: int
    split: str
    pid: str
    camid: int
    view: int
    paths: dict[str, str]  # modality -> file, "" where there is no picture
    captions: dict[str, str]


def load(
    data_dir: str, *, modalities: Sequence[str], allow_missing_files: bool, file: str = "manifest.csv"
) -> dict[str, Records]:
    """The splits of the table `file` in the folder `data_dir`; `data_dir` may also be the path of the table.

    Names of identities are numbered in alphabetical order, over all splits. Rows without a picture of `modalities` are
    left out. An absent file is a DataError, or a missing picture with `allow_missing_files`. Raises ConfigError for
    a modality without pictures, DataError naming the line for a faulty row.
    """
    path = _find(data_dir, file)
    table = _read(path, modalities)
    root = os.path.dirname(path) or "."
    pids, cameras = _number_pids(table), _number_cameras(table)
    _log_numbering(path, table, pids)
    inside = os.path.join(os.path.realpath(root), "")
    rows = [_on_disk(path, inside, row, modalities, allow_missing_files) for row in table]
    splits = {}
    for split, chosen in _by_split(path, rows, modalities).items():
        columns = {name: [row.captions[name] for row in chosen] for name in CAPTIONS}
        splits[split] = Records(
            root=root,
            paths={m: np.array([row.paths[m] for row in chosen]) for m in modalities},
            pid=np.array([pids[row.pid] for row in chosen], np.int32),
            camid=np.array([cameras[row.line] for row in chosen], np.int32),
            view=np.array([row.view for row in chosen], np.int32),
            captions={name: np.array(column) for name, column in columns.items() if any(column)},
        )
    if left_out := len(rows) - sum(map(len, splits.values())):
        log.warning("manifest: %d rows of %s have no picture of %s; left out", left_out, path, ", ".join(modalities))
    return splits


def counts(data_dir: str, *, modalities: Sequence[str], file: str = "manifest.csv") -> dict[str, Counts]:
    """What the table lists, whether it is on disk or not. Raises as `load`, but for absent files."""
    path = _find(data_dir, file)
    table = _read(path, modalities)
    cameras = _number_cameras(table)
    return {
        split: Counts(len({row.pid for row in rows}), tuple(sorted({cameras[row.line] for row in rows})), len(rows))
        for split, rows in _by_split(path, table, modalities).items()
    }


def _find(data_dir: str, file: str) -> str:
    if not file.lower().endswith((".csv", ".jsonl")):
        raise ConfigError(f"config.data.options.file={file!r}: a manifest is a .csv or a .jsonl file")
    path = data_dir if data_dir.lower().endswith((".csv", ".jsonl")) else os.path.join(data_dir, file)
    if not os.path.isfile(path):
        raise DataError(
            f"manifest: no file {path!r}; set data.data_dir to the table or to its folder, and in a folder "
            f"data.options.file to its name (its columns: {','.join(COLUMNS)})"
        )
    return path


def _read(path: str, modalities: Sequence[str]) -> list[Row]:
    """All rows in the order of their files, checked without reading the disk."""
    rows = [_parse(path, line, cells) for line, cells in tables.read(path, COLUMNS)]
    if not rows:
        raise DataError(f"manifest: {path} has no rows; write one per moment, under {','.join(COLUMNS)}")
    found = tuple(m for m in MODALITIES if any(row.paths[m] for row in rows))
    if not modalities or not set(modalities) <= set(found):
        raise ConfigError(f"config.data.modalities={tuple(modalities)}: {path} has pictures of {', '.join(found)}")
    splits = {row.split for row in rows}
    if splits not in map(set, SPLITS):
        raise DataError(
            f"manifest: {path} has rows of split {', '.join(sorted(splits))}; "
            "it needs train, and either test or both query and gallery"
        )
    _check_distinct(path, rows)
    _check_disjoint(path, rows)
    return sorted(rows, key=lambda row: tuple(row.paths.values()))


def _parse(path: str, line: int, cells: dict[str, str]) -> Row:
    if cells["split"] not in sum(SPLITS, ()):
        tables.fail(path, line, f"split is {cells['split']!r}; write train, test, query or gallery")
    if not cells["pid"]:
        tables.fail(path, line, "pid is empty; write the identity of the pictures")
    captions = {name: cells[column] for name, column in CAPTIONS.items()}
    camid, view = numbers(path, line, cells)
    return Row(line, cells["split"], cells["pid"], camid, view, pictures(path, line, cells), captions)


def numbers(path: str, line: int, cells: dict[str, str]) -> tuple[int, int]:
    """camid, -1 in an empty cell, and view, 0 in one; raises DataError for what is no number."""
    for column in ("camid", "view"):
        if cells[column] and not NUMBER.fullmatch(cells[column]):
            tables.fail(path, line, f"{column} is {cells[column]!r}; write a whole number from 0 to 999999999")
    return int(cells["camid"] or -1), int(cells["view"] or 0)


def pictures(path: str, line: int, cells: dict[str, str]) -> dict[str, str]:
    """{modality: file}, "" where there is none; raises DataError for a file out of the folder, and without any."""
    for m in MODALITIES:
        text = cells[m]
        parts = PureWindowsPath(text)  # parses both kinds of slashes, and drives
        if text and (text.startswith("/") or parts.drive or parts.root or ".." in parts.parts):
            tables.fail(path, line, f"{m} is {text!r}; name a file below the folder of the table, relative to it")
    paths = {m: posixpath.normpath(cells[m]) if cells[m] else "" for m in MODALITIES}
    if not any(paths.values()):
        tables.fail(path, line, f"no picture in any of {', '.join(MODALITIES)}; name one or remove the row")
    return paths


def _check_distinct(path: str, rows: list[Row]) -> None:
    """A picture appears once in a split; if it is in query and gallery, with the same identity and camera."""
    seen = {}
    for row in rows:
        for key in ((m, file) for m, file in row.paths.items() if file):
            for other in seen.setdefault(key, []):
                if row.split == other.split or "train" in (row.split, other.split):
                    tables.fail(path, row.line, f"{key[0]} {key[1]!r} is on line {other.line} too; keep one of them")
                if (row.pid, row.camid) != (other.pid, other.camid):
                    tables.fail(path, row.line, f"{key[0]} {key[1]!r} has another pid or camid on line {other.line}")
            seen[key].append(row)


def _check_disjoint(path: str, rows: list[Row]) -> None:
    """Test identities must be held out from training."""
    trained = {row.pid: row.line for row in rows if row.split == "train"}
    for row in rows:
        if row.split != "train" and row.pid in trained:
            tables.fail(
                path,
                row.line,
                f"pid {row.pid!r} is in split {row.split}, and on line {trained[row.pid]} in train; "
                "keep each identity on one side",
            )


def _number_pids(rows: list[Row]) -> dict[str, int]:
    """{pid: number}: the number itself if all are numbers without two spellings of one, else its rank."""
    names = sorted({row.pid for row in rows})
    if all(map(NUMBER.fullmatch, names)) and len(set(map(int, names))) == len(names):
        return {name: int(name) for name in names}
    return {name: number for number, name in enumerate(names)}


def _number_cameras(rows: list[Row]) -> dict[int, int]:
    """{line: camera}. Without a camid every test picture gets a camera of its own, and training pictures share one.

    Training pictures share it because a model with camera embeddings would memorize single pictures otherwise.
    """
    shared = max(row.camid for row in rows) + 1
    cameras, own = {}, {}
    for row in rows:
        if row.camid >= 0 or row.split == "train":
            cameras[row.line] = row.camid if row.camid >= 0 else shared
            continue
        pictures = [key for key in row.paths.items() if key[1]]  # by any of them a query is known in the gallery
        cameras[row.line] = next((own[key] for key in pictures if key in own), shared + 1 + len(own))
        own |= dict.fromkeys(pictures, cameras[row.line])
    return cameras


def _on_disk(path: str, inside: str, row: Row, modalities: Sequence[str], allow_missing_files: bool) -> Row:
    """The row with the pictures that exist; DataError for an absent one, or a link that leads out of `inside`."""
    paths = {}
    for m in modalities:
        file = os.path.realpath(inside + row.paths[m])
        if row.paths[m] and not file.startswith(inside):
            tables.fail(path, row.line, f"{m} {row.paths[m]!r} is a link out of the folder of the table; copy the file")
        exists = bool(row.paths[m]) and os.path.isfile(file)
        if row.paths[m] and not exists and not allow_missing_files:
            tables.fail(
                path,
                row.line,
                f"no file {row.paths[m]!r}; add it, empty the cell, or set data.allow_missing_files=True",
            )
        paths[m] = row.paths[m] if exists else ""
    return row._replace(paths=paths)


def _by_split(path: str, rows: list[Row], modalities: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of every split that have a picture of `modalities`."""
    splits = next(names for names in SPLITS if {row.split for row in rows} == set(names))
    chosen = {split: [row for row in rows if row.split == split and _has(row, modalities)] for split in splits}
    for split, some in chosen.items():
        if not some:
            raise DataError(f"manifest: {path}: no row of split {split} has a picture of {', '.join(modalities)}")
    return chosen


def _has(row: Row, modalities: Sequence[str]) -> bool:
    return any(row.paths[m] for m in modalities)


def _log_numbering(path: str, rows: list[Row], pids: dict[str, int]) -> None:
    if not all(NUMBER.fullmatch(name) and int(name) == number for name, number in pids.items()):
        shown = ", ".join(f"{number} = {name}" for name, number in list(pids.items())[:3])
        log.info("manifest: identities are numbered in the order of their names: %s (%d in all)", shown, len(pids))
    unknown = sum(row.camid < 0 for row in rows)
    if unknown:
        log.warning(
            "manifest: %d of %d rows of %s have no camid; each of their test pictures counts as a camera of its own, "
            "so pictures of the same camera match and scores are higher than across cameras",
            unknown,
            len(rows),
            path,
        )
