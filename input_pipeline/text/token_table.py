"""Captions as token ids: those of all splits, tokenised once, and which of them training takes in other words."""

import dataclasses
import zlib
from typing import NamedTuple

import numpy as np

from input_pipeline.records import Records
from input_pipeline.text.tokenizer import Tokenizer, open_tokenizer, trim
from jax_mmreid.batch import Batch

REPHRASED = "_rephrased"  # how the columns of other words end


@dataclasses.dataclass(frozen=True)
class Options:
    """`data.text` of a config. Raises ValueError for a rate that cannot be."""

    tokenizer: str = ""  # as `text.open_tokenizer` takes it, or "" to go without text
    context: int = 77
    vocab_size: int = 4096  # of "train"
    rephrased: float = 0.0  # how often a training caption is taken in its other words

    def __post_init__(self):
        if not 0 <= self.rephrased <= 1:
            raise ValueError(f"data.text.rephrased={self.rephrased}: must lie in [0, 1]")


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
    """The captions of one split."""

    ids: np.ndarray  # [U,L] int32, every caption of any split once; the first says nothing
    captions: dict[str, np.ndarray]  # by the modality they describe, [N] rows of `ids`
    rephrased: dict[str, np.ndarray]  # the same in other words; {} where they are not read
    rate: float
    seed: int

    @property
    def present(self) -> np.ndarray:
        """Which rows are described in every modality that the split has captions of, [N] bool."""
        return np.all([column > 0 for column in self.captions.values()], axis=0)

    def paraphrase_mask(self, step: int, rows: int) -> dict[str, np.ndarray]:
        """Which captions of training batch `step` are taken in their other words, {modality: [rows] bool}.

        A coin is a pure function of (seed, step, row, modality).
        """
        generators = {
            # The counter keeps it apart from the sampler, which has the same keys.
            m: np.random.Generator(np.random.Philox(key=[self.seed, step], counter=[0, 0, 0, zlib.crc32(m.encode())]))
            for m in self.rephrased
        }
        return {m: rng.random(rows) < self.rate for m, rng in generators.items()}

    def add(self, batch: Batch, rows: dict[str, np.ndarray], paraphrase_mask: dict[str, np.ndarray]) -> Batch:
        """The batch with its captions, those of row rows[m] [B] of every modality m that is described."""
        said = {m: column[rows[m]] for m, column in self.captions.items()}
        present = np.all([numbers > 0 for numbers in said.values()], axis=0)
        for m, heads in paraphrase_mask.items():
            said[m] = np.where(heads, self.rephrased[m][rows[m]], said[m])
        captions = {m: self.ids[numbers] for m, numbers in said.items()}
        return batch | {"text": captions, "present": batch["present"] | {"text": present}}


class Tokenised(NamedTuple):
    """The captions of a dataset."""

    tables: dict[str, TokenTable]  # of the splits that have any
    tokenizer: Tokenizer | None


def tokenize(name: str, splits: dict[str, Records], options: Options, *, seed: int) -> Tokenised:
    """The captions of the splits of dataset `name`, and what encodes them; there may be none for a known vocabulary.

    "train" learns its vocabulary from all training captions. L is the length of the longest caption that can be read,
    other words only counting where `options.rephrased` is not 0. Raises ValueError where there are no captions to learn
    from, or no other words to take; and as `text.open_tokenizer`.
    """
    if not options.tokenizer:
        return Tokenised({}, None)
    described = {split: records.captions for split, records in splits.items() if records.captions}
    if not described and options.tokenizer == "train":
        raise ValueError(
            f"data.text.tokenizer={options.tokenizer!r}: {name} as it was read has no captions; name those to read in "
            "data.options.captioner, or set data.text.tokenizer='' to go without"
        )
    train = described.get("train", {})
    plain = [m for m in train if not m.endswith(REPHRASED)]
    if options.rephrased and not (plain and all(m + REPHRASED in train for m in plain)):
        raise ValueError(
            f"data.text.rephrased={options.rephrased}: {name} as it was read has no training captions in other words; "
            "set data.options.rephrased=True to read them, or data.text.rephrased=0.0"
        )
    numbers = {"": 0}

    def number(column: np.ndarray) -> np.ndarray:
        return np.array([numbers.setdefault(caption, len(numbers)) for caption in column.tolist()])

    columns = {
        split: {m: number(column) for m, column in captions.items() if not m.endswith(REPHRASED)}
        for split, captions in described.items()
    }
    other_words = {m: number(train[m + REPHRASED]) for m in plain} if options.rephrased else {}
    tokenizer = open_tokenizer(
        options.tokenizer,
        context=options.context,
        vocab_size=options.vocab_size,
        captions=[caption for column in train.values() for caption in column.tolist()],
    )
    ids = trim(tokenizer.encode(list(numbers)))
    tables = {
        split: TokenTable(ids, own, other_words if split == "train" else {}, options.rephrased, seed)
        for split, own in columns.items()
    }
    return Tokenised(tables, tokenizer)
