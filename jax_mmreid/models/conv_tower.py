"""A small convolutional tower for few pictures and no pretrained weights.

It begins where comparing gradient directions ends: a fixed stem turns a picture into unsigned directions of its
gradients (Dalal and Triggs, 2005), divided by their local strength, so light, contrast and even its sign hardly
matter and pictures of different spectra look alike; colour is kept beside them. A residual trunk with group
normalisation follows, which needs no running statistics, so that missing pictures cannot disturb them. The feature
keeps the layout of the picture, a few channels of each cell of the last map side by side, and has a projection of the
whole map.
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jax_mmreid.errors import ConfigError
from jax_mmreid.models.resnet import conv
from jax_mmreid.ops import descriptors, toning

CELL = 4  # pixels of a side of the stem's cells
STRIDE = 2 * CELL  # of the last map


@dataclasses.dataclass(frozen=True)
class ConvFields:
    """`config.model.conv`; see `ConvTower`."""

    orientations: int
    width: int
    blocks: tuple[int, ...]
    group: int
    cell: int


def create(fields: ConvFields, image_size: tuple[int, int], *, dim: int, dtype: str) -> "ConvTower":
    """The tower for images (H, W); raises ConfigError for sizes that do not fit together."""
    if any(side % STRIDE for side in image_size):
        raise ConfigError(
            f"config.data.image_size={tuple(image_size)} must be multiples of {STRIDE} for the conv tower"
        )
    cells = image_size[0] * image_size[1] // STRIDE**2
    if dim <= cells * fields.cell:
        raise ConfigError(
            f"config.model.dim={dim} must be greater than the {cells} x {fields.cell} numbers of the cells of the conv "
            "tower's map (config.model.conv.cell); raise it"
        )
    if fields.width % fields.group or len(fields.blocks) != 2:
        raise ConfigError(
            f"config.model.conv: width={fields.width} must be a multiple of group={fields.group}, and blocks="
            f"{fields.blocks} two numbers"
        )
    return ConvTower(dim, **dataclasses.asdict(fields), dtype=jnp.dtype(dtype))


def gradient_stem(images: Array, orientations: int) -> Array:
    """Gradient directions and colour by cells of 4 pixels: images [B,H,W,3] -> [B,H/4,W/4,orientations+2] float32.

    A pixel's gradient counts for the directions near its own, with weight relu(cos 2(angle - direction))^4 times its
    length. Cells are averages, divided by the mean strength of their neighbourhood. The last two channels are the
    differences red - green and (red + green)/2 - blue, less their means, which depend on the light, divided by the
    picture's contrast; they are 0 for grey pictures.
    """
    images = images.astype(jnp.float32)
    grey = images @ descriptors.LUMA
    padded = jnp.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    dy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    dx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    squares = dx * dx + dy * dy
    length = jnp.sqrt(squares + 1e-8)
    # Of the doubled angle, which does not tell a direction from its opposite.
    cos, sin = ((dx * dx - dy * dy) / (squares + 1e-8), 2 * dx * dy / (squares + 1e-8))
    angles = 2 * jnp.pi * jnp.arange(orientations) / orientations
    near = nn.relu(cos[..., None] * jnp.cos(angles) + sin[..., None] * jnp.sin(angles))
    cells = _cells(near**4 * length[..., None])
    strength = jnp.linalg.norm(cells, axis=-1, keepdims=True)
    overall = strength.mean((1, 2), keepdims=True)
    directions = cells / (toning.blurred(strength) + 0.1 * overall + 1e-4)
    red, green, blue = (images[..., c] for c in range(3))
    colour = _cells(jnp.stack([red - green, (red + green) / 2 - blue], axis=-1))
    colour -= colour.mean((1, 2), keepdims=True)
    contrast = jnp.std(grey, axis=(1, 2))[:, None, None, None]
    return jnp.concatenate([directions, colour / (contrast + 0.05)], axis=-1)


class ConvTower(nn.Module):
    """Images [B,H,W,3] -> (tokens [B,1+N,C], features [B,1,dim]) float32; N cells of the map [H/8,W/8,C].

    The first token is the mean of the others. `blocks` are the numbers of residual blocks in the two layers, of
    `width` channels and twice as many, C, which groups of `group` channels normalise. The second layer halves the map.
    The feature has `cell` numbers of each cell, and dim - N*cell of the whole map.
    """

    project_all: ClassVar[bool] = False  # tokens are never projected
    patch: ClassVar[int] = STRIDE  # pixels of a side of the cell of a token, as in `clip.ImageTower`

    dim: int
    orientations: int = 8
    width: int = 64
    blocks: tuple[int, ...] = (1, 1)
    group: int = 16
    cell: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array, camera: None = None) -> tuple[Array, Array]:
        x = gradient_stem(images, self.orientations)
        x = nn.relu(self._norm("norm")(conv(self.width, 3, dtype=self.dtype, name="conv")(x)))
        for layer, count in enumerate(self.blocks):
            for i in range(count):
                x = self._block(x, self.width * 2**layer, 2 if layer and not i else 1, f"layer{layer + 1}_{i}")
        B, h, w, _ = x.shape
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
        cells = dense(self.cell, name="cells")(x).reshape(B, -1)
        whole = dense(self.dim - cells.shape[1], name="whole")(x.reshape(B, -1))
        tokens = x.reshape(B, h * w, -1)
        tokens = jnp.concatenate([tokens.mean(axis=1, keepdims=True), tokens], axis=1)
        features = jnp.concatenate([cells, whole], axis=1)[:, None]
        return tokens.astype(jnp.float32), features.astype(jnp.float32)

    def _block(self, x: Array, width: int, stride: int, name: str) -> Array:
        y = nn.relu(self._norm(f"{name}_norm1")(conv(width, 3, stride, dtype=self.dtype, name=f"{name}_conv1")(x)))
        y = self._norm(f"{name}_norm2")(conv(width, 3, dtype=self.dtype, name=f"{name}_conv2")(y))
        if x.shape[-1] != width:
            x = nn.avg_pool(x, (stride, stride), (stride, stride))
            x = self._norm(f"{name}_skip_norm")(conv(width, 1, dtype=self.dtype, name=f"{name}_skip")(x))
        return nn.relu(x + y)

    def _norm(self, name: str) -> nn.Module:
        return nn.GroupNorm(num_groups=None, group_size=self.group, epsilon=1e-3, dtype=self.dtype, name=name)


def _cells(x: Array) -> Array:
    """Means over cells of 4x4 pixels: [B,H,W,C] -> [B,H/4,W/4,C]."""
    B, H, W, C = x.shape
    return x.reshape(B, H // CELL, CELL, W // CELL, CELL, C).mean((2, 4))
