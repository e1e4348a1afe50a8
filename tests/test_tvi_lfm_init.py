"""Starting TVI-LFM from weights: its stages from each other, parts from several sources, CLIP's text projection."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tvi_lfm_golden as golden
from flax import traverse_util
from safetensors.numpy import save_file
from test_tvi_lfm_weights import assert_same, state_like

from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.errors import DataError
from jax_mmreid.models.clip import TextTower, stretch_projection
from jax_mmreid.models.heads import GeM, Head
from jax_mmreid.models.resnet import ResNet
from jax_mmreid.tools import convert
from jax_mmreid.weights import init as weights_init

WIDTH, DIM, CLASSES, VOCAB, CONTEXT, TEXT_WIDTH = 2, 64, 5, 11, 7, 12
IMAGES = {name: jnp.zeros((1, 32, 32, 3)) for name in ("rgb", "ir")}


@functools.cache
def small_shapes(dim, classes, base):
    """Shapes by path of a TVI-LFM with small towers; `dim` is the width of the text projection."""
    key, text = jax.random.PRNGKey(0), TextTower(VOCAB, CONTEXT, TEXT_WIDTH, layers=2, heads=3, dim=dim)
    parts = {
        "image": lambda: ResNet(blocks=(1, 1, 1, 1), width=WIDTH).init(key, IMAGES, train=False),
        "pool": lambda: GeM().init(key, jnp.ones((1, 2, 2, DIM))),
        "text": lambda: text.init(key, jnp.zeros((1, CONTEXT, TEXT_WIDTH)), 0),
        "head": lambda: Head(classes, neck_bias=True).init(key, jnp.zeros((1, DIM)), train=False),
    }
    shapes = {"params/logit_scale": ()}
    for part, init in parts.items():
        for keys, x in traverse_util.flatten_dict(jax.eval_shape(init)).items():
            names = (part, f"base/{part}") if base and part in ("pool", "head") else (part,)
            shapes |= {"/".join((keys[0], name, *keys[1:])): x.shape for name in names}
    return shapes


def small_weights(seed, *, dim=DIM, classes=CLASSES, base=False):
    """Leaves by path of `small_shapes`, drawn at random."""
    rng = np.random.default_rng(seed)
    shapes = small_shapes(dim, classes, base)
    return {path: np.asarray(rng.standard_normal(shape), np.float32) for path, shape in shapes.items()}


def leaves(state):
    tree = {"params": state.variables["params"], "batch_stats": state.batch_stats}
    return traverse_util.flatten_dict(tree, sep="/")


def parts(weights, *names):
    return {path: x for path, x in weights.items() if path.split("/")[1] in names}


def assert_taken(state, weights):
    """The state's leaves in these parts are the weights', and all others are still 0."""
    found = leaves(state)
    for path, x in found.items():
        expected = weights.get(path, np.zeros_like(x))
        np.testing.assert_array_equal(x, expected, err_msg=path)
    assert weights.keys() <= found.keys()


def saved_run(folder, weights):
    """The workdir of a run that holds these weights."""
    state = weights_init.start_from(state_like(weights), weights, (32, 32))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save_frozen(state.frozen)
        checkpoints.save(3, state, {})
    return folder


def test_the_second_stage_starts_from_the_workdir_of_the_first(tmp_path, caplog):
    first = small_weights(1)
    with caplog.at_level("INFO", logger="jax_mmreid"):
        weights = weights_init.load(saved_run(tmp_path / "run", first))
        state = weights_init.start_from(state_like(small_weights(2, base=True)), weights, (32, 32))
    assert_same(dict(weights), first)
    assert_taken(state, first)
    assert "init: head, image, logit_scale, pool, text from config.init; random: base" in caplog.text


def test_the_first_stage_ignores_the_base_of_the_second():
    second = small_weights(2, base=True)
    state = weights_init.start_from(state_like(small_weights(1)), second, (32, 32), required=None)
    assert_taken(state, {path: x for path, x in second.items() if "/base/" not in path})


def test_classifiers_of_other_identities_stay_random_in_the_base_too():
    weights = small_weights(1, classes=3, base=True)
    state = weights_init.start_from(state_like(small_weights(2, base=True)), weights, (32, 32), required=None)
    kernels = ("params/head/classifier/kernel", "params/base/head/classifier/kernel")
    assert set(kernels) <= weights.keys()
    assert_taken(state, {path: x for path, x in weights.items() if path not in kernels})


def test_a_base_that_does_not_fit_is_refused():
    weights = small_weights(1, base=True)
    gone = "params/base/pool/p"
    broken = {path: x for path, x in weights.items() if path != gone} | {"params/logit_scale": np.zeros(1)}
    message = rf": missing {gone}; mis-shaped params/logit_scale \(1,\) instead of \(\)$"
    with pytest.raises(DataError, match=message):
        weights_init.start_from(state_like(weights), broken, (32, 32))


def test_a_run_of_other_towers_is_refused():
    wider = {
        p: np.zeros((*x.shape[:-1], x.shape[-1] + 1)) if "rgb_stem" in p else x for p, x in small_weights(1).items()
    }
    with pytest.raises(DataError, match=r"mis-shaped .*rgb_stem/conv/kernel \(7, 7, 3, 3\) instead of \(7, 7, 3, 2\)"):
        weights_init.start_from(state_like(small_weights(1)), wider, (32, 32))
    deeper = small_weights(1) | {"params/image/layer1_1/conv1/kernel": np.zeros((1, 1, 8, 2))}
    with pytest.raises(DataError, match=": unknown params/image/layer1_1/conv1/kernel$"):
        weights_init.start_from(state_like(small_weights(1)), deeper, (32, 32))


def test_a_required_part_that_the_weights_lack_is_named_with_a_way_out():
    weights = small_weights(1)
    images = parts(weights, "image", "pool")
    message = (
        "^init: runs/x holds image, pool but not head, logit_scale, text; name weights that hold them too "
        r"\(several sources are joined by ','\)$"
    )
    with pytest.raises(DataError, match=message):
        weights_init.start_from(state_like(weights), images, (32, 32), required=None, source="runs/x")
    with pytest.raises(DataError, match="^init: runs/x holds image, pool but not text; name weights that hold it too"):
        weights_init.start_from(state_like(weights), images, (32, 32), required=("text", "pool"), source="runs/x")
    assert_taken(weights_init.start_from(state_like(weights), images, (32, 32), required=("pool",)), images)


@pytest.mark.parametrize("layout", sorted({"tvi_lfm", "torchvision"}))
def test_small_towers_have_no_official_file(tmp_path, layout):
    run = saved_run(tmp_path / "run", small_weights(1))
    with pytest.raises(DataError, match=f"weights: cannot be written in the layout '{layout}': missing "):
        convert.export(str(run), tmp_path / "out.safetensors", layout=layout)
    assert not (tmp_path / "out.safetensors").exists()


# Several sources.


@pytest.fixture
def two_sources(tmp_path):
    """Images from one and text from another, as torchvision's ResNet-50 and CLIP's text tower come."""
    images, text = parts(small_weights(1), "image"), parts(small_weights(2), "text", "logit_scale")
    save_file(images, tmp_path / "images.safetensors")
    saved_run(tmp_path / "text", text)
    return tmp_path, images, text


def test_parts_come_from_several_sources(two_sources):
    folder, images, text = two_sources
    weights = weights_init.load(f"{folder}/images.safetensors,{folder}/text")
    assert_same(dict(weights), images | text)
    assert_taken(weights_init.start_from(state_like(small_weights(3)), weights, (32, 32)), images | text)


def test_a_part_that_two_sources_have_is_refused(two_sources):
    folder, images, text = two_sources
    save_file(images | parts(text, "logit_scale"), folder / "more.safetensors")
    match = "^weights: .*/more.safetensors and .*/text both have logit_scale; each part has one source"
    with pytest.raises(DataError, match=match):
        weights_init.load(f"{folder}/more.safetensors,{folder}/text")


def test_one_of_several_sources_that_does_not_exist_is_named(two_sources):
    with pytest.raises(DataError, match="no file or folder nowhere;"):
        weights_init.load(f"{two_sources[0]}/text,nowhere")


def test_a_source_with_a_comma_in_its_name_is_one_source(tmp_path):
    weights = small_weights(1)
    assert_same(dict(weights_init.load(saved_run(tmp_path / "row=F,eta=0.1", weights))), weights)


# The text projection.

STRETCH = golden.GOLDENS["units"]["resize_prj"]


@pytest.mark.parametrize("dim, out", [(STRETCH["new_dim"], STRETCH["out"]), (STRETCH["new_dim_b"], STRETCH["out_b"])])
def test_a_projection_is_stretched_as_by_the_official_code(dim, out):
    stretched = stretch_projection(np.array(STRETCH["in"]), dim)
    assert stretched.dtype == np.float32
    np.testing.assert_array_equal(stretched, out)


def half(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float16)


def test_twice_as_wide_a_projection_is_weighted_by_quarters():
    kernel = half(13, 1024)
    c = np.pad(kernel.astype(np.float32), ((0, 0), (1, 1)), mode="edge")
    expected = np.empty((13, 2048), np.float32)
    expected[:, 0::2] = np.float32(0.75) * c[:, 1:-1] + np.float32(0.25) * c[:, :-2]
    expected[:, 1::2] = np.float32(0.75) * c[:, 1:-1] + np.float32(0.25) * c[:, 2:]
    np.testing.assert_array_equal(stretch_projection(kernel, 2048), expected.astype(np.float16))


@pytest.mark.reference
@pytest.mark.parametrize("dim", [5, 17, 29, 64])
def test_a_projection_is_stretched_as_by_pytorch(torch, dim):
    kernel = half(13, 23)
    row = torch.tensor(kernel.astype(np.float32))[:, None, None]  # a picture one pixel high for every row
    expected = torch.nn.functional.interpolate(row, size=(1, dim), mode="bilinear", align_corners=False)
    # The last bit of float16 may fall to either side.
    np.testing.assert_allclose(stretch_projection(kernel, dim), expected[:, 0, 0].half(), rtol=1e-3, atol=1e-7)


def test_a_text_tower_for_pictures_of_another_tower_is_stretched(caplog):
    text = {path: x.astype(np.float16) for path, x in parts(small_weights(1, dim=DIM // 2), "text").items()}
    with caplog.at_level("INFO", logger="jax_mmreid"):
        state = weights_init.start_from(state_like(small_weights(2)), text, (32, 32))
    path = "params/text/projection"
    stretched = stretch_projection(text[path], DIM)
    assert leaves(state)[path].dtype == jnp.float32
    assert_taken(state, {name: x.astype(np.float32) for name, x in text.items()} | {path: stretched})
    assert f"init: the text projection resized from {DIM // 2} to {DIM} features" in caplog.text


def test_a_projection_that_fits_is_not_touched(caplog):
    text = parts(small_weights(1), "text")
    with caplog.at_level("INFO", logger="jax_mmreid"):
        state = weights_init.start_from(state_like(small_weights(2)), text, (32, 32))
    assert_taken(state, text)
    assert "resized" not in caplog.text


def test_a_text_tower_of_another_width_is_not_stretched():
    text = parts(small_weights(1), "text") | {"params/text/projection": np.zeros((TEXT_WIDTH + 1, DIM // 2))}
    match = r": mis-shaped params/text/projection \(13, 32\) instead of \(12, 64\)$"
    with pytest.raises(DataError, match=match):
        weights_init.start_from(state_like(small_weights(2)), text, (32, 32))
