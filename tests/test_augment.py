"""Augmentation of a batch: a pure function of (key, row, view), the views of TVI-LFM, and refused settings."""

import functools

import jax
import numpy as np
import pytest
from random_pictures import DRAWS, IMAGENET, PAD, B, H, W, normalised, pictures

from jax_mmreid.errors import ConfigError
from jax_mmreid.ops import augment as aug

TVI_LFM = dict(  # its three views: weak and strong of the visible picture, and infrared
    erase=0.6,
    fill="constant",
    views=dict(
        rgb=dict(grey=0.1),
        rgb_strong=dict(of="rgb", channel="exchange"),
        ir=dict(erase=0.5, channel="adaptive_grey"),
    ),
    **IMAGENET,
)
PINNED = {
    "rgb": (-186.004, -238.176, -235.828, -220.506, -35.102),
    "nir": (-84.318, -199.180, -209.439, -255.949, -210.200),
}


@functools.partial(jax.jit, static_argnums=0)
def compiled(sync, images, key, options):
    return aug.augment(images, key, sync=sync, **options)


def run(images, key, sync="none", **options):
    """`augment` with all numbers traced, so that one program serves all tests of a shape."""
    defaults = dict(flip=0.5, pad=PAD, erase=0.5, mean=(0.5,) * 3, std=(0.5,) * 3)
    return compiled(sync, images, key, defaults | options)


def test_augment_applies_its_parameters():
    x = {"rgb": pictures(0), "nir": pictures(1)}
    got = run(x, jax.random.key(0), flip=0.0, pad=0, erase=0.0)
    for m in x:
        np.testing.assert_allclose(got[m], normalised(x[m]), atol=1e-6)
    got = run(x, jax.random.key(0), flip=1.0, pad=0, erase=0.0, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    for m in x:
        np.testing.assert_allclose(got[m], normalised(x[m][:, :, ::-1], (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), atol=1e-5)


def test_a_row_does_not_depend_on_other_rows_or_modalities():
    x, others, key = pictures(0), pictures(1), jax.random.key(3)
    got = np.asarray(run({"rgb": x, "nir": x}, key)["rgb"])
    others[2] = x[2]
    np.testing.assert_array_equal(run({"rgb": others, "nir": x}, key)["rgb"][2], got[2])
    np.testing.assert_array_equal(run({"rgb": x, "nir": others}, key)["rgb"], got)
    np.testing.assert_array_equal(run({"rgb": x[:3]}, key)["rgb"], got[:3])  # fewer rows, fewer modalities
    other_key = np.asarray(run({"rgb": x, "nir": x}, jax.random.key(4))["rgb"])
    assert (other_key != got).any(axis=(1, 2, 3)).sum() > B / 2


def test_the_result_for_a_key_is_that_of_earlier_releases():
    """Sums of pictures as of the first release: a resumed run has the same augmentation as an uninterrupted one."""
    x = {"rgb": pictures(0), "nir": pictures(1)}
    got = run(x, jax.random.key(5))
    for name, sums in PINNED.items():
        np.testing.assert_allclose(np.asarray(got[name]).sum((1, 2, 3))[:5], sums, atol=0.01)


@pytest.mark.parametrize("sync", ["none", "flip", "flip_crop", "all"])
def test_sync_names_the_operations_that_modalities_share(sync):
    image = np.broadcast_to(pictures(0, 1), (B, H, W, 3))
    x, key = {"rgb": image, "nir": image}, jax.random.key(0)
    only = dict(flip=dict(pad=0, erase=0.0), crop=dict(flip=0.0, erase=0.0), erase=dict(flip=0.0, pad=0))
    shared = dict(none=(), flip=("flip",), flip_crop=("flip", "crop"), all=("flip", "crop", "erase"))[sync]
    for op, kwargs in only.items():
        got = run(x, key, sync=sync, **kwargs)
        equal = np.asarray(got["rgb"] == got["nir"]).all(axis=(1, 2, 3))
        assert equal.all() if op in shared else not equal.all()
        rows = np.asarray(got["rgb"] == got["rgb"][:1]).all(axis=(1, 2, 3))
        assert not rows.all()  # rows never share


@functools.cache
def tvi_lfm():
    """Many small pictures in the three views: grey with a brighter blue channel."""
    flat = np.broadcast_to(np.uint8([100, 100, 200]), (DRAWS, H, W, 3))
    step = jax.jit(functools.partial(aug.augment, pad=0, **TVI_LFM))
    got = step({"rgb": flat, "ir": flat}, jax.random.key(0))
    return {name: np.asarray(x) for name, x in got.items()}


def is_erased(x, fill):
    return np.isclose(x, fill, atol=1e-5).all(-1).any((1, 2))


def is_level(x):
    return np.isclose(x, x[..., :1], atol=1e-5).all((1, 2, 3))


def test_the_views_of_tvi_lfm_happen_as_often_as_published():
    got, fill = tvi_lfm(), np.array((0.4914, 0.4822, 0.4465))
    assert got.keys() == {"rgb", "rgb_strong", "ir"}
    assert all(x.shape == (DRAWS, H, W, 3) and x.dtype == np.float32 for x in got.values())
    luma = (100 * 19595 + 100 * 38470 + 200 * 7471 + 32768) >> 16
    grey = np.isclose(got["rgb"], normalised(np.full(3, luma), **IMAGENET), atol=1e-5).all(-1).any((1, 2))
    rates = {
        "weak erased": (is_erased(got["rgb"], fill), 0.6),
        "weak grey": (grey, 0.1),
        "strong exchanged": (is_level(got["rgb_strong"]), 0.5),
        "strong erased where not exchanged": (is_erased(got["rgb_strong"], fill), 0.6 * 0.5),
        "infrared level": (is_level(got["ir"]), 0.9),
        "infrared erased where not level": (is_erased(got["ir"], fill), 0.5 * 0.1),
    }
    for name, (happened, rate) in rates.items():
        assert abs(happened.mean() - rate) < 0.025, name
    erased = is_erased(got["rgb"], fill)
    assert abs(np.corrcoef(erased, grey)[0, 1]) < 0.06 and not is_level(got["rgb"])[erased].any()


@pytest.mark.slow
def test_views_of_a_picture_have_their_own_draws_and_depend_on_their_row_only():
    x, key = {"rgb": pictures(0), "ir": pictures(1)}, jax.random.key(3)
    options = dict(pad=PAD, **TVI_LFM)
    plain = options | {"views": dict(rgb={}, again=dict(of="rgb"))}
    two = jax.jit(functools.partial(aug.augment, **plain))(x, key)
    assert (np.asarray(two["rgb"]) != np.asarray(two["again"])).any((1, 2, 3)).sum() > 0.9 * B
    same = jax.jit(functools.partial(aug.augment, sync="all", **plain))(x, key)
    np.testing.assert_array_equal(same["rgb"], same["again"])
    step = jax.jit(functools.partial(aug.augment, **options))
    others = {m: np.concatenate([rows[:3], rows[:2:-1]]) for m, rows in x.items()}
    whole, mixed = step(x, key), step(others, key)
    only = jax.jit(functools.partial(aug.augment, **options | {"views": {"ir": TVI_LFM["views"]["ir"]}}))(x, key)
    for name in whole:
        np.testing.assert_array_equal(mixed[name][:3], whole[name][:3])
    assert only.keys() == {"ir"}
    np.testing.assert_array_equal(only["ir"], whole["ir"])


def test_modalities_are_the_default_views():
    """The programs are equal, and therefore what they compute."""
    x, key = {"rgb": pictures(0), "nir": pictures(1)}, jax.random.key(0)

    def program(**options):
        return jax.jit(functools.partial(aug.augment, pad=PAD, **options)).lower(x, key).as_text()

    assert program(views={"nir": {}, "rgb": {}}) == program() != program(views={"rgb": {}})


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(sync="crop"), "config.aug.sync is 'crop'; expected one of none, flip, flip_crop, all"),
        (dict(blur=1.0), "config.aug has 'blur'; expected one of sync, mean, std, views, flip, pad"),
        (dict(mean=(0.5, 0.5)), r"config.aug.mean=\(0.5, 0.5\): must be one number, or three"),
        (dict(views={"rgb": {"gray": 0.1}}), "config.aug.views.rgb has 'gray'; expected one of of, .*grey"),
        (dict(views={"strong": {}}), "config.aug.views.strong.of is 'strong'; expected one of rgb, ir"),
        (dict(views={"strong": {"of": "nir"}}), "config.aug.views.strong.of is 'nir'; expected one of rgb, ir"),
        (dict(views={"rgb": {"channel": "swap"}}), "config.aug.views.rgb.channel is 'swap'; expected one of exchange"),
        (dict(fill="mean"), "config.aug.fill is 'mean'; expected one of noise, constant"),
    ],
)
def test_settings_that_do_not_exist_are_refused_by_name(options, message):
    aug.check(("rgb", "ir"), TVI_LFM)
    with pytest.raises(ConfigError, match=message):
        aug.check(("rgb", "ir"), TVI_LFM | options)


@pytest.mark.parametrize("options", [{}, TVI_LFM], ids=["modalities", "views"])
def test_a_batch_split_over_devices_is_augmented_without_communication(options):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x, key = {"rgb": pictures(0, 16), "ir": pictures(1, 16)}, jax.random.key(0)
    step = functools.partial(aug.augment, pad=PAD, **options)
    program = jax.jit(step, in_shardings=(split, whole)).lower(x, key).compile()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in program.as_text()
    alone, got = jax.jit(step)(x, key), program(jax.device_put(x, split), jax.device_put(key, whole))
    for name in alone:
        assert program.output_shardings[name].spec == split.spec
        np.testing.assert_allclose(got[name], alone[name], atol=1e-6)
