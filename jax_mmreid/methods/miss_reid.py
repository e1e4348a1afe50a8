"""Miss-ReID (NeurIPS 2025): re-identification when modalities are missing in training and at test.

One CLIP image tower is shared by all modalities (`models/shared_tower.py`, which blanks missing pictures). Its
projected class token f is the feature (Eq. 1). Three parts use it:

- M-bHIPR (`bhipr`): a prototype per modality and identity, and a contrastive loss towards it (Eq. 2-4,
  `losses/prototypes.py`).
- M-iOSM (`iosm`): queries read one structure vector s from the patch tokens of the present pictures (Eq. 5-7,
  `models/structure.py`).
- L-dMMC (`ldmmc`): s becomes a pseudo-word in a sentence with prompts per modality; the frozen text tower maps it to
  f~, a feature of every modality, which is imputed where a picture is missing (Eq. 8-10, `models/language.py`).

The terms of Eq. 11, each summed over modalities: triplet, identity, nce | structure_triplet, structure_identity |
text_triplet, text_identity, text_nce. Shapes: f and f~ [B,M,D], s [B,S], present [B,M], prototypes [M,K,D].
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_mmreid.batch import Batch, DataSpec
from jax_mmreid.config import check_choices
from jax_mmreid.errors import ConfigError
from jax_mmreid.losses.branch import BranchLoss
from jax_mmreid.losses.prototypes import ORDERS, MemoryFields, Prototypes
from jax_mmreid.methods import LossOut, Method, PublishedPart
from jax_mmreid.models import conv_tower, shared_tower, towers
from jax_mmreid.models.blocks import FILLS, IMPUTATIONS, join, without_text
from jax_mmreid.models.heads import Head, init_heads
from jax_mmreid.models.language import TEMPLATES, InversionFields, Language, create_language
from jax_mmreid.models.structure import StructureFields, StructureQueries, kept_in_training
from jax_mmreid.ops import masked, memory
from jax_mmreid.ops.terms import terms_of_blocks
from jax_mmreid.state import TrainState


@dataclasses.dataclass(frozen=True)
class Config:
    """`config.model`; the published values are in `recipes/miss_reid.py`."""

    backbone: str  # "vit", CLIP's, or "conv", a small convolutional tower with the fields of `conv`
    image: towers.ImageFields
    conv: conv_tower.ConvFields
    text: towers.TextFields
    structure: StructureFields
    inversion: InversionFields
    memory: MemoryFields
    dim: int  # of f, f~ and the prototypes: CLIP's joint space
    bhipr: bool
    iosm: bool
    ldmmc: bool  # needs `iosm`
    tau: float  # temperature of both contrastive losses
    label_smooth: float
    margin: float  # of the triplet losses; negative: soft margin
    triplet_tau: float  # of triplet losses on, and retrieval by, unit features less their mean; 0: on f itself
    shared_head: bool  # f of all modalities share one head and one triplet loss, so that they meet; not published
    class_multiple: int  # the axis of identities is filled up to a multiple of this, which devices can share evenly
    mining_blocks: int  # triplet losses find their pairs within so many equal blocks of the batch
    microbatches: int  # the tower sees a training batch in so many parts, for less memory, with the same result
    sie_camera: bool  # a learned vector per training camera on the class token
    prompts: int  # prompt tokens per modality
    template_kind: str  # one of TEMPLATES
    period: bool  # the sentence ends with one
    text_len: int  # tokens; 0: as long as the sentence; 77: CLIP's whole context, with the same result
    structure_drop: float  # how often a picture is left out of s in training, as if it were missing
    detach_structure: bool  # the text losses do not train s
    part_norm: bool  # the features of the modalities are normalised before they are concatenated
    missing_fill: str  # of rows without text, one of FILLS: zeros, the mean of the others, or that of a grey picture
    dtype: str  # one of towers.DTYPES
    remat: bool  # the towers recompute a block in the backward pass, for less memory
    scan: bool  # the towers compile one block for all layers, for a shorter compilation


RANGES = towers.RANGES | {
    r"conv\.(orientations|width|blocks|group|cell)": "[1, inf)",
    r"(structure\.(queries|width|heads)|inversion\.hidden|prompts)": "[1, inf)",
    r"(inversion\.drop|label_smooth|structure_drop|memory\.alpha)": "[0, 1)",
    r"tau": "(0, inf)",
    r"triplet_tau": "[0, inf)",
    r"margin": "[-1, inf)",
    r"text_len": "[0, inf)",
}


@dataclasses.dataclass(frozen=True)
class MissReID(Method):
    """The method; `structure`, `language` and `prototypes` are None in rows without them."""

    streams: ClassVar = ("dropout", "structure")
    options: ClassVar = {"text_terms": (False, True), "imputation": IMPUTATIONS}

    config: Config
    tower: shared_tower.SharedTower
    head: Head
    structure: StructureQueries | None
    language: Language | None
    prototypes: Prototypes | None
    text_terms: bool = True  # of phases: the text losses are computed, and f~ is imputed
    # Of evaluation rows, what stands in for missing pictures: "text", f~; "zero", zeros; "alone", f~, and zeros for f.
    imputation: str = "text"

    def init(self, rng: Array, batch: Batch) -> dict:
        image_key, structure_key, language_key, head_key = jax.random.split(rng, 4)
        images = jnp.zeros((len(batch["index"]), *next(iter(batch["images"].values())).shape[1:]))
        image, tokens = self.tower.init(image_key, images, batch["camid"])
        params = {"image": image}
        widths = dict.fromkeys(self._heads, self.config.dim)
        if self.structure:
            (s, _), structure = self.structure.init_with_output(structure_key, tokens)
            params["structure"] = structure["params"]
            widths["structure"] = s.shape[-1]
        if self.language:
            params |= self.language.init(language_key, s)
            widths |= {f"text_{name}": self.config.dim for name in self.modalities}
        params["heads"], stats = init_heads(self.head, head_key, widths)
        sizes = len(self.modalities), self.head.classes + self.head.fill, self.config.dim
        bank = self.prototypes.init(*sizes) if self.prototypes else {}
        return {"params": params, "batch_stats": {"heads": stats}, "memory": bank}

    def begin(self, state: TrainState, batches: Iterable[Batch]) -> TrainState:
        """Fills the prototypes with the mean unit feature of each identity in each modality (Eq. 2)."""
        if not state.memory:
            return state

        @functools.partial(jax.jit, donate_argnums=(1, 2))
        def add(params, sums, counts, batch):
            present, _, feats = self.tower.forward_all(params["image"], batch)
            return memory.accumulate(sums, counts, feats, batch["label"], present & batch["valid"][:, None])

        params = state.variables["params"]
        bank = state.memory
        sums, counts = jnp.zeros_like(bank["proto"]), jnp.zeros_like(bank["has_visual"], jnp.int32)  # on its devices
        for batch in batches:
            sums, counts = add(params, sums, counts, batch)
        proto, has_visual = memory.finalize(sums, counts)
        return state.replace(memory=bank | {"proto": proto, "has_visual": has_visual})

    def loss(self, params: Any, state: TrainState, batch: Batch, rngs: dict[str, Array]) -> LossOut:
        """The terms of Eq. 11 whose parts the row of Table 1 has."""
        label, config = batch["label"], self.config
        losses = BranchLoss.create(self.head, config)
        present, patches, feats = self.tower.forward_all(params["image"], batch, train=True)
        some = present.any(axis=1)
        rows = [x.reshape(-1, len(self._heads), *x.shape[2:]) for x in (feats, present)]
        labels = jnp.repeat(label, len(self.modalities) // len(self._heads))
        found = losses(params["heads"], state.batch_stats["heads"], self._heads, *rows, labels)
        terms, accuracy = found.terms(""), found.accuracy
        text = None
        if self.structure:
            kept = kept_in_training(present, rngs.get("structure"), config.structure_drop)
            s = masked.mean(self._attend(params, patches)[0], kept[..., None], axis=1)  # Eq. 7
            rows = s[:, None], some[:, None], label
            found = losses(params["heads"], found.stats, ("structure",), *rows)
            terms |= found.terms("structure_")
            if self.language and self.text_terms:
                source = jax.lax.stop_gradient(s) if config.detach_structure else s
                text = self.language.forward_text(params, source, rngs["dropout"])
                where = jnp.broadcast_to(some[:, None], present.shape)
                names = tuple(f"text_{m}" for m in self.modalities)
                found = losses(params["heads"], found.stats, names, text, where, label)
                terms |= found.terms("text_")

        bank = state.memory
        if self.prototypes:
            new, bank = self.prototypes.terms(bank, state.step, label, feats, present, text)
            terms |= new
        scalars = {"accuracy": accuracy, "present": present.mean()}
        return LossOut(terms, {"batch_stats": {"heads": found.stats}, "memory": bank}, scalars)

    def encode(self, variables: dict, batch: Batch) -> dict[str, Array]:
        """present [B,M], feats [B,M,D], and for imputation structure [B,M,S] or blank [B,D]."""
        if not set(self.modalities) & set(batch["images"]):
            raise ConfigError(
                f"miss_reid reads pictures of {', '.join(self.modalities)}, and there are none of these; "
                "name one that the split has in `use`"
            )
        params = variables["params"]
        present, patches, feats = self.tower.forward_all(params["image"], batch)
        if self.config.triplet_tau:
            heads = variables["batch_stats"]["heads"]
            feats -= jnp.stack([heads[name]["neck"]["mean"] for name in self._heads])
        features = {"present": present, "feats": feats}
        if self._imputes:
            features["structure"] = self._attend(params, patches)[0]
        elif self.config.missing_fill == "encode_zero_image":
            features["blank"] = self.tower.blank_feats(params["image"], batch)
        return features

    def imputer(self, use: tuple[str, ...]) -> "MissReID | None":
        """Itself with the imputation "text" where f~ of missing modalities is all that `embed` needs."""
        self._used(use)
        if not self._imputes:
            return None
        # With every modality in use, "alone" needs f~ of samples that lack nothing too.
        return self if set(self.modalities) <= set(use) else dataclasses.replace(self, imputation="text")

    def impute(self, variables: dict, features: dict[str, Array], used: Array) -> dict[str, Array]:
        """The features and text [B,M,D], f~ of the modalities that `embed` needs it of, zeros of the others (Eq. 9)."""
        s = masked.mean(features["structure"], (features["present"] & used)[..., None], axis=1)
        needed = self._filled(features["present"] & used).any(axis=0)
        return features | {"text": self.language.impute(variables["params"], s, needed)}

    def embed(self, variables: dict, features: dict[str, Array], use: tuple[str, ...]) -> Array:
        """f of the used modalities and what is imputed of the others, concatenated and normalised: [B,M*D].

        With the imputation "alone" f~ of the others and zeros for f; for a sample that lacks nothing, f~ of all. Raises
        ConfigError for a `use` with anything but the method's modalities, captions included.
        """
        used = self._used(use)
        parts, available = features["feats"], features["present"] & used
        filled = self._filled(available)
        if self._imputes:
            fill = (features if "text" in features else self.impute(variables, features, used))["text"]
            parts = jnp.zeros_like(parts) if self.imputation == "alone" else parts
        else:
            fill = without_text(self.config.missing_fill, parts, available, features.get("blank"))
        return join(jnp.where(filled[..., None], fill, parts), normalise=self.config.part_norm)

    def terms(self, variables: dict, features: dict[str, Array], use: tuple[str, ...]) -> dict[str, Array]:
        """The block of every modality, "rgb" where it is f of a picture and "imputed rgb" where it is not."""
        imputed = self._filled(features["present"] & self._used(use))
        return terms_of_blocks(self.embed(variables, features, use), self.modalities, imputed)

    def parts(self, variables: dict, features: dict[str, Array], use: tuple[str, ...]) -> tuple[Array, Array]:
        """f of every modality, and which are used and present; nothing is imputed."""
        feats = masked.unit(features["feats"]) if self.config.part_norm else features["feats"]
        return feats, features["present"] & self._used(use)

    def attention(self, variables: dict, batch: Batch) -> Array | None:
        """Where each structure query looks (Eq. 6), by cells of the grid of patch tokens; None without `iosm`."""
        if not self.structure:
            return None
        params, patch = variables["params"], self.tower.image.patch
        H, W, _ = next(iter(batch["images"].values())).shape[1:]
        found = self._attend(params, self.tower.forward_all(params["image"], batch).patches)[1]
        return found.reshape(*found.shape[:-1], H // patch, W // patch)

    def published_parts(self, image_size: tuple[int, int]) -> dict[str, PublishedPart]:
        """Table 1: every modality through every part that works at test, sentences of CLIP's whole context.

        Rows B-D are printed with the figures of row A: their memory and structure queries only train.
        """
        if self.config.backbone != "vit":
            return {}
        count, image = len(self.modalities), self.tower.image
        parts = {"image": PublishedPart(image, count, image_size)}
        if not self.language:
            return parts | {f"heads/{name}": PublishedPart() for name in self.modalities}
        tokens = (image_size[0] // image.patch) * (image_size[1] // image.patch)
        width = image.dim if image.project_all else image.width
        return parts | {
            "structure": PublishedPart(self.structure, count, (tokens, width)),
            "inversion": PublishedPart(self.language.inversion, 1, (self.structure.width,)),
            "text": PublishedPart(self.language.text, count, (self.language.text.context,)),
            "prompts": PublishedPart(),
            "heads": PublishedPart(),
        }

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.tower.modalities

    @property
    def _heads(self) -> tuple[str, ...]:
        """The heads of f: one for each modality, or one that all share."""
        return ("shared",) if self.config.shared_head else self.modalities

    @property
    def _imputes(self) -> bool:
        return self.language is not None and self.text_terms and self.imputation != "zero"

    def _filled(self, available: Array) -> Array:
        """Where a sample with these pictures gets an imputed feature: available [B,M] -> [B,M]."""
        if self._imputes and self.imputation == "alone":
            available &= ~available.all(axis=1, keepdims=True)
        return ~available

    def _attend(self, params: Any, patches: Array) -> tuple[Array, Array]:
        """Of patches [B,M,N,S] the structure vectors [B,M,S] and the attention [B,M,queries,heads,N]."""
        found = self.structure.apply({"params": params["structure"]}, patches.reshape(-1, *patches.shape[2:]))
        return tuple(x.reshape(*patches.shape[:2], *x.shape[1:]) for x in found)

    def _used(self, use: tuple[str, ...]) -> np.ndarray:
        """Which modalities are in `use`, [M] bool; raises ConfigError for one that is none of these, and for none."""
        if not use or not set(use) <= set(self.modalities):
            raise ConfigError(
                f"miss_reid has no vector of {'+'.join(use)!r}: `use` must name some of "
                f"{', '.join(self.modalities)}; the method reads no captions"
            )
        return np.array([m in use for m in self.modalities])


def create(spec: DataSpec, config: Config, tokenize: Callable[[Sequence[str]], np.ndarray] | None = None) -> MissReID:
    """Builds the method; raises ConfigError for fields that contradict each other or do not fit the data."""
    if config.ldmmc and (config.triplet_tau or not config.iosm):
        raise ConfigError("config.model.ldmmc=True needs iosm=True, which makes the pseudo-word, and triplet_tau=0")
    check_choices(
        ("structure.tokens", config.structure.tokens, ("pre_proj", "proj")),
        ("memory.update", config.memory.update, memory.UPDATES),
        ("memory.order", config.memory.order, ORDERS),
        ("missing_fill", config.missing_fill, FILLS),
        ("template_kind", config.template_kind, TEMPLATES),
        ("dtype", config.dtype, towers.DTYPES),
        where="config.model.",
    )
    towers.check_heads("structure", config.structure.width, config.structure.heads)
    text = towers.text_tower(config.text, dim=config.dim, dtype=config.dtype, remat=config.remat, scan=config.scan)
    queries = {key: x for key, x in dataclasses.asdict(config.structure).items() if key != "tokens"}
    towers.check_parts(spec, mining_blocks=config.mining_blocks)
    classes, language, prototypes = len(spec.pids), None, None
    if config.ldmmc:
        language = create_language(spec, config, text, tokenize)
    if config.bhipr or (config.ldmmc and config.memory.passive):
        prototypes = Prototypes(config.memory, config.tau, spec.steps_per_epoch, visual=config.bhipr)
    return MissReID(
        config=config,
        tower=shared_tower.create(spec, config, project_all=config.iosm and config.structure.tokens == "proj"),
        head=Head(classes, fill=-classes % config.class_multiple),
        structure=StructureQueries(**queries) if config.iosm else None,
        language=language,
        prototypes=prototypes,
    )
