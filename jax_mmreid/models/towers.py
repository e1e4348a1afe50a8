"""CLIP's towers from fields of `config.model`: what the methods that are built from them have in common."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_mmreid.batch import DataSpec
from jax_mmreid.errors import ConfigError
from jax_mmreid.models.clip import ImageTower, TextTower

DTYPES = ("float32", "bfloat16")  # of matrix products
RANGES = {
    r"(image|text)\.(patch|width|layers|heads|vocab|context)": "[1, inf)",
    r"image\.position_std": "[0, inf)",
    r"dim": "[1, inf)",
    r"(class_multiple|mining_blocks|microbatches)": "[1, inf)",
}


@dataclasses.dataclass(frozen=True)
class ImageFields:
    """`config.model.image`; see `models.clip.ImageTower`."""

    patch: int
    width: int
    layers: int
    heads: int
    position_std: float  # of the initial position embedding; 0: width^-0.5, as CLIP begins


@dataclasses.dataclass(frozen=True)
class TextFields:
    """`config.model.text`; see `models.clip.TextTower`."""

    vocab: int
    context: int
    width: int
    layers: int
    heads: int


def image_tower(
    fields: ImageFields,
    image_size: tuple[int, int],
    *,
    dim: int,
    project_all: bool,
    dtype: str,
    remat: bool,
    scan: bool,
) -> ImageTower:
    """The tower for images (H, W); raises ConfigError for heads or patches that do not divide its sizes."""
    check_heads("image", fields.width, fields.heads)
    if any(side % fields.patch for side in image_size):
        height, width = (max(side // fields.patch, 1) * fields.patch for side in image_size)
        raise ConfigError(
            f"config.data.image_size={tuple(image_size)} is not a whole number of patches of {fields.patch} pixels "
            f"(config.model.image.patch); ({height}, {width}) is"
        )
    sizes = dataclasses.asdict(fields)
    return ImageTower(**sizes, dim=dim, project_all=project_all, dtype=jnp.dtype(dtype), remat=remat, scan=scan)


def text_tower(fields: TextFields, *, dim: int, dtype: str, remat: bool, scan: bool = False) -> TextTower:
    """The tower; raises ConfigError for heads that do not divide its width."""
    check_heads("text", fields.width, fields.heads)
    return TextTower(**dataclasses.asdict(fields), dim=dim, dtype=jnp.dtype(dtype), remat=remat, scan=scan)


def in_microbatches(function: Callable, rows: Any, count: int) -> Any:
    """`function` of trees of arrays [B,...] in `count` parts one after the other, as in GradCache (Gao et al., 2021).

    The results of all parts are kept, so a loss sees the whole batch, but the activations of one part only: the
    backward pass computes each part again. Part j has the rows j, j + count, ..., so that of rows spread over devices
    each part has as many of every device. Function must treat rows independently, and `count` divide B.
    """
    if count == 1:
        return function(rows)

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)

    def join(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    # Inside the loop XLA cannot undo the recomputation, so nothing has to prevent it.
    part = jax.checkpoint(function, prevent_cse=False)
    return jax.tree.map(join, jax.lax.map(part, jax.tree.map(split, rows)))


def check_parts(spec: DataSpec, **parts: int) -> None:
    """Raises ConfigError for a field of `config.model` that does not divide the rows of a training batch."""
    for field, count in parts.items():
        if spec.batch_size % count:
            raise ConfigError(
                f"config.model.{field}={count} does not divide the {spec.batch_size} rows of a batch "
                "(data.identities * data.instances)"
            )


def check_heads(part: str, width: int, heads: int) -> None:
    """Raises ConfigError if the attention heads of `config.model.<part>` do not divide its width."""
    if width % heads:
        raise ConfigError(
            f"config.model.{part}.heads={heads} does not divide config.model.{part}.width={width}; change either"
        )


def check_reader(fields: TextFields, what: str, *, vocab: int, context: int) -> None:
    """Raises ConfigError if a text tower is too small for `what`, which has so many ids and so many tokens."""
    for key, given, needed in (("vocab", fields.vocab, vocab), ("context", fields.context, context)):
        if needed > given:
            raise ConfigError(f"config.model.text.{key}={given} is too small for {what}; set it to {needed} or more")
