"""Retrieval with queries whose pictures are damaged as sensors fail, against a clean gallery.

    row = dict(
        kind="robustness",
        damage="blur",      # one of ops.damage.KINDS
        damaged=("tir",),   # the modality whose pictures are damaged; "swapped": the two that take each other's place
        seed=0,             # of the damage; the default
        query=dict(split="query", use=("rgb", "tir")), gallery=dict(split="gallery", use=("rgb", "tir")),
        junk="same_camera",
        # and trials, cmc, options, rerank, incomplete, similarity, fallback, draw as in `retrieval`
    )

A damage has SEVERITIES from 1 to 5, of which 5 has strength 1 (`ops.damage`). Each is a pure function of (seed, row of
the split). The alternative to a damaged picture is none: "missing" is the result of the same queries without the
modalities `damaged`, which the gallery still has. Rows are compared by the modalities that both have, that is,
similarity="common" is the default: without it, a query that lacks a modality is not compared fairly with one that does
not (`retrieval`).

In "frozen" the first picture of the split is shown in place of later ones, in "swapped" rows are left as they are that
lack one of the two pictures. Queries that have nothing but what is damaged need incomplete="skip", which leaves them
out of all numbers of the row.
"""

import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_mmreid import distributed
from jax_mmreid.batch import Batch, Data
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import Result, Use, check_pictures
from jax_mmreid.evaluators.encoder import Encoder
from jax_mmreid.evaluators.retrieval import SIDES, Retrieval, complete, require_complete
from jax_mmreid.ops.damage import KINDS, damage
from jax_mmreid.ranges import check_types
from jax_mmreid.sharding import replicated

SEVERITIES = (1, 2, 3, 4, 5)
TYPES = {"damage": str, "damaged": tuple[str, ...], "seed": int}
OTHER_KIND = "mixed"  # a field of the query in `retrieval` that rows of this kind do not have


class Robustness(Retrieval):
    """See the module. All numbers are mAP, or follow from it.

    "clean" is that of undamaged queries, "severity1" to "severity5" of damaged ones, "missing" without `damaged`.
    "relative" is the mean over severities divided by "clean", "gain" is "missing" less that mean: what declaring the
    modality missing is better by, negative where a damaged picture is better than none.
    """

    COLUMNS = {
        "clean": "clean",
        **{str(s): f"severity{s}" for s in SEVERITIES},
        "relative": "relative",
        "missing": "missing",
        "gain": "gain",
    }
    REQUIRED: ClassVar = (*Retrieval.REQUIRED, "damage", "damaged")
    DEFAULTS: ClassVar = Retrieval.DEFAULTS | dict(similarity="common", seed=0)

    def check(self, data: Data) -> None:
        super().check(data)
        row, count = self.DEFAULTS | self.row, 2 if self.row["damage"] == "swapped" else 1
        check_types({key: row[key] for key in TYPES}, TYPES, prefix="")
        if row["damage"] not in KINDS:
            raise ConfigError(f"damage={row['damage']!r}, expected one of {', '.join(KINDS)}")
        if row["seed"] < 0:
            raise ConfigError(f"seed={row['seed']}, must be 0 or more")
        if OTHER_KIND in row["query"]:
            raise ConfigError(f"query.{OTHER_KIND} belongs to rows of kind 'retrieval'; leave it out")
        split, use = self.uses()[0]
        pictures = [m for m in use if m in data.spec.modalities]
        if len(set(row["damaged"])) != count or len(row["damaged"]) != count or not set(row["damaged"]) <= {*pictures}:
            raise ConfigError(
                f"damaged={row['damaged']}: {row['damage']!r} damages {count} of the modalities in query.use, "
                f"{', '.join(pictures)}"
            )
        if not self._remaining:
            raise ConfigError(f"damaged={row['damaged']} is all that query.use names; name more there")
        for m in row["damaged"]:
            check_pictures(split, m, data)
        side = row["query"] | {"use": self._remaining}
        require_complete(side, complete(self._remaining, data.present(split)), row["incomplete"])

    def uses(self) -> list[tuple[str, Use]]:
        return [*super().uses(), (self.row["query"]["split"], self._remaining)]

    def run(self, encoder: Encoder) -> Result:
        row, data = self.DEFAULTS | self.row, encoder.data
        (split, use), (of_gallery, shown), _ = self.uses()
        same = dict(form=self.form)
        gallery = encoder.vectors(of_gallery, shown, row["options"], mixed=row["gallery"].get("mixed"), **same)
        query = {
            "clean": encoder.vectors(split, use, row["options"], **same),
            "missing": encoder.vectors(split, self._remaining, row["options"], **same),
        }
        changes = _changes(row["damage"], row["damaged"], row["seed"], split, encoder)
        damaged = encoder.changed(split, use, row["options"], changes, **same)
        query |= {f"severity{s}": x for s, x in zip(SEVERITIES, damaged)}
        queries = complete(self._remaining, data.present(split))
        result = {name: self.scores(x, gallery, queries, encoder)["mAP"] for name, x in query.items()}
        mean = float(np.mean([result[f"severity{s}"] for s in SEVERITIES]))
        result |= {"relative": mean / max(result["clean"], 1e-9), "gain": result["missing"] - mean} | self.described()
        result["feature"] += f", {row['damage']} of {'+'.join(row['damaged'])}, seed {row['seed']}"
        if row["incomplete"] == "skip":
            some = (queries, complete(shown, data.present(of_gallery)))
            result["skipped"] = {key: int(np.sum(~x)) for key, x in zip(SIDES, some)}
        return result | self.note(result.get("skipped", {}))

    @property
    def _remaining(self) -> Use:
        """What the queries use without what is damaged."""
        return tuple(m for m in self.row["query"]["use"] if m not in self.row["damaged"])


def _changes(kind: str, damaged: Use, seed: int, split: str, encoder: Encoder) -> list[Callable[[Batch], Batch]]:
    """A function of global batches of a split for each of SEVERITIES."""
    whole, frozen = replicated(encoder.mesh), None
    if kind == "frozen":
        frozen = jax.device_put(_first_picture(split, damaged[0], encoder.data), whole)

    def change(strength: Array, batch: Batch) -> Batch:
        images = dict(batch["images"])
        for m, other in zip(damaged, damaged[::-1]):
            present = [batch["present"][x] for x in (m, other)]
            others = _others(batch["images"][m], batch["images"][other], *present, frozen)
            images[m] = damage(images[m], others, batch["index"], strength, kind=kind, seed=seed)
        return batch | {"images": images}

    strengths = (jax.device_put(np.float32(s / max(SEVERITIES)), whole) for s in SEVERITIES)
    return [functools.partial(change, strength) for strength in strengths]


@jax.jit
def _others(images: Array, others: Array, present: Array, other_present: Array, frozen: Array | None) -> Array:
    """What may take the place of pictures [B,H,W,3]: `frozen` [H,W,3], or the others where both are present [B]."""
    if frozen is not None:
        return jnp.broadcast_to(frozen, images.shape)
    return jnp.where((present & other_present)[:, None, None, None], others, images)


def _first_picture(split: str, modality: str, data: Data) -> np.ndarray:
    """The first picture [H,W,3] that a split has of a modality that `check_pictures` has found, on every process."""
    row = data.present(split)[modality].argmax()
    for batch in data.split(split):
        index = distributed.gather(batch["index"])
        if row in index:
            return distributed.gather(batch["images"][modality])[index.tolist().index(row)]
    raise AssertionError(f"split {split!r} ends before row {row}")
