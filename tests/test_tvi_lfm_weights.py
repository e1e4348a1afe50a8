"""Weights of TVI-LFM in the official layout: they give the official code's numbers, and are written back bit by bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tvi_lfm_golden as golden
from flax import traverse_util
from parity import shapes
from safetensors.numpy import load_file, save_file

from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.models.clip import TextTower
from jax_mmreid.models.heads import GeM, Head
from jax_mmreid.models.resnet import ResNet, Stem
from jax_mmreid.state import TrainState
from jax_mmreid.tools import convert
from jax_mmreid.weights import files, layouts
from jax_mmreid.weights import init as weights_init

EVAL = golden.GOLDENS["eval"]


@pytest.fixture(scope="module")
def tensors():
    """The official state dict of the first stage."""
    return golden.state_dict()


@pytest.fixture(scope="module")
def weights(tensors):
    return layouts.to_ours(tensors, "tvi_lfm", {})


@pytest.fixture(scope="module")
def variables(weights):
    return traverse_util.unflatten_dict({path: jnp.asarray(x) for path, x in weights.items()}, sep="/")


@pytest.fixture(scope="module")
def apply(variables):
    """A module applied to inputs, compiled, with the weights of one part."""

    def run(module, part, *args, **options):
        parts = {name: variables[name].get(part, {}) for name in ("params", "batch_stats")}
        return jax.jit(functools.partial(module.apply, **options))(parts, *args)

    return run


@pytest.fixture(scope="module")
def feats(apply):
    """Unnormalised features [8,2048] by kind."""
    images = {"rgb": golden.images(0), "ir": golden.images(2)}
    maps = dict(zip(images, jnp.split(apply(ResNet(), "image", images, train=False), 2)))
    tower = TextTower(vocab=49408, context=77, width=512, layers=12, heads=8, dim=2048)

    def text(ids):
        return apply(tower, "text", apply(tower, "text", ids, method="embed"), ids.argmax(axis=1))

    found = {name: apply(GeM(), "pool", x) for name, x in maps.items()}
    found |= {"text_rgb": text(golden.tokens(1, 0)), "text_ir": text(golden.tokens(3, 2))}
    found["fusion"] = found["ir"] + found["text_rgb"] - found["text_ir"]
    return found | {"rgb_map": maps["rgb"]}


@pytest.fixture(scope="module")
def embeds(apply, feats):
    """Unit vectors behind the neck."""

    def embed(x):
        x = apply(Head(golden.CLASSES, neck_bias=True), "head", x, method="bn_features")
        return x / jnp.linalg.norm(x, axis=1, keepdims=True)

    sources = {"gallery_rgb": "rgb", "query_fusion": "fusion", "query_ir": "ir", "query_text": "text_rgb"}
    return {name: embed(feats[source]) for name, source in sources.items()}


def test_the_stem(variables):
    parts = {name: variables[name]["image"]["rgb_stem"] for name in ("params", "batch_stats")}
    x = jax.jit(functools.partial(Stem().apply, train=False))(parts, golden.images(0)).transpose(0, 3, 1, 2)
    assert list(x.shape) == EVAL["rgb_stem_shape"]
    golden.check(x, EVAL["rgb_stem"], 1e-5)
    assert float(x.min()) == pytest.approx(EVAL["rgb_stem_min"], rel=1e-5)


def test_the_map_of_the_trunk(feats):
    x = feats["rgb_map"].transpose(0, 3, 1, 2)
    assert list(x.shape) == EVAL["rgb_map_shape"]
    golden.check(x, EVAL["rgb_map"], 1e-4)


@pytest.mark.parametrize(
    "ours, theirs", [("rgb", "rgb_pool"), ("ir", "ir_pool"), *[(k, k) for k in ("text_rgb", "text_ir", "fusion")]]
)
def test_features(feats, ours, theirs):
    golden.check(feats[ours], EVAL[theirs], 1e-5)


@pytest.mark.parametrize("name", ["gallery_rgb", "query_fusion", "query_ir", "query_text"])
def test_retrieval_vectors(embeds, name):
    golden.check(embeds[name], EVAL[name], 1e-5)


def test_scores_of_all_three_queries(embeds):
    queries = embeds["query_fusion"] + embeds["query_ir"] + embeds["query_text"]
    np.testing.assert_allclose(queries[0] @ embeds["gallery_rgb"].T, EVAL["mer_score_row0"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def towers():
    """The number of parameters of every part but the head."""
    images = {name: jnp.zeros((1, 32, 32, 3)) for name in ("rgb", "ir")}
    tower = TextTower(vocab=49408, context=77, width=512, layers=12, heads=8, dim=2048)

    def init():
        key = jax.random.PRNGKey(0)
        return {
            "image": ResNet().init(key, images, train=False)["params"],
            "pool": GeM().init(key, jnp.ones((1, 2, 2, 2048)))["params"],
            "text": tower.init(key, jnp.zeros((1, 77, 512)), 0)["params"],
            "logit_scale": jnp.zeros(()),
        }

    return {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in jax.eval_shape(init).items()}


@pytest.mark.parametrize(
    "classes, total", [(395, 88_545_154), (206, 88_158_082), (713, 89_196_418)], ids=["sysu", "regdb", "llcm"]
)
def test_parameter_counts(towers, classes, total):
    assert towers["image"] + towers["pool"] == 23_517_569
    assert towers["text"] == 64_214_528
    head = shapes(Head(classes, neck_bias=True), jnp.zeros((1, 2048)), train=False)
    head = sum(x.size for x in jax.tree.leaves(head))
    assert head == 4096 + 2048 * classes
    assert sum(towers.values()) + head == total


# The official names for our leaves.


def narrow(second_stage):
    """Every tensor of the official state dict, its widths divided by four."""
    official = golden.names_and_shapes(second_stage=second_stage)
    return {name: golden.draw(name, tuple(n if n % 64 else n // 4 for n in x)) for name, x in official.items()}


def test_every_leaf_is_found_under_its_official_name():
    tensors = narrow(second_stage=True)
    tree = traverse_util.unflatten_dict(layouts.to_ours(tensors, "tvi_lfm", {}), sep="/")
    for name, x in tensors.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(golden.official(tree, name), x, err_msg=name)


def test_a_leaf_is_found_in_a_tree_without_the_others():
    gradient = np.arange(6.0).reshape(2, 3)
    tree = {"params": {"head": {"classifier": {"kernel": gradient}}}}
    np.testing.assert_array_equal(golden.official(tree, "classifier.classifier.weight"), gradient.T)


# Files, folders and runs.


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        assert found[path].dtype == x.dtype and found[path].shape == x.shape, path
        assert np.asarray(found[path]).tobytes() == x.tobytes(), path


def test_weights_of_full_size_are_given_their_official_names_bit_by_bit(tensors, weights):
    assert_same(layouts.from_ours(weights, "tvi_lfm"), tensors)


@pytest.mark.parametrize("stage, count", [pytest.param("base", 481, marks=pytest.mark.slow), ("lfm", 488)])
@pytest.mark.parametrize("make", [narrow, pytest.param(golden.state_dict, marks=pytest.mark.slow)])
def test_a_run_is_written_as_an_official_checkpoint_and_read_again_bit_by_bit(
    make, stage, count, tmp_path, monkeypatch
):
    """File -> folder -> state of a run -> its workdir -> file, all of it exact."""
    tensors = make(second_stage=stage == "lfm")
    assert len(tensors) == count
    if make is narrow:
        # What refuses other widths than the official ones.
        monkeypatch.setattr(files, "ResNet", functools.partial(ResNet, width=16))
        monkeypatch.setitem(layouts.FIXED, "tvi_lfm", {})
    save_file(tensors, tmp_path / "official.safetensors")
    convert.convert(str(tmp_path / "official.safetensors"), tmp_path / "folder")
    weights = weights_init.load(tmp_path / "folder")
    state = weights_init.start_from(state_like(weights), weights, (96, 48), required=None)
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save_frozen(state.frozen)
        checkpoints.save(7, state, {})
    convert.export(str(tmp_path / "run"), tmp_path / "again.safetensors", layout="tvi_lfm")
    assert_same(load_file(tmp_path / "again.safetensors"), tensors)


def state_like(weights):
    """A state with zeros for these weights, images and base frozen as in stage "lfm"."""
    found = {tuple(p.split("/")): np.shape(x) for p, x in weights.items() if not p.startswith("extra/")}
    flat = {keys: jax.device_put(np.zeros(shape, np.float32)) for keys, shape in found.items()}
    frozen = {keys[1:]: x for keys, x in flat.items() if keys[0] == "params" and keys[1] in ("image", "base")}
    fields = {
        "params": {keys[1:]: x for keys, x in flat.items() if keys[0] == "params" and keys[1:] not in frozen},
        "batch_stats": {keys[1:]: x for keys, x in flat.items() if keys[0] == "batch_stats"},
        "frozen": frozen,
    }
    trees = {name: traverse_util.unflatten_dict(tree) for name, tree in fields.items()}
    return TrainState(step=jnp.int32(0), memory={}, opt_state={"count": jnp.int32(0)}, rng=jnp.zeros(2), **trees)
