"""One image tower for the pictures of all modalities, with an embedding for every training camera.

This is where a missing picture is blanked, for every method that has one tower for all modalities.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jax_mmreid.batch import Batch, DataSpec
from jax_mmreid.config import check_choices
from jax_mmreid.errors import ConfigError
from jax_mmreid.models import conv_tower, towers
from jax_mmreid.models.clip import ImageTower
from jax_mmreid.models.conv_tower import ConvTower
from jax_mmreid.ops import masked

BACKBONES = ("vit", "conv")


class Pictures(NamedTuple):
    """What the tower makes of the pictures of M modalities."""

    present: Array  # [B,M] bool
    patches: Array  # [B,M,N,S] patch tokens, projected (S = dim) if the tower projects all tokens, else S = width
    feats: Array  # [B,M,D] projected class tokens


@dataclasses.dataclass(frozen=True)
class SharedTower:
    """A tower and the modalities that share it; its parameters are those of `image`."""

    modalities: tuple[str, ...]
    image: ImageTower | ConvTower
    cameras: tuple[int, ...] = ()  # the numbers of the training cameras; () for no camera embedding
    microbatches: int = 1  # of a pass in training, see `towers.in_microbatches`

    def init(self, rng: Array, images: Array, camid: Array) -> tuple[dict, Array]:
        """Initial parameters for images [B,H,W,3], and tokens [B,1+N,S] shaped as those of `Pictures.patches`."""
        (tokens, projected), variables = self.image.init_with_output(rng, images, self._camera(camid))
        return variables["params"], self._tokens(tokens, projected)

    def forward(self, params: Any, batch: Batch, names: Sequence[str], *, train: bool = False) -> Pictures:
        """The pictures of these modalities, in one pass; pixels of missing pictures are never read.

        With `train` the pass is in `microbatches`.
        """
        present = jnp.stack([batch["present"][m] for m in names], axis=1)
        images = jnp.stack([masked.blank(batch["images"][m], batch["present"][m]) for m in names], axis=1)
        rows, count = present.shape
        camera = self._camera(batch["camid"])
        if camera is not None:
            camera = jnp.repeat(camera, count, axis=0)
        # [B,M] merges to [B*M] with B outermost, so a batch sharded over devices stays where it is.
        tokens, projected = towers.in_microbatches(
            lambda rows: self.image.apply({"params": params}, *rows),
            (images.reshape(-1, *images.shape[2:]), camera),
            self.microbatches if train else 1,
        )
        patches = self._tokens(tokens, projected)[:, 1:]
        feats = projected[:, 0].reshape(rows, count, -1)
        return Pictures(present, patches.reshape(rows, count, *patches.shape[1:]), feats)

    def forward_all(self, params: Any, batch: Batch, *, train: bool = False) -> Pictures:
        """The pictures of every modality; one that the batch has no key of is not computed, its values are zeros."""
        names = [m for m in self.modalities if m in batch["images"]]
        found = self.forward(params, batch, names, train=train)
        if len(names) == len(self.modalities):
            return found
        columns = jnp.array([self.modalities.index(m) for m in names])

        def scatter(x: Array) -> Array:
            full = (len(x), len(self.modalities), *x.shape[2:])
            return jnp.zeros(full, x.dtype).at[:, columns].set(x)

        return Pictures(*map(scatter, found))

    def blank_feats(self, params: Any, batch: Batch) -> Array:
        """The feature [B,D] of a picture of zeros, mid-grey before normalisation, at the camera of each row."""
        zeros = jnp.zeros_like(next(iter(batch["images"].values())))
        _, projected = self.image.apply({"params": params}, zeros, self._camera(batch["camid"]))
        return projected[:, 0]

    def _tokens(self, tokens: Array, projected: Array) -> Array:
        return projected if self.image.project_all else tokens

    def _camera(self, camid: Array) -> Array | None:
        """Camera numbers [B] as one-hot rows [B,C]; the row of a camera that was not in training is zero."""
        if not self.cameras:
            return None
        return (camid[:, None] == jnp.array(self.cameras)).astype(jnp.float32)


def create(spec: DataSpec, config: Any, *, project_all: bool) -> SharedTower:
    """The tower of a method whose fields `config` has.

    They are backbone, image, conv, dim, sie_camera, microbatches, dtype, remat and scan.
    Raises ConfigError for fields that do not go together or do not fit the spec.
    """
    check_choices(("backbone", config.backbone, BACKBONES), where="config.model.")
    towers.check_parts(spec, microbatches=config.microbatches)
    cameras = tuple(spec.cameras) if config.sie_camera else ()
    if config.backbone == "vit":
        options = dict(dim=config.dim, dtype=config.dtype, remat=config.remat, scan=config.scan)
        image = towers.image_tower(config.image, spec.image_size, project_all=project_all, **options)
        return SharedTower(tuple(spec.modalities), image, cameras, config.microbatches)
    if cameras or project_all:
        raise ConfigError(
            "config.model.backbone='conv' has no camera embedding and projects no tokens; set sie_camera=False and "
            "structure.tokens='pre_proj'"
        )
    image = conv_tower.create(config.conv, spec.image_size, dim=config.dim, dtype=config.dtype)
    return SharedTower(tuple(spec.modalities), image, microbatches=config.microbatches)
