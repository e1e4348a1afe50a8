"""Augmentation: exact for given parameters, correct in distribution, and a pure function of (key, row, view)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from jax_mmreid.errors import ConfigError
from jax_mmreid.ops import augment as aug

B, H, W, PAD = 17, 23, 11, 3
DRAWS = 4001
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
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


def pictures(seed, rows=B, size=(H, W)):
    return np.random.default_rng(seed).integers(0, 256, (rows, *size, 3), dtype=np.uint8)


def params(flip=False, top=0, left=0, box=(0, 0, 0, 0), noise=0):
    return aug.Params(
        jnp.array(flip), jnp.array(top), jnp.array(left), jnp.array(box, jnp.int32), jax.random.key(noise)
    )


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, None, None, None))
def draw(key, size, flip, pad, erase):
    keys = dict(zip(("flip", "crop", "erase"), jax.random.split(key, 3)))
    return aug.draw(keys, size, flip=flip, pad=pad, erase=erase)._replace(noise=None)


@functools.cache
def draws(size=(H, W), flip=0.5, pad=PAD, erase=0.5):
    """Parameters of many pictures as one `Params` of numpy arrays, without the noise."""
    keys = jax.random.split(jax.random.key(1), DRAWS)
    return jax.tree.map(np.asarray, draw(keys, size, flip, pad, erase))


def normalised(image, mean=0.5, std=0.5):
    return ((np.asarray(image, np.float64) / 255 - mean) / std).astype(np.float32)


# Exact, given the parameters


@pytest.mark.parametrize("mean, std", [(0.5, 0.5), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))])
def test_normalise(mean, std):
    x = pictures(0)
    np.testing.assert_allclose(aug.normalise(x, mean, std), normalised(x, mean, std), atol=1e-6)
    assert aug.normalise(x, mean, std).dtype == jnp.float32


def test_defaults_map_black_to_minus_one_and_white_to_one():
    assert aug.normalise(np.uint8([0]))[0] == -1 and aug.normalise(np.uint8([255]))[0] == 1


apply = jax.jit(aug.apply)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("top, left", [(0, 0), (-PAD, -PAD), (PAD, PAD), (-1, 2), (2, -3)])
def test_flip_pad_and_crop_equal_pillow(flip, top, left):
    image = pictures(1)[0]
    expected = Image.fromarray(image)
    expected = ImageOps.mirror(expected) if flip else expected
    expected = ImageOps.expand(expected, PAD, fill=0).crop((PAD + left, PAD + top, PAD + left + W, PAD + top + H))
    np.testing.assert_allclose(apply(image, params(flip, top, left)), normalised(expected), atol=1e-6)


@pytest.mark.parametrize("box", [(0, 0, 5, 7), (18, 3, 5, 8), (4, 0, 1, 1), (2, 1, 12, 6)])
def test_erasing_fills_exactly_the_box(box):
    image = pictures(2)[0]
    top, left, height, width = box
    got = np.array(apply(image, params(True, 1, -2, box, noise=7)))
    untouched = np.array(apply(image, params(True, 1, -2)))
    inside = np.zeros((H, W), bool)
    inside[top : top + height, left : left + width] = True
    np.testing.assert_array_equal(got[~inside], untouched[~inside])
    assert len(np.unique(got[inside], axis=0)) == height * width  # every pixel has its own noise
    again = np.array(apply(pictures(3)[0], params(False, 0, 0, box, noise=7)))
    np.testing.assert_array_equal(again[inside], got[inside])  # which the picture does not influence
    assert (np.array(apply(image, params(box=box, noise=8)))[inside] != got[inside]).all()


def test_the_fill_is_standard_normal_after_normalisation():
    size, box = (251, 127), (3, 5, 163, 64)  # a third of the picture
    fill = np.array(apply(pictures(0, 1, size)[0], params(box=box)))[3:166, 5:69].ravel()
    assert abs(fill.mean()) < 0.02 and abs(fill.std() - 1) < 0.02 and 3.5 < np.abs(fill).max() < 6
    assert abs(np.mean(np.abs(fill) < 1) - 0.6827) < 0.01
    assert abs(np.corrcoef(fill[:-3], fill[3:])[0, 1]) < 0.02


def test_the_largest_boxes_drawn_have_noise_for_every_pixel():
    for size in ((H, W), (64, 32)):
        boxes = draws(size, erase=1.0).box
        largest = boxes[np.argmax(boxes[:, 2] * boxes[:, 3])]
        top, left, height, width = largest
        got = np.array(apply(pictures(0, 1, size)[0], params(box=largest)))
        erased = got[top : top + height, left : left + width].reshape(-1, 3)
        assert len(np.unique(erased, axis=0)) == height * width > 0.3 * size[0] * size[1]


def test_grey_is_pillows_and_comes_before_normalisation():
    image = pictures(4)[0]
    luma = np.asarray(Image.fromarray(image).convert("L"))[..., None].repeat(3, -1)
    for grey, expected in ((True, luma), (False, image)):
        got = apply(image, params()._replace(grey=jnp.array(grey)), **IMAGENET)
        np.testing.assert_allclose(got, normalised(expected, **IMAGENET), atol=1e-6)


@pytest.mark.parametrize("channel", range(5))
def test_channels_are_replaced_after_normalisation_and_erasing(channel):
    image, (top, left, height, width) = pictures(5)[0], (3, 2, 7, 5)
    expected = normalised(image, **IMAGENET)
    expected[top : top + height, left : left + width] = (0.4914, 0.4822, 0.4465)
    if channel < 4:
        weights = np.array([*np.eye(3), (0.2989, 0.5870, 0.1140)])[channel]
        expected = (expected @ weights)[..., None].repeat(3, -1)
    given = params(box=(top, left, height, width))._replace(noise=None, channel=jnp.int32(channel))
    np.testing.assert_allclose(apply(image, given, **IMAGENET), expected, atol=2e-6)


# Distributions


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_flip_and_erase_rates(rate):
    p = draws(flip=rate, erase=rate)
    for happened in (p.flip, p.box[:, 2] > 0):
        assert abs(happened.mean() - rate) <= 0.03 * (0 < rate < 1)
    assert rate in (0, 1) or abs(np.corrcoef(p.flip, p.box[:, 2] > 0)[0, 1]) < 0.06


def test_crop_offsets_are_uniform_over_the_padding():
    p = draws()
    for offset in (p.top, p.left):
        values, counts = np.unique(offset, return_counts=True)
        np.testing.assert_array_equal(values, np.arange(-PAD, PAD + 1))
        np.testing.assert_allclose(counts / DRAWS, 1 / (2 * PAD + 1), atol=0.025)
    assert abs(np.corrcoef(p.top, p.left)[0, 1]) < 0.06


def test_no_padding_is_no_crop():
    p = draws(pad=0)
    assert (p.top == 0).all() and (p.left == 0).all()


@pytest.mark.parametrize("size", [(256, 128), (128, 256), (64, 32)])
def test_boxes_are_inside_and_have_the_stated_area_and_aspect(size):
    top, left, height, width = draws(size, erase=1.0).box.T.astype(np.float64)
    assert (height > 0).all() and (width > 0).all()  # ten attempts are always enough here
    assert (height < size[0]).all() and (width < size[1]).all()
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
    assert top.min() == 0 and left.min() == 0
    assert (top + height).max() == size[0] and (left + width).max() == size[1]
    # A side was rounded by at most half a pixel.
    area = size[0] * size[1]
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * area).all() and ((height - 0.5) * (width - 0.5) <= area / 3).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.3).all() and ((height - 0.5) / (width + 0.5) <= 1 / 0.3).all()
    assert (height * width).min() < 0.03 * area and (height * width).max() > 0.31 * area


def test_area_is_uniform_and_aspect_log_uniform_where_every_box_fits():
    height, width = draws((512, 512), erase=1.0).box.T[2:]
    small = height * width < 0.08 * 512**2  # at most 512 * sqrt(0.08 / 0.3) = 264 pixels long: never refused
    area = (height * width)[small] / 512**2
    assert abs(small.mean() - 0.06 / (1 / 3 - 0.02)) < 0.04 and abs(area.mean() - 0.05) < 0.002
    aspect = np.log(height / width)[small]
    assert abs(aspect.mean()) < 0.08 and abs(aspect.std() - np.log(1 / 0.3) / np.sqrt(3)) < 0.04


def test_a_picture_that_no_box_fits_is_not_erased():
    assert (draws((101, 1), erase=1.0).box[:, 2] == 0).all()


# Purity


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


def test_views_of_a_picture_have_their_own_draws_and_depend_on_their_row_only():
    x, key = {"rgb": pictures(0), "ir": pictures(1)}, jax.random.key(3)
    options = dict(pad=PAD, **TVI_LFM)
    plain = options | {"views": dict(rgb={}, again=dict(of="rgb"))}
    two = jax.jit(functools.partial(aug.augment, **plain))(x, key)
    assert (np.asarray(two["rgb"]) != np.asarray(two["again"])).any((1, 2, 3)).sum() > 0.9 * B
    same = jax.jit(functools.partial(aug.augment, sync="all", **plain))(x, key)
    np.testing.assert_array_equal(same["rgb"], same["again"])
    step = jax.jit(functools.partial(aug.augment, **options))
    whole, few = step(x, key), step({m: rows[:3] for m, rows in x.items()}, key)
    only = jax.jit(functools.partial(aug.augment, **options | {"views": {"ir": TVI_LFM["views"]["ir"]}}))(x, key)
    for name in whole:
        np.testing.assert_array_equal(few[name], whole[name][:3])
    assert only.keys() == {"ir"}
    np.testing.assert_array_equal(only["ir"], whole["ir"])


def test_modalities_are_the_default_views():
    x, key = {"rgb": pictures(0), "nir": pictures(1)}, jax.random.key(0)
    named = jax.jit(functools.partial(aug.augment, pad=PAD, views={"rgb": {}, "nir": {}}))(x, key)
    for name, expected in jax.jit(functools.partial(aug.augment, pad=PAD))(x, key).items():
        np.testing.assert_array_equal(named[name], expected)


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
    sharded = jax.jit(step, in_shardings=(split, whole))
    program = sharded.lower(x, key).compile()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in program.as_text()
    alone, got = jax.jit(step)(x, key), sharded(jax.device_put(x, split), key)
    for name in alone:
        assert program.output_shardings[name].spec == split.spec
        np.testing.assert_allclose(got[name], alone[name], atol=1e-6)
