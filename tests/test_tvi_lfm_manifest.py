"""TVI-LFM on a manifest: its rows, another name of the infrared modality, and the story of both stages."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import assert_trees_close, build, load_config, noise, open_tiny, tiny_tvi_config
from test_launch import ROOT, load_driver

from input_pipeline.datasets import rgbnt201
from input_pipeline.synthesize import synthesize
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import runner
from jax_mmreid.methods import read_fields, tvi_lfm
from jax_mmreid.ops.descriptors import DESCRIPTORS

OWN = "method=tvi_lfm,modalities=rgb/nir,size=small"
IMAGES = ["rgb", "rgb>nir", "nir>rgb", "nir"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A folder of drawn pedestrians with a manifest of RGB and NIR pictures and their captions."""
    root = tmp_path_factory.mktemp("tvi_manifest") / "drawn"
    synthesize(root, seed=3, num_train_ids=24, num_test_ids=8, cameras=3, images_per_camera=2, height=48)
    arguments = dict(modalities=("rgb", "nir"), allow_missing_files=False, captioner="Blip")
    lines = ["split,pid,camid,rgb,nir,caption_rgb,caption_nir"]
    for split, records in rgbnt201.load(str(root), **arguments).items():
        for i in range(len(records)):
            cells = [*(records.paths[m][i] for m in ("rgb", "nir")), *(records.captions[m][i] for m in ("rgb", "nir"))]
            lines.append(",".join([split, str(records.pid[i]), str(records.camid[i]), *(f'"{x}"' for x in cells)]))
    (root / "manifest.csv").write_text("\n".join(lines))
    return root


def small(table, **changes):
    config = load_config("manifest", ",".join([OWN, *(f"{key}={x}" for key, x in changes.items())]))
    config.data.data_dir = str(table)
    config.data.image_size = (48, 24)
    config.mesh.data = 1
    return config


def test_rows_are_both_directions_each_alone_and_the_same_without_learning(table):
    base = small(table, stage="base", splits="test", junk="none")
    assert list(base.evals)[:4] == IMAGES and list(base.evals)[4:8] == [f"pixels/{name}" for name in IMAGES]
    assert len(base.evals) == 16 and base.best == "nir>rgb/rank1"
    row = base.evals["nir>rgb"].to_dict()
    assert row == dict(
        setting="nir>rgb",
        query=dict(split="test", use=("nir",)),
        gallery=dict(split="test", use=("rgb",)),
        junk="none",
        incomplete="error",
        options={},
    )
    lfm = small(table, splits="query/gallery")
    texts = ["nir_base>rgb", "text>rgb", "fusion>rgb", "mer>rgb"]
    assert list(lfm.evals)[:8] == IMAGES + texts and len(lfm.evals) == 20 and lfm.best == "fusion>rgb/rank1"
    assert "mer>rgb" not in small(table, row="B+SFF").evals
    assert lfm.evals["mer>rgb"].gallery.split == "gallery" and lfm.evals["mer>rgb"].options.to_dict() == {
        "ensemble": True
    }
    for config in (base, small(table)):
        data = open_tiny(config)
        exp = build(config, data)
        runner.check(config.evals.to_dict(), data)
        runner.check_best(config.best, config.evals.to_dict())
        runner.check_method(config.evals.to_dict(), exp.phases[-1].method, exp.abstract.variables, data)


def test_sizes_and_arguments_of_the_config():
    full = load_config("manifest", "method=tvi_lfm")
    assert full.data.modalities == ("rgb", "ir") and full.data.image_size == (288, 144) and full.epochs == 120
    assert full.model.image.width == 64 and full.data.options.to_dict() == {"file": "manifest.csv"}
    assert set(full.aug.views) == {"rgb", "rgb_strong", "ir"}
    quickstart, own = load_config("quickstart", "method=tvi_lfm"), load_config("manifest", "method=tvi_lfm,size=small")
    assert own.model == quickstart.model and own.optim == quickstart.optim and own.epochs == quickstart.epochs
    assert load_config("manifest", "method=tvi_lfm,object=vehicle").data.image_size == (144, 288)
    for arg in ("row=full", "row=+LLM", "modalities=rgb", "modalities=nir/rgb", "size=tiny", "object=cat", "stage=x"):
        with pytest.raises(ConfigError, match="expected one of"):
            load_config("manifest", f"method=tvi_lfm,{arg}")
    with pytest.raises(ConfigError, match="method=clip: expected one of miss_reid, tvi_lfm"):
        load_config("manifest", "method=clip")


def renamed(tree):
    """A batch or features whose infrared modality is called nir."""
    if not isinstance(tree, dict):
        return tree
    return {key.replace("ir", "nir") if key in ("ir", "text/ir") else key: renamed(x) for key, x in tree.items()}


@pytest.mark.exhaustive
def test_another_name_of_the_infrared_modality_changes_no_number_and_no_parameter(drawn_sysu):
    """Equality: of losses, gradients and vectors, with the same weights."""
    config = tiny_tvi_config(drawn_sysu)
    data = open_tiny(config)
    exp = build(config, data)
    method = exp.phases[-1].method
    other = dataclasses.replace(method, infrared="nir")
    state = noise(exp.abstract)
    batch = next(data.train(0, 1))
    batch["images"] = {m: np.asarray(x, np.float32) / 255 for m, x in batch["images"].items()}

    def terms(params, method, batch):
        return sum(method.loss(params, state, batch, {}).terms.values())

    merged = state.variables["params"]
    found = [jax.value_and_grad(terms)(merged, *x) for x in ((method, batch), (other, renamed(batch)))]
    assert float(found[0][0]) == float(found[1][0])
    assert_trees_close(found[0][1], found[1][1], atol=1e-6)
    variables = state.variables
    features = method.encode(variables, batch)
    again = other.encode(variables, renamed(batch))
    for use in (("rgb",), ("ir",), ("text",), ("ir", "text")):
        named = tuple("nir" if name == "ir" else name for name in use)
        np.testing.assert_array_equal(method.embed(variables, features, use), other.embed(variables, again, named))
    every = ("rgb", "ir", "text"), ("rgb", "nir", "text")
    parts = method.parts(variables, features, every[0]), other.parts(variables, again, every[1])
    assert_trees_close(*parts, atol=0)
    np.testing.assert_array_equal(
        method.embed_available(variables, features, every[0]), other.embed_available(variables, again, every[1])
    )
    with pytest.raises(ConfigError, match="`use` must be rgb, nir, text, or nir with text"):
        other.embed(variables, again, ("ir",))


@pytest.mark.exhaustive
def test_captions_of_other_modalities_are_not_read(table):
    """Captions of thermal images stand in the table too."""
    lines = (table / "manifest.csv").read_text().splitlines()
    more = [lines[0] + ",caption_tir", *(f"{line},a warm person" for line in lines[1:])]
    (table / "more.csv").write_text("\n".join(more))
    config, described = small(table), []
    for file in ("manifest.csv", "more.csv"):
        config.data.options.file = file
        data = open_tiny(config)
        exp = build(config, data)
        method, batch = exp.phases[-1].method, next(data.split("test"))
        assert set(method._caption_features(noise(exp.abstract).variables["params"], batch)) == {"rgb", "nir"}
        described.append(set(batch["text"]))
    assert described == [{"rgb", "nir"}, {"rgb", "nir", "tir"}]


def test_other_pairs_of_modalities_are_refused(drawn_sysu):
    config = tiny_tvi_config(drawn_sysu)
    data = open_tiny(config)
    for names in (("rgb",), ("nir", "ir"), ("rgb", "nir", "ir")):
        spec = dataclasses.replace(data.spec, modalities=names)
        with pytest.raises(ConfigError, match="tvi_lfm needs rgb and one of ir, nir, tir"):
            tvi_lfm.create(spec, read_fields(tvi_lfm.Config, config.model.to_dict(), "model"))


def chained(table, workdir, *fields):
    """Results of both stages, {stage: {row: mAP}}, and the text of stage base's results."""
    given = [f"--config={ROOT}/configs/manifest.py:{OWN}", f"--workdir={workdir}", f"--config.data.data_dir={table}"]
    assert load_driver("tvi_lfm").main([*given, "--config.mesh.data=1", *(f"--config.{x}" for x in fields)]) == 0
    rows = {stage: json.loads((workdir / stage / "results.json").read_text())["evals"] for stage in ("base", "lfm")}
    found = {stage: {name: row["mAP"] for name, row in own.items()} for stage, own in rows.items()}
    return found, (workdir / "base" / "results.md").read_text()


@pytest.mark.slow
def test_the_driver_chains_both_stages_on_a_table(table, tmp_path):
    sizes = ("epochs=1", "data.image_size=(32,16)", "model.image.width=4", "model.text.width=16")
    found, text = chained(table, tmp_path, *sizes)
    assert "| mAP / R-1 | rgb | rgb>nir | nir>rgb | nir |" in text and "\nLearning " in text
    # The visual part is frozen, and its batch statistics follow the batches.
    assert found["lfm"]["nir_base>rgb"] == pytest.approx(found["base"]["nir>rgb"], abs=0.1)
    for name in ("pixels/rgb", "gradients/nir>rgb"):
        assert found["base"][name] == found["lfm"][name]


@pytest.mark.slow
def test_both_stages_learn_on_a_table_whose_infrared_pictures_are_nir(table, tmp_path):
    """Story: base is above all baselines in both directions, and captions find what infrared alone does not."""
    found, _ = chained(table, tmp_path, "data.image_size=(48,24)", "epochs=30", "optim.schedule.milestones=(24,)")
    for name in IMAGES:
        assert found["base"][name] > max(found["base"][f"{feature}/{name}"] for feature in DESCRIPTORS), name
    assert found["lfm"]["fusion>rgb"] > found["base"]["nir>rgb"]
    assert found["lfm"]["mer>rgb"] > found["base"]["nir>rgb"] + 0.03
