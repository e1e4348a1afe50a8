"""Story: every benchmark runs at a tiny size and prints what it measures."""

import json
import sys

import numpy as np
import pytest
from benchmarks import index, loader, ranking, step
from conftest import tiny_config, tiny_tvi_config

from input_pipeline import DataConfig, describe
from jax_mmreid.batch import has_caption

TINY = loader.Sizes(image=(16, 8), identities=4, triples=4, p=2, k=2, workers=0, steps=2, rounds=1)


@pytest.mark.slow
def test_the_step_of_row_f_is_timed_without_data(tmp_path):
    result = step.measure(tiny_config(tmp_path / "no data"), steps=1)
    assert result["rows"] == 8 and result["ms_per_step"] > 0 and result["loss"] > 0
    assert not list(tmp_path.iterdir())


def test_batches_for_the_step_have_captions_where_the_data_have_them(tmp_path):
    config = tiny_tvi_config(tmp_path)
    spec = describe(DataConfig.from_dict(config.data.to_dict())).spec
    batch = step.noise(spec, config.data.instances)
    assert set(batch["text"]) == {"rgb", "ir"} and all(has_caption(ids).all() for ids in batch["text"].values())
    assert np.unique(batch["label"], return_counts=True)[1].tolist() == [2, 2, 2, 2]


def test_the_command_of_the_step_sets_fields(monkeypatch, capsys):
    configs = []
    monkeypatch.setattr(step, "measure", lambda config, steps: configs.append((config, steps)) or {"ms_per_step": 1})
    step.main(["--config=configs/rgbnt201.py:row=F", "--config.model.dtype=bfloat16", "--steps=7", "--json"])
    ((config, steps),) = configs
    assert config.model.dtype == "bfloat16" and config.model.ldmmc and steps == 7
    assert json.loads(capsys.readouterr().out) == {"ms_per_step": 1}


def test_all_ways_of_ranking_agree_and_are_timed(monkeypatch, capsys):
    monkeypatch.setattr(ranking, "IDENTITIES", 10)
    monkeypatch.setattr(ranking, "timed_in_a_process", ranking.timed)
    ranking.main(["--queries=40", "--gallery=90", "--dim=8", "--rounds=1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert {f"{way}_seconds" for way in ranking.WAYS} <= result.keys() and result["rank_to_loop"] >= 0


def test_a_way_of_ranking_runs_in_a_process_of_its_own():
    found = ranking.timed_in_a_process("vector_loop", ranking.Sizes(queries=40, gallery=2000, dim=8, rounds=1))
    assert found["device"] == "numpy" and 0 < found["mAP"] < 1 and found["peak_gib"] > 0


def test_ways_that_do_not_agree_end_the_benchmark():
    found = {way: {"seconds": [1.0], "peak_gib": 1.0, "device": "x", "mAP": 0.5, "rank1": 0.5} for way in ranking.WAYS}
    found["numpy"]["mAP"] = 0.6
    with pytest.raises(SystemExit, match="mAP is 0.6 by numpy and 0.5 by the loop"):
        ranking.summary(found, ranking.Sizes())


def test_all_ways_of_searching_agree_and_are_timed(monkeypatch, capsys):
    pytest.importorskip("faiss", reason="needs the faiss extra")
    monkeypatch.setattr(index, "timed_in_a_process", index.timed)
    index.main(["--rows=300", "--dim=8", "--queries=20", "--k=3", "--rounds=1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["lists_recall"] == 1 and all(result[f"{way}_one_seconds"] > 0 for way in index.WAYS)


def test_searches_that_do_not_agree_end_the_benchmark():
    found = {way: {"rows": [[0]], "scores": [[0.5]]} for way in index.WAYS}
    found["flat"]["scores"] = [[0.6]]
    with pytest.raises(SystemExit, match="the scores of `index` and of `flat` differ"):
        index.summary(found, index.Sizes())


def test_this_loader_is_timed_from_files_and_from_its_cache(tmp_path):
    result = loader.measure(tmp_path / "RGBNT201", TINY, (loader.ours,))
    assert result["files_images_per_second"] > 0 and result["cache_images_per_second"] > 0


@pytest.mark.reference
def test_the_loader_of_pytorch_is_timed_beside_it(torch, tmp_path):
    result = loader.measure(tmp_path / "RGBNT201", TINY, (loader.pytorch, loader.ours))
    assert result["pytorch_images_per_second"] > 0 and result["pytorch_uint8_images_per_second"] > 0
    assert result["files_ratio"] > 0


def test_the_loader_names_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="needs PyTorch"):
        loader.main([])
