"""TVI-LFM (NeurIPS 2024): infrared queries find visible pictures, helped by what text adds.

One ResNet with a stem for each modality, GeM pooling, and a BN neck with a classifier that all features share. It is
trained in two stages, each a run of its own:

- "base": pictures alone. A visible picture in a weak and a strong view, and an infrared one; cross-entropy and
  weighted triplet over all three.
- "lfm": the visual part stands still; CLIP's text tower and the neck learn. A caption of the visible picture adds to
  the infrared feature, a caption of the infrared picture takes away what both say (`sff`, the semantic filter fusion):
  fusion = ir + text_rgb - text_ir. Joint learning (`mjl`) supervises visible, infrared, fused and text features in one
  classification and one triplet loss; without it, visible and fused ones.

At test every vector is a feature behind the neck, at unit length. `ensemble` adds those of fusion, infrared and text
(the ensemble retrieval). Shapes: maps [B,h,w,D], features [B,D].
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_mmreid.batch import Batch, DataSpec
from jax_mmreid.config import check_choices, check_heads, check_reader
from jax_mmreid.errors import ConfigError
from jax_mmreid.losses.identity import cross_entropy
from jax_mmreid.losses.triplet import weighted_triplet
from jax_mmreid.methods import LossOut
from jax_mmreid.models.clip import TextTower
from jax_mmreid.models.heads import GeM, Head
from jax_mmreid.models.resnet import ResNet
from jax_mmreid.ops import masked
from jax_mmreid.state import TrainState

MODALITIES = ("rgb", "ir")
RGB_VIEWS = ("rgb", "rgb_strong")
STAGES = ("base", "lfm")
STATISTICS = ("train", "eval")
LOGIT_SCALE = math.log(1 / 0.07)  # CLIP's; no loss reads it, the official checkpoints hold it


@dataclasses.dataclass(frozen=True)
class TVILFM:
    """The method; see `create` for what the fields mean."""

    image: ResNet
    pool: GeM
    head: Head
    text: TextTower
    stage: str
    sff: bool
    mjl: bool
    frozen_bn: str
    neck: str = "live"  # an option of evaluation rows: "backup" scores pictures with the pool and neck of stage "base"
    ensemble: bool = False  # an option of evaluation rows: a fused query is the sum of fusion, infrared and text

    def init(self, rng: Array, batch: Batch) -> dict:
        image_key, head_key, text_key = jax.random.split(rng, 3)
        example = jnp.zeros((len(batch["index"]), *next(iter(batch["images"].values())).shape[1:]))
        maps, image = self.image.init_with_output(image_key, dict.fromkeys(MODALITIES, example), train=False)
        feats, pool = self.pool.init_with_output(head_key, maps)
        head = self.head.init(head_key, feats, train=False)
        text = self.text.init(text_key, jnp.zeros((1, self.text.context, self.text.width)), 0)
        params = {"image": image["params"], "pool": pool["params"], "head": head["params"], "text": text["params"]}
        params["logit_scale"] = jnp.float32(LOGIT_SCALE)
        stats = {"image": image["batch_stats"], "head": head["batch_stats"]}
        if self.stage == "lfm":
            params["backup"] = {"pool": params["pool"], "head": params["head"]}
            stats["backup"] = {"head": stats["head"]}
        return {"params": params, "batch_stats": stats, "memory": {}}

    def begin(self, state: TrainState, batches: Iterable[Batch]) -> TrainState:
        """Stage "lfm" keeps a copy of the pool, neck and classifier it begins with."""
        if self.stage == "base":
            return state
        params = {part: state.variables["params"][part] for part in ("pool", "head")}
        # Copies, since the step takes over the memory of the state: no array may stand in it twice.
        params, stats = jax.tree.map(jnp.copy, (params, {"head": state.batch_stats["head"]}))
        frozen, batch_stats = state.frozen | {"backup": params}, state.batch_stats | {"backup": stats}
        return state.replace(frozen=frozen, batch_stats=batch_stats)

    def loss(self, params: Any, state: TrainState, batch: Batch, rngs: dict[str, Array]) -> LossOut:
        blanked = _blanked(batch)
        rgb = [blanked[view] for view in RGB_VIEWS if view in blanked]
        maps, image_stats = self._train_maps(params, state, {"rgb": jnp.concatenate(rgb), "ir": blanked["ir"]})
        present = batch["present"]
        rows = self._rows_of_pictures if self.stage == "base" else self._rows_with_text
        feats, where = zip(*rows(params, maps, batch, [present["rgb"]] * len(rgb), present["ir"]))
        label = jnp.tile(batch["label"], len(feats))
        feats, where = jnp.concatenate(feats), jnp.concatenate(where)

        variables = {"params": params["head"], "batch_stats": state.batch_stats["head"]}
        logits, updated = self.head.apply(variables, feats, where, train=True, mutable=["batch_stats"])
        triplet, anchors = weighted_triplet(feats, label, where=where)
        terms = {
            "identity": masked.mean(cross_entropy(logits, label, smoothing=0.0, where=where), where),
            "triplet": masked.mean(triplet, anchors),
        }
        stats = state.batch_stats | {"image": image_stats, "head": updated["batch_stats"]}
        accuracy = masked.mean((logits.argmax(-1) == label).astype(jnp.float32), where)
        return LossOut(terms, {"batch_stats": stats, "memory": {}}, {"accuracy": accuracy})

    def _train_maps(self, params: Any, state: TrainState, images: dict[str, Array]) -> tuple[Array, Any]:
        """Maps of visible, then infrared rows, and the statistics after them."""
        variables = {"params": params["image"], "batch_stats": state.batch_stats["image"]}
        if self.stage == "lfm":
            # As published, frozen are the parameters: normalisation is over the batch, and its statistics drift.
            variables["params"] = jax.lax.stop_gradient(variables["params"])
            if self.frozen_bn == "eval":
                return self.image.apply(variables, images, train=False), variables["batch_stats"]
        maps, updated = self.image.apply(variables, images, train=True, mutable=["batch_stats"])
        return maps, updated["batch_stats"]

    def _rows_of_pictures(self, params: Any, maps: Array, batch: Batch, rgb: list[Array], ir: Array) -> list:
        """Stage "base": (features [B,D], which exist [B]) of each visible view and of the infrared picture."""
        feats = self.pool.apply({"params": params["pool"]}, maps)
        return list(zip(jnp.split(feats, len(rgb) + 1), [*rgb, ir]))

    def _rows_with_text(self, params: Any, maps: Array, batch: Batch, rgb: list[Array], ir: Array) -> list:
        """Stage "lfm": the same, and of the fused features and texts, as `sff` and `mjl` ask for."""
        pooled = self.pool.apply({"params": params["pool"]}, maps)
        *rgb_feats, ir_feats = jnp.split(jax.lax.stop_gradient(pooled), len(rgb) + 1)
        text, told = self._texts(params, batch), batch["present"]["text"]
        # Its exponent learns through the fused feature alone, where the recipe trains it: without the filter.
        fusion = self._fuse(jnp.split(pooled, len(rgb) + 1)[-1], text)
        rows = [*zip(rgb_feats, rgb), (fusion, ir & told)]
        return [*rows, (ir_feats, ir), (text["rgb"], told)] if self.mjl else rows

    def _texts(self, params: Any, batch: Batch) -> dict[str, Array]:
        """Features [B,D] of the captions by what they describe, all through the tower at once."""
        captions = batch["text"]
        ids = jnp.concatenate([captions[name] for name in captions])
        variables = {"params": params["text"]}
        words = self.text.apply(variables, ids, method="embed")
        # The end is the largest id, so that argmax finds it.
        feats = self.text.apply(variables, words, ids.argmax(axis=1))
        return dict(zip(captions, jnp.split(feats, len(captions))))

    def _fuse(self, ir: Array, text: dict[str, Array]) -> Array:
        return ir + text["rgb"] - text["ir"] if self.sff else ir + text["rgb"]

    def encode(self, variables: dict, batch: Batch) -> dict[str, Any]:
        """ "live" and "backup" {modality: [B,D]} of the pictures, "text" {modality: [B,D]} of their captions."""
        params, images = variables["params"], _blanked(batch)
        features = {}
        if images:
            tower = {"params": params["image"], "batch_stats": variables["batch_stats"]["image"]}
            maps = self.image.apply(tower, images, train=False)
            names = [m for m in MODALITIES if m in images]
            pools = {"live": params["pool"]} | ({"backup": params["backup"]["pool"]} if "backup" in params else {})
            for name, pool in pools.items():
                features[name] = dict(zip(names, jnp.split(self.pool.apply({"params": pool}, maps), len(names))))
        if "text" in batch:
            features["text"] = self._texts(params, batch)
        return features

    def imputer(self, use: tuple[str, ...]) -> None:
        """None: nothing stands in for a missing picture."""

    def embed(self, variables: dict, features: dict[str, Any], use: tuple[str, ...]) -> Array:
        """Unit vectors [B,D] of a picture ("rgb" or "ir"), a caption ("text"), or the fusion ("ir", "text").

        Raises ValueError for another combination, and where the backup is asked for text.
        """
        if use in (("rgb",), ("ir",)):
            return self._unit(variables, features[self.neck][use[0]])
        if self.neck == "backup" or set(use) not in ({"text"}, {"text/rgb"}, {"ir", "text"}):
            raise ValueError(f"tvi_lfm: the {self.neck} neck has no vector of {'+'.join(use)}")
        if "ir" not in use:
            return self._unit(variables, features["text"]["rgb"])
        parts = [self._fuse(features["live"]["ir"], features["text"])]
        if self.ensemble:
            parts += [features["live"]["ir"], features["text"]["rgb"]]
        # Ranking by the unit sum is ranking by the sum of the three scores.
        return masked.unit(sum(self._unit(variables, x) for x in parts))

    def _unit(self, variables: dict, feats: Array) -> Array:
        params, stats = variables["params"], variables["batch_stats"]
        if self.neck == "backup":
            params, stats = params["backup"], stats["backup"]
        head = {"params": params["head"], "batch_stats": stats["head"]}
        return masked.unit(self.head.apply(head, feats, method="bn_features"))

    def published_cost(self, image_size: tuple[int, int]) -> dict[str, int]:
        """Nothing: the publication states no complexity."""
        return {}


def _blanked(batch: Batch) -> dict[str, Array]:
    """The pictures with zeros for those that are absent; views of a picture are absent with it."""
    return {
        name: masked.blank(x, batch["present"][name.partition("_")[0]])
        for name, x in batch["images"].items()
        if name.partition("_")[0] in MODALITIES
    }


def create(
    spec: DataSpec,
    *,
    tokenize: Callable[[Sequence[str]], np.ndarray] | None = None,
    stage: str,
    sff: bool,
    mjl: bool,
    frozen_bn: str,
    stem_relu: bool,
    image: dict,
    text: dict,
    dtype: str,
    remat: bool,
) -> TVILFM:
    """Builds the method from `config.model`; raises ConfigError for settings or data that do not go together.

    stage: base or lfm; sff: subtract what the infrared caption says; mjl: supervise all five kinds of features;
    frozen_bn: in stage lfm, "train" normalises over the batch and lets statistics drift, "eval" keeps them;
    stem_relu: the ReLU that ResNet's stem has and the published model's lacks; image, text: sizes of the towers.
    """
    if set(spec.modalities) != set(MODALITIES):
        raise ConfigError(f"data.modalities={tuple(spec.modalities)}: tvi_lfm takes rgb and ir")
    check_choices(
        ("stage", stage, STAGES), ("frozen_bn", frozen_bn, STATISTICS), ("dtype", dtype, ("float32", "bfloat16"))
    )
    check_heads(text=text)
    if stage == "lfm" and not set(MODALITIES) <= set(spec.text):
        raise ConfigError(
            "stage lfm learns from captions of visible and infrared pictures; "
            "set data.text.tokenizer, and data.options.captioner to captions that the data have"
        )
    check_reader(text, "captions that need", vocab=spec.vocab, context=spec.text_length)
    common = dict(dtype=jnp.dtype(dtype), remat=remat)
    tower = ResNet(**image, stems=MODALITIES, stem_relu=stem_relu, **common)
    return TVILFM(
        image=tower,
        pool=GeM(),
        head=Head(len(spec.pids), neck_bias=True),
        text=TextTower(**text, dim=32 * tower.width, **common),
        stage=stage,
        sff=sff,
        mjl=mjl,
        frozen_bn=frozen_bn,
    )
