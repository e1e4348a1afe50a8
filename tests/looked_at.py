"""Data and a method so small that every picture of a report can be computed again with a loop."""

import dataclasses
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_mmreid.batch import has_caption
from jax_mmreid.evaluators.encoder import Encoder
from jax_mmreid.evaluators.retrieval import Retrieval
from jax_mmreid.methods import Method
from jax_mmreid.metrics import galleries
from jax_mmreid.ops import masked
from jax_mmreid.report.subject import Subject
from jax_mmreid.sharding import make_mesh

MODALITIES = ("rgb", "tir")
H, W, L, D = 8, 6, 4, 5
MEAN, STD = (0.4, 0.5, 0.6), (0.5, 0.25, 0.3)


@dataclasses.dataclass(frozen=True)
class Linear(Method):
    """A vector is a sum over the pixels of what a row shows and the tokens of its caption; `unit` scales it."""

    modalities: ClassVar = MODALITIES
    options: ClassVar = {"unit": (False, True)}
    init = loss = None  # nothing is trained
    unit: bool = True

    def encode(self, variables, batch):
        rows = len(batch["index"])
        parts = [
            batch["images"][m].reshape(rows, -1) @ variables["params"][m]
            if m in batch["images"]
            else jnp.zeros((rows, D))
            for m in MODALITIES
        ]
        there = [batch["present"].get(m, jnp.zeros(rows, bool)) for m in MODALITIES]
        text = batch["text"]["rgb"] @ variables["params"]["words"] if "text" in batch else jnp.zeros((rows, D))
        return {"parts": jnp.stack(parts, axis=1), "present": jnp.stack(there, axis=1), "text": text}

    def embed(self, variables, features, use):
        parts, present = self.parts(variables, features, use)
        found = jnp.where(present[..., None], parts, 0).sum(axis=1) + (features["text"] if "text" in use else 0)
        return masked.unit(found) if self.unit else found

    def parts(self, variables, features, use):
        return features["parts"], features["present"] & jnp.array([m in use for m in MODALITIES])


class Looking(Linear):
    """One that looks at the brightness of each cell of 2 by 2 pixels, with two queries and three heads."""

    def attention(self, variables, batch):
        absent = jnp.zeros((len(batch["index"]), H, W, 3))
        x = jnp.stack([batch["images"].get(m, absent) for m in MODALITIES], axis=1).mean(axis=-1)
        x = x.reshape(*x.shape[:2], H // 2, 2, W // 2, 2).mean(axis=(3, 5))
        scale = jnp.arange(6, dtype=jnp.float32).reshape(2, 3, 1, 1)
        return jax.nn.softmax(scale * x[:, :, None, None], axis=(-2, -1))


class Data:
    """Splits "query", some of whose rows lack a picture or a caption, and "gallery", without captions."""

    spec = SimpleNamespace(modalities=MODALITIES, image_size=(H, W))

    def __init__(self, identities=4, rows=(11, 13), noise=2.0, seed=0):
        rng = np.random.default_rng(seed)
        centers = rng.normal(0, 1, (identities, len(MODALITIES), H, W, 3))
        self.tables, self.images, self.there = {}, {}, {}
        for split, n in zip(("query", "gallery"), rows):
            label = np.arange(n) % identities
            pid, camid = (10 + 3 * label).astype(np.int32), rng.integers(1, 4, n).astype(np.int32)
            self.tables[split] = {"pid": pid, "camid": camid, "view": camid}
            x = centers[label] + rng.normal(0, noise, (n, *centers.shape[1:]))
            x = np.clip(127 + 30 * x, 0, 255).astype(np.uint8)
            self.images[split] = {m: x[:, i] for i, m in enumerate(MODALITIES)}
            lacks = np.arange(n) % 5
            self.there[split] = {"rgb": lacks != 3, "tir": lacks != 4}
        tokens = rng.integers(0, 50, (rows[0], L)).astype(np.int32)
        tokens[:, -1] = 99  # the end of a caption
        tokens[2, :2] = 98, 99  # the end follows the start: no caption
        self.tokens = {"rgb": tokens}

    def num_rows(self, split):
        return len(self.tables[split]["pid"])

    def text_length(self, split):
        return L if split == "query" else 0

    def present(self, split):
        captions = has_caption(self.tokens["rgb"])
        return self.there[split] | ({"text/rgb": captions, "text": captions} if split == "query" else {})

    def columns(self, split):
        return self.tables[split]

    def pictures(self, split, rows):
        return tuple({m: x[rows] for m, x in found[split].items()} for found in (self.images, self.there))

    def split(self, split, size=8):
        for start in range(0, self.num_rows(split), size):
            rows = np.minimum(np.arange(start, start + size), self.num_rows(split) - 1).astype(np.int32)
            images, _ = self.pictures(split, rows)
            batch = {"images": images, "present": {key: x[rows] for key, x in self.present(split).items()}}
            batch |= {"index": rows, "valid": np.arange(start, start + size) == rows}
            batch |= {key: x[rows] for key, x in self.columns(split).items()}
            yield batch | ({"text": {m: x[rows] for m, x in self.tokens.items()}} if split == "query" else {})

    def draw(self, trial=0, **options):
        return galleries.draw(self.columns("gallery"), **options, trial=trial)


def variables(seed=1):
    rng = np.random.default_rng(seed)
    weights = {m: rng.normal(0, 0.1, (H * W * 3, D)).astype(np.float32) for m in MODALITIES}
    return {"params": weights | {"words": rng.normal(0, 0.02, (L, D)).astype(np.float32)}}


def row(query=MODALITIES, gallery=MODALITIES, **more):
    sides = dict(query=dict(split="query", use=query), gallery=dict(split="gallery", use=gallery))
    return sides | dict(junk="same_camera", incomplete="skip") | more


def subject(rows, data=None, method=None, seed=0):
    """A `Subject` of these rows, which its data allow."""
    data, method = data or Data(), method or Linear()
    mesh = make_mesh(data=1, model=1, devices=jax.devices()[:1])
    own = variables()
    for one in rows.values():
        Retrieval(one).check(data)
    uses = [use for one in rows.values() for use in Retrieval(one).uses()]
    encoder = Encoder(method, own, data, mesh, mean=MEAN, std=STD, uses=uses)
    return Subject(method, own, data, mesh, MEAN, STD, rows, encoder, seed)


def normalised(images):
    return (images / 255 - np.array(MEAN)) / np.array(STD)


def vectors(data, split, use, *, unit=True):
    """The vectors of all rows of a split by the definition, in float64; of a row without what is used zeros."""
    weights, present = variables()["params"], data.present(split)
    found = np.zeros((data.num_rows(split), D))
    for m in set(use) & {*MODALITIES}:
        found += present[m][:, None] * (normalised(data.images[split][m]).reshape(len(found), -1) @ weights[m])
    if "text" in use:
        found += data.tokens["rgb"] @ weights["words"]
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9) if unit else found
