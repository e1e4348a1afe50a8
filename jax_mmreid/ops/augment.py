"""Random augmentation on the device, and the normalisation that goes with it.

In order: horizontal flip, pad with black and crop back to the size, [0, 1], normalise, random erasing with
normal noise (Zhong et al., 2020). By default the pictures of one sample are transformed independently of each
other, as the recipes of multi-modality re-identification do.

What happens to a picture is a pure function of (key, row, modality name): another row, another modality or
another batch size never shifts it, and a batch split over devices needs no communication.
"""

import math
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

# The operations whose draws all modalities of a row share.
SYNC = {"none": (), "flip": ("flip",), "flip_crop": ("flip", "crop"), "all": ("flip", "crop", "erase")}
ERASE_AREA = (0.02, 1 / 3)  # of the picture
ERASE_ASPECT = (0.3, 1 / 0.3)  # height over width, log-uniform
ERASE_ATTEMPTS = 10


class Params(NamedTuple):
    """What is done to one picture; scalars unless said otherwise."""

    flip: jax.Array  # bool
    top: jax.Array  # int32, the crop's first row and column in the flipped picture,
    left: jax.Array  # -pad..pad; outside the picture it is black
    box: jax.Array  # [4] int32, top, left, height, width of what is erased after the crop; height 0: nothing
    noise: jax.Array  # random key of the fill


def normalise(
    images: jax.Array, mean: float | tuple[float, ...] = 0.5, std: float | tuple[float, ...] = 0.5
) -> jax.Array:
    """(images / 255 - mean) / std, uint8 [...,H,W,3] -> float32; mean and std: one number or one a channel."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / 255 - mean) / std


def draw(keys: dict[str, jax.Array], size: tuple[int, int], *, flip: float, pad: int, erase: float) -> Params:
    """Draws the parameters for one picture of `size` (H, W).

    keys {"flip", "crop", "erase"}, flip and erase the probabilities of either, pad in pixels.
    """
    top, left = jax.random.randint(keys["crop"], (2,), -pad, pad + 1)
    box_key, noise = jax.random.split(keys["erase"])
    return Params(jax.random.bernoulli(keys["flip"], flip), top, left, _draw_box(box_key, size, erase), noise)


def apply(
    image: jax.Array,
    params: Params,
    mean: float | tuple[float, ...] = 0.5,
    std: float | tuple[float, ...] = 0.5,
) -> jax.Array:
    """Does to image [H,W,3] uint8 what `params` says; returns [H,W,3] float32, normalised."""
    H, W, _ = image.shape
    y, x = jnp.arange(H)[:, None] + params.top, jnp.arange(W)[None, :] + params.left
    inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)  # [H,W]
    x = jnp.where(params.flip, W - 1 - x, x)
    image = jnp.where(inside[..., None], image[y.clip(0, H - 1), x.clip(0, W - 1)], 0)
    return _erase(normalise(image, mean, std), params.box, params.noise)


def augment(
    images: dict[str, jax.Array],
    key: jax.Array,
    *,
    flip: float = 0.5,
    pad: int = 10,
    erase: float = 0.5,
    sync: str = "none",
    mean: float | tuple[float, ...] = 0.5,
    std: float | tuple[float, ...] = 0.5,
) -> dict[str, jax.Array]:
    """Augments and normalises a batch of pictures, {modality: [B,H,W,3] uint8} -> the same in float32.

    `sync` names what the modalities of a row share: none, flip, flip_crop or all (then the noise too).
    Raises ValueError for another word.
    """
    if sync not in SYNC:
        raise ValueError(f"augment: no sync {sync!r}; there are {list(SYNC)}")

    def one(name, row, image):
        keys = {op: _stream(key, row, "" if op in SYNC[sync] else name, op) for op in SYNC["all"]}
        return apply(image, draw(keys, image.shape[:2], flip=flip, pad=pad, erase=erase), mean, std)

    return {m: jax.vmap(lambda r, i, m=m: one(m, r, i))(jnp.arange(len(x)), x) for m, x in images.items()}


def _stream(key: jax.Array, row: jax.Array, owner: str, op: str) -> jax.Array:
    for word in (row, zlib.crc32(owner.encode()), zlib.crc32(op.encode())):
        key = jax.random.fold_in(key, word)
    return key


def _draw_box(key: jax.Array, size: tuple[int, int], erase: float) -> jax.Array:
    """[4] int32: the first of the attempts that fits strictly inside; height 0 if none does or by chance."""
    H, W = size
    chance, area, aspect, corner = jax.random.split(key, 4)
    area = H * W * jax.random.uniform(area, (ERASE_ATTEMPTS,), minval=ERASE_AREA[0], maxval=ERASE_AREA[1])
    low, high = map(math.log, ERASE_ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspect, (ERASE_ATTEMPTS,), minval=low, maxval=high))
    height = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    width = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (height < H) & (width < W)
    first = jnp.argmax(fits)
    height, width = height[first], width[first]
    place = jax.random.uniform(corner, (2,)) * jnp.stack([H - height + 1, W - width + 1])
    top, left = place.astype(jnp.int32)
    happens = jax.random.bernoulli(chance, erase) & fits[first]
    return jnp.stack([top, left, jnp.where(happens, height, 0), width])


def _erase(image: jax.Array, box: jax.Array, key: jax.Array) -> jax.Array:
    """Fills `box` of image [H,W,C] float32 with normal noise."""
    H, W, C = image.shape
    top, left, height, width = box
    y, x = jnp.arange(H)[:, None] - top, jnp.arange(W)[None, :] - left
    erased = (y >= 0) & (y < height) & (x >= 0) & (x < width)  # [H,W]
    # Random numbers cost more than all the rest together, so only as many are drawn as the largest box takes:
    # its area, with half a pixel more on each side for rounding.
    noise = jax.random.normal(key, (math.ceil(ERASE_AREA[1] * H * W + (H + W) / 2 + 1), C))
    return jnp.where(erased[..., None], noise[jnp.where(erased, y * width + x, 0)], image)
