"""Embedding pictures: the vectors of evaluation in a file or a store, and runs that are stopped and continued."""

import argparse
import contextlib
import io
import json
import shutil

import numpy as np
import pytest
from conftest import tiny_tvi_config
from own_gallery import refused, run, write_random_run
from random_run import few

import jax_mmreid
from input_pipeline import own_pictures
from jax_mmreid import run as runs
from jax_mmreid.inference import TrainedModel
from jax_mmreid.search.store import Store
from jax_mmreid.tools import embed
from jax_mmreid.tools import score as scoring

ALL = ("rgb", "nir", "tir")


@pytest.fixture(scope="module")
def workdir(drawn, tmp_path_factory):
    return write_random_run(tmp_path_factory.mktemp("run"), few(drawn))


@pytest.fixture(scope="module")
def model(workdir):
    return jax_mmreid.load_model(workdir)


@pytest.fixture
def pictures(drawn, tmp_path):
    """A copy of the 30 drawn test triples that a test may break."""
    return shutil.copytree(drawn / "test", tmp_path / "pictures")


def contents(store):
    columns, rows, _ = Store.open(store).read()
    return columns, rows


def test_a_feature_file_of_the_test_split_scores_as_evaluation_does(drawn, workdir, tmp_path):
    config = few(drawn)
    with config.unlocked():
        config.evals = {"full": config.evals.full}
    expected = runs.evaluate(config, workdir)["evals"]
    file = tmp_path / "test.npz"
    assert run("embed", f"--workdir={workdir}", f"--features={file}", "--split=test") == 0
    got = scoring.score(scoring.read(file), None, "rgbnt201")
    for metric in ("mAP", "rank1", "rank5", "mINP", "TPR@1e-2"):
        assert got[metric] == pytest.approx(expected["full"][metric], abs=1e-6)
    assert 0.1 < got["mAP"] < 0.9
    found = np.load(file)
    M, D = len(ALL), found["features"].shape[1] // len(ALL)
    assert found["parts"].shape == (30, M, D) and found["present"].all() and found["spec"].shape == ()
    assert len(set(found["paths"])) == 30 and set(found["camids"]) == {1, 2, 3} and not found["views"].any()


def test_a_store_has_the_same_rows_as_the_file_and_what_is_known_of_them(workdir, tmp_path, capsys):
    flags = f"--workdir={workdir}", "--split=test"
    both = f"--store={tmp_path / 'store'}", f"--features={tmp_path / 'both.npz'}"
    assert run("embed", *flags, *both, "--caller=anna") == 0
    assert run("embed", *flags, f"--features={tmp_path / 'alone.npz'}") == 0
    columns, rows = contents(tmp_path / "store")
    alone, both = (np.load(tmp_path / name) for name in ("alone.npz", "both.npz"))
    for key in alone:
        np.testing.assert_array_equal(alone[key], both[key])
    for name, x in (("parts", rows.parts), ("present", rows.present), ("features", rows.fallback)):
        np.testing.assert_array_equal(alone[name], x)
    for name, x in (("pids", columns.pid), ("camids", columns.camid), ("paths", columns.path)):
        assert alone[name].tolist() == x.tolist()
    assert np.isnan(columns.time).all()
    log = Store.open(tmp_path / "store").audit()
    assert {(entry["caller"], entry["action"]) for entry in log} == {("anna", "add")}
    assert sum(entry["count"] for entry in log) == 30
    assert "30 with an identity, 30 with a camera" in capsys.readouterr().out


def test_own_cameras_are_unknown_to_the_model_and_rows_may_differ_in_what_they_have(workdir, model, pictures, tmp_path):
    names = sorted(path.name for path in (pictures / "RGB").iterdir())
    (pictures / "TI" / names[4]).unlink()
    (pictures / "own.csv").write_text(
        "camid,pid,rgb,nir,tir,time\n"
        f"1,anna,RGB/{names[0]},NI/{names[0]},TI/{names[0]},2025-01-01\n2,,,,TI/{names[1]},\n"
    )
    assert run("embed", f"--workdir={workdir}", f"--store={tmp_path / 'table'}", pictures / "own.csv") == 0
    columns, rows = contents(tmp_path / "table")
    assert columns.path.tolist() == [str(pictures / f"RGB/{names[0]}"), str(pictures / f"TI/{names[1]}")]
    assert columns.pid.tolist() == [own_pictures.number_of("anna"), -1] and columns.camid.tolist() == [1, 2]
    np.testing.assert_array_equal(columns.time, [1735689600, np.nan])
    files = dict(rgb=[pictures / "RGB" / names[0], None], nir=[pictures / "NI" / names[0], None])
    files["tir"] = [pictures / "TI" / name for name in names[:2]]
    expected = model.parts(model.encode(files))
    for x, y in zip(rows, expected):
        np.testing.assert_allclose(np.where(x == 0, 0, y), x, atol=1e-6)
    assert run("embed", f"--workdir={workdir}", f"--store={tmp_path / 'folder'}", pictures) == 0
    _, rows = contents(tmp_path / "folder")
    assert rows.present[4].tolist() == [True, True, False] and rows.present.sum() == 89


def test_a_run_that_was_killed_goes_on_where_it_stopped(workdir, pictures, tmp_path, monkeypatch, capsys):
    whole, cut = (f"--store={tmp_path / name}" for name in ("whole", "cut"))
    assert run("embed", f"--workdir={workdir}", whole, pictures) == 0
    read, reading = [], own_pictures.read

    def dies(*args, **kwargs):
        yield next(reading(*args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(own_pictures, "read", dies)
    with pytest.raises(KeyboardInterrupt):
        run("embed", f"--workdir={workdir}", cut, pictures)
    done = len(Store.open(tmp_path / "cut"))
    assert 0 < done < 30
    monkeypatch.setattr(own_pictures, "read", lambda _, rows, *args: read.extend(rows) or reading(_, rows, *args))
    assert run("embed", f"--workdir={workdir}", cut, pictures) == 0
    assert read == list(range(done, 30))
    (a, x), (b, y) = contents(tmp_path / "whole"), contents(tmp_path / "cut")
    assert a.path.tolist() == b.path.tolist()
    for one, other in zip(x, y):
        np.testing.assert_array_equal(one, other)
    capsys.readouterr()
    version = Store.open(tmp_path / "cut").version
    assert run("embed", f"--workdir={workdir}", cut, pictures) == 0  # nothing is left to do
    assert "has 30 of these rows already" in capsys.readouterr().out
    assert Store.open(tmp_path / "cut").version == version


def test_broken_pictures_are_named_and_left_out_or_stop_the_run(workdir, pictures, tmp_path, capsys):
    names = sorted(path.name for path in (pictures / "RGB").iterdir())
    for folder, name in (("RGB", names[2]), ("NI", names[20]), ("RGB", names[20]), ("TI", names[20])):
        (pictures / folder / name).write_bytes(b"no picture")
    strict = f"--workdir={workdir}", pictures, "--on_bad_image=error"
    code, line = refused(capsys, "embed", *strict, f"--store={tmp_path / 'strict'}")
    assert code == 3 and names[2] in line and "--on_bad_image=skip" in line
    assert run("embed", f"--workdir={workdir}", f"--store={tmp_path / 'store'}", pictures) == 0
    out = capsys.readouterr().out
    assert "4 pictures cannot be read and were left out:" in out
    assert out.count(names[2]) == 1 and out.count(names[20]) == 3
    columns, rows = contents(tmp_path / "store")
    assert len(columns.id) == 29 and not any(path.endswith(names[20]) for path in columns.path)
    assert rows.present[2].tolist() == [False, True, True] and columns.path[2].endswith(f"RGB/{names[2]}")
    alone = f"--workdir={workdir}", f"--store={tmp_path / 'alone'}", pictures / "RGB" / names[2]
    code, line = refused(capsys, "embed", *alone)
    assert code == 3 and "none of the 1 pictures can be read" in line and not (tmp_path / "alone").exists()


@pytest.mark.slow
def test_captions_are_read_where_the_method_reads_captions(drawn_sysu, workdir, model, tmp_path):
    tvi = write_random_run(tmp_path / "tvi", tiny_tvi_config(drawn_sysu))
    assert embed.reads_captions(jax_mmreid.load_model(tvi)) and not embed.reads_captions(model)
    found = {}
    for name in ("with", "without"):
        assert run("embed", f"--workdir={tvi}", "--split=query", f"--features={tmp_path / name}.npz") == 0
        found[name] = np.load(tmp_path / f"{name}.npz")
        config = json.loads((tvi / "config.json").read_text())
        config["data"]["options"]["captioner"] = ""
        config["data"]["options"].pop("query_captions", None)
        (tvi / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(found["with"]["parts"], found["without"]["parts"])
    cosines = np.einsum("nd,nd->n", found["with"]["features"], found["without"]["features"])
    assert (cosines < 0.999).all()  # with captions a query is an ensemble


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ((), 2, "nothing to write to; name --store"),
        (("--store=S", "--split=test", "x"), 2, "name either pictures"),
        (("--store=S",), 2, "name either pictures"),
        (("--store=S", "--split=val"), 2, "--split=val: the data of this run have train, test"),
        (("--store=S", "x", "--modality=ir"), 2, "--modality=ir: the model has rgb, nir, tir"),
        (("--store=S", "x", "--config.data.data_dir=y"), 2, "--config.data.data_dir=y belongs to --split"),
        (("--store=S", "--split=test", "--config.seed=1"), 2, "fields of config.data alone"),
        (("--store=S", "--step=4", "{drawn}/test"), 2, "has no checkpoint '4'; there are 6, 9"),
        (("--store=S", "nothing"), 3, "no file or folder 'nothing'"),
        (("--store=S", "{empty}"), 3, "no files there"),
        (("--store={empty}/full", "{drawn}/test/RGB"), 3, "full holds something already"),
        (("--features={empty}/no/x.npz", "{drawn}/test/RGB"), 2, "there is no such folder"),
        (("--store={other}", "{drawn}/test/RGB"), 3, "is of another model"),
    ],
)
def test_what_cannot_be_embedded_is_one_clear_line(drawn, workdir, tmp_path, capsys, flags, code, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".x").write_text("x")
    if "{other}" in str(flags):
        first = sorted((drawn / "test" / "RGB").iterdir())[0]
        assert run("embed", f"--workdir={workdir}", "--step=6", f"--store={tmp_path / 'other'}", first) == 0
    names = dict(drawn=drawn, empty=tmp_path, other=tmp_path / "other")
    got = refused(capsys, "embed", f"--workdir={workdir}", *(flag.format(**names) for flag in flags))
    assert got[0] == code and message in got[1]


def test_another_model_is_noticed_before_anything_is_embedded(drawn, workdir, tmp_path, capsys, monkeypatch):
    first = sorted((drawn / "test" / "RGB").iterdir())[0]
    assert run("embed", f"--workdir={workdir}", "--step=6", f"--store={tmp_path / 'store'}", first) == 0
    monkeypatch.setattr(TrainedModel, "encode", None)
    code, line = refused(capsys, "embed", f"--workdir={workdir}", f"--store={tmp_path / 'store'}", drawn / "test")
    assert code == 3 and "model is" in line


def test_commands_run_in_a_notebook_whose_output_is_no_file():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert embed.command("embed", lambda _: print("done"), argparse.Namespace(caller="anna")) == 0
    assert out.getvalue() == "done\n"
