"""Augmentation of one picture: exact for given parameters, and correct in distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from random_pictures import DRAWS, IMAGENET, PAD, H, W, normalised, pictures

from jax_mmreid.ops import augment as aug


def params(flip=False, top=0, left=0, box=(0, 0, 0, 0), noise=0):
    return aug.Params(
        jnp.array(flip), jnp.array(top), jnp.array(left), jnp.array(box, jnp.int32), jax.random.key(noise)
    )


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
