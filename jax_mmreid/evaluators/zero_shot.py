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

from collections.abc import Mapping

import numpy as np

from jax_mmreid.batch import Data, has_caption
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators.encoder import TEXT, Encoder, Use, check_described, check_keys, check_vectors

COLUMNS = {"accuracy": "accuracy", "balanced": "balanced", "chance": "chance"}
NOT_FRACTIONS = ()


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
        empty = [text for text, some in zip(texts, has_caption(data.tokenize(texts))) if not some]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if empty:
        raise ConfigError(f"{where}: classes has {empty[0]!r}, which says nothing")


def uses(row: dict) -> list[tuple[str, Use]]:
    """What the row reads of which split; captions are compared as ids."""
    return [(row["split"], (row["modality"],))]


def run(rows: Mapping[str, dict], encoder: Encoder) -> dict[str, dict]:
    """{row name: {"accuracy", "balanced", "chance", "pictures", "left_out", "protocol", "feature"}}.

    "balanced" is the mean recall of the classes that occur, "chance" 1 / number of classes; "pictures" counts those
    that are classified. Raises ConfigError for a row that the method cannot do, DataError where no picture is left or
    a vector is not finite.
    """
    tokenize, results = encoder.data.tokenize, {}
    for name, row in rows.items():
        split, modality = row["split"], row["modality"]
        try:
            captions = encoder.captions(split, modality)
            pictures = encoder.vectors(split, (modality,), {})
            classes = encoder.sentences(tokenize(list(row["classes"].values())), modality)
        except ValueError as error:  # what the split does not say, or the method cannot make a vector of
            raise ConfigError(f"evals.{name}: {error}") from error
        there = encoder.split(split).present[modality]
        said = mentions(captions[there], tokenize(list(row["classes"])))
        results[name] = _measure(name, row, pictures[there], classes, said)
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
