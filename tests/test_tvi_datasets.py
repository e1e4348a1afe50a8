"""What SYSU-MM01, RegDB and LLCM have in common: splits, captions, sizes, and how they are drawn."""

import importlib
import json

import numpy as np
import pytest
from conftest import open_fields, tiny_config
from drawn_files import load as load_captions
from drawn_files import tree
from drawn_tvi import BOTH, NAMES, SIZES, load, own_paths, refused
from drawn_tvi import copy as copy
from drawn_tvi import drawn as drawn

from input_pipeline.datasets import llcm
from input_pipeline.synthesize import main, synthesize
from jax_mmreid.errors import ConfigError


def read_caption(root, kind, path, file="caption_llm_dict", prefix=""):
    return load_captions(root, kind, file)[prefix + path]


@pytest.mark.parametrize("name", NAMES)
def test_visible_rows_come_first_and_tests_are_of_one_modality(drawn, name):
    splits = load(drawn / name)
    assert list(splits) == ["train", "query", "gallery"]
    train = splits["train"]
    visible, infrared = train.has_file().T
    N = visible.sum()
    assert 0 < N < len(train) and visible[:N].all() and infrared[N:].all() and not (visible & infrared).any()
    assert not splits["query"].has_file()[:, 0].any() and not splits["gallery"].has_file()[:, 1].any()
    assert set(train.pid[:N]) == set(train.pid[N:]) and len(set(train.pid)) == 5
    assert set(splits["query"].pid) == set(splits["gallery"].pid)
    for records in splits.values():
        assert all((drawn / name / path).is_file() for path in own_paths(records))
        assert {x.dtype for x in (records.pid, records.camid, records.view)} == {np.dtype(np.int32)}


@pytest.mark.parametrize("name", NAMES)
def test_every_training_picture_and_query_has_captions(drawn, name):
    splits = load(drawn / name)
    train, query = splits["train"], splits["query"]
    assert set(train.captions) == {"rgb", "rgb_rephrased", "ir", "ir_rephrased"}
    for modality in BOTH:
        for column in (modality, f"{modality}_rephrased"):
            np.testing.assert_array_equal(train.captions[column] != "", train.paths[modality] != "")
    key = llcm._key if name == "llcm" else str
    prefix = f"datasets/{name.removesuffix('_mm01')}/"
    for i, path in enumerate(own_paths(train)):
        modality = "rgb" if train.paths["rgb"][i] else "ir"
        entry = read_caption(drawn / name, modality.upper(), path, prefix=prefix)
        pair = train.captions[modality][i], train.captions[f"{modality}_rephrased"][i]
        assert pair == (entry["description"], entry["aug_description"])
    lists = json.loads((drawn / name / "Text" / "Blip_RGB" / "id_caption_map_Blip_RGB.json").read_text())
    rng = np.random.RandomState(1)
    for i, path in enumerate(own_paths(query)):
        entry = read_caption(drawn / name, "IR", key(path), "caption_dict", prefix)
        assert query.captions["ir"][i] == entry["description"]
        assert query.captions["rgb"][i] == rng.choice(lists[str(query.pid[i])])
    assert splits["gallery"].captions == {}


@pytest.mark.parametrize("name", NAMES)
def test_one_modality_leaves_the_splits_that_have_it(drawn, name):
    both = load(drawn / name)
    for modality, split in (("rgb", "gallery"), ("ir", "query")):
        splits = load(drawn / name, modalities=(modality,))
        assert list(splits) == ["train", split]
        rows = np.flatnonzero(both["train"].paths[modality] != "")
        np.testing.assert_array_equal(splits["train"].paths[modality], both["train"].paths[modality][rows])
        np.testing.assert_array_equal(splits["train"].captions[modality], both["train"].captions[modality][rows])
    assert list(load(drawn / name, modalities=("ir", "rgb"))["train"].paths) == ["ir", "rgb"]


@pytest.mark.parametrize("name", NAMES)
def test_the_parent_folder_reads_the_same(copy, name):
    root = copy(name)
    inner = {split: records.fingerprint() for split, records in load(root).items()}
    nested = root.parent / "outer" / {"sysu_mm01": "SYSU-MM01", "regdb": "RegDB", "llcm": "LLCM"}[name]
    nested.parent.mkdir()
    root.rename(nested)
    outer = {split: records.fingerprint() for split, records in load(nested.parent, name).items()}
    assert inner == outer


@pytest.mark.parametrize("name", NAMES)
def test_absent_data_and_captions(drawn, tmp_path, name):
    message = refused(tmp_path / name)
    assert f"python -m input_pipeline.synthesize --layout={name} --output={tmp_path / name}" in message
    (tmp_path / name).mkdir()
    assert f"{name}: no folder '" in refused(tmp_path / name)
    assert "Text/GIT_RGB" in refused(drawn / name, captioner="GIT")
    assert load(drawn / name, captioner="")["query"].captions == {}
    with pytest.raises(ConfigError, match=f"config.data.modalities.*{name} has rgb, ir"):
        load(drawn / name, modalities=("rgb", "tir"))


@pytest.mark.parametrize("name", NAMES)
def test_published_sizes(name):
    module = importlib.import_module(f"input_pipeline.datasets.{name}")
    sizes = {split: (c.identities, c.rows) for split, c in module.counts("", modalities=BOTH).items()}
    assert (
        sizes
        == {
            "sysu_mm01": {"train": (395, 34167), "query": (96, 3803), "gallery": (96, 6775)},
            "regdb": {"train": (206, 4120), "query": (206, 2060), "gallery": (206, 2060)},
            "llcm": {"train": (713, 30921), "query": (351, 7166), "gallery": (351, 8680)},
        }[name]
    )
    assert set(module.counts("", modalities=("ir",))) == {"train", "query"}
    assert module.counts("", modalities=("rgb",))["train"].rows == {"sysu_mm01": 22258, "regdb": 2060}.get(name, 16946)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_draws_the_same_bytes_and_more_identities_change_no_picture(drawn, tmp_path, name):
    arguments = [f"--{key}={value}" for key, value in SIZES.items()]
    assert main([f"--layout={name}", f"--output={tmp_path / 'again'}", *arguments]) == 0
    small = tree(drawn / name)
    assert tree(tmp_path / "again") == small
    synthesize(tmp_path / "larger", layout=name, **SIZES | dict(num_train_ids=6, num_test_ids=5))
    large = tree(tmp_path / "larger")
    pictures = {path for path in small if path.endswith((".jpg", ".bmp"))}
    assert pictures and all(large[path] == small[path] for path in pictures)


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_drawn_data(drawn, name):
    config = tiny_config(drawn)
    fields = config.data.to_dict() | dict(name=name, data_dir=str(drawn / name), modalities=BOTH, options={})
    data = open_fields(seed=0, missing=config.missing.to_dict() | dict(eta=(0, 0)), **fields)
    batch = next(data.train(0, 1))
    assert len(data.spec.pids) == 5 and (batch["present"]["rgb"] ^ batch["present"]["ir"]).all()
    assert data.num_rows("query") and data.num_rows("gallery")


@pytest.mark.parametrize("name", ["sysu_mm01", "llcm"])
def test_layouts_with_four_digits_refuse_more_identities(tmp_path, name):
    with pytest.raises(ConfigError, match="num_test_ids=5000: this layout takes up to 4999"):
        synthesize(tmp_path / "out", layout=name, num_test_ids=5000)
