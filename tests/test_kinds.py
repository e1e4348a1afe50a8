"""Rows of several kinds of evaluation in one config: what is refused, means, the best, and a table for each kind."""

import pkgutil

import jax
import pytest
from captioned import VARIABLES, Captioned, Whole, draw

from jax_mmreid import evaluators
from jax_mmreid.config import ConfigDict, base_config, missing_evals
from jax_mmreid.errors import ConfigError
from jax_mmreid.report import tables
from jax_mmreid.sharding import make_mesh

SENTENCES = ("a man in red", "a man", "a hat in blue")


def several(**rows) -> ConfigDict:
    """A config as a file would write it, with `rows` beside those of two kinds and their means."""
    config = base_config(method="clip", dataset="rgbnt201")
    for direction, name in (("text_to_image", "back"), ("image_to_text", "there")):
        config.evals[name] = dict(kind="image_text", split="test", modality="rgb", direction=direction)
    config.evals.mean = dict(mean_of=("back", "there"))
    classes = {"red": "a man in red", "blue": "a man in blue"}
    config.evals["colour/full"] = dict(kind="zero_shot", split="test", modality="nir", classes=classes)
    config.evals["colour/mean"] = dict(mean_of=("colour/full",))
    config.evals.update(rows)
    config.aug.update(mean=0.0, std=1 / 255)
    config.best = "there/rank5"
    return config.lock()


def test_rows_of_several_kinds_are_measured_and_one_can_be_the_best():
    config, data = several(), Captioned(draw(0, 20, SENTENCES))
    evaluators.check(config, data)
    mesh = make_mesh(data=1, model=1, devices=jax.devices()[:1])
    results = evaluators.run(config, Whole(), jax.device_put(VARIABLES), data, mesh)
    assert list(results) == ["back", "there", "mean", "colour/full", "colour/mean"]
    assert results["mean"]["median_rank"] == (results["back"]["median_rank"] + results["there"]["median_rank"]) / 2
    assert results["colour/mean"]["balanced"] == results["colour/full"]["balanced"]
    assert evaluators.watched(config, results) == results["there"]["rank5"] > 0
    table = tables.markdown(config, {"step": 9, "which": "last", "config_hash": "0", "evals": results})
    assert table.count("| setting |") == 2 and "drop" not in table


@pytest.mark.parametrize(
    ("best", "message"),
    [
        ("there/mAP", "best='there/mAP': what evals.there can be best in is rank1, rank5, rank10"),
        ("mean/median_rank", "what evals.mean can be best in is rank1"),  # of which less is better
        ("colour/full/rank1", "what evals.colour/full can be best in is accuracy, balanced"),
    ],
)
def test_the_best_must_name_a_metric_of_its_row(best, message):
    config, data = several(), Captioned(draw(0, 20, SENTENCES))
    config.best = best
    with pytest.raises(ConfigError, match=message):
        evaluators.check(config, data)
    config.eval_every = 0
    evaluators.check(config, data)


def test_means_are_of_one_kind():
    data = Captioned(draw(0, 20, SENTENCES))
    for names in (("there", "colour/full"), ()):
        with pytest.raises(ConfigError, match=r"evals.odd: mean_of=\(.*\), expected rows of one kind"):
            evaluators.check(several(odd=dict(mean_of=names)), data)


def test_every_kind_says_what_it_prints():
    names = {module.name for module in pkgutil.iter_modules(evaluators.__path__)}
    assert names >= {"retrieval", "image_text", "zero_shot"}
    for name in names:
        module = evaluators.evaluator({"a": {"kind": name}}, "a")
        assert set(module.NOT_FRACTIONS) <= set(module.COLUMNS.values()) and module.note({}, {}) == ""


def test_there_is_a_table_for_each_kind_in_the_order_in_which_they_come():
    retrieval = missing_evals(("rgb", "nir", "tir"), "test", "same_camera")
    whole = dict(mAP=0.8, rank1=0.5, rank5=0.75, rank10=0.875, rank20=1.0, mINP=0.125)
    both = dict(rank1=0.25, rank5=0.5, rank10=0.75, median_rank=4.5, chance=0.125)
    colour = dict(accuracy=0.5, balanced=0.25, chance=0.5, pictures=10, left_out=3)
    evals = {"back": both | dict(left_out=2), "full": whole, "colour/full": colour}
    evals |= {"no_r": whole | dict(mAP=0.6, rank1=0.6, skipped={"query": 1, "gallery": 2}), "mean": both}
    results = {"step": 27, "which": "best", "config_hash": "0123456789ab", "evals": evals}
    results["forced"] = ["seed (1 -> 2)"]
    assert tables.markdown(several(**retrieval), results) == EXPECTED


EXPECTED = """\
Checkpoint at step 27 (best), config 0123456789ab.

| setting | R@1 | R@5 | R@10 | median rank | chance |
|---|---|---|---|---|---|
| back | 25.0 | 50.0 | 75.0 | 4.5 | 12.5 |
| mean | 25.0 | 50.0 | 75.0 | 4.5 | 12.5 |

back leaves out 2 pictures, of which nothing is said.

| setting | RNT | -R |
|---|---|---|
| mAP | 80.0 | 60.0 |
| mAP drop |  | 25.0 % |
| R-1 | 50.0 | 60.0 |
| R-1 drop |  | -20.0 % |
| R-5 | 75.0 | 75.0 |
| R-10 | 87.5 | 87.5 |
| R-20 | 100.0 | 100.0 |
| mINP | 12.5 | 12.5 |

-R leaves out 1 query rows and 2 gallery rows, which have no picture that it uses.

| setting | accuracy | balanced | chance |
|---|---|---|---|
| RNT (colour) | 50.0 | 25.0 | 50.0 |

RNT (colour) leaves out 3 pictures, of which none or several of the classes are said.

Forced: the weights were trained with another config: seed (1 -> 2).
"""
