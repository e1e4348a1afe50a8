"""What an evaluation refuses: rows, checkpoints, workdirs, weights and data that it cannot measure or that misfit."""

import json
import shutil

import pytest
from conftest import build, noise, open_tiny, tiny_config
from random_run import few, named, saved_spec, write_workdir

from jax_mmreid import evaluate
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import runner


@pytest.fixture(scope="module")
def workdir(drawn, tmp_path_factory):
    config = few(drawn)
    data = open_tiny(config)
    return write_workdir(tmp_path_factory.mktemp("run"), config, data, noise(build(config, data).abstract))


def test_a_picture_without_any_modality_of_a_row_is_named(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "copy")
    config = few(tmp_path / "copy", **{"data.allow_missing_files": True})
    for folder in ("RGB", "NI"):
        sorted((tmp_path / "copy" / "test" / folder).iterdir())[4].unlink()
    with pytest.raises(DataError, match="evals.no_t: row 4 of split 'test' (has no|lacks a) picture of rgb(,| or) nir"):
        runner.check(config.evals.to_dict(), open_tiny(config))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "evals.full.kind",
            "retreival",
            "kind='retreival': there is no such kind of evaluation; there are image_text, pixels, retr",
        ),
        (
            "evals.full.query.use",
            ("rgb", "ir"),
            "evals.full: use names 'ir'; there are the modalities rgb, nir, tir, captions",
        ),
        ("evals.full.gallery.use", (), "evals.full: gallery.use is empty; name modalities"),
        ("evals.full.gallery.split", "gallery", "evals.full: data: no split 'gallery'; there are train, test"),
        ("evals.full.junk", "same", "evals.full: junk='same', expected one of none, same_camera, same_view, sysu"),
        ("evals.full.rerank", dict(k1=3, k2=2), "evals.full: rerank lacks the key 'lam'"),
        ("evals.full.rerank", dict(k1=0, k2=2, lam=0.3), "evals.full: re-ranking: k1=0 and k2=2 must be at least 1"),
        (
            "evals.mean_missing.mean_of",
            ("full", "no_x"),
            "evals.mean_missing: mean_of names 'no_x'; it can name full, no_r, no_n,",
        ),
        ("evals.mean_missing.mean_of", ("mean_missing",), "mean_of names 'mean_missing'; it can name full, no_r"),
    ],
)
def test_a_row_that_cannot_be_measured_is_refused_before_the_first_step(drawn, field, value, message):
    config = tiny_config(drawn, **{field: value})
    with pytest.raises(ConfigError, match=message):
        runner.check(config.evals.to_dict(), open_tiny(config))


def test_the_best_must_name_a_row(drawn):
    config = tiny_config(drawn, best="all/mAP", eval_every=1)
    with pytest.raises(ConfigError, match="best='all/mAP': there is no row 'all' in evals; the rows are full, no_r,"):
        runner.check_best(config.best, config.evals.to_dict())


@pytest.mark.parametrize(
    "step, message",
    [
        ("7", "has no checkpoint '7'; there are 6, 9"),
        ("latest", "has no checkpoint 'latest'; there are 6, 9"),
        ("-6", "has no checkpoint '-6'"),
    ],
)
def test_a_checkpoint_that_does_not_exist_is_refused_with_those_that_do(drawn, workdir, step, message):
    config = few(drawn)
    with pytest.raises(ConfigError, match=message):
        evaluate.evaluate(config, workdir, open_tiny(config), step=step)


def test_a_workdir_of_no_run_or_of_another_is_refused(drawn, workdir, tmp_path):
    config, other = few(drawn), few(drawn, seed=7)
    with pytest.raises(ConfigError, match="holds no run; train one first"):
        evaluate.evaluate(config, tmp_path, open_tiny(config))
    with pytest.raises(ConfigError, match=r"holds a run of another config .*: seed \(1111 -> 7\);.* with --force"):
        evaluate.evaluate(other, workdir, open_tiny(other))


@pytest.mark.parametrize(
    ("changes", "misfit"),
    [
        ({"model.image.width": 32}, "params/image/block_0/attention/out/bias"),
        ({"model.image.layers": 1}, "params/image/block_1/attention/out/bias"),
        ({"model.text.layers": 2}, "frozen/text/block_1/attention/out/bias"),
        ({"row": "D"}, "batch_stats/heads/text_nir"),  # a part less
    ],
)
def test_a_model_of_another_shape_cannot_be_forced(drawn, workdir, changes, misfit):
    config = few(drawn, **changes)
    with pytest.raises(ConfigError, match=f"holds another model, which --force cannot help: .*{misfit}") as error:
        evaluate.evaluate(config, workdir, open_tiny(config), force=True)
    assert "\n" not in str(error.value)


def test_force_does_not_make_a_run(drawn, tmp_path):
    config = few(drawn)
    with pytest.raises(ConfigError, match="holds no run; train one first"):
        evaluate.evaluate(config, tmp_path, open_tiny(config), force=True)


def test_weights_that_lack_a_part_are_not_measured(drawn, workdir, tmp_path):
    """A classifier or tower of random weights would be measured as if it had been trained."""
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "frozen")  # the text tower
    config = named(drawn, tmp_path / "run")
    with pytest.raises(DataError, match="run holds heads, .*, structure but not text; name weights that hold it too"):
        evaluate.evaluate(config, tmp_path / "results", open_tiny(config), step="init")
    assert not (tmp_path / "results").exists()


def test_init_must_name_weights_and_spare_another_run(drawn, workdir, tmp_path):
    config = few(drawn)
    with pytest.raises(ConfigError, match="config.init, which is empty; set --config.init=SOURCE"):
        evaluate.evaluate(config, tmp_path, open_tiny(config), step="init")
    config = named(drawn, workdir, seed=7)
    for force in (False, True):
        with pytest.raises(ConfigError, match="holds a run of another config: .*; choose another --workdir"):
            evaluate.evaluate(config, workdir, open_tiny(config), step="init", force=force)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(modalities=["rgb", "tir"]), r"modalities \(\('rgb', 'tir'\) -> \('rgb', 'nir', 'tir'\)\)"),
        (dict(image_size=[64, 32]), r"image_size \(\(64, 32\) -> \(32, 16\)\)"),
        (dict(vocab=700), r"vocab \(700 -> 0\)"),
    ],
)
def test_data_that_do_not_fit_the_model_cannot_be_forced(drawn, workdir, tmp_path, changes, message):
    config = few(drawn)
    shutil.copytree(workdir, tmp_path / "run")
    saved_spec(tmp_path / "run", **changes)
    with pytest.raises(ConfigError, match=f"the data do not fit the model in .*run: {message}; set these fields"):
        evaluate.evaluate(config, tmp_path / "run", open_tiny(config), force=True)


def test_data_with_other_identities_are_refused(drawn, workdir, tmp_path):
    config = few(drawn)
    shutil.copytree(workdir, tmp_path / "run")
    spec = json.loads((workdir / "data_spec.json").read_text())
    saved_spec(tmp_path / "run", pids=[pid + 100 for pid in spec["pids"]])
    with pytest.raises(ConfigError, match=r"pids of the training data \(12: 101, 103, .*, \.\. -> 12: 1, 3, "):
        evaluate.evaluate(config, tmp_path / "run", open_tiny(config))


def test_a_workdir_of_an_older_version_gets_one_clear_sentence(drawn, workdir, tmp_path):
    config = few(drawn)
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "data_spec.json").unlink()
    with pytest.raises(ConfigError, match="run has no data_spec.json, as runs before version 0.2 have none; train it"):
        evaluate.evaluate(config, tmp_path / "run", open_tiny(config))
