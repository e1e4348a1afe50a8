"""The spec of a dataset from its published counts, without reading a picture: for models that are not trained here."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from input_pipeline import datasets
from input_pipeline.data_config import DataConfig, TextConfig
from input_pipeline.text.tokenizer import open_tokenizer
from jax_mmreid.batch import DataSpec
from jax_mmreid.errors import ConfigError

CLIP_VOCAB = 49408  # ids in the vocabulary of every published CLIP


@dataclasses.dataclass(frozen=True)
class DescribedData:
    """The part of `jax_mmreid.batch.Data` that a model is built from; there is nothing to read."""

    spec: DataSpec  # pids 0..K-1, an epoch of every row once, captions of all modalities and of full length
    _rows: int
    _text: TextConfig

    def tokenize(self, sentences: Sequence[str]) -> np.ndarray:
        """Token ids [n,L] int32, L = `text.context`; raises ConfigError for a vocabulary that is not there yet."""
        return open_tokenizer(self._text.tokenizer, context=self._text.context).encode(sentences)

    def num_rows(self, name: str) -> int:
        """Rows of the split "train"; raises ConfigError for another one, whose size is not known."""
        if name != "train":
            raise ConfigError(f"data: no split {name!r}; only the size of 'train' is known without the data")
        return self._rows


def describe(config: DataConfig) -> DescribedData:
    """The data of `config` by the counts that the dataset's module states.

    Raises ConfigError for a config that cannot be, DataError for a folder in `text.tokenizer` without a vocabulary.
    """
    given = dict(data_dir=config.data_dir, modalities=config.modalities)
    counts = datasets.find(config.name, "counts", config.options, **given)()["train"]
    batch_size, text = config.identities * config.instances, config.text
    spec = DataSpec(
        name=config.name,
        fingerprint="",
        modalities=config.modalities,
        image_size=config.image_size,
        pids=tuple(range(counts.identities)),
        cameras=counts.cameras,
        batch_size=batch_size,
        steps_per_epoch=max(1, counts.rows // batch_size),
        text=config.modalities if text.tokenizer else (),
        text_length=text.context if text.tokenizer else 0,
        vocab=_vocab(text),
        resize=config.resize,
        range16=config.range16,
    )
    return DescribedData(spec, _rows=counts.rows, _text=text)


def _vocab(text: TextConfig) -> int:
    """The number of token ids: of "train" the upper limit, of a vocabulary that is not a folder here that of CLIP."""
    if not text.tokenizer:
        return 0
    if text.tokenizer == "train":
        return text.vocab_size
    return open_tokenizer(text.tokenizer, context=text.context).vocab if os.path.isdir(text.tokenizer) else CLIP_VOCAB
