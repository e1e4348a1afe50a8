"""A trained model without its dataset: the vectors of evaluation, bit for bit, from the files of a workdir."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import build, noise, open_tiny, tiny_config, tiny_tvi_config
from PIL import Image

import jax_mmreid
from jax_mmreid import train
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators.encoder import Encoder
from jax_mmreid.experiment import model_spec

ALL = ("rgb", "nir", "tir")


def write_run(config, workdir):
    """A workdir with a checkpoint of random weights of the last step; (data, vectors by what is used)."""
    data = open_tiny(config)
    exp = build(config, data, devices=jax.devices()[:1])
    state = noise(exp.abstract)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save_frozen(state.frozen)
        checkpoints.save(exp.phases[-1].stop, state, {"fingerprint": data.spec.fingerprint})
        train.init_workdir(workdir, config, data, model_spec(config, data), fresh=True)

    def vectors(split, *uses):
        method, spec, settings = exp.phases[-1].method, exp.spec, dict(uses=[(split, use) for use in uses])
        encoder = Encoder(method, state.variables, data, exp.mesh, mean=spec.mean, std=spec.std, **settings)
        return {use: encoder.fetch(encoder.vectors(split, use, {})) for use in uses}

    return data, vectors


@pytest.fixture(scope="module")
def miss_reid(drawn, tmp_path_factory):
    """(workdir, files by modality, camids, vectors of evaluation by what is used) of Miss-ReID."""
    workdir = tmp_path_factory.mktemp("miss_reid")
    data, vectors = write_run(tiny_config(drawn), workdir)
    folders = dict(zip(ALL, ("RGB", "NI", "TI")))
    files = {m: sorted((drawn / "test" / folder).iterdir()) for m, folder in folders.items()}
    return workdir, files, data.columns("test")["camid"], vectors("test", ALL, ("nir",))


def test_a_workdir_on_a_machine_without_the_data_gives_the_vectors_of_evaluation(miss_reid, tmp_path, monkeypatch):
    workdir, files, camids, expected = miss_reid
    shutil.copytree(workdir, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config["data"]["data_dir"] = "/nowhere"
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    model = jax_mmreid.load_model(tmp_path / "copy")
    for rows in ([3], [0, 4, 2], range(len(camids))):
        features = model.encode({m: [files[m][i] for i in rows] for m in ALL}, camids=[camids[i] for i in rows])
        for use in (ALL, ("nir",)):
            np.testing.assert_array_equal(model.embed(features, use), expected[use][list(rows)])
    np.testing.assert_array_equal(model.embed(features), expected[ALL])


def test_pixels_are_resized_as_files_are_and_a_missing_picture_counts_as_unused(miss_reid):
    workdir, files, camids, expected = miss_reid
    model = jax_mmreid.load_model(workdir)
    nir = [np.asarray(Image.open(file).convert("RGB")) for file in files["nir"][:2]]
    large = [x.repeat(2, axis=0).repeat(2, axis=1) for x in nir]
    images = {"rgb": [None, None], "nir": files["nir"][:2]}
    found = model.embed(model.encode(images, camids=camids[:2]))
    np.testing.assert_allclose(found, expected[("nir",)][:2], atol=1e-6)  # the tower of tir is not run at all
    assert model.encode({"nir": large})["rows"] == 2
    assert np.abs(np.linalg.norm(model.embed(model.encode({"nir": np.stack(large)})), axis=1) - 1).max() < 1e-6


def test_a_camera_counts_by_its_number_and_an_unknown_one_not_at_all(miss_reid):
    workdir, files, _, _ = miss_reid
    model = jax_mmreid.load_model(workdir)
    assert model.spec.cameras == (1, 2, 3)
    images = {"rgb": [files["rgb"][0]] * 5}
    vectors = model.embed(model.encode(images, camids=[1, 2, 3, 7, -1]))
    assert len(np.unique(vectors, axis=0)) == 4
    np.testing.assert_array_equal(vectors[3], vectors[4])
    np.testing.assert_array_equal(vectors[3:4], model.embed(model.encode({"rgb": images["rgb"][:1]})))


def test_tvi_lfm_takes_captions(drawn_sysu, tmp_path):
    config = tiny_tvi_config(drawn_sysu)
    data, vectors = write_run(config, tmp_path)
    shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}_copy")
    model = jax_mmreid.load_model(tmp_path.parent / f"{tmp_path.name}_copy")
    records = data._splits["query"].split.records
    files = [f"{records.root}/{path}" for path in records.paths["ir"][:3]]
    captions = {m: records.captions[m][:3].tolist() for m in ("rgb", "ir")}
    features = model.encode({"ir": files}, camids=records.camid[:3], captions=captions)
    for use, expected in vectors("query", ("ir",), ("text",), ("ir", "text")).items():
        np.testing.assert_array_equal(model.embed(features, use), expected[:3])
    with pytest.raises(ConfigError, match=r"no vector of 'rgb\+text'"):
        model.embed(features, ("rgb", "text"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(images={"ir": [None]}), "images has ir; the model has rgb, nir, tir"),
        (dict(images={}), "give at least one picture or caption"),
        (dict(images={"rgb": []}), "give at least one picture or caption"),
        (dict(images={"rgb": [np.zeros((4, 4, 3), np.uint8)]}, camids=[1, 2]), r"have \[1, 2\] rows"),
        (dict(images={"rgb": [np.zeros((4, 4, 3))]}), r"pixels float64\(4, 4, 3\); expected uint8"),
        (dict(images={"rgb": [np.zeros((4, 4), np.uint8)]}), r"pixels uint8\(4, 4\); expected uint8 \[h,w,3\]"),
        (dict(captions={"rgb": ["a man"]}), "was trained without captions, so it takes none"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_refused(miss_reid, given, message):
    model = jax_mmreid.load_model(miss_reid[0])
    with pytest.raises(ConfigError, match=message):
        model.encode(**given)


def test_a_file_that_cannot_be_read_is_named(miss_reid, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="x.jpg"):
        jax_mmreid.load_model(miss_reid[0]).encode({"rgb": [tmp_path / "x.jpg"]})


def test_a_workdir_of_an_older_version_gets_one_clear_sentence(miss_reid, tmp_path):
    shutil.copytree(miss_reid[0], tmp_path / "old")
    (tmp_path / "old" / "data_spec.json").unlink()
    with pytest.raises(ConfigError, match="old has no data_spec.json, as runs before version 0.2 have none; train it"):
        jax_mmreid.load_model(tmp_path / "old")
    with pytest.raises(ConfigError, match="holds no run"):
        jax_mmreid.load_model(tmp_path / "nothing")
    (tmp_path / "old" / "data_spec.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot read .*data_spec.json"):
        jax_mmreid.load_model(tmp_path / "old")
