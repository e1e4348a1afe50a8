"""TVI-LFM (NeurIPS 2024): infrared queries with a caption, visible gallery.

One ResNet with a stem for each modality, GeM pooling, and a BN neck with a classifier that all features share. It is
trained in two stages, each a run of its own:

- "base": images alone. A visible image in a weak and a strong view, and an infrared image; cross-entropy and the
  weighted regularised triplet loss (WRT) over all three.
- "lfm": the visual part is frozen; CLIP's text tower and the neck are fine-tuned. Semantic filtering fusion (SFF,
  `TVILFM.fuse`): fusion = ir + text_rgb - text_ir, where the caption of the infrared image removes what both captions
  contain. Modality joint learning (MJL, `TVILFM._features_with_text`): one cross-entropy and one WRT over visible,
  infrared, fused and text features; without it over visible and fused ones.

At test a vector is the BN feature of an image, a caption or a fusion, at unit length. Modality ensemble retrieval (MER,
the option `ensemble` of `TVILFM.embed`) adds the similarities of fusion, infrared and text. Missing pictures are
blanked in `TVILFM._blanked`. "ir" stands for the infrared modality of the data, which may also be nir or tir. Shapes:
maps [B,h,w,D], features [B,D].
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_mmreid.batch import Batch, DataSpec
from jax_mmreid.config import check_choices
from jax_mmreid.errors import ConfigError
from jax_mmreid.losses.identity import cross_entropy
from jax_mmreid.losses.triplet import in_blocks, weighted_triplet
from jax_mmreid.methods import LossOut, Method
from jax_mmreid.models import towers
from jax_mmreid.models.clip import TextTower
from jax_mmreid.models.heads import GeM, Head
from jax_mmreid.models.resnet import LAYERS, ResNet, ResNetFields
from jax_mmreid.ops import masked
from jax_mmreid.ops.terms import terms_of_sum
from jax_mmreid.state import TrainState

STEMS = ("rgb", "ir")  # names of parameters, whatever the infrared modality is called in the data
RGB_VIEWS = ("rgb", "rgb_strong")
STAGES = ("base", "lfm")
STATISTICS = ("train", "eval")
LOGIT_SCALE = math.log(1 / 0.07)  # of CLIP; no loss uses it, the official checkpoints hold it


@dataclasses.dataclass(frozen=True)
class Config:
    """`config.model`; the published values are in `recipes/tvi_lfm.py`."""

    stage: str  # one of STAGES
    sff: bool  # semantic filtering fusion: subtract the caption of the infrared image
    mjl: bool  # modality joint learning: supervise all five kinds of features
    frozen_bn: str  # of stage lfm: the frozen tower normalises over the batch ("train"), or by its statistics ("eval")
    stem_relu: bool  # the ReLU in ResNet's stem, which the published model does not have
    image: ResNetFields
    text: towers.TextFields
    class_multiple: int  # the axis of identities is filled up to a multiple of this, which devices can share evenly
    mining_blocks: int  # the triplet loss compares rows within so many equal blocks of the batch
    dtype: str  # of convolutions and matrix products, one of towers.DTYPES
    remat: bool  # the towers recompute a block in the backward pass, for less memory


RANGES = towers.RANGES | {r"image\.blocks": "[1, inf)"}


@dataclasses.dataclass(frozen=True)
class TVILFM(Method):
    """The method; see `Config` for the fields that it shares with it."""

    streams: ClassVar = ()
    options: ClassVar = {"neck": ("finetuned", "base"), "ensemble": (False, True)}

    image: ResNet
    pool: GeM
    head: Head
    text: TextTower
    stage: str
    sff: bool
    mjl: bool
    frozen_bn: str
    mining_blocks: int = 1
    infrared: str = "ir"  # the modality beside rgb, as the data call it
    neck: str = "finetuned"  # of evaluation rows: "base" takes the pooling and the neck of stage "base" for images
    ensemble: bool = False  # of evaluation rows: a fused query is ranked by modality ensemble retrieval (MER)

    @property
    def modalities(self) -> tuple[str, str]:
        """Visible and infrared, in the order of STEMS."""
        return ("rgb", self.infrared)

    def init(self, rng: Array, batch: Batch) -> dict:
        image_key, head_key, text_key = jax.random.split(rng, 3)
        example = jnp.zeros((len(batch["index"]), *next(iter(batch["images"].values())).shape[1:]))
        maps, image = self.image.init_with_output(image_key, dict.fromkeys(STEMS, example), train=False)
        feats, pool = self.pool.init_with_output(head_key, maps)
        head = self.head.init(head_key, feats, train=False)
        text = self.text.init(text_key, jnp.zeros((1, self.text.context, self.text.width)), 0)
        params = {"image": image["params"], "pool": pool["params"], "head": head["params"], "text": text["params"]}
        params["logit_scale"] = jnp.float32(LOGIT_SCALE)
        stats = {"image": image["batch_stats"], "head": head["batch_stats"]}
        if self.stage == "lfm":
            params["base"] = {"pool": params["pool"], "head": params["head"]}
            stats["base"] = {"head": stats["head"]}
        return {"params": params, "batch_stats": stats, "memory": {}}

    def begin(self, state: TrainState, batches: Iterable[Batch]) -> TrainState:
        """Stage "lfm" keeps a copy of the pooling, neck and classifier that it starts from, as "base"."""
        if self.stage == "base":
            return state
        params = {part: state.variables["params"][part] for part in ("pool", "head")}
        # Copies, since a step donates the buffers of its state: no buffer may be in it twice.
        params, stats = jax.tree.map(jnp.copy, (params, {"head": state.batch_stats["head"]}))
        frozen, batch_stats = state.frozen | {"base": params}, state.batch_stats | {"base": stats}
        return state.replace(frozen=frozen, batch_stats=batch_stats)

    def loss(self, params: Any, state: TrainState, batch: Batch, rngs: dict[str, Array]) -> LossOut:
        """Cross-entropy on the logits and WRT on the features before the neck, over all rows of the stage."""
        blanked = self._blanked(batch)
        rgb = [blanked[view] for view in RGB_VIEWS if view in blanked]
        maps, image_stats = self._train_maps(params, state, {"rgb": jnp.concatenate(rgb), "ir": blanked[self.infrared]})
        present = batch["present"]
        features = self._image_features if self.stage == "base" else self._features_with_text
        feats, where = zip(*features(params, maps, batch, [present["rgb"]] * len(rgb), present[self.infrared]))
        kinds = feats, batch["label"], where
        label = jnp.tile(batch["label"], len(feats))
        feats, where = jnp.concatenate(feats), jnp.concatenate(where)

        variables = {"params": params["head"], "batch_stats": state.batch_stats["head"]}
        logits, updated = self.head.apply(variables, feats, where, train=True, mutable=["batch_stats"])
        if self.mining_blocks == 1:
            triplet, anchors = weighted_triplet(feats, label, where=where)
        else:
            triplet, anchors = in_blocks(weighted_triplet, self.mining_blocks, *kinds)
        identity = cross_entropy(logits, label, smoothing=0.0, where=where, classes=self.head.classes)
        terms = {"identity": masked.mean(identity, where), "triplet": masked.mean(triplet, anchors)}
        stats = state.batch_stats | {"image": image_stats, "head": updated["batch_stats"]}
        accuracy = masked.mean((logits.argmax(-1) == label).astype(jnp.float32), where)
        return LossOut(terms, {"batch_stats": stats, "memory": {}}, {"accuracy": accuracy})

    def _train_maps(self, params: Any, state: TrainState, images: dict[str, Array]) -> tuple[Array, Any]:
        """Maps of the visible rows, then of the infrared rows, and the new statistics."""
        variables = {"params": params["image"], "batch_stats": state.batch_stats["image"]}
        if self.stage == "lfm":
            # As published, only the parameters are frozen: BatchNorm normalises over the batch and updates its
            # statistics.
            variables["params"] = jax.lax.stop_gradient(variables["params"])
            if self.frozen_bn == "eval":
                return self.image.apply(variables, images, train=False), variables["batch_stats"]
        maps, updated = self.image.apply(variables, images, train=True, mutable=["batch_stats"])
        return maps, updated["batch_stats"]

    def _image_features(self, params: Any, maps: Array, batch: Batch, rgb: list[Array], ir: Array) -> list:
        """Stage "base": (features [B,D], which rows exist [B]) of each visible view and of the infrared image."""
        feats = self.pool.apply({"params": params["pool"]}, maps)
        return list(zip(jnp.split(feats, len(rgb) + 1), [*rgb, ir]))

    def _features_with_text(self, params: Any, maps: Array, batch: Batch, rgb: list[Array], ir: Array) -> list:
        """Stage "lfm": as above, of visible views and the fusion, and with MJL of infrared images and captions too."""
        pooled = self.pool.apply({"params": params["pool"]}, maps)
        *rgb_feats, ir_feats = jnp.split(jax.lax.stop_gradient(pooled), len(rgb) + 1)
        text = self._caption_features(params, batch)
        has_text = jnp.all(jnp.stack([batch["present"][f"text/{m}"] for m in self.modalities]), axis=0)
        # The exponent of the pooling gets a gradient through the fusion only. The recipe trains it without SFF, as the
        # published code does.
        fusion = self.fuse(jnp.split(pooled, len(rgb) + 1)[-1], text)
        rows = [*zip(rgb_feats, rgb), (fusion, ir & has_text)]
        return [*rows, (ir_feats, ir), (text["rgb"], has_text)] if self.mjl else rows

    def _caption_features(self, params: Any, batch: Batch) -> dict[str, Array]:
        """Features [B,D] of the captions by the modality they describe, in one pass of the text tower."""
        captions = {m: ids for m, ids in batch["text"].items() if m in self.modalities}
        ids = jnp.concatenate([captions[name] for name in captions])
        variables = {"params": params["text"]}
        words = self.text.apply(variables, ids, method="embed")
        feats = self.text.apply(variables, words, ids.argmax(axis=1))  # <EOT> is the largest id
        return dict(zip(captions, jnp.split(feats, len(captions))))

    def fuse(self, ir: Array, text: dict[str, Array]) -> Array:
        """The fusion of an infrared feature [B,D] with those of its captions: SFF, or without it the plain sum."""
        return ir + text["rgb"] - text[self.infrared] if self.sff else ir + text["rgb"]

    def encode(self, variables: dict, batch: Batch) -> dict[str, Any]:
        """Features [B,D]: of images by "finetuned" and "base" pooling, and of captions as "text"; {modality: [B,D]}."""
        params, images = variables["params"], self._blanked(batch)
        features = {}
        if images:
            tower = {"params": params["image"], "batch_stats": variables["batch_stats"]["image"]}
            stems = {stem: images[m] for stem, m in zip(STEMS, self.modalities) if m in images}
            maps = self.image.apply(tower, stems, train=False)
            names = [m for m in self.modalities if m in images]
            pools = {"finetuned": params["pool"]} | ({"base": params["base"]["pool"]} if "base" in params else {})
            for name, pool in pools.items():
                features[name] = dict(zip(names, jnp.split(self.pool.apply({"params": pool}, maps), len(names))))
        if "text" in batch:
            features["text"] = self._caption_features(params, batch)
        if not features:
            read = " and ".join(self.modalities)
            raise ConfigError(f"tvi_lfm reads pictures of {read} and captions, and there are none of these to read")
        return features | {"present": batch["present"]}

    def embed(self, variables: dict, features: dict[str, Any], use: tuple[str, ...]) -> Array:
        """Unit vectors [B,D] of an image (("rgb",) or ("ir",)), of the RGB caption ("text",), or of the fusion.

        The fusion is ("ir", "text"). Raises ConfigError for another `use`, for one whose image or caption the split
        does not have, and for text with the neck of stage "base".
        """
        ir = self.infrared
        if use in (("rgb",), (ir,)):
            self._require(features, use, self.neck, use)
            return self._unit(variables, features[self.neck][use[0]])
        if self.neck == "base" or set(use) not in ({"text"}, {"text/rgb"}, {ir, "text"}):
            raise ConfigError(
                f"tvi_lfm has no vector of {'+'.join(use)!r} with neck={self.neck!r}; "
                f"`use` must be rgb, {ir}, text, or {ir} with text, the last two with neck='finetuned'"
            )
        self._require(features, use, "text", self.modalities if ir in use and self.sff else ("rgb",))
        if ir not in use:
            return self._unit(variables, features["text"]["rgb"])
        self._require(features, use, "finetuned", (ir,))
        parts = [self.fuse(features["finetuned"][ir], features["text"])]
        if self.ensemble:
            parts += [features["finetuned"][ir], features["text"]["rgb"]]
        # MER: the dot product with a sum of vectors is the sum of the three similarities.
        return masked.unit(sum(self._unit(variables, x) for x in parts))

    def terms(self, variables: dict, features: dict[str, Any], use: tuple[str, ...]) -> dict[str, Array]:
        """Of a fusion its image, "text/rgb" and, subtracted, "-text/ir"; anything else is one term.

        The neck is affine: with SFF that of the sum is the sum of the necks, without it "neck" subtracts its constant.
        """
        whole, ir = self.embed(variables, features, use), self.infrared
        if set(use) != {ir, "text"}:
            return {"+".join(use): whole}
        image, text = features["finetuned"][ir], features["text"]
        parts = {ir: self._bn_features(variables, image), "text/rgb": self._bn_features(variables, text["rgb"])}
        alone = tuple(parts) if self.ensemble else ()
        last = text[ir] if self.sff else jnp.zeros_like(image)
        parts[f"-text/{ir}" if self.sff else "neck"] = -self._bn_features(variables, last)
        return terms_of_sum(self._bn_features(variables, self.fuse(image, text)), parts, alone)

    def parts(self, variables: dict, features: dict[str, Any], use: tuple[str, ...]) -> tuple[Array, Array]:
        """BN features of visible and infrared images; captions are no part, as they share a space with all images."""
        pictures, some = features.get(self.neck, {}), jax.tree.leaves(features)[0]
        absent = jnp.zeros((len(some), self.image.dim), jnp.float32), jnp.zeros(len(some), bool)
        found = {m: (self._unit(variables, x), features["present"][m]) for m, x in pictures.items() if m in use}
        feats, present = zip(*(found.get(m, absent) for m in self.modalities))
        return jnp.stack(feats, axis=1), jnp.stack(present, axis=1)

    def embed_available(self, variables: dict, features: dict[str, Any], use: tuple[str, ...]) -> Array:
        """The vector of each row's visible image, else by MER of its infrared image and captions, else of what it has.

        All kinds are in one space, so rows that differ in what they have are comparable.
        """
        method, there = dataclasses.replace(self, neck="finetuned", ensemble=True), features["present"]
        ir, captions = self.infrared, ("text/rgb", f"text/{self.infrared}") if self.sff else ("text/rgb",)
        kinds = {("text",): ("text/rgb",), (ir,): (ir,), (ir, "text"): (ir, *captions), ("rgb",): ("rgb",)}
        found = jnp.zeros((len(jax.tree.leaves(features)[0]), self.image.dim), jnp.float32)
        for kind, needs in kinds.items():  # a later kind takes precedence
            if set(needs) <= there.keys() and set(kind) <= set(use):
                has = jnp.all(jnp.stack([there[name] for name in needs]), axis=0)
                found = jnp.where(has[:, None], method.embed(variables, features, kind), found)
        return found

    def _require(self, features: dict, use: tuple[str, ...], kind: str, names: tuple[str, ...]) -> None:
        """Raises ConfigError for features that `use` needs and `encode` did not find in the batch."""
        lacking = [name for name in names if name not in features.get(kind, {})]
        if lacking:
            what = "captions" if kind == "text" else "pictures"
            raise ConfigError(f"tvi_lfm: {'+'.join(use)} needs {what} of {' and '.join(lacking)}, which are not there")

    def _unit(self, variables: dict, feats: Array) -> Array:
        """BN features at unit length: feats [B,D] -> [B,D]."""
        return masked.unit(self._bn_features(variables, feats))

    def _bn_features(self, variables: dict, feats: Array) -> Array:
        params, stats = variables["params"], variables["batch_stats"]
        if self.neck == "base":
            params, stats = params["base"], stats["base"]
        head = {"params": params["head"], "batch_stats": stats["head"]}
        return self.head.apply(head, feats, method="bn_features")

    def _blanked(self, batch: Batch) -> dict[str, Array]:
        """The pictures, with zeros where they are missing; the views of a picture are missing with it."""
        return {
            name: masked.blank(x, batch["present"][name.partition("_")[0]])
            for name, x in batch["images"].items()
            if name.partition("_")[0] in self.modalities
        }


def create(spec: DataSpec, config: Config, tokenize: Callable[[Sequence[str]], np.ndarray] | None = None) -> TVILFM:
    """Builds the method; raises ConfigError for fields that contradict each other or do not fit the data."""
    if len(spec.modalities) != 2 or "rgb" not in spec.modalities:
        raise ConfigError(f"config.data.modalities={tuple(spec.modalities)}: tvi_lfm needs rgb and one of ir, nir, tir")
    (infrared,) = set(spec.modalities) - {"rgb"}
    check_choices(
        ("stage", config.stage, STAGES),
        ("frozen_bn", config.frozen_bn, STATISTICS),
        ("dtype", config.dtype, towers.DTYPES),
        where="config.model.",
    )
    if len(config.image.blocks) != LAYERS:
        raise ConfigError(f"config.model.image.blocks={config.image.blocks}: a ResNet has {LAYERS} layers")
    if config.stage == "lfm" and not set(spec.modalities) <= set(spec.text):
        raise ConfigError(
            f"stage lfm is trained with captions of {' and '.join(spec.modalities)} pictures, and there are captions "
            f"of {' and '.join(spec.text) or 'none'}; set data.text.tokenizer, and data.options.captioner to captions "
            "that the data have, or fill the columns caption_rgb and so on of a manifest"
        )
    towers.check_reader(config.text, "the captions of the data", vocab=spec.vocab, context=spec.text_length)
    towers.check_parts(spec, mining_blocks=config.mining_blocks)
    classes = len(spec.pids)
    common = dict(dtype=jnp.dtype(config.dtype), remat=config.remat)
    image = ResNet(**dataclasses.asdict(config.image), stems=STEMS, stem_relu=config.stem_relu, **common)
    return TVILFM(
        image=image,
        pool=GeM(),
        head=Head(classes, neck_bias=True, fill=-classes % config.class_multiple),
        text=towers.text_tower(config.text, dim=image.dim, dtype=config.dtype, remat=config.remat),
        stage=config.stage,
        sff=config.sff,
        mjl=config.mjl,
        frozen_bn=config.frozen_bn,
        mining_blocks=config.mining_blocks,
        infrared=infrared,
    )
