"""Warps are those of SciPy, tones those of NumPy, and both are the identity where no range is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jax_mmreid.ops import augment, toning, warping

H, W = 24, 14
IMAGE = np.random.default_rng(0).random((H, W, 3)).astype(np.float32)
RANGES = dict(zoom=0.3, stretch=0.2, turn=25.0, shift=0.2)


@pytest.mark.slow
def test_without_a_range_nothing_changes():
    key = jax.random.key(0)
    np.testing.assert_array_equal(warping.apply(IMAGE, warping.draw(key, (H, W))), IMAGE)
    np.testing.assert_allclose(toning.apply(IMAGE, toning.draw(key)), IMAGE, atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_a_warp_is_that_of_scipy(seed):
    warp = warping.draw(jax.random.key(seed), (H, W), **RANGES)
    matrix, offset = np.asarray(warp.matrix, np.float64), np.asarray(warp.offset, np.float64)
    centre = np.array([H - 1, W - 1]) / 2
    options = dict(offset=centre - matrix @ centre + offset, order=1, mode="nearest")
    expected = np.stack([ndimage.affine_transform(IMAGE[..., c], matrix, **options) for c in range(3)], axis=-1)
    np.testing.assert_allclose(warping.apply(IMAGE, warp), expected, atol=2e-4)


def test_warps_fill_their_ranges_and_stay_inside():
    keys = jax.random.split(jax.random.key(1), 2000)
    warps = jax.vmap(lambda key: warping.draw(key, (H, W), **RANGES))(keys)
    matrix = np.asarray(warps.matrix, np.float64)
    angle = np.degrees(np.arctan2(matrix[:, 1, 0], matrix[:, 1, 1]))
    lengths = np.log(np.linalg.norm(matrix, axis=2))
    zoom, stretch = lengths.mean(axis=1), (lengths[:, 0] - lengths[:, 1]) / 2
    shift = np.asarray(warps.offset) / (H, W)
    for found, most in ((zoom, 0.3), (stretch, 0.2), (angle, 25.0), (shift[:, 0], 0.2), (shift[:, 1], 0.2)):
        assert np.abs(found).max() <= most * 1.0001 and found.max() > 0.95 * most and found.min() < -0.95 * most
        assert abs(found.mean()) < 0.05 * most


def numpy_tone(image, tone):
    weights, gamma, contrast, brightness, invert, blur = (np.asarray(x, np.float64) for x in tone[:6])
    x = image.astype(np.float64) @ weights.T
    x = (np.clip(x, 0, 1) ** gamma - 0.5) * contrast + 0.5 + brightness
    x = 1 - x if invert else x
    if blur:
        for axis in (0, 1):
            x = ndimage.convolve1d(x, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    noise = np.asarray(jax.random.normal(tone.key, image.shape[:2]), np.float64)[..., None]
    return np.clip(x + float(tone.noise) * noise, 0, 1)


@pytest.mark.parametrize("seed", range(6))
def test_a_tone_is_that_of_numpy(seed):
    ranges = dict(mix=0.5, gamma=0.5, contrast=0.4, brightness=0.2, invert=0.5, blur=0.5, noise=0.1)
    tone = toning.draw(jax.random.key(seed), **ranges)
    np.testing.assert_allclose(toning.apply(IMAGE, tone), numpy_tone(IMAGE, tone), atol=1e-5)


def test_tones_happen_as_often_and_as_much_as_asked():
    keys = jax.random.split(jax.random.key(2), 3000)
    ranges = dict(mix=0.7, gamma=0.5, contrast=0.3, brightness=0.1, invert=0.2, blur=0.4, noise=0.05)
    tones = jax.vmap(lambda key: toning.draw(key, **ranges))(keys)
    mixed = np.asarray((tones.weights != jnp.eye(3)).any(axis=(1, 2)))
    for found, rate in ((mixed, 0.7), (tones.invert, 0.2), (tones.blur, 0.4)):
        assert abs(np.mean(found) - rate) < 0.04
    np.testing.assert_allclose(np.asarray(tones.weights).sum(axis=2), 1, atol=1e-5)
    assert (np.asarray(tones.weights)[mixed] == np.asarray(tones.weights)[mixed][:, :1]).all()
    for found, most in ((np.log(tones.gamma), 0.5), (np.log(tones.contrast), 0.3), (tones.brightness, 0.1)):
        assert np.abs(found).max() <= most * 1.0001 and np.max(found) > 0.95 * most and np.min(found) < -0.95 * most
    assert 0 <= np.min(tones.noise) < 0.003 and 0.047 < np.max(tones.noise) <= 0.05


def test_augment_warps_then_tones_then_normalises():
    image = (255 * IMAGE).astype(np.uint8)[None]
    settings = dict(flip=0.0, pad=0, erase=0.0, warp=RANGES, tone=dict(gamma=0.5, blur=1.0))
    plain = settings | dict(warp=None, tone=None)
    compiled = jax.jit(lambda x, key: [augment.augment({"rgb": x}, key, **s)["rgb"][0] for s in (settings, plain)])
    got, others = compiled(image, jax.random.key(3))
    keys = {op: augment._stream(jax.random.key(3), 0, "rgb", op) for op in augment.OPS}
    params = augment.draw(keys, (H, W), **settings)
    warped = warping.apply(image[0], params.warp)
    expected = (np.asarray(toning.apply(warped / 255, params.tone)) - 0.5) / 0.5
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(np.asarray(got) - np.asarray(others)).max() > 0.1
