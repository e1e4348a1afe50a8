"""Drawn pedestrians on disk: the same files for the same seed, their names, and the command line."""

import hashlib
import json
import re

import numpy as np
import pytest
from drawn_files import SIZES, load, tree
from drawn_files import world as world
from PIL import Image

from input_pipeline.synthesize import main, synthesize
from input_pipeline.synthetic import layouts
from input_pipeline.synthetic.layouts import rgbnt201 as writer
from input_pipeline.synthetic.scenes import Plan, scenes
from jax_mmreid.errors import DataError

FOLDERS = ("RGB", "NI", "TI")
NAME = re.compile(r"(\d{6})_cam(\d)_\d_\d{2}\.jpg")
GOLDEN_SIZES = dict(num_train_ids=3, num_test_ids=2, cameras=3, images_per_camera=2, height=32)
GOLDEN_TREES = {  # file names, and the contents of all files but pictures
    "llcm": "a293aa4ea6df7f9d",
    "msvr310": "25da1664e6631e28",
    "regdb": "8d1211c0909d850f",
    "rgbnt100": "83a3a005818776ce",
    "rgbnt201": "f56f5a0aa70d7f6a",
    "sysu_mm01": "ba05ef08307a3aba",
}


def test_drawn_pictures_and_captions_are_those_of_the_first_release():
    """Pixels and captions before they are encoded, so that no library of picture files matters."""
    plan, digest = Plan(seed=11, **GOLDEN_SIZES), hashlib.sha256()
    for scene in scenes(plan, [*plan.train_pids, *plan.test_pids]):
        digest.update(f"{scene.pid} {scene.camid} {scene.image}".encode())
        for spectrum in ("rgb", "nir", "tir"):
            digest.update(scene.pictures[spectrum].tobytes())
            digest.update("\n".join(scene.captions[spectrum]).encode())
    assert digest.hexdigest()[:16] == "e3b7457d7da03508"


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_drawn_trees_are_those_of_the_first_release(tmp_path, layout):
    synthesize(tmp_path / "out", layout=layout, seed=11, **GOLDEN_SIZES)
    digest = hashlib.sha256()
    for name, content in tree(tmp_path / "out").items():
        digest.update(name.encode())
        if name.endswith((".json", ".txt")) or name.endswith(".npy") and "img" not in name:
            digest.update(content)
    assert digest.hexdigest()[:16] == GOLDEN_TREES[layout]


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(world, tmp_path):
    synthesize(tmp_path / "again", seed=11, **SIZES)
    synthesize(tmp_path / "other", seed=12, **SIZES)
    again, other = tree(tmp_path / "again"), tree(tmp_path / "other")
    assert again == tree(world)
    assert again.keys() == other.keys()
    assert not any(again[name] == other[name] for name in again if name.endswith(".jpg"))


def test_a_picture_does_not_depend_on_how_many_others_are_drawn(world, tmp_path):
    larger = dict(num_train_ids=6, num_test_ids=4, cameras=3, images_per_camera=8, height=46)
    synthesize(tmp_path / "larger", seed=11, **larger)
    small, large = tree(world), tree(tmp_path / "larger")
    assert len(large) > len(small)
    assert all(large[name] == data for name, data in small.items() if name.endswith(".jpg"))
    for kind in ("RGB", "IR"):
        captions = load(tmp_path / "larger", kind, "caption_llm_dict")
        assert load(world, kind, "caption_llm_dict").items() <= captions.items()


def test_folders_and_names_are_those_of_rgbnt201(world):
    assert {p.name for p in world.iterdir()} == {"train_171", "test", "Text", "synthesized.json"}
    pids = {}
    for split, ids in (("train_171", 5), ("test", 3)):
        names = [{p.name for p in (world / split / folder).iterdir()} for folder in FOLDERS]
        assert names[0] == names[1] == names[2]
        assert len(names[0]) == ids * 2 * 7
        parsed = [NAME.fullmatch(name).groups() for name in names[0]]
        pids[split] = {int(pid) for pid, _ in parsed}
        assert len(pids[split]) == ids
        assert {int(camera) for _, camera in parsed} == {1, 2}
    assert pids["train_171"].isdisjoint(pids["test"])


def test_pictures_are_rgb_files_and_infrared_ones_are_grey(world):
    for folder in FOLDERS:
        with Image.open(next((world / "test" / folder).iterdir())) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (23, 46))
            pixels = np.asarray(picture).astype(int)
        spread = np.abs(pixels - pixels.mean(-1, keepdims=True)).max()
        assert spread < 1 if folder != "RGB" else spread > 10


def test_the_arguments_are_kept(world):
    kept = json.loads((world / "synthesized.json").read_text())
    assert kept == {"layout": "rgbnt201", "seed": 11, **SIZES}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, error):
    save, calls = writer.save_jpeg, []

    def failing(path, picture):
        calls.append(path)
        if len(calls) > 20:
            raise error
        save(path, picture)

    monkeypatch.setattr(writer, "save_jpeg", failing)
    with pytest.raises(DataError if isinstance(error, OSError) else type(error)):
        synthesize(tmp_path / "out", **SIZES)
    assert calls[0].parts[-3:-1] == ("train_171", "RGB")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(DataError, match="not an empty folder"):
        synthesize(tmp_path, **SIZES)
    assert main([f"--output={tmp_path}"]) == 3
    assert main([f"--output={tmp_path / 'precious.txt'}"]) == 3
    assert main([f"--output={tmp_path / 'precious.txt' / 'below'}"]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert tree(tmp_path) == {"precious.txt": b"keep"}


def test_the_command_line_fills_an_empty_folder(world, tmp_path):
    arguments = [f"--{name}={value}" for name, value in SIZES.items()]
    assert main(["--layout=rgbnt201", f"--output={tmp_path}", "--seed=11", *arguments]) == 0
    assert tree(tmp_path) == tree(world)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--layout=rgbnt999", "synthesize: no layout 'rgbnt999'; the layouts are: llcm, "),
        ("--seed=-1", "synthesize: seed=-1: must lie in [0, 4294967295]"),
        ("--num_train_ids=0", "synthesize: num_train_ids=0: must lie in [1, 499999]"),
        ("--num_test_ids=-3", "num_test_ids=-3"),
        ("--cameras=10", "cameras=10: must lie in [1, 9]"),
        ("--images_per_camera=0", "images_per_camera=0"),
        ("--height=7", "height=7: must lie in [32, 4096]"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(tmp_path, capsys, argument, message):
    assert main([f"--output={tmp_path / 'out'}", argument]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_defect_is_a_traceback(tmp_path, monkeypatch):
    """Only ConfigError and DataError become one line."""
    monkeypatch.setattr(writer, "write", lambda root, plan: int("x"))
    with pytest.raises(ValueError):
        main([f"--output={tmp_path / 'out'}"])
