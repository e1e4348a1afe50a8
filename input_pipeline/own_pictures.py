"""Own pictures as rows: from folders, tables and single files, with or without identities.

In a folder, names say what a picture shows and which pictures belong to one row:

    x_rgb.jpg  x_nir.png  x_tir.png   one row with three pictures, by the endings _rgb, _nir, _tir, _ir
    rgb/x.jpg  nir/x.png  tir/x.png   the same by folders rgb, nir or NI, tir or TI, and ir, in capitals or not
    x.jpg                             a plain picture, of the modality that the caller names

Pictures of a row may have different formats. Everything below the folder counts, except hidden files.

A table (.csv or .jsonl) has the columns of `datasets.manifest`, all of them optional but one of pictures, and a
column `time` in ISO 8601, UTC where it names no zone. Every row is taken, whatever its split. A folder with a
manifest.csv or manifest.jsonl is read by it.
"""

import collections
import hashlib
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.datasets import manifest
from input_pipeline.parsing import tables
from input_pipeline.reading import loader
from input_pipeline.records import REPHRASED, Records
from jax_mmreid.batch import MODALITIES, DataSpec
from jax_mmreid.errors import DataError

FORMATS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2")
TABLES = ("manifest.csv", "manifest.jsonl")
FOLDERS = {m: m for m in MODALITIES} | {"ni": "nir", "ti": "tir"}  # by lower-case name; NI and TI as in RGBNT201
UNKNOWN = -1  # identity or camera


class Row(NamedTuple):
    """A row before it is a line of columns."""

    paths: dict[str, str]  # {modality: absolute path}
    pid: int = UNKNOWN
    camid: int = UNKNOWN
    view: int = 0
    time: float = np.nan
    captions: dict[str, str] = {}

    @property
    def path(self) -> str:
        """Its first picture in the order of MODALITIES, "" without one."""
        return next((self.paths[m] for m in MODALITIES if m in self.paths), "")


class Found(NamedTuple):
    """What `find` returns."""

    records: Records  # N rows of absolute paths in the order of their names; pid [N] int64 and camid -1 if unknown
    time: np.ndarray  # [N] float64, Unix seconds, nan where it is not known
    plain: int  # pictures whose names say no modality
    ignored: dict[str, list[str]]  # {reason: files or lines of a table}


class Pictures(NamedTuple):
    """Rows as `read` yields them."""

    rows: np.ndarray  # [b] those of the records that have a picture which can be read
    images: dict[str, list[np.ndarray | None]]  # {modality: b pictures [H,W,3] uint8, None where there is none}
    faults: list[str]  # a line for each picture that cannot be read


def find(sources: Sequence[str], modalities: Sequence[str], plain: str = "rgb") -> Found:
    """The rows of folders, tables and single files, with their pictures of `modalities`.

    `plain` is the modality of pictures whose names say none. Two files for the same picture of a row, rows without a
    picture of `modalities` and rows that an earlier source has are ignored, and listed. Raises DataError for a source
    that does not exist, a faulty table, and where no row remains.
    """
    rows, ignored, count = {}, collections.defaultdict(list), 0
    for source in sources:
        table = _table(source)
        files = {} if table else _files(source, ignored)
        count += sum(not modality for modality, _ in files.values())
        for row in _of_table(table) if table else _of_names(files, plain, ignored):
            shown = row._replace(paths={m: path for m, path in row.paths.items() if m in modalities})
            for m in row.paths.keys() - shown.paths.keys():
                ignored[f"{m}, which is not among {', '.join(modalities)}"].append(row.paths[m])
            if shown.path in rows:
                ignored["in an earlier source too"].append(shown.path)
            elif shown.path:
                rows[shown.path] = shown
    if not rows:
        why = "; ".join(f"{len(files)} ignored: {reason}" for reason, files in ignored.items())
        raise DataError(
            f"no pictures of {', '.join(modalities)} in {', '.join(sources)} ({why or 'no files there'}); a picture's "
            f"name ends in {', '.join(FORMATS[:3])}, .."
        )
    return Found(*_columns([rows[path] for path in sorted(rows)], modalities), count, dict(ignored))


def summary(found: Found, name: str, plain: str = "rgb") -> list[str]:
    """What was found, as lines of text; `plain` is what plain pictures were taken for."""
    has_file = found.records.has_file()
    counts = ", ".join(f"{n} {m}" for m, n in zip(found.records.paths, has_file.sum(axis=0)) if n)
    several = int((has_file.sum(axis=1) > 1).sum())
    known = [f"{np.sum(x >= 0)} with {what}" for what, x in _known(found) if np.any(x >= 0)]
    lines = [f"{name}: {len(has_file)} rows, {several} of them with several pictures; pictures: {counts}"]
    lines += [f"known: {', '.join(known)}"] if known else []
    lines += [f"{found.plain} pictures have names that say no modality; taken for {plain}"] if found.plain else []
    for reason, files in found.ignored.items():
        more = ", .." if len(files) > 3 else ""
        lines.append(f"ignored {len(files)}: {reason} ({', '.join(os.path.relpath(x) for x in files[:3])}{more})")
    return lines


def read(records: Records, rows: np.ndarray, spec: DataSpec, size: int, threads: int = 2) -> Iterator[Pictures]:
    """The pictures of some rows, in turns of at most `size`, in the form in which evaluation reads them.

    Every modality of which the records have a picture is a key of `images`. Rows without a readable picture are left
    out. Reading goes on in `threads` while the caller works.
    """
    names = [m for m, has in zip(records.paths, records.has_file().any(axis=0)) if has]
    options = dict(size=spec.image_size, range16=tuple(spec.range16), resample=Image.Resampling[spec.resize[1].upper()])

    def turn(number: int) -> Pictures:
        kept, images, faults = [], {m: [] for m in names}, []
        for row in rows[number * size : (number + 1) * size]:
            one, files = dict.fromkeys(names), {}
            for m in (m for m in names if records.paths[m][row]):
                try:
                    one[m] = loader.picture(records, m, row, files=files, **options)
                except DataError as error:
                    faults.append(str(error))
            if any(x is not None for x in one.values()):
                kept.append(row)
                for m, x in one.items():
                    images[m].append(x)
        return Pictures(np.array(kept, np.int64), images, faults)

    return loader.stream(turn, 0, -(-len(rows) // size), threads)


def paths(records: Records) -> np.ndarray:
    """A name for every row, [N] str: the absolute path of its first picture, with its number in an array of several."""
    names = []
    for row, has in enumerate(records.has_file()):
        m = list(records.paths)[int(has.argmax())]
        path = os.path.abspath(records.path(m, row))
        names.append(f"{path}#{records.part(m, row)}" if path.endswith(".npy") else path)
    return np.array(names, np.str_)


def captions(records: Records, modalities: Sequence[str]) -> dict[str, np.ndarray]:
    """{modality: [N] str} of the captions that describe pictures of these modalities, not of rephrased ones."""
    return {m: x for m, x in records.captions.items() if m in modalities and not m.endswith(REPHRASED)}


def companions(path: str, listed: dict[str, dict[str, list[str]]]) -> dict[str, str]:
    """{modality: file} of the pictures that names put into one row with this one, itself included; see the module.

    {"": file} for a plain picture. `listed` keeps what was listed for further calls: {folder: {name of a row: files}}.
    """
    path = os.path.abspath(path)
    own, parent, folders = name_of_row(path), Path(path).parent, [os.path.dirname(path)]
    for depth, part in enumerate(parent.parts):
        if part.lower() in FOLDERS and depth:
            above, below = Path(*parent.parts[:depth]), parent.parts[depth + 1 :]
            folders += [str(Path(above, x, *below)) for x in sorted(_entries(str(above))) if x.lower() in FOLDERS]
    files = []
    for folder in dict.fromkeys(folders):
        if folder not in listed:
            listed[folder] = _rows_of(folder)
        files += listed[folder].get(own, [])
    return {_place(file, None)[0]: file for file in reversed(files)} or {"": path}


def name_of_row(path: str) -> str:
    """What the pictures of a row have in common by their names, whatever their modality and format."""
    return _place(os.path.abspath(path), None)[1]


def number_of(name: str) -> int:
    """The number of an identity, in [0, 2^63): a whole number is itself, any other name has one of 2^32 or more.

    It depends on nothing but the name, so tables that are added to one store at different times agree.
    """
    if manifest.NUMBER.fullmatch(name):
        return int(name)
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1
    return digest | 1 << 32


def seconds(text: str) -> float:
    """Unix seconds of a time in ISO 8601, in UTC if it names no zone; raises ValueError for anything else."""
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _known(found: Found) -> list[tuple[str, np.ndarray]]:
    """What may be known of a row, and numbers that are not below 0 where it is."""
    known = np.where(np.isnan(found.time), UNKNOWN, 0)
    return [("an identity", found.records.pid), ("a camera", found.records.camid), ("a time", known)]


def _table(source: str) -> str:
    """The path of the table that a source is or holds, "" for pictures."""
    names = [source] if source.lower().endswith((".csv", ".jsonl")) else [os.path.join(source, x) for x in TABLES]
    return next(filter(os.path.isfile, names), "")


def _files(source: str, ignored: dict[str, list[str]]) -> dict[str, tuple[str, str]]:
    """{file: its place} of a folder or of a single file."""
    top = os.path.abspath(source)
    if os.path.isfile(top):
        return {top: _place(top, os.path.dirname(top))}
    if not os.path.isdir(top):
        raise DataError(f"no file or folder {source!r}; name pictures, a folder of pictures or a table of them")
    files = {}
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = os.path.join(folder, name)
            if name.lower().endswith(FORMATS):
                files[path] = _place(path, top)
            else:
                ignored["no picture by its name"].append(path)
    return files


def _place(path: str, top: str | None) -> tuple[str, str]:
    """(modality, name of its row) of a file; the modality is "" if no name says it.

    Of the folders, `top` and those below it count; all with None. Where the name of the file and that of a folder
    contradict each other, the file's counts.
    """
    path = Path(path)
    outside = 0 if top is None else len(Path(top).parent.parts)
    parts = list(path.parts[:-1])
    inner = [i for i in range(max(outside, 1), len(parts)) if parts[i].lower() in FOLDERS]
    stem = path.stem if path.suffix.lower() in FORMATS else path.name
    base, _, ending = stem.rpartition("_")
    by_name = FOLDERS.get(ending.lower(), "") if base and ending.lower() in MODALITIES else ""
    by_folder = FOLDERS[parts[inner[-1]].lower()] if inner else ""
    if by_folder and by_name in ("", by_folder):
        del parts[inner[-1]]
    return by_name or by_folder, str(Path(*parts, base if by_name else stem))


def _of_names(files: dict[str, tuple[str, str]], plain: str, ignored: dict[str, list[str]]) -> list[Row]:
    """The rows that the names of files make."""
    rows = {}
    for path, (modality, name) in files.items():
        row = rows.setdefault(name, Row({}))
        if (modality or plain) in row.paths:
            ignored["another file of the same name and modality comes first"].append(path)
        else:
            row.paths[modality or plain] = path
    return list(rows.values())


def _of_table(path: str) -> list[Row]:
    """The rows of a table."""
    root, rows = os.path.dirname(os.path.abspath(path)), []
    for line, cells in tables.read(path, manifest.COLUMNS):
        files = {m: os.path.join(root, file) for m, file in manifest.pictures(path, line, cells).items() if file}
        camid, view = manifest.numbers(path, line, cells)
        try:
            time = seconds(cells["time"]) if cells["time"] else np.nan
        except ValueError:
            tables.fail(path, line, f"time is {cells['time']!r}; write it as 2025-03-14T15:09:26+01:00")
        described = {m: cells[column] for m, column in manifest.CAPTIONS.items()}
        pid = number_of(cells["pid"]) if cells["pid"] else UNKNOWN
        rows.append(Row(files, pid, camid, view, time, described))
    return rows


def _columns(rows: list[Row], modalities: Sequence[str]) -> tuple[Records, np.ndarray]:
    described = {m: np.array([row.captions.get(m, "") for row in rows], np.str_) for m in MODALITIES}
    records = Records(
        root="",
        paths={m: np.array([row.paths.get(m, "") for row in rows], np.str_) for m in modalities},
        pid=np.array([row.pid for row in rows], np.int64),
        camid=np.array([row.camid for row in rows], np.int32),
        view=np.array([row.view for row in rows], np.int32),
        captions={m: x for m, x in described.items() if np.any(x != "")},
    )
    return records, np.array([row.time for row in rows], np.float64)


def _rows_of(folder: str) -> dict[str, list[str]]:
    """{name of a row: its files in a folder}."""
    found = collections.defaultdict(list)
    for name in sorted(_entries(folder)):
        if name.lower().endswith(FORMATS):
            path = os.path.join(folder, name)
            found[name_of_row(path)].append(path)
    return dict(found)


def _entries(folder: str) -> list[str]:
    """The names in a folder, none of one that cannot be listed."""
    try:
        return os.listdir(folder)
    except OSError:
        return []
