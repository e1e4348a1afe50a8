"""Captions of visible, near infrared and thermal pictures, in the files of TVI-LFM (NeurIPS 2024):

    Text/C_M/caption_dict_C_M.json        {picture: {"description": caption}}
    Text/C_M/caption_llm_dict_C_M.json    {picture: {"description": caption, "aug_description": rephrased caption}}
    Text/C_M/train_text_C_M.npy           captions in the order of the training pictures (SYSU-MM01)
    Text/C_M/train_llm_text_C_M.npy       the same, rephrased
    Text/C_RGB/id_caption_map_C_RGB.json  {identity: [captions of its visible pictures]}

C is the captioner, M is RGB or IR; all modalities but "rgb" share the files of IR. Of a path only the part from the
dataset's own folders on counts: "/data0/regdb/Visible/.." is "Visible/..".
"""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline.records import REPHRASED, Records
from jax_mmreid.errors import DataError

Table = dict[str, dict[str, str]]  # picture -> {"description": caption, ..}
Reader = Callable[[str], Table]  # of a file

log = logging.getLogger(__name__)

QUERY_SEED = 1  # of the published results
CAPTION_FIELD, REPHRASED_FIELD = "description", "aug_description"


@dataclasses.dataclass(frozen=True)
class CaptionFiles:
    """Where the captions of a dataset are. An absent or broken file is a DataError naming it."""

    root: str
    captioner: str  # "" for no captions except those of `query_captions`
    rephrased: bool  # whether the rephrased captions of training pictures are read too
    query_captions: str  # a file {picture: caption} for the queries; "" for the published draw by identity
    key: Callable[[str], str]  # from any path to a picture to its name in the caption files
    allow_missing_files: bool  # whether captions of absent pictures are ignored with a warning
    in_arrays: bool = False  # whether training captions are .npy arrays in the order of the pictures

    def add(self, splits: dict[str, Records]) -> dict[str, Records]:
        """The splits with the captions of every picture of "train" and "query".

        A query has captions["ir"], its own, and captions["rgb"], the description of the person in visible light that is
        searched with. By the published protocol the latter is drawn from the captions of all visible pictures of the
        query's true identity.
        """
        captioned = dict(splits)
        if self.captioner:
            captioned["train"] = self._with_captions(splits["train"], self._reader(splits))
        if "query" in splits:
            captioned["query"] = dataclasses.replace(splits["query"], captions=self._of_queries(splits["query"]))
        return captioned

    def of_every_picture(self, splits: dict[str, Records]) -> dict[str, Records]:
        """The splits with the captions of all their pictures; rephrased ones are read for "train" only."""
        if not self.captioner:
            return splits
        read, evaluation = self._reader(splits), dataclasses.replace(self, rephrased=False)
        return {name: (self if name == "train" else evaluation)._with_captions(x, read) for name, x in splits.items()}

    def _with_captions(self, records: Records, read: Reader) -> Records:
        """A split with the captions of its pictures: a column for each modality with pictures, "" for absent ones."""
        find, columns = self._from_arrays if self.in_arrays else self._from_tables, {}
        for modality, paths in records.paths.items():
            rows = np.flatnonzero(paths != "")
            for name, sentences in (find(modality, paths[rows], read) if len(rows) else {}).items():
                columns[name] = np.full(len(paths), "", sentences.dtype)
                columns[name][rows] = sentences
        return dataclasses.replace(records, captions=columns)

    def _from_tables(self, modality: str, paths: np.ndarray, read: Reader) -> dict[str, np.ndarray]:
        file = self._file("caption_llm_dict" if self.rephrased else "caption_dict", modality)
        fields = {modality: CAPTION_FIELD}
        if self.rephrased:
            fields[modality + REPHRASED] = REPHRASED_FIELD
        return {name: look_up(read(file), paths, file, self.key, field) for name, field in fields.items()}

    def _reader(self, splits: dict[str, Records]) -> Reader:
        """A function that reads the table of a file, once however often it is called."""
        return functools.cache(functools.partial(self._read, splits))

    def _read(self, splits: dict[str, Records], file: str) -> Table:
        table = read_table(file, self.key)
        columns = [column for records in splits.values() for column in records.paths.values()]
        known = {self.key(path) for column in columns for path in column}
        absent = [path for path in table if path not in known and not os.path.exists(os.path.join(self.root, path))]
        if absent:
            message = f"captions: {file} has captions of {absent[0]} ({len(absent)} such), which is not in the data"
            if not self.allow_missing_files:
                raise DataError(f"{message}; add it, or set data.allow_missing_files=True to go without it")
            log.warning("%s; left out", message)
        return table

    def _from_arrays(self, modality: str, paths: np.ndarray, _: Reader) -> dict[str, np.ndarray]:
        stems = {modality: "train_text"}
        if self.rephrased:
            stems[modality + REPHRASED] = "train_llm_text"
        return {name: read_array(self._file(stem, modality, "npy"), paths) for name, stem in stems.items()}

    def _of_queries(self, queries: Records) -> dict[str, np.ndarray]:
        columns, paths = {}, queries.paths["ir"]
        if self.captioner:
            file = self._file("caption_dict", "ir")
            columns["ir"] = look_up(read_table(file, self.key), paths, file, self.key)
        if self.query_captions:
            table = read_table(self.query_captions, self.key)
            columns["rgb"] = look_up(table, paths, self.query_captions, self.key)
            surplus = sorted(table.keys() - set(map(self.key, paths)))
            if surplus:
                raise DataError(
                    f"captions: {self.query_captions} has captions of {surplus[0]} ({len(surplus)} such), which is "
                    "not a query; correct its path or remove it"
                )
        elif self.captioner:
            file = self._file("id_caption_map", "rgb")
            columns["rgb"] = draw(read_lists(file), queries.pid, file)
        return columns

    def _file(self, stem: str, modality: str, suffix: str = "json") -> str:
        ending = f"{self.captioner}_{'RGB' if modality == 'rgb' else 'IR'}"
        path = os.path.join(self.root, "Text", ending, f"{stem}_{ending}.{suffix}")
        if not os.path.isfile(path):
            without = "rephrased=False or captioner=''" if "llm" in stem else "captioner=''"
            raise DataError(f"captions: no file {path}; add it, or set data.options.{without} to go without it")
        return path


def from_folder(path: str, folders: Sequence[str]) -> str:
    """The path, with "/", from its last part on that is one of `folders`; the whole path if there is none."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    start = max((i for i, part in enumerate(parts) if part in folders), default=0)
    return "/".join(parts[start:])


def read_table(file: str, key: Callable[[str], str]) -> Table:
    """{key(path): {"description": caption, ..}} from a JSON file, where a caption may also stand without a dict."""
    table = {}
    for path, entry in _read_json(file).items():
        entry = {CAPTION_FIELD: entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
            raise DataError(
                f'captions: in {file} the entry of {path} is not {{"{CAPTION_FIELD}": caption}}; correct it'
            )
        table[key(path)] = entry
    return table


def look_up(
    table: Table, paths: Sequence[str], file: str, key: Callable[[str], str], field: str = CAPTION_FIELD
) -> np.ndarray:
    """The captions [n] str of pictures; raises DataError naming `file` and the first picture without one."""
    sentences = [table.get(key(path), {}).get(field, "").strip() for path in paths]
    absent = [path for path, sentence in zip(paths, sentences) if not sentence]
    if absent:
        raise DataError(
            f"captions: {file} has no {field!r} of {absent[0]} ({len(absent)} of {len(paths)} pictures lack one); "
            "add them, or set data.options.captioner='' to go without captions"
        )
    return np.array(sentences)


def read_array(file: str, paths: Sequence[str]) -> np.ndarray:
    """The captions [n] str of an .npy file made for these n pictures, in their order."""
    try:
        sentences = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"captions: cannot read {file} ({_reason(error)}); save it as an array of type str") from error
    if sentences.dtype.kind != "U" or sentences.shape != (len(paths),):
        raise DataError(
            f"captions: {file} holds {sentences.dtype}{list(sentences.shape)}, but there are {len(paths)} training "
            "pictures, each with one caption; write the file again for these pictures"
        )
    sentences = np.char.strip(sentences)
    absent = np.flatnonzero(sentences == "")
    if len(absent):
        raise DataError(f"captions: {file} has an empty caption in row {absent[0]} ({len(absent)} such rows); add it")
    return sentences


def read_lists(file: str) -> dict[int, list[str]]:
    """{identity: captions} from a JSON file, in the order of the file, on which `draw` depends."""
    lists = {}
    for pid, sentences in _read_json(file).items():
        ok = pid.isdecimal() and isinstance(sentences, list) and all(isinstance(text, str) for text in sentences)
        if not ok:
            raise DataError(f"captions: in {file} the entry of identity {pid!r} is not a list of captions; correct it")
        lists[int(pid)] = sentences
    return lists


def draw(lists: dict[int, list[str]], pids: Sequence[int], file: str, seed: int = QUERY_SEED) -> np.ndarray:
    """One caption for each of `pids`, [n] str: RandomState(seed).choice of the identity's list, in the order of `pids`.

    Raises DataError naming `file` and the first identity without a caption.
    """
    absent = sorted({int(pid) for pid in pids} - {pid for pid, sentences in lists.items() if sentences})
    if absent:
        raise DataError(f"captions: {file} has no caption of identity {absent[0]} ({len(absent)} such); add them")
    rng = np.random.RandomState(seed)
    return np.array([lists[pid][rng.randint(len(lists[pid]))] for pid in map(int, pids)])


def _read_json(file: str) -> dict:
    try:
        with open(file, encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError) as error:  # also a UnicodeDecodeError
        raise DataError(f"captions: cannot read {file} ({_reason(error)}); it should be JSON in UTF-8") from error
    if not isinstance(value, dict):
        raise DataError(f"captions: {file} should hold one JSON object, not a {type(value).__name__}")
    return value


def _reason(error: Exception) -> str:
    message = getattr(error, "strerror", None) or str(error)
    return (message.splitlines() or [type(error).__name__])[0]
