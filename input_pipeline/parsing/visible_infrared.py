"""What the visible-infrared datasets SYSU-MM01, RegDB and LLCM share: lists, folders, and tables of single pictures.

Every row has one picture. Split "train" has the visible rows, then the infrared ones; "query" is infrared and "gallery"
visible.
"""

import collections
import dataclasses
import functools
import logging
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline import data_config
from input_pipeline.parsing import data_root
from input_pipeline.records import Counts, Records
from jax_mmreid.errors import DataError

MODALITIES = ("rgb", "ir")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


class Picture(NamedTuple):
    """A picture in a list, a row of the split."""

    path: str  # relative to the dataset, with "/"
    pid: int
    camid: int
    part: int | None = None  # its row if the file is an array of pictures


def check_modalities(dataset: str, modalities: Sequence[str]) -> None:
    """Raises ConfigError for a modality other than "rgb" and "ir"."""
    data_config.check_modalities(dataset, modalities, MODALITIES)


def counts(modalities: Sequence[str], train: dict[str, Counts], query: Counts, gallery: Counts) -> dict[str, Counts]:
    """The counts of the splits that have `modalities`; `train` are those of the training pictures of each modality."""
    parts = [train[m] for m in modalities]
    cameras = tuple(sorted(set().union(*(part.cameras for part in parts))))
    splits = {"train": Counts(max(part.identities for part in parts), cameras, sum(part.rows for part in parts))}
    return splits | {s: c for s, m, c in (("query", "ir", query), ("gallery", "rgb", gallery)) if m in modalities}


@dataclasses.dataclass(frozen=True)
class Tree:
    """The folder of a dataset; its readers raise DataError naming the file and the way out."""

    dataset: str
    root: str

    def lines(self, file: str) -> list[str]:
        """The lines of a text file that are not empty."""
        path = os.path.join(self.root, file)
        try:
            with open(path, encoding="utf-8") as stream:
                lines = [line.strip() for line in stream]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.dataset}: cannot read {path} ({_reason(error)}); it comes with the data") from error
        if not any(lines):
            raise DataError(f"{self.dataset}: {path} is empty; copy it from the data again")
        return list(filter(None, lines))

    def ids(self, file: str) -> list[int]:
        """Identities from a file that separates them by commas, ascending."""
        words = ",".join(self.lines(file)).split(",")
        try:
            return sorted({int(word) for word in words if word.strip()})
        except ValueError as error:
            path = os.path.join(self.root, file)
            raise DataError(f"{self.dataset}: {path} should hold numbers separated by commas ({error})") from error

    def listed(self, file: str, *, allow_missing_files: bool) -> list[tuple[str, int]]:
        """(path, label) from a file with lines "path label"; absent pictures are an error or left out."""
        pairs = []
        for line in self.lines(file):
            path, _, label = line.rpartition(" ")
            if not path or not label.isdecimal():
                raise DataError(
                    f"{self.dataset}: {os.path.join(self.root, file)} has a line {line!r}, not 'path label'"
                )
            pairs.append((path.strip(), int(label)))
        listing = functools.cache(self._listing)
        absent = [path for path, _ in pairs if os.path.basename(path) not in listing(os.path.dirname(path))]
        self._report_absent(absent, f"no file {{!r}}, which {file} lists", allow_missing_files)
        gone = set(absent)
        return [pair for pair in pairs if pair[0] not in gone]

    def folders(self, ids: Sequence[int], folders: dict[str, int]) -> list[Picture]:
        """The pictures FOLDER/IDENTITY/NAME by identity, folder and name; `folders` gives the camera of each."""
        for folder in folders:
            if not os.path.isdir(os.path.join(self.root, folder)):
                wanted = ", ".join(folders)
                raise DataError(f"{self.dataset}: no folder '{folder}' under {self.root}; expected {wanted}")
        inner = [(f"{folder}/{pid:04d}", pid, camid) for pid in ids for folder, camid in folders.items()]
        return [
            Picture(f"{folder}/{name}", pid, camid)
            for folder, pid, camid in inner
            for name in sorted(self._listing(folder))
            if name.lower().endswith(SUFFIXES)
        ]

    def check_labels(self, listed: Iterable[tuple[str, int]]) -> None:
        """Raises DataError for training lists whose labels are not one to one with the identities in their paths."""
        pairs = sorted({(path.split("/")[-2:][0], label) for path, label in listed})
        for column, name in enumerate(("identity", "label")):
            many = [one for one, n in collections.Counter(pair[column] for pair in pairs).items() if n > 1]
            if many:
                others = ", ".join(str(pair[1 - column]) for pair in pairs if pair[column] == many[0])
                raise DataError(
                    f"{self.dataset}: the lists under {self.root}/idx pair {name} {many[0]} with each of {others}; "
                    "copy the lists of one trial from the data again"
                )

    def check_ids(self, ids: Iterable[int], pictures: Iterable[Picture], file: str, allow_missing_files: bool) -> None:
        """Reports identities of a file that have no picture, as an error or a warning."""
        absent = sorted(set(ids) - {picture.pid for picture in pictures})
        self._report_absent(absent, f"no picture of identity {{}}, which {file} lists", allow_missing_files)

    def splits(
        self,
        modalities: Sequence[str],
        *,
        train: dict[str, list[Picture]],
        query: list[Picture],
        gallery: list[Picture],
    ) -> dict[str, Records]:
        """The three splits, without those that have no pictures of `modalities`."""
        splits = {"train": train, "query": {"ir": query}, "gallery": {"rgb": gallery}}
        return {
            split: self._table(split, modalities, pictures)
            for split, pictures in splits.items()
            if set(pictures) & set(modalities)
        }

    def _table(self, split: str, modalities: Sequence[str], pictures: dict[str, list[Picture]]) -> Records:
        rows = [(m, picture) for m in MODALITIES if m in modalities for picture in pictures.get(m, ())]
        if not rows:
            raise DataError(f"{self.dataset}: no pictures for split {split!r} under {self.root}; copy the data again")
        paths = {m: np.array([p.path if m == own else "" for own, p in rows]) for m in modalities}
        parts = {m: np.array([p.part or 0 for _, p in rows], np.int32) for m in modalities}
        return Records(
            root=self.root,
            paths=paths,
            pid=np.array([p.pid for _, p in rows], np.int32),
            camid=np.array([p.camid for _, p in rows], np.int32),
            view=np.zeros(len(rows), np.int32),
            parts=parts if any(p.part is not None for _, p in rows) else {},
        )

    def _listing(self, folder: str) -> set[str]:
        path = os.path.join(self.root, folder)
        return set(os.listdir(path)) if os.path.isdir(path) else set()

    def _report_absent(self, absent: list, what: str, allowed: bool) -> None:
        if not absent:
            return
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        message = f"{self.dataset}: {what.format(absent[0])}{more} under {self.root}"
        if not allowed:
            raise DataError(f"{message}; add it, or set data.allow_missing_files=True to go without it")
        logging.getLogger(__name__).warning("%s; left out", message)


def open_tree(dataset: str, data_dir: str, *, nested: str, marker: str) -> Tree:
    """The dataset in `data_dir`, or in its folder `nested`; `marker` is a folder of every copy. DataError if absent."""
    root = data_root.find(dataset, (data_dir, os.path.join(data_dir, nested)), marker)
    if not os.path.isdir(os.path.join(root, marker)):
        raise DataError(f"{dataset}: no folder '{marker}' under {root}; set data.data_dir to the folder that has it")
    return Tree(dataset, root)


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
