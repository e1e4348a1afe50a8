"""RGBNT100 and MSVR310: their layouts and faults, drawn ones, and their configs."""

import jax
import numpy as np
import pytest
import shapes_only
from conftest import build, load_config, open_fields
from PIL import Image

from input_pipeline import DataConfig, describe
from input_pipeline.datasets import msvr310, rgbnt100
from input_pipeline.synthesize import synthesize
from jax_mmreid.errors import ConfigError, DataError

ALL = ("rgb", "nir", "tir")
SIZES = dict(num_train_ids=3, num_test_ids=2, cameras=2, images_per_camera=10, height=32)
STRIPS = {
    "bounding_box_train": ("0561_c0003_006", "0012_c0001_000", "0561_c0001_010"),
    "query": ("0007_c0008_001",),
    "bounding_box_test": ("0007_c0008_001", "0007_c0002_000"),
}
TRIPLES = {
    "bounding_box_train": ("0012/0012_s003_v7_000", "0012/0012_s001_v0_001", "0005/0005_s002_v3_000"),
    "query3": ("0002/0002_s002_v0_000",),
    "bounding_box_test": ("0002/0002_s002_v0_000", "0002/0002_s004_v1_000"),
}


def write_strips(root, strips=STRIPS):
    for folder, names in strips.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (768, 128)).save(root / folder / f"{name}.jpg")
    return root


def write_triples(root, triples=TRIPLES):
    for split, names in triples.items():
        (root / split).mkdir(parents=True)
        for name in names:
            identity, file = name.split("/")
            for folder in ("vis", "ni", "th"):
                (root / split / identity / folder).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (7, 5)).save(root / split / identity / folder / f"{file}.jpg")
    return root


def load(module, root, modalities=ALL, allow_missing_files=False):
    return module.load(str(root), modalities=modalities, allow_missing_files=allow_missing_files)


def refused(module, root, **options):
    with pytest.raises(DataError) as error:
        load(module, root, **options)
    assert "\n" not in str(error.value) and str(root) in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Folders of drawn pedestrians by layout."""
    folders = {layout: tmp_path_factory.mktemp("vehicles") / layout for layout in ("rgbnt100", "msvr310")}
    for layout, folder in folders.items():
        synthesize(folder, layout=layout, seed=5, **SIZES)
    return folders


def test_a_strip_is_three_pictures_of_one_row(tmp_path):
    splits = load(rgbnt100, write_strips(tmp_path), modalities=("tir", "rgb"))
    assert {name: len(records) for name, records in splits.items()} == {"train": 3, "query": 1, "gallery": 2}
    train = splits["train"]
    files = [f"bounding_box_train/{name}.jpg" for name in sorted(STRIPS["bounding_box_train"])]
    assert {m: column.tolist() for m, column in train.paths.items()} == {"tir": files, "rgb": files}
    assert {m: column.tolist() for m, column in train.parts.items()} == {"tir": [2, 2, 2], "rgb": [0, 0, 0]}
    assert (train.pid.tolist(), train.camid.tolist(), train.view.tolist()) == ([12, 561, 561], [1, 1, 3], [0, 0, 0])
    assert {x.dtype for x in (train.pid, train.camid, train.view, *train.parts.values())} == {np.dtype(np.int32)}
    assert splits["query"].camid.tolist() == [8] and splits["gallery"].camid.tolist() == [2, 8]


def test_a_triple_has_one_name_in_three_folders(tmp_path):
    splits = load(msvr310, write_triples(tmp_path))
    assert {name: len(records) for name, records in splits.items()} == {"train": 3, "query": 1, "gallery": 2}
    train = splits["train"]
    assert train.paths["nir"].tolist() == [
        "bounding_box_train/0005/ni/0005_s002_v3_000.jpg",
        "bounding_box_train/0012/ni/0012_s001_v0_001.jpg",
        "bounding_box_train/0012/ni/0012_s003_v7_000.jpg",
    ]
    assert (train.pid.tolist(), train.camid.tolist(), train.view.tolist()) == ([5, 12, 12], [3, 0, 7], [2, 1, 3])
    assert splits["query"].paths["tir"].tolist() == ["query3/0002/th/0002_s002_v0_000.jpg"]
    assert list(load(msvr310, tmp_path, modalities=("tir",))["gallery"].paths) == ["tir"]


def test_folders_around_the_dataset_read_the_same(tmp_path):
    inner = write_strips(tmp_path / "RGBNT100" / "rgbir")
    prints = {load(rgbnt100, root)["train"].fingerprint() for root in (inner, inner.parent, tmp_path)}
    assert len(prints) == 1
    inner = write_triples(tmp_path / "MSVR310")
    assert load(msvr310, inner)["query"].root == load(msvr310, tmp_path)["query"].root


def test_a_picture_absent_from_one_folder_of_msvr310(tmp_path):
    root = write_triples(tmp_path)
    (root / "bounding_box_train" / "0012" / "ni" / "0012_s003_v7_000.jpg").unlink()
    (root / "query3" / "0002" / "th" / "0002_s002_v0_000.jpg").unlink()
    (root / "query3" / "0002" / "th").rmdir()
    message = refused(msvr310, root)
    assert "no file 'bounding_box_train/0012/ni/0012_s003_v7_000.jpg'" in message
    assert "data.allow_missing_files=True" in message
    splits = load(msvr310, root, allow_missing_files=True)
    assert splits["train"].has_file().tolist() == [[True] * 3, [True] * 3, [True, False, True]]
    assert splits["query"].has_file().tolist() == [[True, True, False]]


@pytest.mark.parametrize("module, write", [(rgbnt100, write_strips), (msvr310, write_triples)])
def test_what_is_absent_is_named(tmp_path, module, write):
    name = module.__name__.rpartition(".")[2]
    assert f"--layout={name} --output={tmp_path}/nowhere" in refused(module, tmp_path / "nowhere")
    assert "no folder 'bounding_box_train'" in refused(module, tmp_path)
    root = write(tmp_path / "data")
    (root / "bounding_box_test").rename(root / "gone")
    assert "no folder 'bounding_box_test'" in refused(module, root)
    (root / "bounding_box_test").mkdir()
    assert "no *.jpg in 'bounding_box_test'" in refused(module, root)
    with pytest.raises(ConfigError, match=f"config.data.modalities=.*: {name} has rgb, nir, tir"):
        load(module, root, modalities=("rgb", "ir"))


def test_file_names_without_an_identity(tmp_path):
    write_strips(tmp_path / "a", STRIPS | {"query": ("-1_c0001_000",)})
    assert "'query/-1_c0001_000.jpg'" in refused(rgbnt100, tmp_path / "a")
    write_triples(tmp_path / "b", TRIPLES | {"query3": ("0002/0002_v0_000",)})
    message = refused(msvr310, tmp_path / "b")
    assert "'query3/0002/vis/0002_v0_000.jpg'" in message and "0002_s002_v0_000.jpg" in message


def test_published_counts():
    counts = rgbnt100.counts("", modalities=ALL)
    assert counts["train"] == (50, tuple(range(1, 9)), 8675)
    assert (counts["query"].rows, counts["gallery"].rows) == (1715, 8575)
    counts = msvr310.counts("", modalities=ALL)
    assert counts["train"] == (155, tuple(range(8)), 1032)
    assert [counts[split][::2] for split in ("query", "gallery")] == [(52, 591), (155, 1055)]


@pytest.mark.parametrize("module", [rgbnt100, msvr310])
def test_drawn_layouts_are_read_and_queries_are_found_in_the_gallery(drawn, module):
    layout = module.__name__.rpartition(".")[2]
    splits = load(module, drawn[layout])
    assert {name: len(records) for name, records in splits.items()} == {"train": 60, "query": 4, "gallery": 40}
    assert set(splits["query"].pid) == set(splits["gallery"].pid) == {2, 4} and set(splits["train"].pid) == {1, 3, 5}
    column = "view" if module is msvr310 else "camid"  # what the junk rule compares
    for pid, value in zip(splits["query"].pid, getattr(splits["query"], column)):
        gallery = splits["gallery"]
        assert ((gallery.pid == pid) & (getattr(gallery, column) != value)).any()
    if module is msvr310:
        assert set(splits["train"].camid) == set(range(8)) and set(splits["train"].view) == {1, 2}


def test_drawn_pictures_have_the_shape_of_vehicles(drawn):
    strips = sorted((drawn["rgbnt100"] / "rgbir").rglob("*.jpg"))
    assert len(strips) == 60 + 40 + 4
    with Image.open(strips[0]) as strip:
        assert strip.size == (768, 128)
        pixels = np.asarray(strip).astype(int)
    thirds = [pixels[:, i * 256 : (i + 1) * 256] for i in range(3)]
    spread = [np.abs(x - x.mean(-1, keepdims=True)).mean() for x in thirds]
    assert spread[0] > 3 > 1 > max(spread[1:])  # of three pictures the first has colours
    with Image.open(next(drawn["msvr310"].rglob("*.jpg"))) as picture:
        assert picture.size == (32, 16)


@pytest.mark.parametrize("layout", ["rgbnt100", "msvr310"])
def test_drawn_layouts_become_batches(drawn, layout):
    config = load_config(layout)
    config.data.update(data_dir=str(drawn[layout]), image_size=(16, 32), identities=3, instances=2, threads=0)
    data = open_fields(seed=0, missing=config.missing.to_dict(), **config.data.to_dict())
    batch = next(iter(data.train(0, 1)))
    assert {m: x.shape for m, x in batch["images"].items()} == dict.fromkeys(ALL, (6, 16, 32, 3))
    rgb, nir, tir = (batch["images"][m].astype(int) for m in ALL)
    assert np.ptp(rgb, axis=-1).mean() > 5 > 2 > max(np.ptp(nir, axis=-1).mean(), np.ptp(tir, axis=-1).mean())
    assert np.abs(nir - tir).mean() > 5
    assert data.num_rows("query") == 4 and data.num_rows("gallery") == 40


# Where the published count is of 50 identities and 8 cameras.
@pytest.mark.parametrize("row, trained", [("A", 86_224_896), ("C", 86_224_896 + 1_784_832 - 8 * 768 + 51 * 768)])
def test_rgbnt100_has_the_published_number_of_parameters(row, trained):
    config = load_config("rgbnt100", f"row={row}")
    data = describe(DataConfig.from_dict(config.data.to_dict()))
    exp = build(config, data, devices=jax.devices()[:1])
    assert (len(data.spec.pids), data.spec.cameras, data.spec.batch_size) == (50, tuple(range(1, 9)), 128)
    assert shapes_only.count(exp.abstract.params) == trained


@pytest.mark.parametrize(
    "name, batch, warmup, junk", [("rgbnt100", (8, 16), 5, "same_camera"), ("msvr310", (16, 4), 10, "same_view")]
)
def test_the_recipe_for_vehicles(name, batch, warmup, junk):
    config = load_config(name)
    assert (config.data.identities, config.data.instances) == batch
    assert config.optim.schedule.warmup == warmup
    assert config.data.image_size == (128, 256) and config.model.template_kind == "vehicle"
    assert shapes_only.build(config).abstract.params["structure"]["query"].shape == (8, 768)
    measured = [row for row in config.evals.values() if "mean_of" not in row]
    assert {(row.query.split, row.gallery.split, row.junk) for row in measured} == {("query", "gallery", junk)}
    assert load_config(name, "tower=vit_l14").data.image_size == (126, 252)
