"""Procedural pedestrians: which attribute is visible in which spectrum, and what the captions say."""

import dataclasses
import re

import numpy as np
import pytest
from drawn_files import load
from drawn_files import world as world

from input_pipeline.synthetic.captions import make_captions
from input_pipeline.synthetic.drawing import draw
from input_pipeline.synthetic.people import Identity, make_camera, make_identity, make_shot

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


def words(sentence):
    return re.findall(r"[a-z-]+", sentence.lower())


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
