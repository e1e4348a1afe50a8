"""Miss-ReID (NeurIPS 2025): re-identification when modalities are missing in training and at test.

One CLIP image tower is shared by all modalities. Its projected class token f is the feature. Three parts stand on it:

- M-bHIPR (`bhipr`): a prototype per modality and identity, and a contrastive loss towards it (Eq. 2-4).
- M-iOSM (`iosm`): queries read one structure vector s from the patch tokens of the present pictures (Eq. 5-7).
- L-dMMC (`ldmmc`): s becomes a pseudo-word in a sentence with prompts per modality; the frozen text tower turns it
  into f~, a feature for every modality, which stands in for f where a picture is missing (Eq. 8-10).

The terms of Eq. 11, each summed over modalities: triplet, identity, nce | structure_triplet, structure_identity |
text_triplet, text_identity, text_nce. Shapes: f and f~ [B,M,D], s [B,S], present [B,M], prototypes [M,K,D].
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_mmreid.batch import Batch, DataSpec
from jax_mmreid.config import check_choices, check_heads, check_reader
from jax_mmreid.cost import published
from jax_mmreid.errors import ConfigError
from jax_mmreid.losses.contrastive import prototype_nce
from jax_mmreid.losses.identity import cross_entropy
from jax_mmreid.losses.triplet import batch_hard_triplet
from jax_mmreid.methods import LossOut
from jax_mmreid.models.clip import ImageTower, TextTower
from jax_mmreid.models.heads import Head
from jax_mmreid.models.language import TEMPLATES, Inversion, Language, template
from jax_mmreid.models.structure import StructureQueries
from jax_mmreid.ops import masked, memory
from jax_mmreid.ops.memory import UPDATES
from jax_mmreid.state import TrainState


@dataclasses.dataclass(frozen=True)
class MissReID:
    """The method; see `create` for what the fields mean."""

    modalities: tuple[str, ...]
    cameras: tuple[int, ...]  # () leaves the camera embedding out
    steps_per_epoch: int
    image: ImageTower
    head: Head
    structure: StructureQueries | None
    language: Language | None
    bhipr: bool
    passive_memory: bool
    tau: float
    label_smooth: float
    margin: float | None
    alpha: float
    memory_update: str
    memory_order: str
    structure_drop: float
    detach_structure: bool
    part_norm: bool
    missing_fill: str
    text_terms: bool = True  # a phase option: the text losses run and f~ completes
    completion: str = "text"  # an option of evaluation rows: "text"; "zero", without f~; "alone", f~ and nothing else

    def init(self, rng: Array, batch: Batch) -> dict:
        image_key, structure_key, language_key, head_key = jax.random.split(rng, 4)
        images = jnp.zeros((len(batch["index"]), *next(iter(batch["images"].values())).shape[1:]))
        camera = self._camera(batch["camid"])
        (tokens, projected), image = self.image.init_with_output(image_key, images, camera)
        params = {"image": image["params"]}
        widths = dict.fromkeys(self.modalities, self.image.dim)
        if self.structure:
            patches = projected if self.image.project_all else tokens
            (s, _), structure = self.structure.init_with_output(structure_key, patches)
            params["structure"] = structure["params"]
            widths["structure"] = s.shape[-1]
        if self.language:
            params |= self.language.init(language_key, s)
            widths |= {f"text_{name}": self.image.dim for name in self.modalities}
        heads = {
            name: self.head.init(jax.random.fold_in(head_key, i), jnp.zeros((1, width)), jnp.ones(1, bool), train=False)
            for i, (name, width) in enumerate(widths.items())
        }
        params["heads"] = {name: head["params"] for name, head in heads.items()}
        stats = {"heads": {name: head["batch_stats"] for name, head in heads.items()}}
        bank = {}
        if self.bhipr or (self.language and self.passive_memory):
            bank = memory.empty(len(self.modalities), self.head.classes, self.image.dim, update=self.memory_update)
        return {"params": params, "batch_stats": stats, "memory": bank}

    def begin(self, state: TrainState, batches: Iterable[Batch]) -> TrainState:
        """Fills the prototypes with the mean unit feature of each identity in each modality (Eq. 2)."""
        if not state.memory:
            return state

        @jax.jit
        def add(params, sums, counts, batch):
            present, _, feats = self._towers(params, batch)
            return memory.accumulate(sums, counts, feats, batch["label"], present & batch["valid"][:, None])

        params = state.variables["params"]
        sums, counts = memory.init(*state.memory["proto"].shape)
        for batch in batches:
            sums, counts = add(params, sums, counts, batch)
        proto, has_visual = memory.finalize(sums, counts)
        return state.replace(memory=state.memory | {"proto": proto, "has_visual": has_visual})

    def loss(self, params: Any, state: TrainState, batch: Batch, rngs: dict[str, Array]) -> LossOut:
        label, stats = batch["label"], state.batch_stats
        present, tokens, feats = self._towers(params, batch)
        terms, stats, accuracy = self._branch(params, stats, "", self.modalities, feats, present, label)
        text = None
        if self.structure:
            s = masked.mean(self._structure(params, tokens), self._shown(present, rngs)[..., None], axis=1)
            some = present.any(axis=1, keepdims=True)
            new, stats, _ = self._branch(params, stats, "structure_", ("structure",), s[:, None], some, label)
            terms |= new
            if self.language and self.text_terms:
                source = jax.lax.stop_gradient(s) if self.detach_structure else s
                text = self.language.forward_text(params, source, rngs["dropout"])
                some = jnp.broadcast_to(some, present.shape)
                names = tuple(f"text_{m}" for m in self.modalities)
                new, stats, _ = self._branch(params, stats, "text_", names, text, some, label)
                terms |= new

        bank = state.memory
        if bank:
            after = self._update_memory(state, feats, present, text, label)
            proto = (after if self.memory_order == "before_loss" else bank)["proto"]
            if self.bhipr:
                terms["nce"] = self._prototype_loss(proto, feats, label, present)
            if text is not None:
                terms["text_nce"] = self._prototype_loss(proto, text, label, some)
            bank = after
        scalars = {"accuracy": accuracy, "present": present.mean()}
        return LossOut(terms, {"batch_stats": stats, "memory": bank}, scalars)

    def _shown(self, present: Array, rngs: dict[str, Array]) -> Array:
        """Which pictures the structure vector is read from in training, [B,M]: of each row at least one that it has."""
        if not self.structure_drop:
            return present
        kept = present & jax.random.bernoulli(rngs["structure"], 1 - self.structure_drop, present.shape)
        return jnp.where(kept.any(axis=1, keepdims=True), kept, present)

    def _branch(
        self,
        params: Any,
        stats: Any,
        prefix: str,
        names: tuple[str, ...],
        feats: Array,
        where: Array,
        label: Array,
    ) -> tuple[dict[str, Array], Any, Array]:
        """Triplet on each feature and cross-entropy behind its neck, summed over `names` (Eq. 11).

        feats [B,len(names),D], where [B,len(names)] -> the two terms, batch_stats, mean accuracy.
        """
        triplet = identity = accuracy = 0.0
        heads = stats["heads"]
        for i, name in enumerate(names):
            x, w = feats[:, i], where[:, i]
            variables = {"params": params["heads"][name], "batch_stats": heads[name]}
            logits, updated = self.head.apply(variables, x, w, train=True, mutable=["batch_stats"])
            heads = heads | {name: updated["batch_stats"]}
            hard, anchors = batch_hard_triplet(x, label, margin=self.margin, where=w)
            triplet += masked.mean(hard, anchors)
            identity += masked.mean(cross_entropy(logits, label, smoothing=self.label_smooth, where=w), w)
            accuracy += masked.mean((logits.argmax(-1) == label).astype(jnp.float32), w) / len(names)
        return {prefix + "triplet": triplet, prefix + "identity": identity}, {"heads": heads}, accuracy

    def _prototype_loss(self, proto: Array, feats: Array, label: Array, where: Array) -> Array:
        """Eq. 4 and Eq. 10, summed over modalities; a sample whose prototype does not exist yet is left out."""
        valid = memory.valid(proto)
        total = 0.0
        for m in range(len(self.modalities)):
            counted = where[:, m] & valid[m, label]
            nce = prototype_nce(feats[:, m], label, proto[m], tau=self.tau, valid=valid[m], where=counted)
            total += masked.mean(nce, counted)
        return total

    def _update_memory(self, state: TrainState, feats: Array, present: Array, text: Array | None, label: Array) -> dict:
        """Moves the prototypes towards this batch (Eq. 3). Text writes only where no picture exists in training."""
        bank = state.memory
        if text is not None:
            unseen = ~bank["has_visual"][:, label].T  # [B,M]
            feats = jnp.where(unseen[..., None], text, feats)
            present = present | (unseen & present.any(axis=1, keepdims=True))
        ends = (state.step + 1) % self.steps_per_epoch == 0
        options = dict(alpha=self.alpha, update=self.memory_update, epoch_ends=ends)
        return memory.update(bank, feats, label, present, **options)

    def encode(self, variables: dict, batch: Batch) -> dict[str, Array]:
        """present [B,M], feats [B,M,D], and where a completion needs it structure [B,M,S] or blank [B,D]."""
        params = variables["params"]
        present, tokens, feats = self._towers(params, batch)
        features = {"present": present, "feats": feats}
        if self._imputes:
            features["structure"] = self._structure(params, tokens)
        elif self.missing_fill == "encode_zero_image":
            zeros = jnp.zeros_like(next(iter(batch["images"].values())))
            _, projected = self.image.apply({"params": params["image"]}, zeros, self._camera(batch["camid"]))
            features["blank"] = projected[:, 0]
        return features

    def imputer(self, use: tuple[str, ...]) -> "MissReID | None":
        """Of a part of the modalities f~ is the same whether it completes f or stands alone."""
        if not self._imputes:
            return None
        return self if set(self.modalities) <= set(use) else dataclasses.replace(self, completion="text")

    def impute(self, variables: dict, features: dict[str, Array], used: Array) -> dict[str, Array]:
        """The features and text [B,M,D], f~ of the modalities that `embed` needs it of, zeros of the others."""
        s = masked.mean(features["structure"], (features["present"] & used)[..., None], axis=1)
        needed = self._filled(features["present"] & used).any(axis=0)
        return features | {"text": self.language.impute(variables["params"], s, needed)}

    def embed(self, variables: dict, features: dict[str, Array], use: tuple[str, ...]) -> Array:
        """f of the used modalities, f~ or a zero block for the others, concatenated and normalised: [B,M*D].

        With completion "alone", f~ of what is missing and zero blocks for f; of a row that misses nothing, f~ of all.
        """
        used = jnp.array([m in use for m in self.modalities])
        parts, filled = features["feats"], self._filled(features["present"] & used)
        fill = jnp.zeros_like(parts)
        if self._imputes:
            fill = (features if "text" in features else self.impute(variables, features, used))["text"]
            if self.completion == "alone":
                parts = jnp.zeros_like(parts)
        elif self.missing_fill == "encode_zero_image":
            fill = jnp.broadcast_to(features["blank"][:, None], parts.shape)
        parts = jnp.where(filled[..., None], fill, parts)
        if self.part_norm:
            parts = masked.unit(parts)
        return masked.unit(parts.reshape(len(parts), -1))

    def published_cost(self, image_size: tuple[int, int]) -> dict[str, int]:
        """Table 1 of the poster: every modality through every part that works at test, sentences of the whole context.

        Rows B-D are printed with the figures of row A: their memory and structure queries only train.
        """
        count = len(self.modalities)
        image = {"image": count * sum(published.image_tower(self.image, image_size))}
        if not self.language:
            return image | {f"heads/{name}": 0 for name in self.modalities}
        patches = published.patches(self.image, image_size)
        width = self.image.dim if self.image.project_all else self.image.width
        queries = published.structure_queries(self.structure, patches, width)
        text = self.language.text
        return image | {
            "structure": count * sum(queries),
            "inversion": sum(published.inversion(self.language.inversion, self.structure.width)),
            "text": count * sum(published.text_tower(text, text.context)),
            "prompts": 0,
            "heads": 0,
        }

    def _filled(self, available: Array) -> Array:
        """Where something else stands for a picture, if these pictures are there and used: [B,M] -> [B,M]."""
        if self._imputes and self.completion == "alone":
            available &= ~available.all(axis=1, keepdims=True)
        return ~available

    @property
    def _imputes(self) -> bool:
        return self.language is not None and self.text_terms and self.completion != "zero"

    def _camera(self, camid: Array) -> Array | None:
        """[B] -> one-hot [B,C]; a camera that training has not seen gives a zero row, which adds nothing."""
        if not self.cameras:
            return None
        return (camid[:, None] == jnp.array(self.cameras)).astype(jnp.float32)

    def _towers(self, params: Any, batch: Batch) -> tuple[Array, Array, Array]:
        """Every picture through the shared tower: present [B,M], patch tokens [B,M,N,S], class feature [B,M,D].

        Absent pictures are blanked here, once; a modality that the split never has is not computed at all.
        """
        names = [m for m in self.modalities if m in batch["images"]]
        if not names:
            raise ValueError(f"the batch has {sorted(batch['images'])}, the method reads {list(self.modalities)}")
        present = jnp.stack([batch["present"][m] for m in names], axis=1)
        images = jnp.stack([masked.blank(batch["images"][m], batch["present"][m]) for m in names], axis=1)
        rows, count = present.shape
        camera = self._camera(batch["camid"])
        if camera is not None:
            camera = jnp.repeat(camera, count, axis=0)
        # [B,M] merges to [B*M] with B outermost, so a batch sharded over devices stays where it is.
        tokens, projected = self.image.apply({"params": params["image"]}, images.reshape(-1, *images.shape[2:]), camera)
        feats = projected[:, 0].reshape(rows, count, -1)
        patches = (projected if self.image.project_all else tokens)[:, 1:]
        patches = patches.reshape(rows, count, *patches.shape[1:])
        if len(names) == len(self.modalities):
            return present, patches, feats
        slots = jnp.array([self.modalities.index(m) for m in names])

        def place(x):
            return jnp.zeros((rows, len(self.modalities), *x.shape[2:]), x.dtype).at[:, slots].set(x)

        return place(present), place(patches), place(feats)

    def _structure(self, params: Any, tokens: Array) -> Array:
        """[B,M,N,S] -> [B,M,S]."""
        s, _ = self.structure.apply({"params": params["structure"]}, tokens.reshape(-1, *tokens.shape[2:]))
        return s.reshape(*tokens.shape[:2], -1)


def create(
    spec: DataSpec,
    *,
    tokenize: Callable[[Sequence[str]], np.ndarray] | None = None,
    image: dict,
    text: dict,
    structure: dict,
    inversion: dict,
    memory: dict,
    dim: int,
    bhipr: bool,
    iosm: bool,
    ldmmc: bool,
    tau: float,
    label_smooth: float,
    margin: float,
    sie_camera: bool,
    prompts: int,
    template_kind: str,
    period: bool,
    text_len: int,
    structure_drop: float,
    detach_structure: bool,
    part_norm: bool,
    missing_fill: str,
    dtype: str,
    remat: bool,
    scan: bool,
) -> MissReID:
    """Builds the method from `config.model`; raises ConfigError for settings that contradict each other."""
    if ldmmc and not iosm:
        raise ConfigError("model.ldmmc needs model.iosm: the pseudo-word is made from the structure vector")
    check_choices(
        ("structure.tokens", structure["tokens"], ("pre_proj", "proj")),
        ("memory.update", memory["update"], UPDATES),
        ("memory.order", memory["order"], ("after_loss", "before_loss")),
        ("missing_fill", missing_fill, ("zero_feature", "encode_zero_image")),
        ("template_kind", template_kind, TEMPLATES),
        ("dtype", dtype, ("float32", "bfloat16")),
    )
    check_heads(image=image, text=text, structure=structure)
    queries = {k: v for k, v in structure.items() if k != "tokens"}
    common = dict(dim=dim, dtype=jnp.dtype(dtype), remat=remat, scan=scan)
    language = None
    if ldmmc:
        tokenize = tokenize if spec.vocab else None
        sentence = template(template_kind, prompts=prompts, period=period, length=text_len, tokenize=tokenize)
        check_reader(text, "a sentence that needs", vocab=max(sentence.ids) + 1, context=len(sentence.ids))
        tower = TextTower(**text, **common)
        language = Language(len(spec.modalities), prompts, Inversion(**inversion, dim=tower.width), tower, sentence)
    return MissReID(
        modalities=tuple(spec.modalities),
        cameras=tuple(spec.cameras) if sie_camera else (),
        steps_per_epoch=spec.steps_per_epoch,
        image=ImageTower(**image, **common, project_all=iosm and structure["tokens"] == "proj"),
        head=Head(len(spec.pids)),
        structure=StructureQueries(**queries) if iosm else None,
        language=language,
        bhipr=bhipr,
        passive_memory=memory["passive"],
        tau=tau,
        label_smooth=label_smooth,
        margin=margin if margin >= 0 else None,
        alpha=memory["alpha"],
        memory_update=memory["update"],
        memory_order=memory["order"],
        structure_drop=structure_drop,
        detach_structure=detach_structure,
        part_norm=part_norm,
        missing_fill=missing_fill,
    )
