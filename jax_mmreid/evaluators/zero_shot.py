"""Zero-shot classification (CLIP: Radford et al., 2021, section 3.1): a picture is of the class whose sentence it is
closest to. Captions are the ground truth, so any data with captions can be asked.

    row = dict(
        kind="zero_shot",
        split="test",
        modality="rgb",  # whose pictures, and the captions that describe them
        classes={"red": "a person wearing a red jacket", "blue": "a person wearing a blue jacket"},
    )

A key of `classes` is what captions of the class say, a value the sentence that pictures are compared with. A caption
says a key if the key's token ids stand in it, one after the other. Pictures whose caption says none or several of the
keys are left out and counted. Of equal dot products the class that comes first is taken (a ConfigDict sorts the keys).
"""

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from jax_mmreid.batch import Data, DataError, says
from jax_mmreid.config import ConfigError
from jax_mmreid.encoding import (
    TEXT,
    Level,
    check_described,
    check_keys,
    check_vectors,
    described,
    embed,
    encode,
)
from jax_mmreid.methods import Method

COLUMNS = {"accuracy": "accuracy", "balanced": "balanced", "chance": "chance"}
PLAIN = ()


def check(name: str, row: dict, data: Data) -> None:
    """Raises ConfigError if the row names what does not exist, DataError for a split without such pictures."""
    where = f"evals.{name}"
    check_keys(where, row, ("split", "modality", "classes"), ("kind",))
    check_described(where, row["split"], row["modality"], data)
    classes = row["classes"]
    texts = [*classes, *classes.values()] if isinstance(classes, Mapping) else []
    if len(texts) < 4 or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{where}: classes={classes!r}, expected two or more {{words of a caption: sentence}}")
    try:
        empty = [text for text, some in zip(texts, says(data.tokenise(texts))) if not some]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if empty:
        raise ConfigError(f"{where}: classes has {empty[0]!r}, which says nothing")


def run(
    rows: Mapping[str, dict], *, method: Method, variables: dict, data: Data, mesh: Mesh, mean: Level, std: Level
) -> dict[str, dict]:
    """{row name: {"accuracy", "balanced", "chance", "pictures", "left_out", "protocol", "feature"}}.

    "balanced" is the mean recall of the classes that occur, "chance" 1 / number of classes; "pictures" counts those
    that are classified. Raises ConfigError for a row that the method cannot do, DataError where no picture is left or
    a vector is not finite.
    """
    settings = dict(mean=mean, std=std)

    @functools.cache
    def pictures(split: str, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [P,D] of the pictures that are there, and their captions [P,L]."""
        batches = described(data.split(split), modality, text=False)
        encoded = encode(method, variables, batches, mesh, columns=("caption",), **settings)
        there = encoded.present[modality]
        return embed(method, variables, encoded, (modality,), mesh)[there], encoded.columns["caption"][there]

    def sentences(row: dict) -> np.ndarray:
        """Vectors [C,D] of the sentences of a row."""
        batch = _sentences(data.tokenise(list(row["classes"].values())), row["modality"], mesh)
        encoded = encode(method, variables, [batch], mesh, **settings)
        return embed(method, variables, encoded, (TEXT,), mesh)

    results = {}
    for name, row in rows.items():
        try:
            vectors, captions = pictures(row["split"], row["modality"])
            classes = sentences(row)
        except ValueError as error:  # what the split does not say, or the method cannot make a vector of
            raise ConfigError(f"evals.{name}: {error}") from error
        said = mentions(captions, data.tokenise(list(row["classes"])))
        results[name] = _measure(name, row, vectors, classes, said)
    return results


def note(row: dict, result: dict) -> str:
    """What a table has no room for, as the rest of a sentence that begins with the row's name; "" for nothing."""
    left_out = result.get("left_out", 0)
    return f"leaves out {left_out} pictures, of which none or several of the classes are said." if left_out else ""


def _measure(name: str, row: dict, pictures: np.ndarray, classes: np.ndarray, said: np.ndarray) -> dict:
    """The result of a row, from vectors [P,D] and [C,D] and from which caption says which class, [P,C]."""
    kept = said.sum(axis=1) == 1
    if not kept.any():
        raise DataError(
            f"evals.{name}: no caption of {row['modality']} in split {row['split']!r} says exactly one of "
            f"{', '.join(row['classes'])}"
        )
    pictures, truth = pictures[kept], said[kept].argmax(axis=1)
    check_vectors(f"evals.{name}", pictures, classes)
    right = (pictures @ classes.T).argmax(axis=1) == truth
    return {
        "accuracy": float(np.mean(right)),
        "balanced": float(np.mean([np.mean(right[truth == c]) for c in np.unique(truth)])),
        "chance": 1 / len(classes),
        "pictures": len(pictures),
        "left_out": int(np.sum(~kept)),
        "protocol": f"split {row['split']}, {len(classes)} classes",
        "feature": f"{row['modality']}>{TEXT}",
    }


def mentions(captions: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Which captions [n,L] say which keys [C,L'], both as ids with start, end and padding: [n,C] bool.

    A key is said if its ids stand in the caption one after the other.
    """
    said = np.zeros((len(captions), len(keys)), bool)
    ended = np.arange(captions.shape[1]) >= captions.argmax(axis=1)[:, None]
    captions = np.where(ended, -1, captions)  # padding may be a word's id
    for c, key in enumerate(keys):
        words = key[1 : key.argmax()]
        if len(words) <= captions.shape[1]:
            windows = np.lib.stride_tricks.sliding_window_view(captions, len(words), axis=1)  # [n, L-k+1, k]
            said[:, c] = (windows == words).all(axis=2).any(axis=1)
    return said


def _sentences(ids: np.ndarray, modality: str, mesh: Mesh) -> dict:
    """A batch without pictures of the sentences ids [C,L]; this process's rows of it, padded to fit the mesh."""
    count, over = len(ids), mesh.shape["data"]
    rows = -(-count // over) * over
    ids = np.pad(ids, ((0, rows - count), (0, 0)), mode="edge")
    batch = {"text": {modality: ids}, "present": {TEXT: says(ids)}, "valid": np.arange(rows) < count}
    batch |= {name: np.zeros(rows, np.int32) for name in ("pid", "camid", "view", "index")}
    each = rows // jax.process_count()
    own = slice(jax.process_index() * each, (jax.process_index() + 1) * each)
    return {"images": {}} | jax.tree.map(lambda x: x[own], batch)
