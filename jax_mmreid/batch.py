"""The vocabulary that the data side and the model side share. Imports numpy only.

Axis legend, used in every shape comment of this project:

    B rows of a batch     H W C image         N tokens        D feature width     L text length
    M modalities          K training ids      Q queries       G gallery rows

A batch is a plain dict, a pytree of numpy arrays on the host and of global `jax.Array`s on the devices:

    images   {"rgb": [B,H,W,3], "nir": ..., "tir": ...}   uint8 from the host
    present  {"rgb": [B], ...}                             bool, the keys of `images`, and those of captions, see below
    text     {"rgb": [B,L], "ir": [B,L]}                   int32 token ids of captions, by the modality they describe;
                                                           optional (the largest id ends a caption, see `has_caption`)
    label    [B] int32, 0..K-1                             training batches only
    pid camid view   [B] int32                             the dataset's own numbers
    index    [B] int32                                     row of the split
    valid    [B] bool                                      evaluation batches only: False on padding rows

A *key* missing from `images` says that the split never has that modality; a *False* in `present` says that
this sample lacks it. Pixels of an absent picture mean nothing and are blanked by the method that reads them.

Captions follow the same rule, modality by modality. A key missing from `text` says that no row of the split has a
caption of that modality: a split may have captions of "rgb" only. For every key m of `text` there is
present["text/m"], equal to `has_caption(text[m])`, and present["text"] is True where all of them are: the row has a
caption of every modality in `text`. Code that reads the captions of one modality asks for "text/m", in batches and in
`Data.present` alike, since "text" promises nothing of a modality that the split has no captions of.

Where a training row pairs pictures of one identity (`data.pairs`), pid and label are theirs, and camid, view and index
are of the picture of the first modality.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

Batch = dict


class Share(NamedTuple):
    """The rows of every batch that a process reads: `blocks`, ascending, of its `of` blocks of equally many rows."""

    blocks: tuple[int, ...] = (0,)
    of: int = 1

    def rows(self, total: int) -> np.ndarray:
        """Their numbers in a batch of `total` rows, a multiple of `of`; ascending."""
        return np.arange(total).reshape(self.of, -1)[list(self.blocks)].reshape(-1)


class Modality(NamedTuple):
    """An entry of the table of modalities. The name is also the manifest's column and the key in every batch."""

    letter: str  # in the names of settings: no_r in configs, -R in tables
    drawing: str = ""  # the spectrum in which `input_pipeline.synthetic` draws it; "" if it does not


# Every modality that there is; adding one is adding a line here. "text" stands for captions and is no modality.
MODALITIES = {
    "rgb": Modality("r", "rgb"),
    "nir": Modality("n", "nir"),
    "tir": Modality("t", "tir"),
    "ir": Modality("i", "nir"),  # infrared without further distinction, as SYSU-MM01, RegDB and LLCM have it
}


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a model must know of the data it was trained on. Every workdir holds one, data_spec.json.

    Evaluation, search and export build the model from this alone, on machines without the dataset too.
    """

    name: str  # of the dataset
    fingerprint: str  # changes when the file list, the training captions or the training masks change
    modalities: tuple[str, ...]
    image_size: tuple[int, int]  # H, W
    pids: tuple[int, ...]  # pids[label] is the identity of a training class, ascending
    cameras: tuple[int, ...]  # camera ids seen in training, ascending
    batch_size: int  # rows of a global training batch
    steps_per_epoch: int
    text: tuple[str, ...] = ()  # the modalities that captions of the training split describe, () without captions
    text_length: int = 0  # L of training batches with captions, 0 without; test splits with longer ones have a larger L
    vocab: int = 0  # token ids are 0..vocab-1, 0 without a tokenizer
    resize: tuple[str, str] = ("bicubic", "bilinear")  # Pillow's filters, in training and in evaluation
    range16: tuple[int, int] = (0, 65535)  # what becomes black and white in 16-bit pictures
    mean: float | tuple[float, ...] = 0.5  # pixels in [0, 1] become (x - mean) / std, one number or one a channel
    std: float | tuple[float, ...] = 0.5

    def to_json(self) -> str:
        """The spec as JSON text, which `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DataSpec":
        """Reads what `to_json` wrote; raises ValueError or TypeError for anything else."""
        fields = json.loads(text)
        return cls(**{key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()})

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name the spec."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]


class Data(Protocol):
    """What `input_pipeline.open_data` returns."""

    spec: DataSpec

    def train(self, start: int, stop: int) -> Iterator[Batch]:
        """Training batches of steps start..stop-1; batch t is a pure function of (seed, t)."""

    def split(self, name: str) -> Iterator[Batch]:
        """Every row of a split once, in order, unaugmented; the last batch is padded with `valid` False."""

    def num_rows(self, name: str) -> int:
        """Rows of a split, padding not counted; raises ConfigError for a split that does not exist."""

    def present(self, name: str) -> dict[str, np.ndarray]:
        """Which pictures and captions the rows of a split have, {key: [N] bool}.

        The keys are the modalities of the spec; with captions also "text/m" for every modality m that they describe,
        and "text", True where a row has all of these. Raises ConfigError for a split that does not exist.
        """

    def text_length(self, name: str) -> int:
        """L of the captions of a split, 0 without captions; raises ConfigError for a split that does not exist."""

    def columns(self, name: str) -> dict[str, np.ndarray]:
        """pid, camid and view of the rows of a split as the dataset numbers them, each [N] int32."""

    def pictures(self, name: str, rows: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The pictures of rows [n] of a split, {modality: [n,H,W,3] uint8}, and which exist, {modality: [n] bool}.

        They are those of `split`, zeros where there is none.
        """

    def sentences(self, name: str, rows: np.ndarray) -> dict[str, list[str]]:
        """The captions of rows [n] of a split, {modality that they describe: n strings, "" for none}; {} without."""

    def tokenize(self, sentences: Sequence[str]) -> np.ndarray:
        """Ids [n,L] int32 of sentences as captions get them; raises ConfigError without a tokenizer (vocab 0)."""

    def save_masks(self, path: str) -> None:
        """Writes which training pictures are hidden, and of which file list."""

    def save_tokenizer(self, folder: str) -> None:
        """Writes the vocabulary to a folder that `data.text.tokenizer` may name, unless it needs none."""


def has_caption(ids):
    """Which captions have tokens, [...,L] ids -> [...] bool: in an empty one the end follows the start at once."""
    return ids.argmax(axis=-1) > 1


def one_row(spec: DataSpec, images: Collection[str], text: Collection[str] = (), text_length: int = 2) -> Batch:
    """A blank row with pictures and captions of these modalities, as `Method.encode` gets it: B=1, for shapes."""
    present = {*images, *(f"text/{m}" for m in text), *(["text"] if text else [])}
    batch = {"images": {m: np.zeros((1, *spec.image_size, 3), np.float32) for m in images}}
    batch |= {"text": {m: np.zeros((1, text_length), np.int32) for m in text}} if text else {}
    batch |= {name: np.zeros(1, np.int32) for name in ("pid", "camid", "view", "index")}
    return batch | {"present": {name: np.ones(1, bool) for name in present}, "valid": np.ones(1, bool)}


def check(batch: Batch) -> Batch:
    """Returns `batch` unchanged if it follows the vocabulary above; raises ValueError naming the first fault."""
    images, present, text = batch["images"], batch["present"], batch.get("text", {})
    for key in ("images", "text"):
        if key in batch and not batch[key]:
            raise ValueError(f"batch: {key!r} has no modality")
    named = {*images, *(f"text/{m}" for m in text)} | ({"text"} if text else set())
    if named != set(present):
        raise ValueError(f"batch: there are {sorted(named)} but present has {sorted(present)}")
    rows = len(batch["index"])
    for name, x in images.items():
        if x.ndim != 4 or x.shape[0] != rows or x.shape[-1] != 3:
            raise ValueError(f"batch: images[{name!r}] is {tuple(x.shape)}, expected ({rows}, H, W, 3)")
        if x.dtype != np.uint8:
            raise ValueError(f"batch: images[{name!r}] is {x.dtype}, expected uint8")
    for name, x in text.items():
        L = next(iter(text.values())).shape[-1]
        if x.shape != (rows, L) or x.dtype != np.int32:
            raise ValueError(f"batch: text[{name!r}] is {x.dtype}{tuple(x.shape)}, expected int32({rows}, {L})")
    columns = {f"present[{name!r}]": (x, np.bool_) for name, x in present.items()}
    columns |= {name: (batch[name], np.int32) for name in ("label", "pid", "camid", "view", "index") if name in batch}
    columns |= {"valid": (batch["valid"], np.bool_)} if "valid" in batch else {}
    for name, (x, dtype) in columns.items():
        if x.shape != (rows,) or x.dtype != dtype:
            raise ValueError(f"batch: {name} is {x.dtype}{tuple(x.shape)}, expected {np.dtype(dtype)}({rows},)")
    for name, x in text.items():
        if not np.array_equal(present[f"text/{name}"], has_caption(x)):
            raise ValueError(f"batch: present['text/{name}'] is not has_caption(text[{name!r}])")
    if text and not np.array_equal(present["text"], np.all([present[f"text/{m}"] for m in text], axis=0)):
        raise ValueError("batch: present['text'] is not True exactly where every present['text/<modality>'] is")
    return batch
