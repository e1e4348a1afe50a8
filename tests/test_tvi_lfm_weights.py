"""Weights of TVI-LFM: in the official layout they give the official code's numbers, and its stages start from them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tvi_lfm_golden as golden
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.errors import DataError
from jax_mmreid.models.clip import TextTower, stretch_projection
from jax_mmreid.models.heads import GeM, Head
from jax_mmreid.models.resnet import ResNet, Stem
from jax_mmreid.state import TrainState
from jax_mmreid.tools import convert
from jax_mmreid.weights import init as weights_init
from jax_mmreid.weights import layouts

EVAL = golden.GOLDENS["eval"]


@pytest.fixture(scope="module")
def variables():
    weights = layouts.to_ours(golden.state_dict(), "tvi_lfm", {})
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
    x = Stem().apply(parts, golden.images(0), train=False).transpose(0, 3, 1, 2)
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


@pytest.mark.parametrize(
    "classes, total", [(395, 88_545_154), (206, 88_158_082), (713, 89_196_418)], ids=["sysu", "regdb", "llcm"]
)
def test_parameter_counts(classes, total):
    images = {name: jnp.zeros((1, 32, 32, 3)) for name in ("rgb", "ir")}
    tower = TextTower(vocab=49408, context=77, width=512, layers=12, heads=8, dim=2048)

    def init():
        key = jax.random.PRNGKey(0)
        return {
            "image": ResNet().init(key, images, train=False)["params"],
            "pool": GeM().init(key, jnp.ones((1, 2, 2, 2048)))["params"],
            "text": tower.init(key, jnp.zeros((1, 77, 512)), 0)["params"],
            "head": Head(classes, neck_bias=True).init(key, jnp.zeros((1, 2048)), train=False)["params"],
            "logit_scale": jnp.zeros(()),
        }

    counts = {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in jax.eval_shape(init).items()}
    assert counts["image"] + counts["pool"] == 23_517_569
    assert counts["text"] == 64_214_528
    assert counts["head"] == 4096 + 2048 * classes
    assert sum(counts.values()) == total


# The official names for our leaves.


@pytest.fixture(scope="module")
def second_stage():
    return golden.state_dict(second_stage=True)


def test_every_leaf_is_found_under_its_official_name(second_stage):
    weights = layouts.to_ours(second_stage, "tvi_lfm", {})
    tree = traverse_util.unflatten_dict(weights, sep="/")
    for name, x in second_stage.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(golden.official(tree, name), x, err_msg=name)


def test_a_leaf_is_found_in_a_tree_without_the_others():
    gradient = np.arange(6.0).reshape(2, 3)
    tree = {"params": {"head": {"classifier": {"kernel": gradient}}}}
    np.testing.assert_array_equal(golden.official(tree, "classifier.classifier.weight"), gradient.T)


# Files, folders and runs of full size.


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        assert found[path].dtype == x.dtype and found[path].shape == x.shape, path
        assert np.asarray(found[path]).tobytes() == x.tobytes(), path


@pytest.mark.parametrize("stage, count", [pytest.param("base", 481, marks=pytest.mark.slow), ("lfm", 488)])
def test_a_run_is_written_as_an_official_checkpoint_and_read_again_bit_by_bit(second_stage, tmp_path, stage, count):
    """File -> folder -> state of a run -> its workdir -> file, all of it exact."""
    tensors = {name: x for name, x in second_stage.items() if stage == "lfm" or not name.startswith("backup_")}
    assert len(tensors) == count
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
    """A state with zeros for these weights, pictures and backup frozen as in stage "lfm"."""
    flat = {tuple(p.split("/")): jnp.zeros(x.shape) for p, x in weights.items() if not p.startswith("extra/")}
    frozen = {keys[1:]: x for keys, x in flat.items() if keys[0] == "params" and keys[1] in ("image", "backup")}
    fields = {
        "params": {keys[1:]: x for keys, x in flat.items() if keys[0] == "params" and keys[1:] not in frozen},
        "batch_stats": {keys[1:]: x for keys, x in flat.items() if keys[0] == "batch_stats"},
        "frozen": frozen,
    }
    trees = {name: traverse_util.unflatten_dict(tree) for name, tree in fields.items()}
    return TrainState(step=jnp.int32(0), memory={}, opt_state={"count": jnp.int32(0)}, rng=jnp.zeros(2), **trees)


# Starting a small one.

WIDTH, DIM, CLASSES, VOCAB, CONTEXT, TEXT_WIDTH = 2, 64, 5, 11, 7, 12
IMAGES = {name: jnp.zeros((1, 32, 32, 3)) for name in ("rgb", "ir")}


def small_weights(seed, *, dim=DIM, classes=CLASSES, backup=False):
    """Leaves by path of a TVI-LFM with small towers, drawn at random; `dim` is the width of the text projection."""
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
            places = (part, f"backup/{part}") if backup and part in ("pool", "head") else (part,)
            shapes |= {"/".join((keys[0], place, *keys[1:])): x.shape for place in places}
    rng = np.random.default_rng(seed)
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
        state = weights_init.start_from(state_like(small_weights(2, backup=True)), weights, (32, 32))
    assert_same(dict(weights), first)
    assert_taken(state, first)
    assert "head, image, logit_scale, pool, text taken over; backup start anew" in caplog.text


def test_the_first_stage_leaves_out_the_backup_of_the_second():
    second = small_weights(2, backup=True)
    state = weights_init.start_from(state_like(small_weights(1)), second, (32, 32), required=None)
    assert_taken(state, {path: x for path, x in second.items() if "/backup/" not in path})


def test_classifiers_of_other_identities_start_anew_in_the_backup_too():
    weights = small_weights(1, classes=3, backup=True)
    state = weights_init.start_from(state_like(small_weights(2, backup=True)), weights, (32, 32), required=None)
    kernels = ("params/head/classifier/kernel", "params/backup/head/classifier/kernel")
    assert set(kernels) <= weights.keys()
    assert_taken(state, {path: x for path, x in weights.items() if path not in kernels})


def test_a_backup_that_does_not_fit_is_refused():
    weights = small_weights(1, backup=True)
    gone = "params/backup/pool/p"
    broken = {path: x for path, x in weights.items() if path != gone} | {"params/logit_scale": np.zeros(1)}
    message = rf"^init: missing {gone}; mis-shaped params/logit_scale \(1,\) instead of \(\)$"
    with pytest.raises(DataError, match=message):
        weights_init.start_from(state_like(weights), broken, (32, 32))


def test_a_run_of_other_towers_is_refused():
    wider = {
        p: np.zeros((*x.shape[:-1], x.shape[-1] + 1)) if "rgb_stem" in p else x for p, x in small_weights(1).items()
    }
    with pytest.raises(DataError, match=r"mis-shaped .*rgb_stem/conv/kernel \(7, 7, 3, 3\) instead of \(7, 7, 3, 2\)"):
        weights_init.start_from(state_like(small_weights(1)), wider, (32, 32))
    deeper = small_weights(1) | {"params/image/layer1_1/conv1/kernel": np.zeros((1, 1, 8, 2))}
    with pytest.raises(DataError, match="^init: unknown params/image/layer1_1/conv1/kernel$"):
        weights_init.start_from(state_like(small_weights(1)), deeper, (32, 32))


def test_a_state_that_is_to_come_whole_lacks_no_part():
    weights = small_weights(1)
    pictures = parts(weights, "image", "pool")
    with pytest.raises(DataError, match="^init: it has image, pool and lacks head, logit_scale, text, which cannot"):
        weights_init.start_from(state_like(weights), pictures, (32, 32), required=None)
    assert_taken(weights_init.start_from(state_like(weights), pictures, (32, 32)), pictures)


@pytest.mark.parametrize("layout", sorted({"tvi_lfm", "torchvision"}))
def test_small_towers_have_no_official_file(tmp_path, layout):
    run = saved_run(tmp_path / "run", small_weights(1))
    with pytest.raises(DataError, match=f"weights: cannot be written in the layout '{layout}': missing "):
        convert.export(str(run), tmp_path / "out.safetensors", layout=layout)
    assert not (tmp_path / "out.safetensors").exists()


# Several places.


@pytest.fixture
def two_places(tmp_path):
    """Pictures from one and text from another, as torchvision's ResNet-50 and CLIP's text tower come."""
    images, text = parts(small_weights(1), "image"), parts(small_weights(2), "text", "logit_scale")
    save_file(images, tmp_path / "images.safetensors")
    saved_run(tmp_path / "text", text)
    return tmp_path, images, text


def test_parts_come_from_several_places(two_places):
    folder, images, text = two_places
    weights = weights_init.load(f"{folder}/images.safetensors,{folder}/text")
    assert_same(dict(weights), images | text)
    assert_taken(weights_init.start_from(state_like(small_weights(3)), weights, (32, 32)), images | text)


def test_a_part_that_two_places_have_is_refused(two_places):
    folder, images, text = two_places
    save_file(images | parts(text, "logit_scale"), folder / "more.safetensors")
    match = "^weights: .*/more.safetensors and .*/text both have logit_scale; each part has one source"
    with pytest.raises(DataError, match=match):
        weights_init.load(f"{folder}/more.safetensors,{folder}/text")


def test_one_of_several_places_that_does_not_exist_is_named(two_places):
    with pytest.raises(DataError, match="no file or folder nowhere;"):
        weights_init.load(f"{two_places[0]}/text,nowhere")


def test_a_place_with_a_comma_in_its_name_is_one_place(tmp_path):
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
    assert f"init: the text projection stretched from {DIM // 2} to {DIM} features" in caplog.text


def test_a_projection_that_fits_is_not_touched(caplog):
    text = parts(small_weights(1), "text")
    with caplog.at_level("INFO", logger="jax_mmreid"):
        state = weights_init.start_from(state_like(small_weights(2)), text, (32, 32))
    assert_taken(state, text)
    assert "stretched" not in caplog.text


def test_a_text_tower_of_another_width_is_not_stretched():
    text = parts(small_weights(1), "text") | {"params/text/projection": np.zeros((TEXT_WIDTH + 1, DIM // 2))}
    match = r"^init: mis-shaped params/text/projection \(13, 32\) instead of \(12, 64\)$"
    with pytest.raises(DataError, match=match):
        weights_init.start_from(state_like(small_weights(2)), text, (32, 32))
