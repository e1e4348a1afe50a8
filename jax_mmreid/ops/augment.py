"""Random augmentation on the device, and the normalisation that goes with it.

In order: horizontal flip, pad with black and crop back to the size, grey, [0, 1], normalise, random erasing, one
channel in place of three. By default the pictures of one sample are transformed independently of each other, as the
recipes of multi-modality re-identification do; a picture may be shown in several views, each with its own draws.

What happens to a picture is a pure function of (key, row, name of the view): another row, another view or another
batch size never shifts it, and a batch split over devices needs no communication.
"""

import functools
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_mmreid.ops import colour
from jax_mmreid.ops import erase as erasing

OPS = ("flip", "crop", "grey", "erase", "channel")
# The operations whose draws all views of a row share.
SYNC = {"none": (), "flip": ("flip",), "flip_crop": ("flip", "crop"), "all": OPS}


class Params(NamedTuple):
    """What is done to one picture; scalars unless said otherwise."""

    flip: jax.Array  # bool
    top: jax.Array  # int32, the crop's first row and column in the flipped picture,
    left: jax.Array  # -pad..pad; outside the picture it is black
    box: jax.Array  # [4] int32, top, left, height, width of what is erased after the crop; height 0: nothing
    noise: jax.Array | None  # random key of the fill; None: constants
    grey: jax.Array | None = None  # bool; None: never
    channel: jax.Array | None = None  # int32, what the channels become, see `colour.draw_channel`; None: nothing


def normalise(
    images: jax.Array, mean: float | tuple[float, ...] = 0.5, std: float | tuple[float, ...] = 0.5
) -> jax.Array:
    """(images / 255 - mean) / std, uint8 [...,H,W,3] -> float32; mean and std: one number or one a channel."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / 255 - mean) / std


def draw(
    keys: dict[str, jax.Array],
    size: tuple[int, int],
    *,
    flip: float,
    pad: int,
    erase: float,
    fill: str = "noise",
    grey: float | None = None,
    channel: str | None = None,
) -> Params:
    """Draws the parameters for one picture of `size` (H, W).

    keys: one for each of OPS that is asked for. The rest is as in `augment`.
    """
    top, left = jax.random.randint(keys["crop"], (2,), -pad, pad + 1)
    box, noise = erasing.draw(keys["erase"], size, erase, fill)
    return Params(
        flip=jax.random.bernoulli(keys["flip"], flip),
        top=top,
        left=left,
        box=box,
        noise=noise,
        grey=None if grey is None else jax.random.bernoulli(keys["grey"], grey),
        channel=None if channel is None else colour.draw_channel(keys["channel"], channel),
    )


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
    if params.grey is not None:
        image = jnp.where(params.grey, colour.grey(image), image)
    image = erasing.erase(normalise(image, mean, std), params.box, params.noise)
    return image if params.channel is None else colour.replicate(image, params.channel)


def augment(
    images: dict[str, jax.Array],
    key: jax.Array,
    *,
    flip: float = 0.5,
    pad: int = 10,
    erase: float = 0.5,
    fill: str = "noise",
    grey: float | None = None,
    channel: str | None = None,
    sync: str = "none",
    mean: float | tuple[float, ...] = 0.5,
    std: float | tuple[float, ...] = 0.5,
    views: dict[str, dict] | None = None,
) -> dict[str, jax.Array]:
    """Augments and normalises a batch of pictures, {modality: [B,H,W,3] uint8} -> {view: [B,H,W,3] float32}.

    flip, erase, grey: probabilities; pad: pixels; fill: noise or constant, see `erase`; channel: exchange or
    adaptive_grey, see `colour`. `views` {name: changes} lists what is returned, each with what differs from these
    settings; "of" names its modality if that is not its own name. None: every modality as one view. `sync` names what
    the views of a row share: none, flip, flip_crop or all.
    Raises ValueError for a word, a setting or a modality that does not exist.
    """
    _one_of("sync", sync, SYNC)
    common = dict(flip=flip, pad=pad, erase=erase, fill=fill, grey=grey, channel=channel)

    def one(name, settings, row, image):
        keys = {op: _stream(key, row, "" if op in SYNC[sync] else name, op) for op in OPS}
        return apply(image, draw(keys, image.shape[:2], **settings), mean, std)

    out = {}
    for name, changes in (dict.fromkeys(images, {}) if views is None else views).items():
        settings = _settings(name, common, changes)
        modality = settings.pop("of")
        _one_of("modality", modality, images)
        x = images[modality]
        out[name] = jax.vmap(functools.partial(one, name, settings))(jnp.arange(len(x)), x)
    return out


def _settings(view: str, common: dict, changes: dict) -> dict:
    for setting in changes:
        _one_of(f"setting of view {view!r} named", setting, ("of", *common))
    settings = {"of": view} | common | changes
    _one_of("fill", settings["fill"], erasing.KINDS)
    _one_of("channel", settings["channel"], (None, *colour.CHANNEL))
    return settings


def _stream(key: jax.Array, row: jax.Array, owner: str, op: str) -> jax.Array:
    for word in (row, zlib.crc32(owner.encode()), zlib.crc32(op.encode())):
        key = jax.random.fold_in(key, word)
    return key


def _one_of(what: str, value: str | None, known: Iterable) -> None:
    if value not in known:
        raise ValueError(f"augment: no {what} {value!r}; there are {list(known)}")
