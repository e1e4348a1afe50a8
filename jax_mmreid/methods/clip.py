"""Contrastive image-text training (CLIP: Radford et al., 2021; SigLIP: Zhai et al., 2023) on pictures of any modality.

One image tower is shared by all modalities, as in Miss-ReID, and one text tower reads what is said of each picture.
A picture and its caption are a pair, whatever the modality; every other caption of the global batch is a negative,
other modalities' included, except a twin: the same words said of another picture (`dedup_captions`).

Features of pictures and captions share a space. At test, "text" is the captions that a batch has.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_mmreid.batch import Batch, DataSpec, has_caption
from jax_mmreid.config import check_choices, check_heads, check_reader
from jax_mmreid.errors import ConfigError
from jax_mmreid.losses import image_text
from jax_mmreid.methods import LossOut
from jax_mmreid.models.clip import ImageTower, TextTower
from jax_mmreid.ops import masked
from jax_mmreid.state import TrainState

START = {"info_nce": (1 / 0.07, None), "sigmoid": (10.0, -10.0)}  # scale and bias, as the papers begin
HIGHEST = math.log(100.0)  # of logit_scale: CLIP's bound, against instability


@dataclasses.dataclass(frozen=True)
class CLIP:
    """The method; see `create` for what the fields mean."""

    modalities: tuple[str, ...]
    image: ImageTower
    text: TextTower
    loss_kind: str
    dedup_captions: bool
    block: int

    def init(self, rng: Array, batch: Batch) -> dict:
        image_key, text_key = jax.random.split(rng)
        images = jnp.zeros((len(batch["index"]), *next(iter(batch["images"].values())).shape[1:]))
        params = {
            "image": self.image.init(image_key, images)["params"],
            "text": self.text.init(text_key, jnp.zeros((1, self.text.context, self.text.width)), 0)["params"],
        }
        scale, bias = START[self.loss_kind]
        params["logit_scale"] = jnp.float32(math.log(scale))
        if bias is not None:
            params["logit_bias"] = jnp.float32(bias)
        return {"params": params, "batch_stats": {}, "memory": {}}

    def begin(self, state: TrainState, batches: Iterable[Batch]) -> TrainState:
        """Nothing to prepare."""
        return state

    def loss(self, params: Any, state: TrainState, batch: Batch, rngs: dict[str, Array]) -> LossOut:
        names = [m for m in self.modalities if m in batch["images"] and m in batch["text"]]
        # Pairs [B*M] with B outermost, so a batch sharded over devices stays where it is.
        ids = jnp.stack([batch["text"][m] for m in names], axis=1)
        ids = ids.reshape(-1, ids.shape[-1])
        where = jnp.stack([batch["present"][m] for m in names], axis=1).reshape(-1) & has_caption(ids)
        x = self._pictures(params, batch, names).reshape(len(ids), -1)
        y = self._sentences(params, ids)
        scale = jnp.exp(jnp.minimum(params["logit_scale"], HIGHEST))
        options = dict(scale=scale, key=self._keys(ids), where=where, block=self.block)
        scalars = {"scale": scale, "described": where.mean()}
        if self.loss_kind == "sigmoid":
            scalars["bias"] = params["logit_bias"]
            contrast = image_text.sigmoid(x, y, bias=scalars["bias"], **options)
        else:
            contrast = image_text.info_nce(x, y, **options)
        terms = {"contrast": masked.mean(contrast, where)}
        return LossOut(terms, {"batch_stats": {}, "memory": {}}, scalars)

    def _keys(self, ids: Array) -> Array:
        """A number for each caption [B,L] -> [B] uint32, alike for those that are no negatives of each other."""
        if not self.dedup_captions:
            return jnp.arange(len(ids), dtype=jnp.uint32)
        # Random odd weights: two captions that differ share a hash once in 2^32 times, which costs one negative.
        weights = np.random.Generator(np.random.Philox(0)).integers(2**32, size=ids.shape[-1], dtype=np.uint32) | 1
        mixed = ids.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
        return ((mixed ^ (mixed >> 15)) * weights).sum(axis=-1, dtype=jnp.uint32)

    def encode(self, variables: dict, batch: Batch) -> dict[str, dict[str, Array]]:
        """ "feats" {modality: [B,D]} of pictures and "there" {modality: [B]}; "text" and "said" of captions alike."""
        params, present = variables["params"], batch["present"]
        features = {"feats": {}, "text": {}, "there": {m: present[m] for m in batch["images"]}, "said": {}}
        names = [m for m in self.modalities if m in batch["images"]]
        if names:
            feats = self._pictures(params, batch, names)
            features["feats"] = {m: feats[:, i] for i, m in enumerate(names)}
        for m, ids in batch.get("text", {}).items():
            features["text"][m], features["said"][m] = self._sentences(params, ids), has_caption(ids)
        return features

    def imputer(self, use: tuple[str, ...]) -> None:
        """None: nothing stands in for a missing picture."""

    def embed(self, variables: dict, features: dict[str, Any], use: tuple[str, ...]) -> Array:
        """The mean of unit features of what each row has of `use`, at unit length: [B,D].

        Pictures and "text" live in one space, so any of them go together. Raises ValueError where there is none.
        """
        kinds = [("feats", "there", m) for m in use if m in features["feats"]]
        kinds += [("text", "said", m) for m in features["text"] if {"text", f"text/{m}"} & set(use)]
        if not kinds:
            raise ValueError(f"clip: the split has none of {'+'.join(use)}")
        parts = [masked.blank(masked.unit(features[x][m]), features[mask][m]) for x, mask, m in kinds]
        return masked.unit(sum(parts))

    def published_cost(self, image_size: tuple[int, int]) -> dict[str, int]:
        """Nothing: the publications count otherwise."""
        return {}

    def _pictures(self, params: Any, batch: Batch, names: list[str]) -> Array:
        """Features [B,M,D] of the named modalities; absent pictures are blanked here, once."""
        images = jnp.stack([masked.blank(batch["images"][m], batch["present"][m]) for m in names], axis=1)
        _, projected = self.image.apply({"params": params["image"]}, images.reshape(-1, *images.shape[2:]))
        return projected[:, 0].reshape(*images.shape[:2], -1)

    def _sentences(self, params: Any, ids: Array) -> Array:
        """Features [B,D] of captions [B,L]; the end is the largest id, so that argmax finds it."""
        variables = {"params": params["text"]}
        return self.text.apply(variables, self.text.apply(variables, ids, method="embed"), ids.argmax(axis=-1))


def create(
    spec: DataSpec,
    *,
    tokenize: Callable[[Sequence[str]], np.ndarray] | None = None,
    image: dict,
    text: dict,
    dim: int,
    loss: str,
    dedup_captions: bool,
    block: int,
    dtype: str,
    remat: bool,
    scan: bool,
) -> CLIP:
    """Builds the method from `config.model`; raises ConfigError for settings or data that do not go together.

    image, text: sizes of the towers; dim: of the space they share; loss: info_nce or sigmoid; dedup_captions: a caption is no
    negative of another picture with the same one; block: how many captions the loss compares with at a time.
    """
    check_choices(("loss", loss, START), ("dtype", dtype, ("float32", "bfloat16")))
    check_heads(image=image, text=text)
    if not set(spec.modalities) & set(spec.text):
        raise ConfigError(
            f"clip learns from captions of {', '.join(spec.modalities)}; "
            "set data.text.tokenizer, and data.options.captioner to captions that the data have"
        )
    check_reader(text, "captions that need", vocab=spec.vocab, context=spec.text_length)
    common = dict(dim=dim, dtype=jnp.dtype(dtype), remat=remat, scan=scan)
    return CLIP(
        modalities=tuple(spec.modalities),
        image=ImageTower(**image, **common, project_all=False),
        text=TextTower(**text, **common),
        loss_kind=loss,
        dedup_captions=dedup_captions,
        block=block,
    )
