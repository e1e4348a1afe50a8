"""Colour on the device: grey pictures as Pillow makes them, and channels in place of colour.

Matching visible with infrared pictures must not lean on colour. Channel exchange (Ye et al., 2021, "Channel Augmented
Joint Learning") shows one channel of a visible picture as all three; adaptive grey does so with an infrared one, or
shows its luma.
"""

import jax
import jax.numpy as jnp

# How often all channels become red, green, blue or luma of the normalised picture; it stays as it is otherwise.
CHANNEL = {
    "exchange": (1 / 6, 1 / 6, 1 / 6, 0.0),
    "adaptive_grey": (1 / 4, 1 / 4, 1 / 4, 0.6 / 4),
}
KEEP = 4  # after the four choices: the picture stays


def grey(images: jax.Array) -> jax.Array:
    """Pillow's `convert("L")` in all three channels, exactly: uint8 [...,3] -> uint8 [...,3]."""
    red, green, blue = (images[..., c].astype(jnp.int32) for c in range(3))
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return jnp.broadcast_to(luma[..., None], images.shape).astype(images.dtype)


def draw_channel(key: jax.Array, kind: str) -> jax.Array:
    """What the channels of a picture become, int32: 0, 1, 2 red, green, blue, 3 luma, or KEEP."""
    return jnp.sum(jax.random.uniform(key) >= jnp.cumsum(jnp.asarray(CHANNEL[kind]))).astype(jnp.int32)


def replicate(image: jax.Array, channel: jax.Array) -> jax.Array:
    """image [H,W,3] float32 with what `draw_channel` chose in all three channels."""
    red, green, blue = (image[..., c] for c in range(3))
    luma = 0.2989 * red + 0.5870 * green + 0.1140 * blue
    chosen = jax.lax.select_n(jnp.minimum(channel, 3), red, green, blue, luma)
    return jnp.where(channel == KEEP, image, chosen[..., None])
