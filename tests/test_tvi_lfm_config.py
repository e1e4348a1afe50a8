"""The configs of TVI-LFM: published groups, rates, protocols and ablations, and settings that are refused."""

import pytest
from conftest import build, load_config, open_tiny, tiny_tvi_config
from flax import traverse_util

from jax_mmreid import optim, train
from jax_mmreid.config import config_hash
from jax_mmreid.errors import ConfigError

# A parameter of each group of the published optimizer, and the learning rates and decays of stage lfm.
LEAVES = {
    "text/block_3/attention/qkv/kernel": "text",
    "text/block_3/ln_1/norm/scale": "text",
    "text/block_3/ln_1/norm/bias": "text_bias",
    "text/block_3/fc/bias": "text_bias",
    "text/token_embedding": "embedding",
    "text/position_embedding": "embedding",
    "text/ln_final/norm/bias": "embedding",
    "text/projection": "embedding",
    "head/neck/scale": "head",
    "head/neck/bias": "head",
    "head/classifier/kernel": "head",
    "image/layer1_0/conv1/kernel": "frozen",
    "base/pool/p": "frozen",
    "pool/p": "frozen",
}
RATES = {
    "sysu_mm01": dict(text=(3.5e-4, 5e-4), text_bias=(7e-4, 5e-4), embedding=(3.5e-4, 5e-4), head=(7e-4, 5e-4)),
    "llcm": dict(text=(3.5e-4, 5e-4), text_bias=(7e-4, 5e-4), embedding=(3.5e-4, 5e-4), head=(7e-4, 5e-4)),
    "regdb": dict(text=(1e-5, 5e-4), text_bias=(2e-5, 0.0), embedding=(2e-3, 5e-4), head=(4e-3, 5e-4)),
}


@pytest.mark.parametrize("name", RATES)
def test_groups_rates_and_decay_are_the_published_ones(name):
    config = load_config(name)
    groups = optim.group_names(traverse_util.unflatten_dict(LEAVES, sep="/"), config.optim.rules)
    assert traverse_util.flatten_dict(groups, sep="/") == LEAVES
    found = {g: (config.optim.lr[g], config.optim.decay.get(g, config.optim.weight_decay)) for g in config.optim.lr}
    assert found == RATES[name]
    base = load_config(name, "stage=base")
    visual = RATES[name]["embedding"][0]
    assert base.optim.lr.to_dict() == {"visual": visual, "head": 2 * visual} and base.optim.weight_decay == 5e-4


def test_a_row_of_the_ablation_decides_training_and_evaluation():
    for row, (sff, mjl, llm, mer) in {
        "B": (False, False, False, False),
        "B+SFF": (True, False, False, False),
        "B+SFF+MJL": (True, True, False, False),
        "+LLM": (True, True, True, False),
        "+MER": (True, True, False, True),
        "full": (True, True, True, True),
    }.items():
        config = load_config("sysu_mm01", f"row={row}")
        assert (config.model.sff, config.model.mjl) == (sff, mjl)
        assert (config.data.options.rephrased, config.data.text.rephrased) == (llm, 0.5 if llm else 0.0)
        assert ("all/mer" in config.evals) == ("indoor/mer" in config.evals) == mer


def test_rows_that_differ_in_evaluation_only_are_one_run():
    for one, other in (("B+SFF+MJL", "+MER"), ("+LLM", "full")):
        assert config_hash(load_config("llcm", f"row={one}")) == config_hash(load_config("llcm", f"row={other}")), one
    assert config_hash(load_config("llcm", "row=full")) != config_hash(load_config("llcm", "row=+MER"))


def test_the_configs_have_the_published_protocols():
    sysu, regdb = load_config("sysu_mm01", "shots=10"), load_config("regdb", "trial=7")
    assert sysu.evals["indoor/mer"].gallery.draw.to_dict() == {"cameras": (1, 2), "shots": 10}
    row = sysu.evals["all/ir"]
    assert (row.junk, row.cmc, row.trials) == ("sysu_cameras", "identity", 10)
    assert regdb.data.options.trial == 7 and "cmc" not in regdb.evals["t2v/mer"]
    assert regdb.evals["v2t/ir"].query.use == ("rgb",) and regdb.evals["v2t/ir"].gallery.use == ("ir",)
    rules = {p: load_config("llcm", f"protocol={p}").evals for p in ("llcm", "official")}
    assert {name: row.junk for name, row in rules["official"].items() if row.junk != rules["llcm"][name].junk} == {
        "all/ir": "none",
        "all/ir_base": "none",
    }


def test_stage_lfm_needs_a_base_run(drawn_sysu, tmp_path):
    config = tiny_tvi_config(drawn_sysu)
    with pytest.raises(ConfigError, match="config.init"):
        train.train(config, tmp_path, open_tiny(config))


def test_stage_lfm_needs_captions(drawn_sysu):
    config = tiny_tvi_config(drawn_sysu, **{"data.text.tokenizer": "", "data.text.rephrased": 0.0})
    with pytest.raises(ConfigError, match="data.options.captioner"):
        build(config, open_tiny(config))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.stage": "third"}, "config.model.stage=third: expected one of base, lfm"),
        ({"model.frozen_bn": "off"}, "config.model.frozen_bn=off: expected one of train, eval"),
        ({"model.image.blocks": (1, 1, 1)}, r"config.model.image.blocks=\(1, 1, 1\): a ResNet has 4 layers"),
        ({"model.text.heads": 3}, "does not divide"),
        ({"model.text.vocab": 20}, "model.text.vocab=20 is too small"),
        ({"model.text.context": 5}, "model.text.context=5 is too small"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(drawn_sysu, changes, message):
    config = tiny_tvi_config(drawn_sysu, **changes)
    with pytest.raises(ConfigError, match=message):
        build(config, open_tiny(config))


@pytest.mark.parametrize("arg", ["stage=third", "row=C"])
def test_arguments_that_do_not_exist_are_refused(arg):
    with pytest.raises(ConfigError, match="expected one of"):
        load_config("sysu_mm01", arg)
