"""Random light and sensor effects on a picture: channels, gamma, contrast, brightness, inversion, blur and noise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

FIELDS = ("mix", "gamma", "contrast", "brightness", "invert", "blur", "noise")  # of `draw`


class Tone(NamedTuple):
    """The parameters of one picture; scalars unless stated."""

    weights: jax.Array  # [3,3]; channel c becomes the sum of weights[c] times the channels
    gamma: jax.Array
    contrast: jax.Array  # a factor, about mid-grey
    brightness: jax.Array  # added
    invert: jax.Array  # bool
    blur: jax.Array  # bool
    noise: jax.Array  # standard deviation
    key: jax.Array  # of the noise


def draw(
    key: jax.Array,
    *,
    mix: float = 0.0,
    gamma: float = 0.0,
    contrast: float = 0.0,
    brightness: float = 0.0,
    invert: float = 0.0,
    blur: float = 0.0,
    noise: float = 0.0,
) -> Tone:
    """Draws the parameters of one picture.

    mix: how often all channels become one mixture of the three, with weights uniform on the simplex; invert, blur: how
    often; gamma, contrast: ranges of the logarithm; brightness: range of what is added to values in [0, 1]; noise: the
    greatest standard deviation. Draws are uniform, from minus to plus the range.
    """
    chance_key, range_key, mix_key, noise_key = jax.random.split(key, 4)
    mixed, inverted, blurred = jax.random.uniform(chance_key, (3,)) < jnp.array([mix, invert, blur])
    a, b, c, d = jax.random.uniform(range_key, (4,), minval=-1.0, maxval=1.0)
    weights = jnp.broadcast_to(jax.random.dirichlet(mix_key, jnp.ones(3)), (3, 3))
    return Tone(
        weights=jnp.where(mixed, weights, jnp.eye(3)),
        gamma=jnp.exp(a * gamma),
        contrast=jnp.exp(b * contrast),
        brightness=c * brightness,
        invert=inverted,
        blur=blurred,
        noise=jnp.abs(d) * noise,
        key=noise_key,
    )


def apply(image: jax.Array, tone: Tone) -> jax.Array:
    """Applies the parameters to image [H,W,3] with values in [0, 1], in the order of the fields; clipped to [0, 1]."""
    x = jnp.einsum("hwc,dc->hwd", image, tone.weights, precision="highest")
    x = jnp.power(jnp.clip(x, 0, 1), tone.gamma)
    x = (x - 0.5) * tone.contrast + 0.5 + tone.brightness
    x = jnp.where(tone.invert, 1 - x, x)
    x = jnp.where(tone.blur, blurred(x), x)
    # The same noise in all channels, as on a grey picture.
    x = x + tone.noise * jax.random.normal(tone.key, x.shape[:2])[..., None]
    return jnp.clip(x, 0, 1)


def blurred(x: jax.Array) -> jax.Array:
    """Binomial weights 1, 2, 1 along both sides."""
    for axis in (-3, -2):
        n = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(-x.ndim, 0)], mode="edge")
        first, middle, last = (jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i in range(3))
        x = (first + 2 * middle + last) / 4
    return x
