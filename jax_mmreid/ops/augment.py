"""Random augmentation on the device, and the normalisation that goes with it.

In order: horizontal flip, pad with black and crop back to the size, grey, warp, tone, normalise, random erasing, one
channel in place of three. By default the pictures of one sample are transformed independently of each other, as in the
published recipes of multi-modality re-identification. A picture may have several views, each with its own random draws.

The result is a pure function of (picture, key, row, name of the view): it does not depend on other rows, other views or
the batch size, and a batch split over devices needs no communication.
"""

import functools
import zlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_mmreid.errors import ConfigError
from jax_mmreid.ops import colour, toning, warping
from jax_mmreid.ops import erase as erasing

OPS = ("flip", "crop", "grey", "warp", "tone", "erase", "channel")
# The operations with the same draws for all views of a row.
SYNC = {"none": (), "flip": ("flip",), "flip_crop": ("flip", "crop"), "all": OPS}
OF_VIEWS = ("flip", "pad", "erase", "fill", "grey", "warp", "tone", "channel")  # settings that may differ between views


class Params(NamedTuple):
    """The parameters of one picture; scalars unless stated."""

    flip: jax.Array  # bool
    top: jax.Array  # int32, the crop's first row and column in the flipped picture,
    left: jax.Array  # -pad..pad; outside the picture it is black
    box: jax.Array  # [4] int32, top, left, height, width of what is erased after the crop; height 0: nothing
    noise: jax.Array | None  # random key of the fill; None: constants
    grey: jax.Array | None = None  # bool; None: never
    channel: jax.Array | None = None  # int32, what the channels become, see `colour.draw_channel`; None: nothing
    warp: warping.Warp | None = None
    tone: toning.Tone | None = None


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
    flip: float = 0.5,
    pad: int = 10,
    erase: float = 0.5,
    fill: str = "noise",
    grey: float | None = None,
    channel: str | None = None,
    warp: Mapping[str, float] | None = None,
    tone: Mapping[str, float] | None = None,
) -> Params:
    """Draws the parameters for one picture of `size` (H, W).

    `keys` are those of OPS that are used. flip, erase, grey: probabilities; pad: pixels; fill: noise or constant, see
    `erase`; channel: exchange or adaptive_grey, see `colour`; warp, tone: arguments of `warping.draw` and
    `toning.draw`, none by default.
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
        warp=warping.draw(keys["warp"], size, **warp) if warp else None,
        tone=toning.draw(keys["tone"], **tone) if tone else None,
    )


def apply(
    image: jax.Array,
    params: Params,
    mean: float | tuple[float, ...] = 0.5,
    std: float | tuple[float, ...] = 0.5,
) -> jax.Array:
    """Applies the parameters to image [H,W,3] uint8; returns [H,W,3] float32, normalised."""
    H, W, _ = image.shape
    y, x = jnp.arange(H)[:, None] + params.top, jnp.arange(W)[None, :] + params.left
    inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)  # [H,W]
    x = jnp.where(params.flip, W - 1 - x, x)
    image = jnp.where(inside[..., None], image[y.clip(0, H - 1), x.clip(0, W - 1)], 0)
    if params.grey is not None:
        image = jnp.where(params.grey, colour.grey(image), image)
    if params.warp is not None:
        image = warping.apply(image, params.warp)
    if params.tone is not None:
        image = 255 * toning.apply(image / 255, params.tone)
    image = erasing.erase(normalise(image, mean, std), params.box, params.noise)
    return image if params.channel is None else colour.replicate(image, params.channel)


def augment(
    images: dict[str, jax.Array],
    key: jax.Array,
    *,
    sync: str = "none",
    mean: float | tuple[float, ...] = 0.5,
    std: float | tuple[float, ...] = 0.5,
    views: dict[str, dict] | None = None,
    **common: Any,
) -> dict[str, jax.Array]:
    """Augments and normalises a batch of pictures, {modality: [B,H,W,3] uint8} -> {view: [B,H,W,3] float32}.

    `common` are settings of `draw`, which `views`, {name: settings}, change for one view, with its modality as "of" if
    that is not the name of the view; None: each modality is a view. `sync` names the operations with the same draws for
    all views of a row: none, flip, flip_crop or all. Settings must be such as `check` accepts.
    """

    def one(name, settings, row, image):
        keys = {op: _stream(key, row, "" if op in SYNC[sync] else name, op) for op in OPS}
        return apply(image, draw(keys, image.shape[:2], **settings), mean, std)

    out = {}
    for name, changes in (dict.fromkeys(images, {}) if views is None else views).items():
        settings = {"of": name} | common | changes
        x = images[settings.pop("of")]
        out[name] = jax.vmap(functools.partial(one, name, settings))(jnp.arange(len(x)), x)
    return out


def check(modalities: Collection[str], settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for settings of `config.aug` that `augment` cannot apply to pictures of these modalities.

    Numbers are checked elsewhere, by `config.RANGES`.
    """
    _known("config.aug has", settings, ("sync", "mean", "std", "views", *OF_VIEWS))
    _known("config.aug.sync is", [settings.get("sync", "none")], SYNC)
    for name in ("mean", "std"):
        value = settings.get(name, 0.5)
        if isinstance(value, tuple | list) and len(value) != 3:
            raise ConfigError(f"config.aug.{name}={value}: must be one number, or three for red, green and blue")
    common = {name: settings[name] for name in OF_VIEWS if name in settings}
    _check_view("config.aug", common)
    for view, changes in (settings.get("views") or {}).items():
        where = f"config.aug.views.{view}"
        _known(f"{where} has", changes, ("of", *OF_VIEWS))
        _known(f"{where}.of is", [changes.get("of", view)], modalities)
        _check_view(where, changes)


def _check_view(where: str, settings: Mapping[str, Any]) -> None:
    _known(f"{where}.fill is", [settings.get("fill", "noise")], erasing.KINDS)
    if settings.get("channel") is not None:
        _known(f"{where}.channel is", [settings["channel"]], colour.CHANNEL)
    _known(f"{where}.warp has", settings.get("warp") or (), warping.FIELDS)
    _known(f"{where}.tone has", settings.get("tone") or (), toning.FIELDS)


def _known(what: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{what} {name!r}; expected one of {', '.join(known)}")


def _stream(key: jax.Array, row: jax.Array, owner: str, op: str) -> jax.Array:
    for word in (row, zlib.crc32(owner.encode()), zlib.crc32(op.encode())):
        key = jax.random.fold_in(key, word)
    return key
