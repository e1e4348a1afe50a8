"""The fields of `config.data` and `config.missing`: their defaults, types and ranges."""

import pytest

from input_pipeline import DataConfig, MissingConfig, TextConfig
from jax_mmreid.config import base_config
from jax_mmreid.errors import ConfigError
from jax_mmreid.ranges import check_ranges, check_types


def test_fields_and_defaults_are_those_of_the_base_config():
    config = base_config(method="miss_reid", dataset="rgbnt201")
    assert DataConfig.from_dict(config.data.to_dict()) == DataConfig("rgbnt201")
    assert MissingConfig.from_dict(config.missing.to_dict()) == MissingConfig()
    assert {"text", *config.data.keys()} == set(DataConfig.__dataclass_fields__)
    assert set(config.data.text.keys()) == set(TextConfig.__dataclass_fields__)
    assert set(config.missing.keys()) == set(MissingConfig.__dataclass_fields__)


def test_lists_become_tuples_and_dicts_text():
    config = DataConfig("x", modalities=["rgb"], image_size=[4, 2], text=dict(tokenizer="train"))
    assert (config.modalities, config.image_size, config.text) == (("rgb",), (4, 2), TextConfig("train"))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(threads=-1), r"config.data.threads=-1: must lie in \[0, inf\)"),
        (dict(identities=0), r"config.data.identities=0: must lie in \[1, inf\)"),
        (dict(instances=0), r"config.data.instances=0: must lie in \[1, inf\)"),
        (dict(eval_batch_size=0), r"config.data.eval_batch_size=0: must lie in \[1, inf\)"),
        (dict(image_size=(0, 128)), r"config.data.image_size=\(0, 128\): must lie in \[1, 65535\]"),
        (dict(image_size=(256,)), "config.data.image_size=.*: must be a tuple of 2 whole numbers"),
        (dict(range16=(0, 70_000)), r"config.data.range16=.*: must lie in \[0, 65535\]"),
        (dict(range16=(9, 9)), "config.data.range16=.9, 9.: the second value must be larger than the first"),
        (dict(range16=(0.0, 1.0)), "config.data.range16=.*: must be a tuple of 2 whole numbers"),
        (dict(modalities="rgb"), "config.data.modalities='rgb': must be a tuple of strings"),
        (dict(modalities=("rgb", "nir", "rgb")), "config.data.modalities=.*: a modality is named twice"),
        (dict(threads=True), "config.data.threads=True: must be a whole number"),
        (dict(pairs=1), "config.data.pairs=1: must be True or False"),
        (dict(options=[]), "config.data.options=.*: must be a dict"),
        (dict(source="zip"), "config.data.source='zip': expected one of 'files', 'tfds'"),
        (dict(cache="disk"), "config.data.cache='disk': expected one of '', 'memory'"),
        (dict(on_bad_image="skip"), "config.data.on_bad_image='skip': expected one of 'error', 'drop'"),
        (dict(resize=("bicubic", "cubic")), "config.data.resize=.*'cubic'.: expected one of 'nearest', .*'lanczos'"),
        (dict(resize=("bicubic",)), "config.data.resize=.*: must be a tuple of 2 strings"),
        (dict(text=dict(context=1)), r"config.data.text.context=1: must lie in \[2, inf\)"),
        (dict(text=dict(vocab_size=10)), r"config.data.text.vocab_size=10: must lie in \[514, inf\)"),
        (dict(text=dict(rephrased=1.5)), r"config.data.text.rephrased=1.5: must lie in \[0, 1\]"),
        (dict(text=dict(rephrased=float("nan"))), r"config.data.text.rephrased=nan: must lie in \[0, 1\]"),
        (
            dict(text=dict(tokeniser="")),
            "config.data.text: no field 'tokeniser'; .* did you mean 'tokenizer'",
        ),
        (dict(thread=2), "config.data: no field 'thread'; there are name, .*; did you mean 'threads'?"),
    ],
)
def test_impossible_data_fields(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        DataConfig.from_dict({"name": "rgbnt201", **fields})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(eta=0.1), "config.missing.eta=0.1: must be a tuple of numbers"),
        (dict(eta=(0.1, 1.2, 0.0)), r"config.missing.eta=.*: must lie in \[0, 1\]"),
        (dict(eta=(0.1, float("nan"), 0.0)), r"config.missing.eta=.*: must lie in \[0, 1\]"),
        (dict(seed=-1), r"config.missing.seed=-1: must lie in \[0, inf\)"),
        (dict(mode="sometimes"), "config.missing.mode='sometimes': expected one of 'bernoulli', 'exact'"),
        (
            dict(all_missing="ignore"),
            "config.missing.all_missing='ignore': expected one of 'repair', 'reject'",
        ),
        (dict(all_missing="reject", mode="exact"), "config.missing.all_missing='reject': .* needs missing.mode='bern"),
        (dict(etas=()), "config.missing: no field 'etas'; there are eta, .*; did you mean 'eta'"),
    ],
)
def test_impossible_missing_fields(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        MissingConfig.from_dict(fields)
    assert "\n" not in str(error.value)


def test_intervals_are_open_and_closed_and_a_number_without_one_is_a_defect():
    ranges = {r"a\..*": "(0, 1]", "b": "[2, inf)"}
    check_ranges({"a.x": 1, "a.y": (0.5, 1), "b": 2, "c": "text", "d": True, "e": None}, ranges)
    for values, message in (
        ({"a.x": 0}, r"config.a.x=0: must lie in \(0, 1\]"),
        ({"a.y": [0.5, 1.1]}, r"config.a.y=\[0.5, 1.1\]: must lie in \(0, 1\]"),
        ({"b": float("inf")}, r"config.b=inf: must lie in \[2, inf\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_ranges(values, ranges)
    with pytest.raises(ConfigError, match="^tool: b=1: must lie in"):
        check_ranges({"b": 1}, ranges, prefix="tool: ")
    with pytest.raises(KeyError, match="no range is stated for the field c"):
        check_ranges({"c": 1}, ranges)


def test_a_whole_number_is_a_number_and_a_list_a_tuple():
    check_types({"x": 1, "y": [1, 2.5], "z": ()}, {"x": float, "y": tuple[float, ...], "z": tuple[str, ...]})
    with pytest.raises(ConfigError, match="config.x=1.0: must be a whole number"):
        check_types({"x": 1.0}, {"x": int})
