"""Weights of other code into a folder of ours and out of it again, and everything that is no such weights."""

import itertools
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clip_files import CONFIG, write_clip
from safetensors.numpy import save_file
from test_layouts import DIM, HEADS, WIDTH, openai, transformers_clip
from torch_files import Attack

from jax_mmreid.errors import DataError
from jax_mmreid.tools import convert
from jax_mmreid.weights import files, layouts, sources
from jax_mmreid.weights import init as weights_init


@pytest.fixture
def clip_folder(tmp_path):
    """A CLIP as transformers writes one."""
    return write_clip(tmp_path / "clip")


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


# What is no weights.


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
        ("vision_model.embeddings.position_embedding.weight", (10 * WIDTH,), "image/position_embedding (140,)"),
        ("vision_model.embeddings.position_embedding.weight", (1, WIDTH), "no image tower has 1 positions"),
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


def test_a_pickle_with_code(capsys, tmp_path):
    (tmp_path / "model.pth").write_bytes(pickle.dumps({"x": Attack(tmp_path / "ran")}))
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
    assert (
        "convert: no local path openai/clip-vit-base-patch16, and it cannot be downloaded from the Hub" in done.stderr
    )
    assert "download the repository elsewhere and name its folder" in done.stderr


def test_an_output_that_exists_or_cannot_be_written(capsys, tmp_path, clip_folder):
    (tmp_path / "out").mkdir()
    code, _, err = run(capsys, f"--input={clip_folder}", f"--output={tmp_path / 'out'}")
    assert code == 2 and err.endswith("/out exists; choose another --output or remove it\n")
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, f"--input={clip_folder}", f"--output={tmp_path / 'file' / 'out'}")
    assert code == 2 and "file/out (Not a directory); choose another folder" in err
    code, _, err = run(capsys, f"--input={clip_folder}", f"--output={tmp_path / 'no' / 'x'}", "--export=safetensors")
    assert code == 2 and "cannot write" in err and err.count("\n") == 1


def test_a_defect_of_ours_is_a_traceback(capsys, tmp_path, clip_folder, monkeypatch):
    def broken(*_):
        raise ValueError("a defect")

    monkeypatch.setattr(files, "save", broken)
    with pytest.raises(ValueError, match="a defect"):
        run(capsys, f"--input={clip_folder}", f"--output={tmp_path / 'out'}")


def safetensors(path, tensors, metadata=None):
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    "tensors, metadata, message",
    [
        ({}, None, "it has no tensors, which is none of the layouts"),
        ({"x": 1}, {}, "it has tensors named x, which is none of the layouts"),
        ({"params/image/x": 1, "params/image": 1}, {}, "not the layout 'jax_mmreid': mis-placed params/image"),
        ({"params/": 1}, {}, "not the layout 'jax_mmreid': unknown params/"),
        ({"params/image/x": 1}, {"image": "two"}, "is no number of attention heads: image='two'"),
        ({"params/image/x": 1}, {"text": "0"}, "is no number of attention heads: text='0'"),
    ],
)
def test_a_file_of_other_tensors(capsys, tmp_path, tensors, metadata, message):
    arrays = {name: np.ones(n, np.float32) for name, n in tensors.items()}
    assert message in fails(capsys, tmp_path, safetensors(tmp_path / "x.safetensors", arrays, metadata))


def test_numbers_of_a_type_that_numpy_lacks(capsys, tmp_path):
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "has tensors of type BF16; save float16" in fails(capsys, tmp_path, tmp_path / "x.safetensors")


@pytest.mark.parametrize("turn", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_tensors_of_any_shape_are_refused_in_one_line(turn):
    """Of each kind of tensor one, with too few axes, too many or none of any length; one of the three a turn."""
    whole = transformers_clip()
    kinds = [
        name
        for name in whole
        if not re.search(r"layers\.[12]|text_model.encoder|(q|v)_proj|position_ids|logit_scale", name)
    ]
    for name, shape in zip(kinds, itertools.islice(itertools.cycle([(), (3, 2, 2), (0, 3)]), turn, None)):
        if len(shape) != whole[name].ndim or 0 in shape:
            tensors = whole | {name: np.zeros(shape, np.float32)}
            with pytest.raises(DataError, match="mis-shaped|no .* tower has") as caught:
                files.to_weights(sources.StateDict(tensors, HEADS, (Path("model.safetensors"),)), "auto")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image, text", [("3", "7"), ("2", "5"), ("100", "7")])
def test_heads_that_do_not_divide_the_width(tmp_path, image, text):
    file = safetensors(tmp_path / "x.safetensors", transformers_clip(), {"image": image, "text": text})
    with pytest.raises(DataError, match="mis-shaped .*attn"):
        weights_init.load(file)
