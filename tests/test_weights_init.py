"""Starting a state from weights: what is taken, what is resized, what stays random, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_files import write_clip
from conftest import assert_trees_close, build, noise, open_tiny, tiny_clip_config, tiny_config
from flax import traverse_util
from test_layouts import CONTEXT, DIM, HEADS, LAYERS, PATCH, VOCAB, WIDTH, openai

from jax_mmreid import train
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.errors import DataError
from jax_mmreid.models.clip import resize_positions
from jax_mmreid.tools import convert
from jax_mmreid.weights import init as weights_init
from jax_mmreid.weights import layouts


@pytest.fixture
def clip_folder(tmp_path):
    """A CLIP as transformers writes one."""
    return write_clip(tmp_path / "clip")


def clip_config(folder, init, **changes):
    """The tiny experiment with towers as large as the CLIP of these tests."""
    return _as_large(tiny_config(folder, init=str(init), **changes))


def _as_large(config):
    config.model.image.update(patch=PATCH, width=WIDTH, layers=LAYERS, heads=HEADS["image"])
    config.model.text.update(vocab=VOCAB, context=CONTEXT, width=WIDTH, layers=LAYERS, heads=HEADS["text"])
    config.model.dim = DIM
    config.data.image_size = (8, 4)
    return config


def drawn_state(config, seed=0):
    """(experiment, data, a state of random numbers, which no initialiser was compiled for)."""
    data = open_tiny(config)
    exp = build(config, data)
    return exp, data, noise(exp.abstract, seed)


def test_half_precision_weights_start_a_run_in_float32(drawn):
    exp, data, fresh = drawn_state(clip_config(drawn, ""))
    weights = layouts.to_ours(openai(np.float16), "openai", HEADS)
    state = weights_init.start_from(fresh, weights, data.spec.image_size)
    variables, before = state.variables["params"], fresh.variables["params"]
    ours = traverse_util.unflatten_dict(weights, sep="/")["params"]
    for part, own in (("image", {"camera_embedding", "position_embedding"}), ("text", set())):
        taken = {name: x for name, x in variables[part].items() if name not in own}
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(taken))
        assert_trees_close(taken, {name: ours[part][name] for name in taken}, atol=0)
    table = resize_positions(ours["image"]["position_embedding"], (4, 2))
    np.testing.assert_array_equal(variables["image"]["position_embedding"], table)
    for part in ("heads", "structure", "inversion", "prompts"):
        assert_trees_close(variables[part], before[part], atol=0)
    np.testing.assert_array_equal(variables["image"]["camera_embedding"], before["image"]["camera_embedding"])
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        expected = dict(jax.tree_util.tree_leaves_with_path(exp.abstract))[path]
        assert leaf.sharding == expected.sharding and leaf.shape == expected.shape, path


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_contrastive_training_goes_on_from_clip(drawn, clip_folder, loss):
    """Both towers and the temperature are CLIP's; the bias of the sigmoid loss, which CLIP lacks, is the run's own."""
    config = _as_large(tiny_clip_config(drawn, loss))
    config.data.text.context = CONTEXT
    _, data, fresh = drawn_state(config)
    weights = weights_init.load(clip_folder)
    state = weights_init.start_from(fresh, weights, data.spec.image_size)
    params = traverse_util.flatten_dict(state.params, sep="/")
    for path in ("text/projection", "text/block_1/fc/kernel", "image/class_embedding", "logit_scale"):
        np.testing.assert_array_equal(params[path], weights[f"params/{path}"])
    assert ("logit_bias" in state.params) == (loss == "sigmoid")
    assert state.params.get("logit_bias") == fresh.params.get("logit_bias")


def begun(config, workdir):
    data = open_tiny(config)
    with Checkpoints(workdir) as checkpoints:
        return train.start_or_resume(config, build(config, data), data, checkpoints)


@pytest.mark.parametrize("row", ["A", "F"])
def test_config_init_starts_a_run_and_fills_its_memory(drawn, tmp_path, clip_folder, row, caplog):
    def start_of(init, name):
        return begun(clip_config(drawn, init, row=row, modalities="rgb/tir"), tmp_path / name)

    convert.convert(str(clip_folder), tmp_path / "weights")
    with caplog.at_level("INFO", logger="jax_mmreid"):
        state = start_of(tmp_path / "weights", "run")
    assert f"init: {'image, text' if row == 'F' else 'image'} from " in caplog.text
    weights = weights_init.load(tmp_path / "weights")
    kernel = "params/image/block_2/fc/kernel"
    np.testing.assert_array_equal(state.params["image"]["block_2"]["fc"]["kernel"], weights[kernel])
    if row == "A":
        assert_trees_close(start_of(clip_folder / "model.safetensors", "direct"), state, atol=0)
    else:
        other = start_of("", "other")
        assert np.abs(state.memory["proto"] - other.memory["proto"]).max() > 1e-2
        np.testing.assert_array_equal(state.frozen["text"]["projection"], weights["params/text/projection"])


def test_a_file_and_the_folder_converted_from_it_hold_the_same(clip_folder, tmp_path):
    convert.convert(str(clip_folder), tmp_path / "weights")
    loaded = (weights_init.load(source) for source in (clip_folder / "model.safetensors", tmp_path / "weights"))
    file, folder = ({path: x for path, x in weights.items() if "extra/" not in path} for weights in loaded)
    assert file.keys() == folder.keys() and {path.split("/")[1] for path in file} >= {"image", "text"}
    assert_trees_close(file, folder, atol=0)


def test_a_run_starts_another(drawn, tmp_path):
    """The second has other cameras' and identities' leaves where they do not fit, everything else of the first."""
    _, data, fresh = drawn_state(tiny_config(drawn), 1)
    _, _, first = drawn_state(tiny_config(drawn), 2)
    for step, state in ((2, fresh), (10, first)):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save_frozen(state.frozen)
            checkpoints.save(step, state, {})
    weights = weights_init.load(tmp_path)
    state = weights_init.start_from(fresh, weights, data.spec.image_size)
    assert_trees_close(state.variables["params"], first.variables["params"], atol=0)
    assert_trees_close(state.batch_stats, first.batch_stats, atol=0)
    smaller = {p: x[:, :-1] if p.endswith("classifier/kernel") else x for p, x in weights.items()}
    state = weights_init.start_from(fresh, smaller, data.spec.image_size)
    heads = state.params["heads"], fresh.params["heads"]
    assert_trees_close(*({name: head["classifier"] for name, head in part.items()} for part in heads), atol=0)


def refuse(drawn, weights, match):
    _, data, state = drawn_state(clip_config(drawn, ""))
    with pytest.raises(DataError, match=match):
        weights_init.start_from(state, weights, data.spec.image_size)


def test_weights_of_another_architecture_are_refused(drawn):
    weights = layouts.to_ours(openai(), "openai", HEADS)
    patch = weights | {"params/image/patch_embedding/kernel": np.zeros((4, 4, 3, WIDTH))}
    refuse(
        drawn,
        patch,
        r"^init: config.init does not fit the model of the config: "
        r"mis-shaped params/image/patch_embedding/kernel \(4, 4, 3, 14\) instead of \(2, 2, 3, 14\)",
    )
    deeper = weights | {path.replace("block_2", "block_3"): x for path, x in weights.items()}
    refuse(drawn, deeper, ": unknown params/image/block_3/attention/out/bias, ")
    shallower = {path: x for path, x in weights.items() if "text/block_2" not in path}
    refuse(drawn, shallower, ": missing params/text/block_2/attention/out/bias, ")
    refuse(
        drawn,
        {"params/pool/p": np.zeros(1)},
        "^init: config.init holds pool, none of the method's parts heads, image, ",
    )


@pytest.mark.parametrize("part", ["text", "image and text"])
def test_a_joint_space_of_another_width_is_refused(drawn, part):
    """CLIP compares text with pictures in the space that both were trained for, so nothing is resized."""
    weights = layouts.to_ours(openai(), "openai", HEADS)
    weights["params/text/projection"] = weights["params/text/projection"][:, 1:]
    if part == "text":
        weights = {path: x for path, x in weights.items() if "/image/" not in path}
    refuse(drawn, weights, r": mis-shaped params/text/projection \(14, 4\) instead of \(14, 5\)$")


def test_a_position_table_that_is_no_square_is_refused(drawn):
    weights = layouts.to_ours(openai(), "openai", HEADS)
    weights["params/image/position_embedding"] = np.zeros((8, WIDTH))
    refuse(drawn, weights, "^init: a position table of 7 patches is neither square nor of a grid 4x2")


@pytest.mark.parametrize("source, match", [("nowhere", "no file or folder nowhere"), ("", "holds no weights")])
def test_a_source_without_weights_is_refused(tmp_path, source, match):
    with pytest.raises(DataError, match=match):
        weights_init.load(source or tmp_path)


def test_parts_of_a_source(clip_folder, tmp_path):
    whole = {path: x for path, x in weights_init.load(clip_folder).items() if not path.startswith("extra/")}
    parts = {path.split("/")[1] for path in whole}
    assert parts == {"image", "text", "logit_scale"}
    for asked in ("text", "image+logit_scale"):
        found = weights_init.load(f"{clip_folder}:{asked}")
        assert {path.split("/")[1] for path in found} == set(asked.split("+"))
        assert all((found[path] == whole[path]).all() for path in found)
    both = weights_init.load(f"{clip_folder}:image,{clip_folder}:text")
    assert both.keys() == {path for path in whole if "logit_scale" not in path}
    with pytest.raises(DataError, match="/clip holds image, logit_scale, text but not pool$"):
        weights_init.load(f"{clip_folder}:text+pool")
    named = tmp_path / "run:text"
    named.mkdir()
    assert weights_init.init_sources(str(named)) == [(str(named), set())]
    assert weights_init.init_sources(f"{named}:image,b") == [(str(named), {"image"}), ("b", set())]


def test_a_broken_converted_folder_is_refused(clip_folder, tmp_path):
    convert.convert(str(clip_folder), tmp_path / "out")
    (tmp_path / "out" / "weights" / "_METADATA").unlink()
    with pytest.raises(DataError, match="weights: cannot read .*out/weights") as caught:
        weights_init.load(tmp_path / "out")
    assert "\n" not in str(caught.value)


# Positions.


def test_positions_are_resized_as_specified():
    table = np.concatenate([np.full((1, 1), 7.0), np.arange(196.0)[:, None]])
    resized = resize_positions(table, (16, 8))
    assert resized.shape == (129, 1) and resized[0] == 7
    grid = np.asarray(resized[1:, 0]).reshape(16, 8)
    np.testing.assert_allclose(grid[0], 0.375 + 1.75 * np.arange(8), rtol=1e-6)
    assert grid[3, 3] == 41.5 and grid[15, 7] == 194.625


@pytest.mark.reference
@pytest.mark.parametrize("grid", [(16, 8), (8, 16), (3, 29), (14, 14)])
def test_positions_are_resized_as_pytorch_does(torch, grid):
    table = np.random.default_rng(0).standard_normal((197, 5)).astype(np.float32)
    square = torch.tensor(table[1:]).T.reshape(1, 5, 14, 14)
    expected = torch.nn.functional.interpolate(square, size=grid, mode="bilinear", align_corners=False)
    resized = resize_positions(table, grid)
    np.testing.assert_array_equal(resized[0], table[0])
    np.testing.assert_allclose(resized[1:], expected.reshape(5, -1).T, atol=1e-5)


def test_a_table_of_the_right_grid_is_left_alone():
    for count, grid in ((9, (3, 3)), (8, (4, 2))):
        table = np.random.default_rng(0).standard_normal((1 + count, 5)).astype(np.float32)
        assert resize_positions(table, grid) is table
