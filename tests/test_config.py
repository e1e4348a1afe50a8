"""Configs: what their arguments accept, what names a run, and which values and fields are refused."""

import math

import pytest
from conftest import load_config, tiny_config
from shapes_only import build

from jax_mmreid.config import (
    RUNTIME_FIELDS,
    ConfigDict,
    base_config,
    config_hash,
    difference,
    find,
    flat,
    from_json,
    parse_arg,
    parse_eta,
    take_arg,
    to_json,
)
from jax_mmreid.errors import ConfigError
from jax_mmreid.recipes.missing_settings import labels, missing_evals


def test_arguments_take_the_type_of_their_default():
    arg = parse_arg("row=A,epochs=7,rate=.25,noise=true", row="F", epochs=3, rate=0.5, noise=False, rest="x")
    assert arg.to_dict() == dict(row="A", epochs=7, rate=0.25, noise=True, rest="x")
    assert [type(arg[key]) for key in ("epochs", "rate", "noise")] == [int, float, bool]


def test_no_argument_leaves_the_defaults():
    assert parse_arg("", row="F").to_dict() == parse_arg(None, row="F").to_dict() == {"row": "F"}


def test_an_unknown_argument_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="'rwo=A': expected key=value with key one of eta, row; did you mean 'row'"):
        parse_arg("rwo=A", row="F", eta="0")
    with pytest.raises(ConfigError, match="'row': expected key=value with key one of eta, row$"):
        parse_arg("row", row="F", eta="0")


@pytest.mark.parametrize("text, kind", [("epochs=many", "int"), ("epochs=1.5", "int"), ("noise=ture", "bool")])
def test_an_argument_of_another_type_is_refused(text, kind):
    with pytest.raises(ConfigError, match=rf"{text}'.* is not a {kind}"):
        parse_arg(text, epochs=3, noise=False)


def test_one_rate_counts_for_all_modalities_and_three_for_one_each():
    assert parse_eta("0.1") == (0.1, 0.1, 0.1)
    assert parse_eta("0.1/0.3/0.5") == (0.1, 0.3, 0.5)
    assert parse_eta("0/1", 2) == (0.0, 1.0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("0.1/0.2", "2 rates for 3 modalities"),
        ("0.1/0.2/0.3/0.4", "4 rates for 3 modalities"),
        ("half", "eta=half: expected one rate or 3 of them"),
        ("0.1;0.2;0.3", "expected one rate or 3 of them"),
        ("", "expected one rate or 3 of them"),
        ("1.5", r"must lie in \[0, 1\]"),
        ("0.1/-0.1/0.3", r"must lie in \[0, 1\]"),
        ("nan", r"must lie in \[0, 1\]"),
    ],
)
def test_rates_that_cannot_be_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_eta(text)


def test_rows_of_three_modalities_are_those_of_the_published_table():
    rows = missing_evals(("rgb", "nir", "tir"), "test", "same_camera")
    assert list(rows) == ["full", "no_r", "no_n", "no_t", "no_rn", "no_rt", "no_nt", "mean_missing"]
    assert {name: row["query"]["use"] for name, row in rows.items() if "query" in row} == {
        "full": ("rgb", "nir", "tir"),
        "no_r": ("nir", "tir"),
        "no_n": ("rgb", "tir"),
        "no_t": ("rgb", "nir"),
        "no_rn": ("tir",),
        "no_rt": ("nir",),
        "no_nt": ("rgb",),
    }
    assert rows["mean_missing"]["mean_of"] == ("no_r", "no_n", "no_t", "no_rn", "no_rt", "no_nt")
    assert [(row["group"], row["setting"]) for row in rows.values()] == [("", name) for name in rows]
    assert list(labels(("rgb", "nir", "tir")).values()) == ["RNT", "-R", "-N", "-T", "-RN", "-RT", "-NT", "Mean"]
    for row in list(rows.values())[:-1]:
        assert row["query"] == row["gallery"] and row["query"]["split"] == "test" and row["junk"] == "same_camera"


def test_rows_of_two_modalities_and_of_one():
    rows = missing_evals(("rgb", "ir"), "test", "same_camera")
    assert list(rows) == ["full", "no_r", "no_i", "mean_missing"]
    assert rows["no_r"]["gallery"]["use"] == ("ir",)
    assert list(missing_evals(("rgb",), "test", "same_camera")) == ["full"]


def test_a_group_has_rows_with_options_of_their_own():
    rows = missing_evals(("rgb", "ir"), "test", "same_camera", "zero", options={"imputation": "zero"})
    assert list(rows) == ["zero/full", "zero/no_r", "zero/no_i", "zero/mean_missing"]
    assert rows["zero/no_i"]["options"] == {"imputation": "zero"}
    assert rows["zero/mean_missing"] == dict(group="zero", setting="mean_missing", mean_of=("zero/no_r", "zero/no_i"))


def test_a_name_that_no_module_has_is_answered_with_those_that_exist():
    assert find("jax_mmreid.methods", "miss_reid").__name__ == "jax_mmreid.methods.miss_reid"
    with pytest.raises(ConfigError, match="no methods named 'miss_ried'; there are: .*miss_reid"):
        find("jax_mmreid.methods", "miss_ried")


def test_an_import_error_inside_the_found_module_passes_through(tmp_path, monkeypatch):
    package = tmp_path / "package_of_test_config"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "broken.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as error:
        find(package.name, "broken")
    assert error.value.name == "a_module_that_nobody_has"


def changed(config, key):
    """A copy of the config in which the field with this dotted key is another."""
    other = ConfigDict(config.to_dict())
    *parents, last = key.split(".")
    inner = other
    for parent in parents:
        inner = inner[parent]
    with inner.ignore_type():
        inner[last] = "another value"
    return other


def test_every_other_field_changes_the_hash_and_is_named():
    config = tiny_config("data")
    groups = ("evals.", "mesh.", "watchdog.")
    fields = [key for key in flat(to_json(config)) if key not in RUNTIME_FIELDS and not key.startswith(groups)]
    assert {"seed", "data.name", "model.image.width", "optim.lr.tower", "phases", "best"} < set(fields)
    for key in fields:
        other = changed(config, key)
        assert config_hash(other) != config_hash(config), key
        (line,) = difference(to_json(config), other)
        assert line.startswith(f"{key} (") and line.endswith(" -> another value)")


def test_runtime_fields_change_neither_hash_nor_what_the_workdir_holds():
    config = tiny_config("data")
    fields = [key for key in flat(to_json(config)) if key in RUNTIME_FIELDS or key.startswith(("evals.", "mesh."))]
    assert {"mesh.data", "data.data_dir", "data.threads", "data.eval_batch_size", "eval_every"} < set(fields)
    assert any(key.startswith("evals.no_r.") for key in fields)
    for key in fields:
        other = changed(config, key)
        assert config_hash(other) == config_hash(config), key
        assert difference(to_json(config), other) == []


def test_a_field_that_only_one_of_two_configs_has_is_named():
    config = tiny_config("data")
    saved = to_json(config)
    del saved["model"]["tau"]
    assert difference(saved, config) == ["model.tau (None -> 0.05)"]


def test_configs_without_difference_have_one_hash():
    config = tiny_config("data")
    whole = tiny_config("data")
    whole.missing.eta = (0, 0, 0)  # as --config.missing.eta=(0,0,0) gives it
    assert difference(to_json(config), whole) == []
    assert config_hash(config) == config_hash(whole)


def test_json_survives_a_file_and_equals_itself():
    config = base_config(method="miss_reid", dataset="synthetic")
    assert to_json(config)["missing"]["eta"] == [0.0, 0.0, 0.0]
    assert to_json(ConfigDict(to_json(config))) == to_json(config)


def test_one_word_is_taken_out_of_an_argument():
    assert take_arg("a=1,method=clip,b=2", method="x") == ("clip", "a=1,b=2")
    assert take_arg("", method="x") == ("x", "") == take_arg(None, method="x")


OUT_OF_RANGE = [
    ("model.memory.alpha", 3.0),
    ("model.tau", 0.0),
    ("model.inversion.drop", 1.5),
    ("model.label_smooth", -0.1),
    ("model.image.layers", 0),
    ("optim.lr.tower", -1e-5),
    ("optim.b1", 1.0),
    ("optim.eps", 0.0),
    ("optim.weight_decay", -1.0),
    ("optim.schedule.floor", 2.0),
    ("optim.lr.new", math.nan),
    ("aug.flip", 1.5),
    ("aug.std", 0.0),
    ("weights.nce", -1.0),
    ("epochs", 0),
    ("save_every", -1),
    ("seed", -1),
    ("mesh.model", 0),
]


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE, ids=[field for field, _ in OUT_OF_RANGE])
def test_a_number_out_of_its_range_is_refused_with_field_value_and_range(field, value):
    config = load_config("quickstart")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=rf"^config.{field}={value}: must lie in [\[(].+, .+[\])]$"):
        build(config)


def test_a_field_that_the_method_does_not_take_is_named():
    config = load_config("quickstart")
    with config.unlocked():
        config.model.taus, config.model.margins = 1.0, 2.0
        del config.model["tau"]
    with pytest.raises(ConfigError, match="config.model has margins, taus; its fields are .*tau"):
        build(config)


def test_a_saved_config_is_read_as_it_was():
    config = load_config("quickstart")
    assert from_json(to_json(config)).to_dict() == config.to_dict()
