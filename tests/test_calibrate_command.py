"""The command that calibrates: what it writes and prints, from a split or a store, and what it refuses."""

import dataclasses
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from conftest import build, load_config, open_tiny, tiny_tvi_config
from own_gallery import write_random_run
from random_run import few

import jax_mmreid
from jax_mmreid import run
from jax_mmreid.config_file import set_field
from jax_mmreid.evaluators import runner
from jax_mmreid.recipes.missing_settings import missing_evals, settings
from jax_mmreid.search import pairs, reliability, sensors
from jax_mmreid.search.calibration import Calibration
from jax_mmreid.search.store import Identity, Store
from jax_mmreid.sharding import make_mesh
from jax_mmreid.tools import calibrate

ALL = ("rgb", "nir", "tir")
COMBINATIONS = ("rgb", "nir", "tir", "rgb+nir", "rgb+tir", "nir+tir", "rgb+nir+tir")
FOLDERS = dict(zip(ALL, ("RGB", "NI", "TI")))


@pytest.fixture(scope="module")
def workdir(drawn, tmp_path_factory):
    return write_random_run(tmp_path_factory.mktemp("run"), few(drawn))


@pytest.fixture(scope="module")
def source(workdir):
    return calibrate.from_split(workdir, "test")


def store_of(folder, workdir, drawn, source, **columns):
    """A store of the test split's pictures as `TrainedModel` encodes them."""
    model = jax_mmreid.load_model(workdir)
    files = {m: sorted((drawn / "test" / name).iterdir()) for m, name in FOLDERS.items()}
    rows = model.parts(model.encode(files, camids=source.labelled.camids))
    store = Store.create(folder, Identity(model.identity, model.spec.hash, ALL, rows.packing))
    store.append(rows, files["rgb"], caller="test", **columns)
    return folder


def test_it_writes_the_calibration_of_the_model_and_prints_three_tables(workdir, capsys):
    assert calibrate.main([f"--workdir={workdir}"]) == 0
    text = capsys.readouterr().out
    for heading in ("Thresholds", "Reliability on held-out identities", "What would another sensor buy?"):
        assert f"\n## {heading}\n" in text
    found = Calibration.load(workdir, jax_mmreid.load_model(workdir).identity)
    assert found.modalities == ALL and found.source == "split test of synthetic"
    assert tuple(found.counts) == (*COMBINATIONS, "none", "pooled")
    # 5 identities by 3 cameras, 2 pictures each: 12 pairs of an identity, and 36 of any two.
    assert {count[:] for count in found.counts.values()} == {(60, 360, 5)} and found.prior == pytest.approx(1 / 7)
    assert "- none: 360 pairs of different identities; a false-match rate of 0.01 needs 1000" in text
    assert "Half of the identities have too few pairs to calibrate on." in text
    for name in COMBINATIONS:
        assert len(re.findall(rf"^\| {re.escape(name)} \|", text, re.M)) == 4


def test_the_table_of_sensors_is_that_of_evaluation(workdir, drawn, monkeypatch):
    """All 49 pairs of settings with similarity=common, each of which encodes or embeds its sides anew."""
    config = few(drawn)
    data = open_tiny(config)
    last = build(config, data, devices=jax.devices()[:1]).phases[-1].method  # with text features for missing pictures
    model = dataclasses.replace(jax_mmreid.load_model(workdir), method=last)
    rows = missing_evals(ALL, "test", "same_camera", "common", similarity="common", pairs=True)
    expected = runner.run(rows, model.method, model.variables, data, model.mesh, mean=0.5, std=0.5)
    monkeypatch.setattr(run, "load_model", lambda *_: model)
    labelled = calibrate.from_split(workdir, "test").labelled
    cells = sensors.measure(labelled, Calibration.fit(pairs.score(labelled), ALL), model.mesh, fmr=1e-2)
    names = {setting: "+".join(use) for setting, use in settings(ALL).items()}
    assert len(cells) == 49 and {x for pair in cells for x in pair} == set(COMBINATIONS)
    for q, g in ((q, g) for q in names for g in names):
        result, cell = expected[f"common/pairs/{q}>{g}"], cells[names[q], names[g]]
        assert (cell.mAP, cell.rank1) == pytest.approx((result["mAP"], result["rank1"]), abs=1e-9), (q, g)
        assert cell.queries == 30 and np.isnan(cell.detection)
    assert len({cells[pair].mAP for pair in (("rgb", "nir"), ("rgb", "tir"), ("nir", "tir"), ("tir", "rgb"))}) == 4


def test_a_store_has_the_pairs_of_the_split(source, workdir, drawn, tmp_path, capsys):
    labels = dict(pids=source.labelled.pids, camids=source.labelled.camids)
    folder = store_of(tmp_path / "s", workdir, drawn, source, **labels)
    found, expected = (pairs.score(x.labelled) for x in (calibrate.from_store(folder), source))
    expected = expected.take(expected.common.any(axis=1))  # a stored row has no fallback vector of its other views
    for name in ("rows", "common", "pids", "weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-6)
    assert calibrate.main([f"--store={folder}", "--prior=0.01", "--modalities=rgb/tir", "--fmr=1e-3"]) == 0
    text = capsys.readouterr().out
    assert "Of pairs of labelled entries of a store; prior 0.01." in text
    assert "mAP in %: query \\ gallery | rgb | tir | rgb+tir |" in text and "false-match rate of 0.001 in %" in text
    assert re.search(r"^\| rgb \| [\d.]+ \| – \| [\d.]+ \|$", text, re.M)
    written = Calibration.load(folder, jax_mmreid.load_model(workdir).identity)
    assert written.prior == 0.01 and "none" not in written.counts and written.counts["rgb"] == (60, 360, 5)


def test_entries_without_an_identity_or_a_camera(source, workdir, drawn, tmp_path):
    pids = np.where(np.arange(30) < 24, source.labelled.pids, -1)
    found = calibrate.from_store(store_of(tmp_path / "s", workdir, drawn, source, pids=pids))
    assert len(found.labelled.pids) == 24 and found.words == "labelled entries of a store, 24 of them without a camera"
    rows, _ = pairs.draw(found.labelled.pids, found.labelled.camids)
    assert len(rows) == 24 * 23 / 2  # those of one camera too


def test_fields_of_the_data_may_differ_from_those_of_the_run(workdir, drawn, source, tmp_path):
    shutil.copytree(drawn, tmp_path / "moved")
    moved = [f"data.data_dir={tmp_path / 'moved'}", "data.eval_batch_size=8"]
    found = calibrate.from_split(workdir, "test", overrides=moved)
    assert found.model == source.model and found.words == source.words
    for shown, view in source.labelled.views.items():
        np.testing.assert_allclose(found.labelled.views[shown].parts, view.parts, atol=1e-6)
        np.testing.assert_allclose(found.labelled.views[shown].fallback, view.fallback, atol=1e-6)


def test_splits_with_captions_are_joined(drawn_sysu, tmp_path, capsys):
    workdir = write_random_run(tmp_path / "run", tiny_tvi_config(drawn_sysu, **{"requires_init": ()}))
    labelled = calibrate.from_split(workdir, "query/gallery").labelled
    assert labelled.modalities == ("rgb", "ir") and set(labelled.views) == {("rgb",), ("ir",), ("rgb", "ir"), ()}
    query = labelled.views["ir",].present[:, 1]
    assert query.any() and not (query & labelled.views["rgb",].present[:, 0]).any()
    alone = labelled.views[()]
    assert not alone.present.any() and (alone.fallback.any(axis=1) == query).all()  # queries have captions
    assert calibrate.main([f"--workdir={workdir}", "--split=query/gallery"]) == 0
    counts = Calibration.load(workdir, jax_mmreid.load_model(workdir).identity).counts
    assert set(counts) == {"rgb", "ir", "none", "pooled"}
    assert re.search(r"^\| ir \| [\d.]+ \| [\d.]+ \| – \|$", capsys.readouterr().out, re.M)


def refused(capsys, *argv):
    """(exit code, the one line of the complaint)."""
    code = calibrate.main(argv)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("calibrate: ")]
    assert out == "" and len(lines) == 1
    return code, lines[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--split=validation",), "no split 'validation'; there are train, test"),
        (("--split=train",), "the model was trained on these identities"),
        (("--prior=0",), "prior=0: the expected share of pairs of the same identity must lie in (0, 1)"),
        (("--modalities=rgb/xray",), "no modality named 'xray'; the model has rgb, nir, tir"),
        (("--config.epochs=3",), "--config.epochs=3: a calibration takes fields of config.data only"),
        (("--config.data.colour=3",), "config.data has no field 'colour'"),
        (("--config.data.image_size=(64,32)",), "the data do not fit the model"),
        (("--step=5",), "5"),
    ],
)
def test_arguments_that_cannot_be_are_refused(workdir, argv, message, capsys):
    code, line = refused(capsys, f"--workdir={workdir}", *argv)
    assert code == 2 and message in line


def test_rows_that_cannot_be_calibrated_on_are_refused(workdir, drawn, source, tmp_path, capsys):
    unlabelled = store_of(tmp_path / "a", workdir, drawn, source)
    code, line = refused(capsys, f"--store={unlabelled}")
    assert code == 3 and "no entry of store" in line and "calibrate on a split with --workdir" in line
    single = store_of(tmp_path / "b", workdir, drawn, source, pids=np.full(30, 4))
    code, line = refused(capsys, f"--store={single}")
    assert code == 3 and "all 30 labelled rows are of identity 4" in line
    code, line = refused(capsys, f"--store={single}", "--split=test")
    assert code == 2 and "belong to --workdir" in line
    assert refused(capsys, f"--store={tmp_path / 'nothing'}")[0] == 3
    assert refused(capsys, f"--workdir={tmp_path / 'nothing'}")[0] == 2
    for argv in ([], [f"--store={single}", f"--workdir={workdir}"], ["--store=s", "--fmr=0.5"]):
        with pytest.raises(SystemExit) as end:
            calibrate.main(argv)
        assert end.value.code == 2


def test_scikit_learn_is_asked_for_before_anything_is_encoded(workdir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.isotonic", None)
    code, line = refused(capsys, f"--workdir={workdir}")
    assert code == 2 and "pip install 'jax_mmreid[search]'" in line


@pytest.mark.slow
def test_a_calibration_of_the_quickstart_holds_for_other_identities(tmp_path, capsys):
    """Half of 160 drawn identities are calibrated on, and the other half agrees; both are not those of training."""
    config = load_config("quickstart")
    fields = [f"data.data_dir={tmp_path / 'data'}", "data.options.num_test_ids=160"]
    for field in fields:
        set_field(config, field)
    run.train_and_evaluate(config, tmp_path / "run")
    found = calibrate.from_split(tmp_path / "run", "test")
    halves = reliability.halves(pairs.score(found.labelled))
    one, other = (Calibration.fit(half, ALL) for half in halves)
    measured = reliability.measure(one, halves[1], bins=15)
    assert set(measured) == {*COMBINATIONS, "none"}
    for name, result in measured.items():
        assert result.error < 0.02 and result.even < 0.05, name
        limits = [x.thresholds[name][1e-2] for x in (one, other)]
        assert limits[0].low <= limits[1].high and limits[1].low <= limits[0].high, name
        value, beyond_high, beyond_low = result.rates[1e-2]
        assert beyond_high < 0.02 and beyond_low > 0.005 and 0.005 < value < 0.02, name
    text = calibrate.calibrate(found, tmp_path / "run")
    cells = sensors.measure(found.labelled, one, make_mesh(data=-1, model=1), fmr=1e-2)
    assert cells["rgb+nir+tir", "rgb+nir+tir"].mAP > cells["rgb", "rgb"].mAP > cells["rgb", "tir"].mAP
    assert "cannot say" in text and Calibration.load(tmp_path / "run", found.model).counts["rgb"].identities == 160
