"""A trained model without its dataset: pictures and captions in, unit retrieval vectors out.

`jax_mmreid.load_model(workdir)` makes it from what every workdir holds: config, data spec, checkpoint and vocabulary.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jax_mmreid.batch import Batch, DataSpec, has_caption
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import programs
from jax_mmreid.evaluators.programs import COMMON_OR_AVAILABLE, EMBED
from jax_mmreid.methods import Features, Method
from jax_mmreid.metrics.similarity import Packing, Parts, unpack
from jax_mmreid.sharding import to_global

UNKNOWN_CAMERA = -1  # the number of no camera, so that a picture gets no camera embedding


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A method with its variables, and how pictures and sentences become its inputs.

    `part_rows` is how many rows the towers see at once; with the number that evaluation uses, vectors are bit for bit
    those of evaluation. `identity` names the weights: vectors of models with different identities are not comparable.
    `read_image(source)` returns [H,W,3] uint8 in the size of the spec from a file or from pixels
    [h,w,3]; `tokenize(sentences)` ids [n,L].
    """

    spec: DataSpec
    method: Method
    variables: dict
    mesh: Mesh
    part_rows: int
    identity: str
    read_image: Callable[[Any], np.ndarray]
    tokenize: Callable[[Sequence[str]], np.ndarray]

    def encode(
        self,
        images: Mapping[str, Sequence[Any]] | None = None,
        camids: Sequence[int] | None = None,
        captions: Mapping[str, Sequence[str]] | None = None,
    ) -> Features:
        """Runs every tower once; returns features for `embed` and `parts`, which may be called several times.

        `images` {modality: B pictures}, each a path, pixels [h,w,3] uint8 of any size, or None where it is missing; an
        array [B,h,w,3] is B pictures. `camids` are B camera numbers; a number that training has not seen, and the
        default, gets no camera embedding. `captions` {modality that they describe: B sentences, "" for none}.
        Raises ConfigError for inputs that the model does not take, DataError for files that cannot be read.
        """
        images, captions = dict(images or {}), dict(captions or {})
        rows = self._count(images, captions, camids)
        batch = self._batch(rows, images, camids, captions)
        batch = jax.tree.map(lambda x: _pad(x, self._padded(rows)), batch)
        settings = dict(method=self.method, devices=self.mesh.shape["data"], part_rows=self.part_rows)
        batch = to_global(batch, self.mesh)
        features = programs.encode(self.variables, batch, mean=self.spec.mean, std=self.spec.std, **settings)
        return {"rows": rows, "present": tuple(batch["present"]), "features": features}

    def embed(self, features: Features, use: Sequence[str] | None = None) -> np.ndarray:
        """Unit vectors [B,D] float32 of what `encode` returned, by cosine comparable with each other.

        `use` names the modalities that count, as in an evaluation row (("rgb", "tir"), ("ir", "text")); by default all
        that the model has. Raises ConfigError for a combination of which the method has no vector.
        """
        return self._vectors(features, tuple(self.spec.modalities if use is None else use), EMBED)[0]

    def parts(self, features: Features) -> Parts:
        """What `encode` returned, by modality, so that rows may differ in what they have (`metrics.similarity`).

        numpy arrays: parts [B,M,D] of the modalities `method.modalities`, present [B,M], and as fallback [B,F] the
        vectors of everything that each row has, captions included.
        """
        captions = ("text",) if "text" in features["present"] else ()
        return unpack(*self._vectors(features, (*self.spec.modalities, *captions), COMMON_OR_AVAILABLE))

    def _vectors(self, features: Features, use: tuple[str, ...], form: str) -> tuple[np.ndarray, Packing | None]:
        settings = dict(devices=self.mesh.shape["data"], part_rows=self.part_rows)
        rows, features = features["rows"], features["features"]
        imputer = self.method.imputer(use)
        if imputer is not None:
            used = jnp.array([m in use for m in self.spec.modalities])
            features = programs.impute(self.variables, features, used, method=imputer, **settings)
        vectors = programs.embed(self.variables, features, method=self.method, use=use, form=form, **settings)
        packing = programs.packing_of(self.method, self.variables, features, use, form)
        return np.asarray(vectors)[:rows], packing

    def _count(self, images: dict, captions: dict, camids: Sequence[int] | None) -> int:
        """The number of rows B; raises ConfigError for names that the model does not know and for unequal lengths."""
        for what, given in (("images", images), ("captions", captions)):
            unknown = sorted(set(given) - set(self.spec.modalities))
            if unknown:
                raise ConfigError(f"{what} has {', '.join(unknown)}; the model has {', '.join(self.spec.modalities)}")
        columns = [*images.values(), *captions.values(), *([] if camids is None else [camids])]
        lengths = {len(column) for column in columns}
        if len(lengths) != 1 or not images.keys() | captions.keys() or lengths == {0}:
            raise ConfigError(
                f"images, captions and camids have {sorted(lengths) or 'no'} rows; give at least one picture or "
                "caption, and one entry a row in each"
            )
        return lengths.pop()

    def _batch(self, rows: int, images: dict, camids: Sequence[int] | None, captions: dict) -> Batch:
        blank = np.zeros((*self.spec.image_size, 3), np.uint8)
        pixels = {
            m: np.stack([blank if one is None else self.read_image(one) for one in column])
            for m, column in images.items()
        }
        present = {m: np.array([one is not None for one in column]) for m, column in images.items()}
        camera = np.full(rows, UNKNOWN_CAMERA) if camids is None else np.asarray(camids)
        batch = {"images": pixels, "present": present, "camid": camera.astype(np.int32)}
        batch |= {name: np.zeros(rows, np.int32) for name in ("pid", "view")}
        batch |= {"index": np.arange(rows, dtype=np.int32), "valid": np.ones(rows, bool)}
        if captions:
            batch["text"] = {m: self.tokenize(list(column)) for m, column in captions.items()}
            has = {f"text/{m}": has_caption(ids) for m, ids in batch["text"].items()}
            present |= has | {"text": np.all(list(has.values()), axis=0)}
        return batch

    def _padded(self, rows: int) -> int:
        """The rows of whole parts on all devices."""
        whole = self.part_rows * self.mesh.shape["data"]
        return -(-rows // whole) * whole


def _pad(x: np.ndarray, rows: int) -> np.ndarray:
    """[B,...] -> [rows,...], the last row repeated."""
    return np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1), mode="edge")
