"""Procedural pedestrians: which attribute is visible in which spectrum, the files on disk, and the captions."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from input_pipeline.synthesize import main, synthesize
from input_pipeline.synthetic import layouts
from input_pipeline.synthetic.captions import make_captions
from input_pipeline.synthetic.drawing import draw
from input_pipeline.synthetic.layouts import rgbnt201 as writer
from input_pipeline.synthetic.people import Identity, make_camera, make_identity, make_shot
from input_pipeline.synthetic.scenes import Plan, scenes
from jax_mmreid.errors import DataError

SIZES = dict(num_train_ids=5, num_test_ids=3, cameras=2, images_per_camera=7, height=46)
FOLDERS = ("RGB", "NI", "TI")
NAME = re.compile(r"(\d{6})_cam(\d)_\d_\d{2}\.jpg")
COLOUR_WORDS = {
    *("black", "white", "grey", "gray", "red", "blue", "green", "yellow", "purple", "orange", "brown", "beige"),
    *("blond", "blonde", "pink", "navy", "tan", "silver", "colour", "color", "coloured", "colored"),
}
PERSON = Identity(
    stature=0.95,
    shoulders=0.11,
    legs=0.47,
    belly=0.09,
    hair="long hair",
    upper="jacket",
    lower="trousers",
    bag="backpack",
    hat="no hat",
    upper_colour="red",
    lower_colour="beige",
    hair_colour="brown",
    skin_colour="medium",
    bag_colour="blue",
    upper_reflectance="dark",
    lower_reflectance="light",
    reflectance_pattern="plain",
    upper_heat="cool",
    lower_heat="lukewarm",
    head_heat=210.0,
    heat_pattern="even",
    shoe_heat="cold",
)
SHAPE = dict(
    stature=0.87,
    shoulders=0.12,
    legs=0.44,
    belly=0.11,
    hair="bun",
    upper="coat",
    lower="skirt",
    bag="handbag",
    hat="cap",
)
COLOUR = dict(upper_colour="green", lower_colour="black", hair_colour="blond", skin_colour="dark", bag_colour="red")
REFLECTANCE = dict(upper_reflectance="very light", lower_reflectance="very dark", reflectance_pattern="checks")
HEAT = dict(upper_heat="warm", lower_heat="cold", head_heat=190.0, heat_pattern="cold hip", shoe_heat="warm")


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def load(root, kind, file):
    return json.loads((root / "Text" / f"Blip_{kind}" / f"{file}_Blip_{kind}.json").read_text())


def words(sentence):
    return re.findall(r"[a-z-]+", sentence.lower())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthesize") / "world"
    synthesize(root, seed=11, **SIZES)
    return root


GOLDEN_SIZES = dict(num_train_ids=3, num_test_ids=2, cameras=3, images_per_camera=2, height=32)


def test_drawn_pictures_and_captions_are_those_of_the_first_release():
    """Pixels and captions before they are encoded, so that no library of picture files matters."""
    plan, digest = Plan(seed=11, **GOLDEN_SIZES), hashlib.sha256()
    for scene in scenes(plan, [*plan.train_pids, *plan.test_pids]):
        digest.update(f"{scene.pid} {scene.camid} {scene.image}".encode())
        for spectrum in ("rgb", "nir", "tir"):
            digest.update(scene.pictures[spectrum].tobytes())
            digest.update("\n".join(scene.captions[spectrum]).encode())
    assert digest.hexdigest()[:16] == "e3b7457d7da03508"


GOLDEN_TREES = {  # file names, and the contents of all files but pictures
    "llcm": "a293aa4ea6df7f9d",
    "msvr310": "25da1664e6631e28",
    "regdb": "8d1211c0909d850f",
    "rgbnt100": "83a3a005818776ce",
    "rgbnt201": "f56f5a0aa70d7f6a",
    "sysu_mm01": "ba05ef08307a3aba",
}


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


def altered_spectra(change):
    camera, shot = make_camera(0, 1), dataclasses.replace(make_shot(0, 1, 1, 0), obstacle=None)
    before = draw(PERSON, camera, shot, height=64).pictures
    after = draw(dataclasses.replace(PERSON, **change), camera, shot, height=64).pictures
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("changes", "spectra"),
    [(SHAPE, {"rgb", "nir", "tir"}), (COLOUR, {"rgb"}), (REFLECTANCE, {"nir"}), (HEAT, {"tir"})],
    ids=["shape", "colour", "reflectance", "heat"],
)
def test_an_attribute_is_seen_in_its_spectra_and_in_no_other(changes, spectra):
    for name, value in changes.items():
        assert altered_spectra({name: value}) == spectra, name


def test_the_four_groups_cover_every_attribute():
    groups = [set(group) for group in (SHAPE, COLOUR, REFLECTANCE, HEAT)]
    assert set.union(*groups) == {field.name for field in dataclasses.fields(Identity)}


def test_cameras_and_shots_change_the_picture():
    shot = make_shot(0, 1, 1, 0)
    first = draw(PERSON, make_camera(0, 1), shot, height=64).pictures
    camera = draw(PERSON, make_camera(0, 2), shot, height=64).pictures
    later = draw(PERSON, make_camera(0, 1), make_shot(0, 1, 1, 1), height=64).pictures
    for spectrum, picture in first.items():
        for other in (camera, later):
            assert np.abs(picture.astype(int) - other[spectrum]).mean() > 3


def test_no_obstacle_hides_a_garment_entirely():
    for pid in range(1, 60):
        shot = make_shot(3, pid, 2, 0)
        for left in (0.15, 0.21, 0.27):
            hidden = dataclasses.replace(shot, obstacle=(left, left + 0.07, 0.55))
            seen = draw(make_identity(3, pid), make_camera(3, 2), hidden, height=64).seen
            assert "upper" in seen and seen & {"lower", "lower_far"}


@pytest.mark.parametrize("size", [(46, 23), (65, 32), (128, 64)])
def test_pictures_have_the_height_asked_for(size):
    pictures = draw(PERSON, make_camera(0, 1), make_shot(0, 1, 1, 0), height=size[0]).pictures
    assert pictures["rgb"].shape == (*size, 3)
    assert pictures["nir"].shape == pictures["tir"].shape == size
    assert all(picture.dtype == np.uint8 for picture in pictures.values())


def test_every_picture_has_captions_under_its_own_path(world):
    files = {str(p.relative_to(world).as_posix()) for p in world.rglob("*.jpg")}
    rgb = {path for path in files if "/RGB/" in path}
    for kind, paths in (("RGB", rgb), ("IR", files - rgb)):
        first, both = load(world, kind, "caption_dict"), load(world, kind, "caption_llm_dict")
        assert first.keys() == both.keys() == paths
        for path, entry in both.items():
            assert entry.keys() == {"description", "aug_description"}
            assert first[path] == {"description": entry["description"]}
            assert entry["aug_description"] != entry["description"]
            assert all(len(words(sentence)) < 50 for sentence in entry.values())


def test_rgb_captions_name_the_true_colours_and_garments(world):
    nouns = {"t-shirt": {"t-shirt", "short-sleeved"}, "skirt": {"skirt"}, "shorts": {"shorts", "short"}}
    for path, entry in load(world, "RGB", "caption_llm_dict").items():
        identity = make_identity(11, int(path.split("/")[-1][:6]))
        for sentence in entry.values():
            used = set(words(sentence))
            assert {identity.upper_colour, identity.lower_colour} <= used
            for garment in (identity.upper, identity.lower):
                assert used & nouns.get(garment, {garment})
            allowed = {getattr(identity, f"{x}_colour") for x in ("upper", "lower", "hair", "bag")}
            assert used & COLOUR_WORDS <= allowed


def test_infrared_captions_name_no_colour_but_lightness_or_warmth(world):
    for path, entry in load(world, "IR", "caption_llm_dict").items():
        identity = make_identity(11, int(path.split("/")[-1][:6]))
        kind = "reflectance" if "/NI/" in path else "heat"
        for sentence in entry.values():
            assert not COLOUR_WORDS & set(words(sentence))
            for garment in ("upper", "lower"):
                quality = getattr(identity, f"{garment}_{kind}")
                assert re.search(rf"(?<!very )\b{quality}\b", sentence.lower())


def test_the_caption_map_holds_each_rgb_description_once(world):
    expected = {}
    for path, entry in load(world, "RGB", "caption_dict").items():
        expected.setdefault(str(int(path.split("/")[-1][:6])), set()).add(entry["description"])
    by_pid = load(world, "RGB", "id_caption_map")
    assert {pid: set(sentences) for pid, sentences in by_pid.items()} == expected
    assert all(len(set(sentences)) == len(sentences) for sentences in by_pid.values())
    assert any(len(sentences) > 1 for sentences in by_pid.values())


def test_captions_mention_no_hidden_part():
    person = dataclasses.replace(PERSON, heat_pattern="warm chest", reflectance_pattern="checks", hat="cap")
    hidden = {"hair", "cap", "backpack", "rucksack", "shoes", "footwear", "chest", "checks", "checked"}
    for spectrum in ("rgb", "nir", "tir"):
        for index in range(20):
            rng = np.random.default_rng(index)
            for sentence in make_captions(person, frozenset({"upper", "lower"}), spectrum, rng):
                assert not hidden & set(words(sentence))


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
