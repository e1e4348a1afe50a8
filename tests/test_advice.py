"""The table of learned results beside those without learning, and the advice below it."""

import json
import re

import numpy as np
import pytest
from conftest import open_tiny, tiny_config

from jax_mmreid import evaluate, train
from jax_mmreid.ops.descriptors import DESCRIPTORS
from jax_mmreid.recipes.baselines import baselines as baseline_rows
from jax_mmreid.recipes.missing_settings import missing_evals
from jax_mmreid.report import baselines, compare, tables
from jax_mmreid.report.baselines import Facts

ENOUGH = Facts(identities=300, cameras=4, one_camera=3, same_camera=0.25, accuracy=0.97, pretrained=False)
GOOD, BAD = {"full": 0.9, "no_r": 0.8, "no_n": 0.7}, {"full": 0.446, "no_r": 0.85, "no_n": 0.7}

UNLEARNED = {"pixels": dict(full=0.667, no_r=0.6, no_n=0.6), "gradients": dict(full=0.867, no_r=0.5, no_n=0.5)}


def results(learned, unlearned=None):
    """results.json of these mAP {setting: fraction}; {descriptor: {setting: fraction}} without learning."""
    unlearned = unlearned or UNLEARNED

    def row(kind, group, setting, x):
        return {"kind": kind, "group": group, "setting": setting, "mAP": x, "rank1": x / 2}

    evals = {name: row("retrieval", "", name, x) for name, x in learned.items()}
    evals |= {f"zero/{name}": row("retrieval", "zero", name, 0.01) for name in learned}
    for group, numbers in unlearned.items():
        evals |= {f"{group}/{name}": row("pixels", group, name, x) for name, x in numbers.items()}
    columns = {kind: {"mAP": "mAP", "R-1": "rank1"} for kind in ("retrieval", "pixels")}
    shared = {"modalities": ["rgb", "nir"], "columns": columns, "not_fractions": {kind: [] for kind in columns}}
    return shared | {"step": 9, "which": "last", "config_hash": "h", "evals": evals}


@pytest.mark.parametrize(
    "learned, changes, expected",
    [
        (GOOD, {}, "Learning pays in all 3 settings; least at RN: mAP 90.0, without learning 86.7 (gradients)."),
        (GOOD, {"accuracy": 0.5}, "without learning 86.7 (gradients). Train longer: the training accuracy is 50 %."),
        (
            BAD,
            {},
            "Learning does not pay in 1 of 3 settings; at RN mAP 44.6, without learning 86.7 (gradients). Start from "
            "CLIP's weights: training has 300 identities, and the training accuracy is 97 %.",
        ),
        (BAD, {"accuracy": 0.431}, "(gradients). Train longer: the training accuracy is 43 %."),
        (BAD, {"accuracy": 0.431, "identities": 20}, "(gradients). Train longer: the training accuracy is 43 %."),
        (
            BAD,
            {"identities": 174},
            "Add identities, or start from CLIP's weights: training has 174 identities, and the training accuracy "
            "is 97 %.",
        ),
        (BAD, {"identities": 174, "accuracy": None}, "or start from CLIP's weights: training has 174 identities."),
        (BAD, {"pretrained": True}, "(gradients). Add identities: training has 300 identities, and the training"),
        (
            BAD,
            {"one_camera": 241, "accuracy": 0.1},
            "(gradients). The cameras give identities away: 241 of 300 training identities are seen by one camera "
            "only; add images of them from other cameras.",
        ),
        (GOOD, {"one_camera": 241}, "(gradients). The cameras give identities away: 241 of 300"),
        (GOOD, {"same_camera": 0.86}, "of the training pairs of one identity, 86 % are of one camera; add images from"),
        (GOOD, {"one_camera": 300, "cameras": 1, "same_camera": 1.0}, "without learning 86.7 (gradients)."),
    ],
)
def test_the_first_rule_that_applies_is_the_advice(learned, changes, expected):
    found = baselines.advice(results(learned), ENOUGH._replace(**changes))
    assert expected in found and "\n" not in found
    assert found.startswith("Learning") and (expected.startswith("Learning") is False or found == expected)


def test_without_baselines_there_is_no_advice():
    found = results(GOOD)
    found["evals"] = {name: row for name, row in found["evals"].items() if row["kind"] == "retrieval"}
    assert baselines.advice(found, ENOUGH) == "" and baselines.compare(found) == []


def test_learned_results_stand_above_those_without_learning():
    text = tables.markdown(results(GOOD) | {"advice": "Learning pays."})
    assert text.endswith(
        "\n| mAP / R-1 | RN | -R | -N |\n|---|---|---|---|\n"
        "| learned | 90.0 / 45.0 | 80.0 / 40.0 | 70.0 / 35.0 |\n"
        "| pixels | 66.7 / 33.4 | 60.0 / 30.0 | 60.0 / 30.0 |\n"
        "| gradients | 86.7 / 43.4 | 50.0 / 25.0 | 50.0 / 25.0 |\n"
        "\nLearning pays.\n"
    )
    assert "| setting (zero) | RN | -R | -N |" in text and "(pixels)" not in text


@pytest.fixture(scope="module")
def facts(drawn, tmp_path_factory):
    """The facts of a run whose log is known, with 12 identities at 3 cameras of 2 triples each."""
    folder = tmp_path_factory.mktemp("facts")
    lines = [dict(step=step, accuracy=step / 100) for step in range(1, 41)] + [dict(step=41, loss=1.0)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tiny_config(drawn)
    return evaluate._facts(config, open_tiny(config), folder, step=30)


def test_facts_are_counted(facts):
    assert facts.accuracy == pytest.approx(np.mean(np.arange(21, 31) / 100))
    assert (facts.identities, facts.cameras, facts.one_camera, facts.pretrained) == (12, 3, 0, False)
    assert facts.same_camera == pytest.approx(1 / 5)  # of a row's five others, one is of its camera


def test_a_run_ends_with_the_table_and_the_advice(drawn, tmp_path, caplog):
    config = tiny_config(drawn, row="A", modalities="rgb/tir", epochs=1)
    with config.unlocked():
        config.evals.update(baseline_rows(missing_evals(("rgb", "tir"), "test", "same_camera")))
    data = open_tiny(config)
    train.train(config, tmp_path, data)
    with caplog.at_level("INFO"):
        found = evaluate.evaluate(config, tmp_path, data)
    assert found["advice"].startswith("Learning ") and found["advice"] in caplog.text
    text = (tmp_path / "results.md").read_text()
    assert found["advice"] in text and "| mAP / R-1 | RT | -R | -T | Mean |" in text
    assert re.match(r"Learning pays in all 3 settings|Learning does not pay in [123] of 3 settings", found["advice"])
    compared = compare.markdown(compare.summary([tmp_path]))
    assert all(f"({feature}) |" in compared for feature in DESCRIPTORS)
