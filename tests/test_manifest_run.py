"""A run on a manifest, with pictures missing at test."""

import os

import pytest
from conftest import build, load_config, noise, open_tiny, tiny_config

from jax_mmreid import train
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import runner


@pytest.fixture(scope="module")
def table(drawn, tmp_path_factory):
    """A copy of the drawn pictures with a table: of five rows one lacks RGB and one thermal; no NIR at all."""
    root = tmp_path_factory.mktemp("table")
    rows = []
    for split, folder in (("train", "train_171"), ("test", "test")):
        for i, name in enumerate(sorted(os.listdir(drawn / folder / "RGB"))):
            cells = [f"{folder}/{spectrum}/{name}" for spectrum in ("RGB", "TI")]
            if i % 5 < 2:
                cells[i % 5] = ""
            rows.append(f"{split},person {name[:6]},{name[10]},{','.join(cells)}")
            for cell in filter(None, cells):
                (root / cell).parent.mkdir(parents=True, exist_ok=True)
                (root / cell).write_bytes((drawn / cell).read_bytes())
    (root / "manifest.csv").write_text("\n".join(["split,pid,camid,rgb,tir", *rows]))
    return root


def tiny(table, incomplete, **options):
    """The tiny experiment on the table; `incomplete` is that of all evals."""
    config = tiny_config(table, row="A", modalities="rgb/tir", **{"model.image.layers": 1} | options)
    with config.unlocked():
        config.data.name, config.data.options = "manifest", {}
        for row in config.evals.values():
            if "mean_of" not in row:
                row.incomplete = incomplete
    return config


@pytest.fixture(scope="module")
def model(table):
    """(experiment, state) of random weights."""
    config = tiny(table, "error")
    exp = build(config, open_tiny(config))
    return exp, noise(exp.abstract)


def evaluate(config, exp, state, data):
    """Results of the rows of a config."""
    method, variables = exp.phases[-1].method, state.variables
    return runner.run(config.evals.to_dict(), method, variables, data, exp.mesh, mean=0.5, std=0.5)


def test_test_rows_without_a_picture_are_an_error_or_left_out_and_counted(table, model):
    exp, state = model
    config = tiny(table, "error")
    data = open_tiny(config)
    with pytest.raises(DataError, match=r"evals.no_r: row 6 of split 'test' .*\(6 such rows\).*incomplete='skip'"):
        runner.check(config.evals.to_dict(), data)
    results = evaluate(tiny(table, "skip"), exp, state, data)
    skipped = {name: row.get("skipped") for name, row in results.items()}
    six = {"query": 6, "gallery": 6}
    assert skipped == {"full": {"query": 0, "gallery": 0}, "no_r": six, "no_t": six, "mean_missing": None}
    assert results["no_r"]["note"] == "leaves out 6 query rows and 6 gallery rows, which have no picture that it uses."
    assert "note" not in results["full"]


def test_skipping_rows_equals_a_table_without_them(table, model, tmp_path):
    """Oracle: a table without the test rows that lack thermal pictures has the same score."""
    exp, state = model
    config = tiny(table, "skip")
    skipping = evaluate(config, exp, state, open_tiny(config))["no_r"]
    lines = (table / "manifest.csv").read_text().splitlines()
    fewer = table / "fewer.csv"
    fewer.write_text("\n".join(line for line in lines if not (line.startswith("test") and line.endswith(","))))
    config = tiny(table, "error")
    config.data.data_dir = str(fewer)
    with config.unlocked():
        config.evals = {"no_r": config.evals["no_r"].to_dict()}
    whole = evaluate(config, exp, state, open_tiny(config))["no_r"]
    for metric in ("mAP", "mINP", "rank1", "rank5"):
        assert skipping[metric] == pytest.approx(whole[metric], abs=1e-6)


def test_incomplete_is_error_or_skip(table):
    config = tiny(table, "ignore")
    with pytest.raises(ConfigError, match="evals.full: incomplete='ignore', expected one of error, skip"):
        runner.check(config.evals.to_dict(), open_tiny(config))


def test_a_table_is_trained_on(table, tmp_path):
    config = tiny(table, "skip", epochs=1)
    data = open_tiny(config)
    assert data.present_train.mean(axis=0).tolist() == pytest.approx([57 / 72, 57 / 72], abs=0.02)
    train.train(config, tmp_path / "run", data)
    assert (tmp_path / "run" / "checkpoints" / str(data.spec.steps_per_epoch)).is_dir()


def test_configs_for_a_table():
    config = load_config("manifest", "modalities=rgb/tir,splits=query/gallery,junk=none,incomplete=skip,object=vehicle")
    assert config.data.options.file == "manifest.csv" and config.data.image_size == (128, 256)
    assert config.model.template_kind == "vehicle"
    row = config.evals["zero/no_r"]
    assert (row.query.split, row.gallery.split, row.junk, row.incomplete) == ("query", "gallery", "none", "skip")
    assert load_config("manifest").data.image_size == (256, 128)
    small = load_config("quickstart", "dataset=manifest,modalities=ir,incomplete=skip")
    assert small.data.name == "manifest" and small.evals.full.incomplete == "skip"
