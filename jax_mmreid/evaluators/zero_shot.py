"""Zero-shot classification (CLIP: Radford et al., 2021, section 3.1): a picture is of the class whose sentence it is
closest to. Captions are the ground truth, so it works on any data with captions.

    row = dict(
        kind="zero_shot",
        split="test",
        modality="rgb",  # whose pictures, and the captions that describe them
        classes={"red": "a person wearing a red jacket", "blue": "a person wearing a blue jacket"},
    )

`classes` is {words: sentence}: a picture is of a class if its caption contains the words, that is, if their token ids
stand in it one after the other; the sentence is what pictures are compared with. Pictures whose caption contains the
words of none or of several classes are left out and counted. Of equal dot products the class that comes first is taken
(a ConfigDict sorts the keys).
"""

from collections.abc import Mapping

import numpy as np

from jax_mmreid.batch import Data, has_caption
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import TEXT, Evaluator, Result, Use, check_pictures, check_use
from jax_mmreid.evaluators.encoder import Encoder, check_vectors


class ZeroShot(Evaluator):
    """See the module. The result has "accuracy", "balanced" and "chance", and the counts "pictures" and "left_out".

    "balanced" is the mean recall of the classes that occur, "chance" 1 / number of classes; "pictures" counts those
    that are classified.
    """

    COLUMNS = {"accuracy": "accuracy", "balanced": "balanced", "chance": "chance"}

    def check(self, data: Data) -> None:
        self.check_keys(("split", "modality", "classes"))
        split, modality, classes = self.row["split"], self.row["modality"], self.row["classes"]
        check_use(split, (modality, f"{TEXT}/{modality}"), data)
        check_pictures(split, modality, data)
        texts = [*classes, *classes.values()] if isinstance(classes, Mapping) else []
        if len(texts) < 4 or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"classes={classes!r}, expected two or more {{words of a caption: sentence}}")
        for text, some in zip(texts, has_caption(data.tokenize(texts))):
            if not some:
                raise ConfigError(f"classes has {text!r}, which has no tokens")

    def uses(self) -> list[tuple[str, Use]]:
        return [(self.row["split"], (self.row["modality"],))]  # captions are compared as ids

    def run(self, encoder: Encoder) -> Result:
        split, modality, tokenize = self.row["split"], self.row["modality"], encoder.data.tokenize
        words, sentences = tokenize(list(self.row["classes"])), tokenize(list(self.row["classes"].values()))
        shown = np.flatnonzero(encoder.data.present(split)[modality])
        found = contains(encoder.captions(split, modality)[shown], words)
        kept = found.sum(axis=1) == 1
        if not kept.any():
            raise DataError(
                f"no caption of {modality} in split {split!r} contains the words of exactly one class of "
                f"{', '.join(self.row['classes'])}"
            )
        pictures, rows, truth = encoder.vectors(split, (modality,), {}), shown[kept], found[kept].argmax(axis=1)
        check_vectors(pictures, rows, split, (modality,))
        classes = encoder.sentences(sentences, modality)
        for sentence, x in zip(self.row["classes"].values(), classes):
            if not np.isfinite(x).all() or not x.any():
                raise DataError(f"the sentence {sentence!r} has a vector that is zero or not finite; check the weights")
        right = (encoder.fetch(pictures[rows]) @ classes.T).argmax(axis=1) == truth
        left_out = int(np.sum(~kept))
        note = f"leaves out {left_out} pictures, whose captions contain the words of none or several of the classes."
        return {
            "accuracy": float(np.mean(right)),
            "balanced": float(np.mean([np.mean(right[truth == c]) for c in np.unique(truth)])),
            "chance": 1 / len(classes),
            "pictures": len(rows),
            "left_out": left_out,
            "protocol": f"split {split}, {len(classes)} classes",
            "feature": f"{modality}>{TEXT}",
            **({"note": note} if left_out else {}),
        }


def contains(captions: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Which captions [n,L] contain which keys [C,L'], both as ids with start, end and padding: [n,C] bool.

    A caption contains a key if the key's ids stand in it one after the other.
    """
    found = np.zeros((len(captions), len(keys)), bool)
    ended = np.arange(captions.shape[1]) >= captions.argmax(axis=1)[:, None]
    captions = np.where(ended, -1, captions)  # padding may be a word's id
    for c, key in enumerate(keys):
        words = key[1 : key.argmax()]
        if len(words) <= captions.shape[1]:
            windows = np.lib.stride_tricks.sliding_window_view(captions, len(words), axis=1)  # [n, L-k+1, k]
            found[:, c] = (windows == words).all(axis=2).any(axis=1)
    return found
