"""Damage to pictures: none at strength 0, of seed and row alone, more with more strength, and by definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mmreid.ops import damage as damages
from jax_mmreid.ops.damage import CHANGED, KINDS, REPLACED, damage

B, H, W = 7, 40, 10
ROWS = np.array([3, 11, 4, 0, 900, 5, 8])


@functools.cache
def pictures(seed):
    """Smooth and of middle brightness, so that damage neither clips all nor drowns in noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 190, (B, H // 5, W // 5, 3))
    return np.kron(coarse, np.ones((1, 5, 5, 1))).astype(np.uint8)


def damaged(kind, strength, chosen=slice(None), seed=4):
    images, others = pictures(0)[chosen], pictures(1)[chosen]
    return np.asarray(damage(images, others, ROWS[chosen], np.float32(strength), kind=kind, seed=seed))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_of_seed_and_row_and_grows_from_nothing(kind):
    found = [damaged(kind, strength) for strength in (0, 0.2, 0.6, 1)]
    assert all(x.dtype == np.uint8 and x.shape == (B, H, W, 3) for x in found)
    assert (found[0] == pictures(0)).all()
    change = [np.abs(x.astype(float) - pictures(0)).mean() for x in found]
    assert change == sorted(change) and change[0] < change[2] < change[3]
    chosen = [5, 1, 4, 4, 0, 2, 5]  # another batch in another order
    assert (damaged(kind, 0.6, chosen) == found[2][chosen]).all()


def test_other_seeds_and_rows_have_other_draws_and_the_size_of_the_batch_does_not_matter():
    found = damaged("bar", 0.6)
    assert (damaged("bar", 0.6, seed=5) != found).any() and len({x.tobytes() for x in found - pictures(0)}) == B
    assert (damaged("bar", 0.6, [5, 1]) == found[[5, 1]]).all()


@pytest.mark.parametrize("kind", ["dead_pixels", "bar", *REPLACED])
def test_what_is_lost_stays_lost(kind):
    less, more = damaged(kind, 0.4), damaged(kind, 0.8)
    lost, later = ((x != pictures(0)).any(axis=-1) for x in (less, more))
    assert 0 < lost.mean() < later.mean() and (lost <= later).all()
    if kind != "dead_pixels":  # where two lines cross, the second one counts
        assert (less[lost] == more[lost]).all()


@pytest.mark.parametrize("kind", REPLACED)
def test_at_strength_1_all_pictures_are_replaced(kind):
    assert (damaged(kind, 1) == pictures(1)).all()
    some = damaged(kind, 0.5)
    whole = [(some == x).reshape(B, -1).all(axis=1) for x in (pictures(0), pictures(1))]
    assert (whole[0] ^ whole[1]).all() and whole[0].any() and whole[1].any()


def test_a_shift_has_the_length_of_its_strength_in_all_directions():
    ramps = jnp.stack(jnp.meshgrid(jnp.arange(21.0), jnp.arange(13.0), indexing="ij"), axis=-1)
    for seed in range(3):
        shift = (damages.misaligned(ramps, jax.random.PRNGKey(seed), 0.8) - ramps)[10, 6]  # far from the edges
        assert np.hypot(*(shift / np.array([21, 13]))) == pytest.approx(0.8 * damages.SHIFT, rel=1e-4)


def test_a_blurred_point_has_the_spread_of_a_gaussian():
    x = jnp.zeros((51, 71, 1)).at[25, 35].set(1.0)
    found = np.asarray(damages.blur(x, None, 1.0))[..., 0]
    for axis in (0, 1):
        profile, place = found.sum(axis=1 - axis), np.arange(found.shape[axis])
        assert profile.sum() == pytest.approx(1, abs=1e-5) and place @ profile == pytest.approx(
            (25, 35)[axis], abs=1e-3
        )
        variance = (place - (25, 35)[axis]) ** 2 @ profile
        assert (damages.BLUR * 51) ** 2 <= variance <= (damages.BLUR * 51) ** 2 + 0.5


def test_light_is_a_factor_drift_a_plane_and_noise_the_same_in_all_channels():
    x, key, seen = jnp.full((9, 6, 3), 40.0), jax.random.PRNGKey, set()
    for seed in range(6):
        factor = float(CHANGED["exposure"](x, key(seed), 0.5)[2, 3, 1] / 40)
        seen.add(round(float(np.log2(factor)), 5))
        plane = np.asarray(CHANGED["drift"](x, key(seed), 0.5) - x)[..., 0]
        assert np.abs(np.diff(plane, 2, axis=0)).max() < 1e-3 and np.abs(np.diff(plane, 2, axis=1)).max() < 1e-3
        assert abs(plane.mean()) == pytest.approx(255 * damages.DRIFT / 2, rel=1e-4)
    assert seen == {-damages.STOPS / 2, damages.STOPS / 2}
    noise = np.asarray(CHANGED["noise"](jnp.zeros((60, 50, 3)), key(0), 0.5))
    assert (noise == noise[..., :1]).all() and noise.std() == pytest.approx(255 * damages.NOISE / 2, rel=0.05)
