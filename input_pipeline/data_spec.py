"""What data would look like, from published counts and without a look at a picture."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from input_pipeline import datasets, validation
from input_pipeline.text.token_table import Options
from input_pipeline.text.tokenizer import open_tokenizer
from jax_mmreid.batch import DataSpec

CLIP = 49408  # ids in the vocabulary of every published CLIP


@dataclasses.dataclass(frozen=True)
class DescribedData:
    """The fields of `jax_mmreid.batch.Data` that a model is built from; it has nothing to read."""

    spec: DataSpec  # pids 0..K-1, steps of an epoch of every row once, the longest captions, of all modalities
    _rows: int
    _words: Options

    def tokenize(self, sentences: Sequence[str]) -> np.ndarray:
        """Token ids [n,L] int32, L = `text.context`, by a vocabulary that is there already."""
        return open_tokenizer(self._words.tokenizer, context=self._words.context).encode(sentences)

    def num_rows(self, name: str) -> int:
        """Rows of the split "train"; ValueError for another, which nothing describes."""
        if name != "train":
            raise ValueError(f"data: no split {name!r} is described, only 'train'")
        return self._rows


def describe(
    *,
    name: str,
    data_dir: str,
    modalities: Sequence[str],
    image_size: tuple[int, int],
    identities: int,
    instances: int,
    options: dict | None = None,
    text: dict | None = None,
    **_: object,
) -> DescribedData:
    """Dataset `name` by the counts that its module states, for a model that is built and not trained.

    Arguments are those of `open_data`; the others of them are taken and not needed. Raises ValueError for an argument
    that cannot be, DataError for a folder of `text.tokenizer` that holds no vocabulary.
    """
    modalities, words = validation.distinct(modalities), Options(**text or {})
    validation.check_sizes(identities=identities, instances=instances, threads=0)
    counts = datasets.find(name, "counts", options or {}, data_dir=data_dir, modalities=modalities)()["train"]
    spec = DataSpec(
        name=name,
        fingerprint="",
        modalities=modalities,
        image_size=tuple(image_size),
        pids=tuple(range(counts.identities)),
        cameras=counts.cameras,
        batch_size=identities * instances,
        steps_per_epoch=max(1, counts.rows // (identities * instances)),
        text=modalities if words.tokenizer else (),
        text_length=words.context if words.tokenizer else 0,
        vocab=_vocab(words),
    )
    return DescribedData(spec, _rows=counts.rows, _words=words)


def _vocab(words: Options) -> int:
    """The number of token ids: of "train" the most that there can be, of what is not in a folder here that of CLIP."""
    if not words.tokenizer:
        return 0
    if words.tokenizer == "train":
        return words.vocab_size
    return open_tokenizer(words.tokenizer, context=words.context).vocab if os.path.isdir(words.tokenizer) else CLIP
