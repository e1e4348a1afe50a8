"""Contrastive image-text training (CLIP: Radford et al., 2021; SigLIP: Zhai et al., 2023) on pictures of any modality.

One image tower is shared by all modalities, as in Miss-ReID, and one text tower encodes the captions. A picture and
its caption are a positive pair, whatever the modality. Every other caption of the global batch is a negative, those of
other modalities included, except equal captions of different pictures (`dedup_captions`).

Features of pictures and captions are in one space. At test, "text" stands for the captions that a batch has.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_mmreid.batch import Batch, DataSpec, has_caption
from jax_mmreid.config import check_choices
from jax_mmreid.errors import ConfigError
from jax_mmreid.losses import image_text
from jax_mmreid.methods import LossOut, Method
from jax_mmreid.models import towers
from jax_mmreid.models.clip import TextTower
from jax_mmreid.models.shared_tower import SharedTower
from jax_mmreid.ops import masked
from jax_mmreid.ops.terms import terms_of_sum
from jax_mmreid.state import TrainState

START = {"info_nce": (1 / 0.07, None), "sigmoid": (10.0, -10.0)}  # initial scale and bias, as in the papers
HIGHEST = math.log(100.0)  # of logit_scale: CLIP's bound, for stability


@dataclasses.dataclass(frozen=True)
class Config:
    """`config.model`; the values of the recipe are in `recipes/clip.py`."""

    loss: str  # a key of START
    image: towers.ImageFields
    text: towers.TextFields
    dim: int  # of the space that pictures and captions share
    dedup_captions: bool  # a caption is no negative of another picture that has the same caption
    block: int  # the largest number of captions that the loss compares with at a time
    microbatches: int  # the towers see a training batch in so many parts, for less memory, with the same result
    dtype: str  # one of towers.DTYPES
    remat: bool  # the towers recompute a block in the backward pass, for less memory
    scan: bool  # the towers compile one block for all layers, for a shorter compilation


RANGES = towers.RANGES | {r"block": "[1, inf)"}


@dataclasses.dataclass(frozen=True)
class CLIP(Method):
    """The method; see `Config` for the fields that it shares with it."""

    streams: ClassVar = ()

    tower: SharedTower
    text: TextTower
    loss_kind: str
    dedup_captions: bool
    block: int

    def init(self, rng: Array, batch: Batch) -> dict:
        image_key, text_key = jax.random.split(rng)
        images = jnp.zeros((len(batch["index"]), *next(iter(batch["images"].values())).shape[1:]))
        image, _ = self.tower.init(image_key, images, batch["camid"])
        text = self.text.init(text_key, jnp.zeros((1, self.text.context, self.text.width)), 0)
        params = {"image": image, "text": text["params"]}
        scale, bias = START[self.loss_kind]
        params["logit_scale"] = jnp.float32(math.log(scale))
        if bias is not None:
            params["logit_bias"] = jnp.float32(bias)
        return {"params": params, "batch_stats": {}, "memory": {}}

    def loss(self, params: Any, state: TrainState, batch: Batch, rngs: dict[str, Array]) -> LossOut:
        """The mean contrastive loss of the pairs whose picture is present and whose caption has tokens."""
        names = [m for m in self.tower.modalities if m in batch["images"] and m in batch["text"]]
        # Pairs [B*M] with B outermost, so a batch sharded over devices stays where it is.
        ids = jnp.stack([batch["text"][m] for m in names], axis=1)
        ids = ids.reshape(-1, ids.shape[-1])
        pictures = self.tower.forward(params["image"], batch, names, train=True)
        where = pictures.present.reshape(-1) & has_caption(ids)
        x = pictures.feats.reshape(len(ids), -1)
        read = functools.partial(self._caption_features, params)
        y = towers.in_microbatches(read, ids, self.tower.microbatches)
        scale = jnp.exp(jnp.minimum(params["logit_scale"], HIGHEST))
        options = dict(scale=scale, key=self._keys(ids), where=where, block=self.block)
        scalars = {"scale": scale, "has_caption": where.mean()}
        if self.loss_kind == "sigmoid":
            scalars["bias"] = params["logit_bias"]
            contrast = image_text.sigmoid(x, y, bias=scalars["bias"], **options)
        else:
            contrast = image_text.info_nce(x, y, **options)
        terms = {"contrast": masked.mean(contrast, where)}
        return LossOut(terms, {"batch_stats": {}, "memory": {}}, scalars)

    def _keys(self, ids: Array) -> Array:
        """A key per caption [B,L] -> [B] uint32; captions with the same key are no negatives of each other."""
        if not self.dedup_captions:
            return jnp.arange(len(ids), dtype=jnp.uint32)
        # A hash with random odd weights. Two different captions share a key with probability 2^-32, and then only one
        # negative is lost.
        weights = np.random.Generator(np.random.Philox(0)).integers(2**32, size=ids.shape[-1], dtype=np.uint32) | 1
        mixed = ids.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
        return ((mixed ^ (mixed >> 15)) * weights).sum(axis=-1, dtype=jnp.uint32)

    def encode(self, variables: dict, batch: Batch) -> dict[str, dict[str, Array]]:
        """Each {modality: ...}: "feats" [B,D] and "present" [B] of pictures, "text" and "has_caption" of captions."""
        params, present = variables["params"], batch["present"]
        names = [m for m in self.tower.modalities if m in batch["images"]]
        features = {"feats": {}, "text": {}, "present": {m: present[m] for m in names}, "has_caption": {}}
        if names:
            feats = self.tower.forward(params["image"], batch, names).feats
            features["feats"] = {m: feats[:, i] for i, m in enumerate(names)}
        for m, ids in batch.get("text", {}).items():
            features["text"][m], features["has_caption"][m] = self._caption_features(params, ids), has_caption(ids)
        return features

    def embed(self, variables: dict, features: dict[str, Any], use: tuple[str, ...]) -> Array:
        """The mean of the unit features that each row has of `use`, at unit length: [B,D].

        Pictures and captions may be combined. Raises ConfigError for a `use` of which the split has nothing, and for
        one with a modality that the method does not read.
        """
        return masked.unit(sum(self._blanked(features, use).values()))

    def terms(self, variables: dict, features: dict[str, Any], use: tuple[str, ...]) -> dict[str, Array]:
        """What each picture and each caption, as "text/rgb", adds."""
        parts = self._blanked(features, use)
        return terms_of_sum(sum(parts.values()), parts)

    def _blanked(self, features: dict[str, Any], use: tuple[str, ...]) -> dict[str, Array]:
        """The unit features of `use` by name, each [B,D], zeros in rows that lack them."""
        unknown = [m for m in use if m.partition("/")[0] != "text" and m not in self.tower.modalities]
        kinds = [("feats", "present", m) for m in use if m in features["feats"]]
        kinds += [("text", "has_caption", m) for m in features["text"] if {"text", f"text/{m}"} & set(use)]
        if unknown or not kinds:
            found = [[m for m in self.tower.modalities if m in features[x]] for x in ("feats", "text")]
            pictures, captions = (", ".join(names) or "nothing" for names in found)
            raise ConfigError(
                f"clip has no vector of {'+'.join(use)!r}: there are pictures of {pictures} and captions of {captions}"
            )
        return {
            m if x == "feats" else f"text/{m}": masked.blank(masked.unit(features[x][m]), features[mask][m])
            for x, mask, m in kinds
        }

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.tower.modalities

    def parts(self, variables: dict, features: dict[str, Any], use: tuple[str, ...]) -> tuple[Array, Array]:
        """Unit features of pictures by modality; captions are no part, as they share a space with all pictures."""
        some = next(iter((features["feats"] or features["text"]).values()))
        absent = jnp.zeros_like(some), jnp.zeros(len(some), bool)
        found = {m: (masked.unit(x), features["present"][m]) for m, x in features["feats"].items() if m in use}
        feats, present = zip(*(found.get(m, absent) for m in self.tower.modalities))
        return jnp.stack(feats, axis=1), jnp.stack(present, axis=1)

    def _caption_features(self, params: Any, ids: Array) -> Array:
        """Features [B,D] of captions [B,L], read at their <EOT>, the largest id."""
        variables = {"params": params["text"]}
        return self.text.apply(variables, self.text.apply(variables, ids, method="embed"), ids.argmax(axis=-1))


def create(spec: DataSpec, config: Config, tokenize: Callable[[Sequence[str]], np.ndarray] | None = None) -> CLIP:
    """Builds the method; raises ConfigError for fields that contradict each other or do not fit the data."""
    check_choices(("loss", config.loss, START), ("dtype", config.dtype, towers.DTYPES), where="config.model.")
    if not set(spec.modalities) & set(spec.text):
        raise ConfigError(
            f"clip is trained with captions of {', '.join(spec.modalities)}; "
            "set data.text.tokenizer, and data.options.captioner to captions that the data have"
        )
    towers.check_reader(config.text, "the captions of the data", vocab=spec.vocab, context=spec.text_length)
    towers.check_parts(spec, microbatches=config.microbatches)
    options = dict(dim=config.dim, dtype=config.dtype, remat=config.remat, scan=config.scan)
    image = towers.image_tower(config.image, spec.image_size, project_all=False, **options)
    return CLIP(
        tower=SharedTower(tuple(spec.modalities), image, microbatches=config.microbatches),
        text=towers.text_tower(config.text, **options),
        loss_kind=config.loss,
        dedup_captions=config.dedup_captions,
        block=config.block,
    )
