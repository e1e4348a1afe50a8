"""Rows with `pairs_of`: what they stand for, what is measured of it, what is refused, and where configs have them."""

import itertools
import json

import pytest
from conftest import build, load_config, noise, open_tiny, tiny_config

from jax_mmreid import evaluate
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import ConfigDict, config_hash, difference, to_json
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import runner
from jax_mmreid.evaluators.retrieval import Retrieval
from jax_mmreid.ops.descriptors import DESCRIPTORS
from jax_mmreid.recipes.missing_settings import missing_evals
from jax_mmreid.report import tables

SEVEN = ("full", "no_r", "no_n", "no_t", "no_rn", "no_rt", "no_nt")
EVERY = [f"{query}>{gallery}" for query, gallery in itertools.product(SEVEN, repeat=2)]


def run_rows(rows, monkeypatch):
    """(results, the rows that were measured) where every number is made up."""
    asked = []

    def made_up(self, encoder):
        asked.append(self.row)
        return {"mAP": len(asked) / 64, "protocol": "p", "feature": "f"}

    monkeypatch.setattr(Retrieval, "run", made_up)
    return runner.run(rows, None, {}, None, None, mean=0.5, std=0.5), asked


def test_seven_settings_are_forty_nine_pairs_of_which_seven_are_there_already(monkeypatch):
    options = {"imputation": "zero"}
    more = dict(options=options, incomplete="skip", pairs=True)
    rows = missing_evals(("rgb", "nir", "tir"), "query/gallery", "same_view", "zero", **more)
    rows = {"other": dict(rows["zero/no_r"])} | rows | {"last": dict(rows["zero/full"])}
    results, asked = run_rows(rows, monkeypatch)
    names = [f"zero/{name}" for name in (*SEVEN, "mean_missing")]
    assert list(results) == ["other", *names, *(f"zero/pairs/{pair}" for pair in EVERY), "last"]
    assert len(asked) == 2 + 7 + 42
    pairs = {tuple(row["pair"]): row for row in asked if "pair" in row}
    for pair in EVERY:
        result, (query, gallery) = results[f"zero/pairs/{pair}"], pair.split(">")
        fields = {"group": "zero/pairs", "pair": [query, gallery]}
        assert {key: result[key] for key in ("group", "pair")} == fields and "setting" not in result
        if query == gallery:
            assert (query, gallery) not in pairs and result["mAP"] == results[f"zero/{query}"]["mAP"]
        else:
            sides = {"query": rows[f"zero/{query}"]["query"], "gallery": rows[f"zero/{gallery}"]["gallery"]}
            protocol = dict(junk="same_view", options=options, incomplete="skip")
            assert pairs[query, gallery] == sides | protocol | fields
    assert pairs["no_r", "no_nt"]["query"] == dict(split="query", use=("nir", "tir"))
    assert pairs["no_r", "no_nt"]["gallery"] == dict(split="gallery", use=("rgb",))
    assert len({result["mAP"] for result in results.values()}) == 2 + 7 + 1 + 42


def test_pairs_may_stand_before_their_rows_and_are_called_by_settings_or_names(monkeypatch):
    drawn = dict(split="g", use=("rgb",), draw=dict(cameras=(1,), shots=1))
    shared = dict(gallery=drawn, trials=3, junk="none", cmc="identity")
    rows = {"a/both": dict(pairs_of=("a/ir", "text"))}
    rows["a/ir"] = dict(group="a", setting="ir", query=dict(split="q", use=("ir",)), **shared)
    rows["text"] = dict(query=dict(split="q", use=("text",)), **shared)
    results, asked = run_rows(rows, monkeypatch)
    pairs = ["a/both/ir>ir", "a/both/ir>text", "a/both/text>ir", "a/both/text>text"]
    assert list(results) == [*pairs, "a/ir", "text"] and len(asked) == 4
    assert asked[1] == rows["text"] | {"group": "a/both", "pair": ["text", "ir"]}  # galleries are drawn alike
    for pair, name in ((pairs[0], "a/ir"), (pairs[3], "text")):
        assert results[pair]["mAP"] == results[name]["mAP"]


def paired(folder, pairs=True, **changes):
    """The tiny experiment on two modalities, with pairs of its three settings for two kinds of imputation."""
    config = tiny_config(folder, modalities="rgb/tir", **changes)
    with config.unlocked():
        config.evals = ConfigDict(sort_keys=False)
        for group, options in (("", {}), ("zero", {"imputation": "zero"})):
            shared = dict(options=options, pairs=pairs)
            config.evals.update(missing_evals(("rgb", "tir"), "test", "same_camera", group, **shared))
    return config


@pytest.fixture(scope="module")
def tiny(drawn):
    """(experiment, data, state) of random weights."""
    config = paired(drawn)
    data = open_tiny(config)
    exp = build(config, data)
    return exp, data, noise(exp.abstract)


def measure(config, tiny):
    exp, data, state = tiny
    rows = config.evals.to_dict()
    return runner.run(rows, exp.phases[-1].method, state.variables, data, exp.mesh, mean=0.5, std=0.5)


def measured(result):
    """A result without where it is printed."""
    return {key: x for key, x in result.items() if key not in ("group", "setting", "pair")}


def test_a_pair_is_measured_as_the_row_that_it_stands_for(tiny, drawn):
    config, plain = paired(drawn), paired(drawn, pairs=False)
    with plain.unlocked():
        sides = [dict(split="test", use=use) for use in (("tir",), ("rgb",))]
        options = {"imputation": "zero"}
        plain.evals.by_hand = dict(query=sides[0], gallery=sides[1], junk="same_camera", options=options)
    for one in (config, plain):
        runner.check(one.evals.to_dict(), tiny[1])
    results, expected = measure(config, tiny), measure(plain, tiny)
    found = measured(results["zero/pairs/no_r>no_t"])
    assert found == measured(expected.pop("by_hand")) != measured(results["zero/pairs/no_t>no_r"])
    assert found["feature"] == "tir>rgb, imputation=zero"
    assert measured(results["pairs/full>full"]) == measured(expected["full"])
    assert {name: results[name] for name in expected} == expected and len(results) == len(expected) + 2 * 9


PAIRS = ("full", "no_r", "no_t")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"pairs": dict(pairs_of=("full", "no_n"))},
            "names 'no_n'; it can name full, no_r, no_t, zero/full, zero/no_r, z",
        ),
        ({"pairs": dict(pairs_of=("full", "mean_missing"))}, "pairs_of names 'mean_missing'; it can name full"),
        ({"pairs": dict(pairs_of=("full", "zero/pairs"))}, "pairs_of names 'zero/pairs'; it can name full"),
        ({"pairs": dict(pairs_of=("full",))}, "pairs_of=('full',), expected two rows or more of different"),
        ({"pairs": dict(pairs_of=())}, "pairs_of=(), expected two rows or more of different settings"),
        ({"pairs": dict(pairs_of=("full", "full"))}, "pairs_of=('full', 'full'), expected two rows or more"),
        ({"pairs": dict(pairs_of=("full", "zero/full"))}, "expected two rows or more of different settings"),
        ({"rgb>tir": {"setting": "r>t"}, "pairs": dict(pairs_of=("full", "rgb>tir"))}, "settings, without '>' in them"),
        ({"pairs": dict(pairs_of=PAIRS, junk="none")}, "evals.pairs: the row has a key 'junk'; there are pairs_of"),
        ({"pairs/full>x": "full"}, "evals.pairs: evals.pairs/full>x has the name of one of its results"),
        (
            {"pairs": dict(pairs_of=("full", "zero/no_r"))},
            "options is {} in 'full' and {'imputation': 'zero'} in 'zero/no_r'; name rows that differ in query and",
        ),
        ({"no_r": dict(junk="none")}, "junk is 'same_camera' in 'full' and 'none' in 'no_r'; name rows that"),
        ({"no_r": dict(incomplete="skip")}, "incomplete is 'error' in 'full' and 'skip' in 'no_r'; name rows"),
        ({"no_t": dict(cmc="identity")}, "cmc is 'picture' in 'full' and 'identity' in 'no_t'; name rows"),
        (
            {"x": dict(kind="image_text", setting="x"), "pairs": dict(pairs_of=("full", "x"))},
            "pairs_of names 'x' of kind image_text, expected rows of kind retrieval",
        ),
    ],
)
def test_pairs_that_cannot_be_measured_are_refused_before_the_first_step(drawn, tiny, rows, message):
    config = paired(drawn)
    evals = config.evals.to_dict()
    for name, row in rows.items():
        row = evals[row] if isinstance(row, str) else row
        evals[name] = row if "pairs_of" in row else evals.get(name, evals["full"]) | row
    with config.unlocked():
        # First, so that no other row is refused before.
        config.evals = ConfigDict({"pairs": evals.pop("pairs")} | evals, sort_keys=False)
    with pytest.raises(ConfigError) as error:
        runner.check(config.evals.to_dict(), tiny[1])
    assert str(error.value).startswith("evals.pairs") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mean_is_of_no_pairs(drawn, tiny):
    for part in ("pairs", "pairs/full>no_r"):
        config = paired(drawn)
        config.evals.mean_missing.mean_of = (part,)
        with pytest.raises(ConfigError, match=f"evals.mean_missing: mean_of names '{part}'; it can name full, no_r"):
            runner.check(config.evals.to_dict(), tiny[1])


def test_the_best_may_be_a_pair(drawn, tiny):
    rows = paired(drawn).evals.to_dict()
    runner.check_best("pairs/full>no_r/mAP", rows)
    results = measure(paired(drawn), tiny)
    assert runner.best_metric("pairs/full>no_r/mAP", results) == results["pairs/full>no_r"]["mAP"]
    known = "full, no_r, no_t, mean_missing, pairs/QUERY>GALLERY, zero/full, .*, zero/pairs/QUERY>GALLERY$"
    for name in ("pairs", "pairs/full>no_n"):
        with pytest.raises(ConfigError, match=f"best='{name}/mAP': there is no row '{name}' in evals; .* are {known}"):
            runner.check_best(f"{name}/mAP", rows)
    with pytest.raises(ConfigError, match="evals.pairs/no_r>no_r can pick a checkpoint by mAP, rank1"):
        runner.check_best("pairs/no_r>no_r/accuracy", rows)


def test_a_finished_run_is_evaluated_with_pairs_afterwards(drawn, tiny, tmp_path):
    _, data, state = tiny
    before, config = paired(drawn, pairs=False), paired(drawn)
    (tmp_path / "config.json").write_text(json.dumps(to_json(before)))
    (tmp_path / "data_spec.json").write_text(tiny[0].spec.to_json())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_frozen(state.frozen)
        checkpoints.save(9, state, {"fingerprint": data.spec.fingerprint})
    plain = evaluate.evaluate(before, tmp_path, data)
    found = evaluate.evaluate(config, tmp_path, data)
    assert "forced" not in found and found["config_hash"] == plain["config_hash"]
    assert {name: found["evals"][name] for name in plain["evals"]} == plain["evals"]
    assert json.loads((tmp_path / "results.json").read_text()) == found
    text = (tmp_path / "results.md").read_text()
    assert text == tables.markdown(found) and text.count("rows query, columns gallery") == 4


def test_the_row_stands_behind_the_mean_if_anything_may_be_missing():
    rows = missing_evals(("rgb", "nir", "tir"), "test", "same_camera", "zero", pairs=True)
    assert list(rows)[-2:] == ["zero/mean_missing", "zero/pairs"]
    assert rows["zero/pairs"] == {"pairs_of": tuple(f"zero/{name}" for name in SEVEN)}
    assert list(missing_evals(("rgb",), "test", "same_camera", pairs=True)) == ["full"]
    assert "pairs" not in missing_evals(("rgb", "tir"), "test", "same_camera")


@pytest.mark.parametrize("name", ["rgbnt201", "rgbnt100", "msvr310", "manifest", "quickstart"])
def test_configs_of_miss_reid_take_pairs_as_an_argument_that_changes_no_run(name):
    plain, config = load_config(name), load_config(name, "pairs=1")
    mixed = [f"mixed gallery/{name}" for name in ("embed", "zero", "common")]
    added = ["pairs", "zero/pairs", "common/pairs", *mixed]
    added += [f"{feature}/pairs" for feature in DESCRIPTORS if name == "manifest"]
    assert [row for row in config.evals if row not in plain.evals] == added
    assert config.evals["common/pairs"].to_dict() == dict(pairs_of=SEVEN, similarity="common")
    assert list(config.evals)[8] == "pairs" and config.evals.pairs.pairs_of == SEVEN
    assert config_hash(config) == config_hash(plain) and difference(to_json(plain), config) == []
    assert config.published == plain.published
    assert "pairs" not in load_config(name, "pairs=0").evals
    with pytest.raises(ConfigError, match="'pairs=2': '2' is not a bool"):
        load_config(name, "pairs=2")


def test_pairs_of_another_similarity_are_all_measured_and_refused_as_rows_are(monkeypatch):
    rows = missing_evals(("rgb", "tir"), "test", "same_camera")
    rows |= {"common": dict(pairs_of=("full", "no_r", "no_t"), similarity="common", fallback="none")}
    results, asked = run_rows(rows, monkeypatch)
    pairs = [row for row in asked if "pair" in row]
    assert len(pairs) == 9 and {row["similarity"] for row in pairs} == {"common"}
    assert results["common/full>full"]["mAP"] != results["full"]["mAP"]


def test_every_imputation_has_pairs_and_other_methods_have_none():
    config = load_config("quickstart", "init=clip,modalities=rgb/tir,pairs=yes")
    assert [row for row in config.evals if "pairs" in row] == ["pairs", "zero/pairs", "alone/pairs", "common/pairs"]
    assert config.evals["alone/pairs"].pairs_of == ("alone/full", "alone/no_r", "alone/no_t")
    assert "pairs" not in load_config("quickstart", "row=A,modalities=ir,pairs=1").evals
    for method in ("tvi_lfm", "clip"):
        with pytest.raises(ConfigError, match="config argument 'pairs=1': expected key=value with key one of"):
            load_config("quickstart", f"method={method},pairs=1")
