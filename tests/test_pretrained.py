"""Weights from elsewhere: into a folder, out of it, into a run; and every place that they cannot be had from."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close, open_tiny, start, tiny_clip_config, tiny_config
from flax import traverse_util
from safetensors.numpy import save_file
from test_layouts import CONTEXT, DIM, HEADS, LAYERS, PATCH, VOCAB, WIDTH, openai, transformers_clip

from jax_mmreid import experiment, train
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.errors import DataError
from jax_mmreid.models.clip import resize_positions
from jax_mmreid.tools import convert
from jax_mmreid.weights import init as weights_init
from jax_mmreid.weights import layouts

CONFIG = dict(
    model_type="clip",
    projection_dim=DIM,
    vision_config=dict(num_attention_heads=HEADS["image"], hidden_size=WIDTH),
    text_config=dict(num_attention_heads=HEADS["text"], hidden_size=WIDTH),
)


@pytest.fixture
def clip_folder(tmp_path):
    """A CLIP as transformers writes one."""
    return write_clip(tmp_path / "clip")


def write_clip(folder, tensors=None, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(transformers_clip() if tensors is None else tensors, folder / "model.safetensors")
    return folder


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of the command line."""
    code = convert.main([str(x) for x in arguments])
    return code, *capsys.readouterr()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)
        assert found[path].dtype == x.dtype


# Converting.


def test_a_folder_of_transformers_becomes_a_folder_of_ours(clip_folder, tmp_path, capsys):
    code, out, _ = run(capsys, f"--input={clip_folder}", f"--output={tmp_path / 'out'}")
    assert code == 0 and "image " in out, out
    assert_same(weights_init.load(tmp_path / "out"), layouts.to_ours(transformers_clip(), "transformers", HEADS))
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert about["heads"] == HEADS and about["source"] == str(clip_folder)
    assert list(about["sha256"]) == ["model.safetensors"]


@pytest.mark.parametrize("layout", ["jax_mmreid", "transformers"])
def test_out_to_safetensors_and_in_again_changes_no_bit(clip_folder, tmp_path, capsys, layout):
    folder, file, again = tmp_path / "out", tmp_path / "x.safetensors", tmp_path / "again"
    assert run(capsys, f"--input={clip_folder}", f"--output={folder}")[0] == 0
    assert run(capsys, f"--input={folder}", f"--output={file}", "--export=safetensors", f"--layout={layout}")[0] == 0
    assert_same(weights_init.load(file), weights_init.load(folder))
    assert run(capsys, f"--input={file}", f"--output={again}")[0] == 0
    assert_same(weights_init.load(again), weights_init.load(folder))


def test_weights_in_several_files_are_one(clip_folder, tmp_path):
    tensors = transformers_clip()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, clip_folder / file)
    (clip_folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (clip_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(weights_init.load(clip_folder), layouts.to_ours(tensors, "transformers", HEADS))


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("archive", [True, False], ids=["as OpenAI published it", "a state dict"])
def test_a_pytorch_file_is_converted_before_a_run_reads_it(torch, tmp_path, capsys, archive):
    file, folder = tmp_path / "clip.pt", tmp_path / "out"
    if archive:
        torch.jit.trace(as_module(torch, openai_wide()), torch.zeros(1)).save(file)
    else:
        torch.save({name: torch.tensor(x) for name, x in openai_wide().items()}, file)
    with pytest.raises(DataError, match=r"clip.pt must be converted .*: python -m jax_mmreid.tools.convert --input="):
        weights_init.load(file)
    assert run(capsys, f"--input={file}", f"--output={folder}", "--source=openai")[0] == 0
    assert_same(weights_init.load(folder), layouts.to_ours(openai_wide(), "openai", {}))


def as_module(torch, tensors):
    """A module whose state dict is `tensors`."""

    class Node(torch.nn.Module):
        def forward(self, x):
            return x

    root = Node()
    for name, x in tensors.items():
        *path, leaf = name.split(".")
        node = root
        for part in path:
            if not hasattr(node, part):
                node.add_module(part, Node())
            node = getattr(node, part)
        node.register_parameter(leaf, torch.nn.Parameter(torch.tensor(x)))
    return root.eval()


def openai_wide():
    """A CLIP with one head of 64 features, which is what a file without a config is taken for."""
    rng = np.random.default_rng(1)
    swap = {WIDTH: 64, 3 * WIDTH: 192, 4 * WIDTH: 256}
    shapes = {name: tuple(swap.get(n, n) for n in x.shape) for name, x in openai().items()}
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


# What cannot be had.


def fails(capsys, tmp_path, source, *arguments):
    code, _, err = run(capsys, f"--input={source}", f"--output={tmp_path / 'out'}", *arguments)
    assert code == 3 and err.startswith("convert: ") and err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "out").exists()
    return err


def test_no_such_file(capsys, tmp_path):
    assert "no file or folder /nowhere/at/all" in fails(capsys, tmp_path, "/nowhere/at/all")


def test_a_folder_without_weights(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty holds no weights; expected model.safetensors" in fails(capsys, tmp_path, tmp_path / "empty")


def test_a_truncated_file(capsys, tmp_path, clip_folder):
    file = clip_folder / "model.safetensors"
    for length in (0, 5, 100, file.stat().st_size - 7):
        (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:length])
        assert "cannot read" in fails(capsys, tmp_path, tmp_path / "cut.safetensors")


def test_missing_and_unknown_tensors(capsys, tmp_path):
    tensors = transformers_clip()
    tensors["surplus"] = tensors.pop("visual_projection.weight")
    err = fails(capsys, tmp_path, write_clip(tmp_path / "clip", tensors))
    assert "not the layout 'transformers': missing visual_projection.weight; unknown surplus" in err


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("vision_model.encoder.layers.1.mlp.fc1.weight", (4 * WIDTH, WIDTH + 1), r"image/block_1/fc/kernel (15, 56)"),
        ("text_model.encoder.layers.0.layer_norm1.bias", (WIDTH + 2,), r"text/block_0/ln_1/norm/bias (16,)"),
        ("vision_model.embeddings.position_embedding.weight", (10 * WIDTH,), "cannot be built"),
        ("visual_projection.weight", (DIM,), "mis-shaped visual_projection.weight (5,)"),
    ],
)
def test_mis_shaped_tensors(capsys, tmp_path, name, shape, message):
    tensors = transformers_clip() | {name: np.zeros(shape, np.float32)}
    assert message in fails(capsys, tmp_path, write_clip(tmp_path / "clip", tensors))


def test_another_layout_than_asked_for(capsys, tmp_path, clip_folder):
    assert "not the layout 'tvi_lfm': missing base_model." in fails(capsys, tmp_path, clip_folder, "--source=tvi_lfm")


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(vision_config=dict(CONFIG["vision_config"], hidden_act="gelu")), "clip holds clip with gelu, quick_gelu"),
        (dict(model_type="siglip"), "clip holds siglip; only CLIP"),
    ],
)
def test_a_model_that_our_towers_cannot_hold(capsys, tmp_path, change, message):
    assert message in fails(capsys, tmp_path, write_clip(tmp_path / "clip", **change))


@pytest.mark.parametrize(
    "file, content", [("config.json", "{"), ("config.json", "[]"), ("model.safetensors.index.json", "[1]")]
)
def test_broken_json(capsys, tmp_path, clip_folder, file, content):
    (clip_folder / file).write_text(content)
    assert f"clip/{file}" in fails(capsys, tmp_path, clip_folder)


@pytest.mark.reference
def test_a_foreign_pickle(torch, capsys, tmp_path):
    from test_torch_file import Attack

    torch.save({"x": Attack(tmp_path / "ran")}, tmp_path / "model.pth")
    assert "refused, nothing of it was run" in fails(capsys, tmp_path, tmp_path / "model.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("how", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_id_without_a_network(tmp_path, how):
    command = [sys.executable, "-m", "jax_mmreid.tools.convert", "--input=openai/clip-vit-base-patch16"]
    environment = os.environ | how | {"HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, f"--output={tmp_path / 'out'}"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 3 and done.stderr.count("\n") == 1, done.stderr
    assert "convert: no local path openai/clip-vit-base-patch16, and it cannot be had from the Hub" in done.stderr
    assert "download the repository elsewhere and name its folder" in done.stderr


def test_an_output_that_exists(capsys, tmp_path, clip_folder):
    (tmp_path / "out").mkdir()
    code, _, err = run(capsys, f"--input={clip_folder}", f"--output={tmp_path / 'out'}")
    assert code == 3 and "exists; choose another --output" in err


# Starting a run.


def clip_config(folder, init, **changes):
    """The tiny experiment with towers as large as the CLIP of these tests."""
    return _as_large(tiny_config(folder, init=str(init), **changes))


def _as_large(config):
    config.model.image.update(patch=PATCH, width=WIDTH, layers=LAYERS, heads=HEADS["image"])
    config.model.text.update(vocab=VOCAB, context=CONTEXT, width=WIDTH, layers=LAYERS, heads=HEADS["text"])
    config.model.dim = DIM
    config.data.image_size = (8, 4)
    return config


def test_half_precision_weights_start_a_run_in_float32(drawn, tmp_path):
    exp, data, fresh = start(clip_config(drawn, ""))
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
def test_contrastive_training_goes_on_from_clip(drawn, clip_folder, tmp_path, loss):
    """Both towers and the temperature are CLIP's; the bias of the sigmoid loss, which CLIP lacks, starts anew."""
    config = _as_large(tiny_clip_config(drawn, loss, init=str(clip_folder)))
    config.data.text.context = CONTEXT
    state, weights = begun(config, tmp_path), weights_init.load(clip_folder)
    params = traverse_util.flatten_dict(state.params, sep="/")
    for path in ("text/projection", "text/block_1/fc/kernel", "image/class_embedding", "logit_scale"):
        np.testing.assert_array_equal(params[path], weights[f"params/{path}"])
    assert ("logit_bias" in state.params) == (loss == "sigmoid")


def begun(config, workdir):
    data = open_tiny(config)
    with Checkpoints(workdir) as checkpoints:
        return train.start_or_resume(config, experiment.build(config, data), data, checkpoints)


@pytest.mark.parametrize("row", ["A", "F"])
def test_config_init_starts_a_run_and_fills_its_memory(drawn, tmp_path, clip_folder, row, caplog):
    convert.convert(str(clip_folder), tmp_path / "weights")
    with caplog.at_level("INFO", logger="jax_mmreid"):
        state = begun(clip_config(drawn, tmp_path / "weights", row=row), tmp_path / "run")
    assert f"init: {'image, text' if row == 'F' else 'image'} taken over; heads" in caplog.text
    weights = weights_init.load(tmp_path / "weights")
    kernel = "params/image/block_2/fc/kernel"
    np.testing.assert_array_equal(state.params["image"]["block_2"]["fc"]["kernel"], weights[kernel])
    direct = begun(clip_config(drawn, clip_folder / "model.safetensors", row=row), tmp_path / "direct")
    assert_trees_close(direct, state, atol=0)
    if row == "F":
        other = begun(clip_config(drawn, "", row=row), tmp_path / "other")
        assert np.abs(state.memory["proto"] - other.memory["proto"]).max() > 1e-2
        np.testing.assert_array_equal(state.frozen["text"]["projection"], weights["params/text/projection"])


def test_a_run_starts_another(drawn, tmp_path):
    """The second has other cameras' and identities' leaves where they do not fit, everything else of the first."""
    _, data, fresh = start(tiny_config(drawn, seed=1))
    _, _, first = start(tiny_config(drawn, seed=2))
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


def refuse(drawn, weights, match, **changes):
    _, data, state = start(clip_config(drawn, "", **changes))
    with pytest.raises(DataError, match=match):
        weights_init.start_from(state, weights, data.spec.image_size)


def test_weights_of_another_architecture_are_refused(drawn):
    weights = layouts.to_ours(openai(), "openai", HEADS)
    patch = weights | {"params/image/patch_embedding/kernel": np.zeros((4, 4, 3, WIDTH))}
    refuse(
        drawn,
        patch,
        r"^init: mis-shaped params/image/patch_embedding/kernel \(4, 4, 3, 14\) instead of \(2, 2, 3, 14\)",
    )
    deeper = weights | {path.replace("block_2", "block_3"): x for path, x in weights.items()}
    refuse(drawn, deeper, "^init: unknown params/image/block_3/attention/out/bias, ")
    shallower = {path: x for path, x in weights.items() if "text/block_2" not in path}
    refuse(drawn, shallower, "^init: missing params/text/block_2/attention/out/bias, ")
    refuse(drawn, {"params/pool/p": np.zeros(1)}, "^init: it has pool, the method heads, image, .*: nothing in common")


@pytest.mark.parametrize("part", ["text", "image and text"])
def test_a_joint_space_of_another_width_is_refused(drawn, part):
    """CLIP's text is compared with pictures in the space that both were trained for, so nothing is stretched."""
    weights = layouts.to_ours(openai(), "openai", HEADS)
    weights["params/text/projection"] = weights["params/text/projection"][:, 1:]
    if part == "text":
        weights = {path: x for path, x in weights.items() if "/image/" not in path}
    refuse(drawn, weights, r"^init: mis-shaped params/text/projection \(14, 4\) instead of \(14, 5\)$")


def test_a_position_table_that_is_no_square_is_refused(drawn):
    weights = layouts.to_ours(openai(), "openai", HEADS)
    weights["params/image/position_embedding"] = np.zeros((8, WIDTH))
    refuse(drawn, weights, "^init: a position table of 7 patches is not square and not of a grid 4x2")


@pytest.mark.parametrize("place, match", [("nowhere", "no file or folder nowhere"), ("", "holds no weights")])
def test_a_place_without_weights_is_refused(tmp_path, place, match):
    with pytest.raises(DataError, match=match):
        weights_init.load(place or tmp_path)


def test_parts_of_a_place(clip_folder, tmp_path):
    whole = {path: x for path, x in weights_init.load(clip_folder).items() if not path.startswith("extra/")}
    parts = {path.split("/")[1] for path in whole}
    assert parts == {"image", "text", "logit_scale"}
    for asked in ("text", "image+logit_scale"):
        found = weights_init.load(f"{clip_folder}:{asked}")
        assert {path.split("/")[1] for path in found} == set(asked.split("+"))
        assert all((found[path] == whole[path]).all() for path in found)
    both = weights_init.load(f"{clip_folder}:image,{clip_folder}:text")
    assert both.keys() == {path for path in whole if "logit_scale" not in path}
    with pytest.raises(DataError, match="has image, logit_scale, text and lacks pool$"):
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
