"""Captions as token ids: those of all splits, tokenized once, and which of them training replaces by rephrased ones."""

import dataclasses
import zlib
from typing import NamedTuple

import numpy as np

from input_pipeline.data_config import TextConfig
from input_pipeline.records import REPHRASED, Records
from input_pipeline.text.tokenizer import Tokenizer, open_tokenizer, trim
from jax_mmreid.batch import Batch, has_caption
from jax_mmreid.errors import ConfigError


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
    """The captions of one split. A row without a caption of a modality has the empty caption, which has no tokens."""

    ids: np.ndarray  # [U,L] int32, every distinct caption once
    captions: dict[str, np.ndarray]  # modality that they describe -> [N] rows of `ids`; at least one row has tokens
    rephrased: dict[str, np.ndarray]  # the same rephrased; {} where they are not read
    rate: float  # how often training takes the rephrased caption
    seed: int

    @property
    def present(self) -> dict[str, np.ndarray]:
        """Which rows have captions, [N] bool: "text/m" of modality m, "text" of every modality in `captions`."""
        return _present({m: has_caption(self.ids)[rows] for m, rows in self.captions.items()})

    def paraphrase_mask(self, step: int, rows: int) -> dict[str, np.ndarray]:
        """Which captions of training batch `step` are replaced by rephrased ones, {modality: [rows] bool}.

        Each entry is a pure function of (seed, step, row, modality).
        """
        generators = {
            # The counter keeps it apart from the sampler, which has the same keys.
            m: np.random.Generator(np.random.Philox(key=[self.seed, step], counter=[0, 0, 0, zlib.crc32(m.encode())]))
            for m in self.rephrased
        }
        return {m: rng.random(rows) < self.rate for m, rng in generators.items()}

    def add(self, batch: Batch, rows: dict[str, np.ndarray], paraphrase_mask: dict[str, np.ndarray]) -> Batch:
        """The batch with its captions: for every modality m in `captions`, those of the rows rows[m] [B] of the split.

        `paraphrase_mask` {m: [B] bool} says which of them are rephrased; {} for none.
        """
        numbers = {m: column[rows[m]] for m, column in self.captions.items()}
        for m, replaced in paraphrase_mask.items():
            numbers[m] = np.where(replaced, self.rephrased[m][rows[m]], numbers[m])
        text = {m: self.ids[own] for m, own in numbers.items()}
        present = _present({m: has_caption(ids) for m, ids in text.items()})
        return batch | {"text": text, "present": batch["present"] | present}


class Tokenized(NamedTuple):
    """The captions of a dataset."""

    tables: dict[str, TokenTable]  # of the splits that have captions
    tokenizer: Tokenizer | None


def tokenize(name: str, splits: dict[str, Records], text: TextConfig, *, seed: int) -> Tokenized:
    """The captions of the splits of dataset `name`, and the tokenizer that encodes them; tables may be empty.

    "train" learns its vocabulary from all training captions, rephrased ones included. L of the training split is the
    length of its longest caption (rephrased ones count if `text.rephrased` is not 0); L of another split is that, or
    the length of its own longest caption if it is longer, so that test captions change no training batch.
    Raises ConfigError where there are no captions to learn from or no rephrased ones to take; and as `open_tokenizer`.
    """
    if not text.tokenizer:
        return Tokenized({}, None)
    captions = {split: records.captions for split, records in splits.items() if records.captions}
    _check(name, captions, text)
    train = captions.get("train", {})
    tokenizer = open_tokenizer(
        text.tokenizer,
        context=text.context,
        vocab_size=text.vocab_size,
        captions=[caption for column in train.values() for caption in column.tolist()],
    )
    numbers = {"": 0}  # {caption: row of `ids`}

    def number(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            m: np.array([numbers.setdefault(caption, len(numbers)) for caption in column.tolist()])
            for m, column in columns.items()
        }

    originals = {split: number(_originals(columns)) for split, columns in captions.items()}
    rephrased = number(_rephrased(train)) if text.rephrased else {}
    ids = tokenizer.encode(list(numbers))
    shortest = _length(ids, *originals.get("train", {}).values(), *rephrased.values())
    tables = {}
    for split, columns in originals.items():
        kept = {m: rows for m, rows in columns.items() if has_caption(ids)[rows].any()}
        if kept:
            L = shortest if split == "train" else max(shortest, _length(ids, *kept.values()))
            replacing = {m: rephrased[m] for m in kept if rephrased} if split == "train" else {}
            tables[split] = TokenTable(ids[:, :L], kept, replacing, text.rephrased, seed)
    return Tokenized(tables, tokenizer)


def _check(name: str, captions: dict[str, dict[str, np.ndarray]], text: TextConfig) -> None:
    if not captions and text.tokenizer == "train":
        raise ConfigError(
            f"config.data.text.tokenizer='train': {name} was read without captions; name those to read in "
            "data.options.captioner, fill the columns caption_rgb, caption_nir and so on of a manifest, or set "
            "data.text.tokenizer='' to go without"
        )
    train = captions.get("train", {})
    if text.rephrased and (not train or _originals(train).keys() != _rephrased(train).keys()):
        raise ConfigError(
            f"config.data.text.rephrased={text.rephrased}: {name} was read without rephrased training captions; set "
            "data.options.rephrased=True to read them, or data.text.rephrased=0.0"
        )


def _originals(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {m: column for m, column in columns.items() if not m.endswith(REPHRASED)}


def _rephrased(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {m.removesuffix(REPHRASED): column for m, column in columns.items() if m.endswith(REPHRASED)}


def _length(ids: np.ndarray, *rows: np.ndarray) -> int:
    """The length of the longest of these rows of `ids` and the empty caption, which is row 0."""
    return trim(ids[np.unique(np.concatenate([[0], *rows]))]).shape[1]


def _present(by_modality: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"text/{m}": own for m, own in by_modality.items()} | {"text": np.all([*by_modality.values()], axis=0)}
