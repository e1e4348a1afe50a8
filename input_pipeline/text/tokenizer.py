"""Captions to CLIP token ids: <|startoftext|>, byte-level BPE, <|endoftext|>, zeros up to the context.

The vocabulary is CLIP's own, from a folder or the Hugging Face Hub; or the same from an installed package; or a small
one trained on the captions of the dataset. <|endoftext|> is the largest id in all of them, so that argmax finds the end
of a sentence. A caption that contains such a mark is encoded as ordinary text.
"""

import dataclasses
import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import ftfy
import numpy as np

from jax_mmreid import hub
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.paths import on_disk, place, written_on_disk

START, END = "<|startoftext|>", "<|endoftext|>"
_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either holds a vocabulary
_WANTED = ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
_WAYS_OUT = (
    "name a folder with CLIP's tokenizer.json (or vocab.json and merges.txt), a Hub id such as "
    "openai/clip-vit-base-patch16, 'builtin' or 'train'"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Encodes captions as ids 0..vocab-1; made by `open_tokenizer`."""

    vocab: int
    start: int
    end: int  # vocab - 1
    context: int
    _words: Callable[[str], list[int]] = dataclasses.field(repr=False)  # ids of one cleaned caption
    _save: Callable[[str], object] | None = dataclasses.field(default=None, repr=False)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids [n,L] int32, L = `context`; longer captions are cut and still end with the end token."""
        if isinstance(texts, str):
            raise TypeError(f"tokenizer: expected a list of captions, got one: {texts[:40]!r}")
        ids = np.zeros((len(texts), self.context), np.int32)
        for row, text in zip(ids, texts):
            words = self._words(clean(text))[: self.context - 2]
            row[: len(words) + 2] = self.start, *words, self.end
        return ids

    def save(self, folder: str) -> None:
        """Writes a folder that `open_tokenizer` and transformers read; for "builtin" nothing, as it is installed."""
        if self._save is not None:
            with written_on_disk(folder) as local:
                self._save(str(local))


def open_tokenizer(
    source: str, *, context: int = 77, captions: Sequence[str] = (), vocab_size: int = 4096
) -> Tokenizer:
    """Opens the vocabulary that `source` names; a folder of that name is preferred to a Hub id.

    source      a folder with transformers' files of a CLIP tokenizer, or a Hub id of one
                "builtin": CLIP's vocabulary from the package instant-clip-tokenizer
                "train": a byte-level BPE like CLIP's, trained on `captions`, of at most `vocab_size` ids (fewer if no
                pair of symbols is left that occurs twice); the order of the captions does not matter
    context     L, the ids of a caption, start and end included

    Raises ConfigError for a source that does not exist, DataError for a folder, Hub id or captions that cannot be used,
    ValueError for a context below 2 or a vocab_size below 514 (`TextConfig` checks both).
    """
    if context < 2:
        raise ValueError(f"tokenizer: context={context} must be at least 2, the start and the end")
    if source == "builtin":
        return _builtin(context)
    if source == "train":
        return _train([clean(text) for text in captions], vocab_size, context)
    folder = place(source)
    if not folder.is_dir():
        if not hub.is_id(source):
            raise ConfigError(f"config.data.text.tokenizer={source!r}: neither a folder nor a Hub id; {_WAYS_OUT}")
        folder = hub.download(source, _WANTED)
    with on_disk(folder) as local:
        return _load(local, context)


def trim(ids: np.ndarray) -> np.ndarray:
    """ids [n,L] without the columns that are padding in every row; features do not change, as the tower is causal."""
    return ids[:, : ids.argmax(axis=1).max(initial=0) + 1]


def clean(text: str) -> str:
    """OpenAI's cleaning: mojibake and HTML entities undone, single spaces, lower case."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def _builtin(context: int) -> Tokenizer:
    try:
        from instant_clip_tokenizer import Tokenizer as Clip
    except ModuleNotFoundError as error:
        if error.name != "instant_clip_tokenizer":
            raise
        raise ConfigError(
            "config.data.text.tokenizer='builtin': instant-clip-tokenizer is not installed (its wheels are for Python "
            "3.11 and 3.12 on x86-64 and macOS); name a folder, a Hub id as openai/clip-vit-base-patch16, or 'train'"
        ) from error
    clip = Clip()

    def words(text: str) -> list[int]:
        # The space keeps it from reading "<end_of_text>" as its end token; all other ids stay as they are.
        return clip.encode(text.replace("_of_text>", "_of_text >"))

    return Tokenizer(clip.end_of_text() + 1, clip.start_of_text(), clip.end_of_text(), context, words)


def _train(captions: list[str], vocab_size: int, context: int) -> Tokenizer:
    """A vocabulary in the order of CLIP's ids: bytes, bytes at the end of a word, merges, start, end."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, trainers
    from transformers import CLIPTokenizer

    letters = _letters()
    if vocab_size < len(letters) + 2:
        raise ValueError(
            f"tokenizer: vocab_size={vocab_size} is less than {len(letters) + 2}: all bytes, start and end"
        )
    if not any(captions):
        raise DataError("tokenizer: 'train' found no training captions; add captions, or name another tokenizer")
    backend = Backend(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        # As special tokens, letters have fixed ids; otherwise those at word ends come in the order of a hash table,
        # which also breaks ties between merges.
        special_tokens=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    model = json.loads(backend.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    return _wrap(CLIPTokenizer(vocab | {START: len(vocab), END: len(vocab) + 1}, merges), context)


def _load(folder: Path, context: int) -> Tokenizer:
    if not any(all((folder / name).is_file() for name in names) for names in _FILES):
        raise DataError(f"tokenizer: folder {folder} holds no tokenizer; {_WAYS_OUT}")
    from transformers import CLIPTokenizer

    try:
        return _wrap(CLIPTokenizer.from_pretrained(folder, local_files_only=True), context)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise DataError(f"tokenizer: cannot read the one in {folder} ({_reason(error)}); {_WAYS_OUT}") from error


def _wrap(clip, context: int) -> Tokenizer:
    """A transformers CLIPTokenizer as ours; raises ValueError if its vocabulary is not laid out like CLIP's."""
    from tokenizers import Tokenizer as Backend

    # Only the model and its splitting of words: no second cleaning, no special tokens in a caption, no truncation.
    backend = Backend(clip.backend_tokenizer.model)
    backend.pre_tokenizer = clip.backend_tokenizer.pre_tokenizer
    vocab = backend.get_vocab()
    absent = {START, END, *_letters()} - vocab.keys()
    if absent:
        raise ValueError(f"not a CLIP vocabulary, it lacks {min(absent)!r}")
    if vocab[END] != max(vocab.values()):
        raise ValueError(f"{END} is id {vocab[END]}, but must be the largest, {max(vocab.values())}")

    def words(text: str) -> list[int]:
        return backend.encode(text, add_special_tokens=False).ids

    return Tokenizer(vocab[END] + 1, vocab[START], vocab[END], context, words, clip.save_pretrained)


def _letters() -> list[str]:
    """The 256 bytes as BPE writes them, then the same at the end of a word: ids 0..511 of CLIP."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return letters + [letter + "</w>" for letter in letters]


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
