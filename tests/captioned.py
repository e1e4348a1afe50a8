"""Pictures with captions made by hand, and a method of small numbers: dot products are exact, and ties are many."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from jax_mmreid.batch import has_caption
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import runner
from jax_mmreid.methods import Method
from jax_mmreid.sharding import make_mesh

H, W, L, D = 2, 3, 9, 5
VOCAB = ("!", "red", "blue", "dark", "jacket", "hat", "man", "woman", "a", "in")  # "!" has the id of padding
START, END = len(VOCAB), len(VOCAB) + 1
LEVELS = 4  # brightnesses of a pixel
WORDS = np.random.default_rng(3).integers(-1, 2, (END + 1, D)).astype(np.float32)
WORDS[:, 0] = 1  # no vector is zero
VARIABLES = {"params": {"words": WORDS}}
PLACED = dict(mean=0.0, std=1 / 255)  # pixels as they are


@dataclasses.dataclass(frozen=True)
class Whole(Method):
    """A picture is its first pixels, a caption the sum of its words; the features of what is absent are NaN."""

    init = loss = None  # nothing is trained

    def encode(self, variables, batch):
        pictures = {m: self._picture(x) for m, x in batch["images"].items()}
        features = {m: jnp.where(batch["present"][m][:, None], x, jnp.nan) for m, x in pictures.items()}
        for m, ids in batch.get("text", {}).items():
            words = jnp.where((jnp.arange(ids.shape[1]) < ids.argmax(axis=1)[:, None])[..., None], 1, 0)
            sums = (variables["params"]["words"][ids] * words).sum(axis=1)
            features[f"text/{m}"] = jnp.where(has_caption(ids)[:, None], sums, jnp.nan)
        return features

    def embed(self, variables, features, use):
        (name,) = use
        if name not in features:
            raise ConfigError(f"whole: cannot read {name}")
        return features[name]

    @staticmethod
    def _picture(x):
        return jnp.round(x.reshape(len(x), -1)[:, :D]) - LEVELS // 2 + 0.5


def picture(pixels):
    """The vector of a picture, by definition."""
    return pixels.reshape(-1)[:D].astype(np.float32) - LEVELS // 2 + 0.5


def caption(sentence):
    """The vector of a caption, by definition."""
    return WORDS[[START] + [VOCAB.index(word) for word in sentence.split()]].sum(axis=0)


class Captioned:
    """A `Data` of splits of rows (pictures {modality: pixels or None}, captions {modality: sentence or ""})."""

    modalities = ("rgb", "nir")
    spec = SimpleNamespace(modalities=modalities)

    def __init__(self, rows, batch=8, vocab=END + 1):
        self.splits = {"test": rows} if isinstance(rows, list) else rows
        self.batch, self.vocab, self.read = batch, vocab, Counter()

    def num_rows(self, name):
        if name not in self.splits:
            raise ConfigError(f"data: no split {name!r}; there are {', '.join(self.splits)}")
        return len(self.splits[name])

    def present(self, name):
        rows = self.splits[name] if self.num_rows(name) else []
        present = {m: np.array([pictures.get(m) is not None for pictures, _ in rows]) for m in self.modalities}
        present |= {f"text/{m}": np.array([bool(captions[m]) for _, captions in rows]) for m in rows[0][1]}
        return present | ({"text": np.array([all(captions.values()) for _, captions in rows])} if rows[0][1] else {})

    def columns(self, name):
        return {key: np.zeros(self.num_rows(name), np.int32) for key in ("pid", "camid", "view")}

    def tokenize(self, sentences):
        if not self.vocab:
            raise ConfigError("data: there is no tokenizer")
        ids = np.zeros((len(sentences), L + 2), np.int32)  # captions are shorter, as they are trimmed
        for row, sentence in zip(ids, sentences):
            words = [VOCAB.index(word) for word in sentence.split()]
            row[: len(words) + 2] = START, *words, END
        return ids

    def split(self, name):
        """Batches whose padding has pictures and captions that would be seen in any number."""
        rows = self.splits[name]
        for start in range(0, len(rows), self.batch):
            self.read[name] += 1
            mine = rows[start : start + self.batch]
            pad = self.batch - len(mine)
            filler = np.full((pad, H, W, 3), LEVELS - 1, np.uint8)
            batch = {"images": {}, "present": {}, "text": {}, "valid": np.arange(self.batch) < len(mine)}
            for m in self.modalities:
                pixels = [pictures.get(m) for pictures, _ in mine]
                there = [x is not None for x in pixels] + [True] * pad
                pixels = [np.full((H, W, 3), 255, np.uint8) if x is None else x for x in pixels]
                batch["images"][m] = np.concatenate([np.stack(pixels), filler])
                batch["present"][m] = np.array(there)
            for m in mine[0][1]:
                batch["text"][m] = self.tokenize([captions[m] for _, captions in mine] + ["red"] * pad)[:, :L]
            described = {f"text/{m}": has_caption(ids) for m, ids in batch["text"].items()}
            if described:
                batch["present"] |= described | {"text": np.all(list(described.values()), axis=0)}
            batch["index"] = np.arange(start, start + self.batch, dtype=np.int32)
            yield batch | {name: np.zeros(self.batch, np.int32) for name in ("pid", "camid", "view")}


def draw(seed, rows, sentences, *, absent=0.2, uncaptioned=0.2):
    """Rows of random pictures and captions of both modalities; shares of them are absent, independently."""
    rng = np.random.default_rng(seed)

    def one():
        pixels = rng.integers(0, LEVELS, (H, W, 3)).astype(np.uint8)
        shown = rng.random() >= absent
        return pixels if shown else None, "" if rng.random() < uncaptioned else str(rng.choice(sentences))

    drawn = [{m: one() for m in Captioned.modalities} for _ in range(rows)]
    return [({m: x[0] for m, x in row.items()}, {m: x[1] for m, x in row.items()}) for row in drawn]


def run(data, devices=1, method=None, **rows):
    """Results of rows, checked before."""
    runner.check(rows, data)
    mesh = make_mesh(data=devices, model=1, devices=jax.devices()[:devices])
    variables = jax.device_put(VARIABLES, jax.NamedSharding(mesh, jax.P()))
    with jax.transfer_guard("disallow"):  # as the training loop calls it
        return runner.run(rows, method or Whole(), variables, data, mesh, **PLACED)
