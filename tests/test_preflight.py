"""Preflight: what it finds of faults that are planted, what it prints, and its exit codes."""

import json

import numpy as np
import pytest
from conftest import load_config
from PIL import Image
from planted import FOLDERS, plant

from input_pipeline.synthesize import synthesize
from jax_mmreid import run
from jax_mmreid.config_file import set_field
from jax_mmreid.metrics.similarity import Parts
from jax_mmreid.tools import preflight
from jax_mmreid.tools.embed import Encoded

SIZES = dict(num_train_ids=6, num_test_ids=5, cameras=3, images_per_camera=2, height=128)
KEYS = ["rows", "unreadable", "leaks", "two_identities", "duplicates", "labels", "cameras", "alignment", "ok"]


def find(folder, output, *argv):
    """(exit code, the findings with names below the folder)."""
    code = preflight.main(["--dataset=rgbnt201", f"--data_dir={folder}", f"--output={output}", *argv])
    return code, json.loads((output / "preflight.json").read_text().replace(f"{folder}/", ""))


def pairs(found, kind):
    return {frozenset(x["rows"]) for x in found[kind]}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "data"
    return folder, plant(folder, 6, labels=False, **SIZES)


def test_every_planted_copy_is_found_and_nothing_else(planted, tmp_path, capsys):
    folder, truth = planted
    code, found = find(folder, tmp_path, "--limit=4")
    assert code == 3 and list(found) == KEYS and not found["ok"] and found["labels"] is None
    assert found["rows"] == {"train": 36 + 6, "test": 30 + 6}
    assert pairs(found, "leaks") == truth.leaks and pairs(found, "duplicates") == truth.duplicates
    assert found["two_identities"] == [] and found["unreadable"] == []
    assert {tuple(x["splits"]) for x in found["leaks"]} == {("train", "test")}
    assert {len(x["likeness"]) for x in found["leaks"] + found["duplicates"]} <= {2, 3}
    assert list(found["alignment"]) == ["rgb/nir", "rgb/tir", "nir/tir"]
    text = capsys.readouterr().out
    assert text == (tmp_path / "preflight.md").read_text()
    assert "| Pictures in training and in test | 6 |" in text and text.count("| and 2 more |") == 2


def test_a_folder_without_faults(tmp_path, capsys):
    synthesize(tmp_path / "data", **SIZES)
    code, found = find(tmp_path / "data", tmp_path)
    assert code == 0 and found["ok"]
    assert found["cameras"]["train"]["2"]["rows"] == 12 and found["cameras"]["test"]["1"]["alone"] == 0
    text = capsys.readouterr().out
    assert "not judged without --workdir" in text and "\n## Cameras\n" in text and text.count("\n## ") == 1
    assert "| train | all 3 | 36 |  | 0 |  |" in text


def test_shifted_modalities_and_a_broken_picture(tmp_path):
    """One thermal picture is 10 % too low, all near-infrared ones of camera 2 in training 6 % too far right."""
    folder = tmp_path / "data"
    synthesize(folder, **SIZES)
    low = folder / "test/TI/000002_cam1_0_00.jpg"
    for file in [low, *(folder / "train_171/NI").glob("*cam2*"), *(folder / "test/NI").glob("*cam2*")]:
        pixels = np.asarray(Image.open(file))
        y, x = (13, 0) if file == low else (0, 8)
        moved = np.pad(pixels, ((y, 0), (x, 0), (0, 0)), "edge")[: len(pixels), : pixels.shape[1]]
        Image.fromarray(moved).save(file, quality=95)
    (folder / "test/RGB/000004_cam1_0_01.jpg").write_bytes(b"nothing")
    code, found = find(folder, tmp_path)
    assert code == 3 and len(found["unreadable"]) == 1 and "000004_cam1_0_01.jpg" in found["unreadable"][0]
    aligned = found["alignment"]
    assert aligned["rgb/nir"]["shifted"] == [2] and aligned["rgb/tir"]["shifted"] == []
    y, x = aligned["rgb/nir"]["cameras"]["2"]["pixels"]
    assert abs(y) <= 1.5 and abs(x - 8) <= 1.5
    rows = {x["row"]: x["pixels"] for x in aligned["rgb/tir"]["rows"]}
    assert list(rows) == ["test/RGB/000002_cam1_0_00.jpg"]
    assert abs(rows["test/RGB/000002_cam1_0_00.jpg"][0] - 13) <= 1.5
    assert "| rgb/nir | 0.0, 6.2 | 0.0, 8.0 |" in (tmp_path / "preflight.md").read_text()


def test_labels_are_judged_by_the_features_of_a_model(planted, tmp_path, monkeypatch):
    """Features of the true identity, but two rows of each side have exchanged theirs; the last row cannot be read."""
    folder, _ = planted
    wrong = {"train": {}, "test": {}}

    def encode(_, records, rows):
        split = "train" if 1 in records.pid else "test"
        true = records.pid.copy()
        a, b = (np.flatnonzero((records.pid == pid) & (records.camid == 1))[0] for pid in np.unique(records.pid)[:2])
        true[[a, b]] = records.pid[[b, a]]
        wrong[split] = {records.path("rgb", row).replace(f"{folder}/", ""): int(true[row]) for row in (a, b)}
        rng = np.random.default_rng(0)
        vectors = np.eye(16)[true] + 0.1 * rng.normal(size=(len(true), 16))
        for turn in np.array_split(rows[:-1], 3):  # the last one cannot be read
            yield Encoded(turn, Parts(None, None, vectors[turn]), [])

    model = type("Model", (), {"spec": type("Spec", (), {"modalities": ("rgb", "nir", "tir")})})
    monkeypatch.setattr(run, "load_model", lambda *_: model)
    monkeypatch.setattr(preflight, "encode", encode)
    code, found = find(folder, tmp_path, "--workdir=run")
    assert code == 3
    for split, truth in wrong.items():
        suspects = found["labels"][split]["suspects"]
        assert {x["row"]: x["likely"] for x in suspects} == truth
    assert [found["labels"][split]["judged"] for split in wrong] == [41, 35]
    model.spec.modalities = ("rgb",)
    assert preflight.main(["--dataset=rgbnt201", f"--data_dir={folder}", "--workdir=run"]) == 2


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--dataset=nothing", "--data_dir=x"], 2, "no dataset 'nothing'"),
        (["--dataset=rgbnt201", "--data_dir=nowhere"], 3, "no data folder"),
        (["--dataset=rgbnt201", "--data_dir=nowhere", "--option=colour=3"], 2, "colour"),
        (["--dataset=synthetic", "--data_dir=nowhere"], 3, "holds no drawn pictures yet"),
    ],
)
def test_what_cannot_be_read_is_refused(argv, code, message, capsys):
    assert preflight.main(argv) == code
    err = capsys.readouterr().err
    assert err.startswith("preflight: ") and message in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_twenty_of_each_are_found_in_a_folder_that_a_quickstart_model_judges(tmp_path):
    """Leaked rows are right to be suspects: they show a training identity under the label of a test identity."""
    config = load_config("quickstart")
    set_field(config, f"data.data_dir={tmp_path / 'drawn'}")
    run.train_and_evaluate(config, tmp_path / "run")
    sizes = dict(num_train_ids=48, num_test_ids=96, cameras=4, images_per_camera=2, height=128, seed=7)
    folder = tmp_path / "data"
    truth = plant(folder, 20, **sizes)
    code, found = find(folder, tmp_path, f"--workdir={tmp_path / 'run'}")
    assert code == 3 and pairs(found, "leaks") == truth.leaks and pairs(found, "duplicates") == truth.duplicates
    suspects = {x["row"] for side in found["labels"].values() for x in side["suspects"]}
    leaked = {row for pair in truth.leaks for row in pair}
    assert truth.swapped <= suspects and len(suspects - truth.swapped - leaked) <= 16
    assert len(truth.swapped) == 40 and all(len(list((folder / "test" / x).iterdir())) == 788 for x in FOLDERS)
