"""Colour on the device: grey pictures as Pillow makes them, and one channel in place of three.

Visible pictures have colour and infrared ones do not, so matching them must not depend on it. Channel exchange (Ye et
al., 2021, "Channel Augmented Joint Learning") replaces all channels of a visible picture by one of them; adaptive grey
replaces those of an infrared picture by one of them or by its luma.
"""

import jax
import jax.numpy as jnp

# Probabilities that all channels become red, green, blue or luma of the normalised picture; otherwise it is unchanged.
CHANNEL = {
    "exchange": (1 / 6, 1 / 6, 1 / 6, 0.0),
    "adaptive_grey": (1 / 4, 1 / 4, 1 / 4, 0.6 / 4),
}
KEEP = 4  # the number of "unchanged", after the four replacements


def grey(images: jax.Array) -> jax.Array:
    """Pillow's `convert("L")` in all three channels, exactly: uint8 [...,3] -> uint8 [...,3]."""
    red, green, blue = (images[..., c].astype(jnp.int32) for c in range(3))
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return jnp.broadcast_to(luma[..., None], images.shape).astype(images.dtype)


def draw_channel(key: jax.Array, kind: str) -> jax.Array:
    """What all channels of a picture become, int32: 0, 1, 2 red, green, blue, 3 luma, or KEEP."""
    return jnp.sum(jax.random.uniform(key) >= jnp.cumsum(jnp.asarray(CHANNEL[kind]))).astype(jnp.int32)


def replicate(image: jax.Array, channel: jax.Array) -> jax.Array:
    """image [H,W,3] float32 with the result of `draw_channel` applied: one channel or the luma in all three."""
    red, green, blue = (image[..., c] for c in range(3))
    luma = 0.2989 * red + 0.5870 * green + 0.1140 * blue
    chosen = jax.lax.select_n(jnp.minimum(channel, 3), red, green, blue, luma)
    return jnp.where(channel == KEEP, image, chosen[..., None])
