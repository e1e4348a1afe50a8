"""Rows of several kinds of evaluation: what is refused, means, the best, how a kind is found, and a table for each."""

import pytest
from captioned import PLACED, VARIABLES, Captioned, Whole, draw, run

from jax_mmreid import evaluators
from jax_mmreid.batch import Data
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import runner
from jax_mmreid.evaluators.retrieval import Retrieval
from jax_mmreid.recipes.missing_settings import missing_evals
from jax_mmreid.report import tables

SENTENCES = ("a man in red", "a man", "a hat in blue")


def several(**rows):
    """Rows of two kinds and their means, with `rows` beside them."""
    found = {}
    for direction, name in (("text_to_image", "back"), ("image_to_text", "there")):
        found[name] = dict(kind="image_text", split="test", modality="rgb", direction=direction)
    found["mean"] = dict(mean_of=("back", "there"))
    classes = {"red": "a man in red", "blue": "a man in blue"}
    found["colour/full"] = dict(kind="zero_shot", split="test", modality="nir", classes=classes)
    found["colour/mean"] = dict(mean_of=("colour/full",), group="colour", setting="mean")
    return found | rows


def results_json(rows, evals, **more):
    """What evaluate.py writes, as far as tables read it."""
    whole = {"step": 27, "which": "best", "config_hash": "0123456789ab", "modalities": ["rgb", "nir", "tir"]}
    return whole | runner.columns(rows) | {"evals": evals} | more


def test_rows_of_several_kinds_are_measured_and_one_can_be_the_best():
    rows, data = several(), Captioned(draw(0, 20, SENTENCES))
    runner.check_best("there/rank5", rows)
    results = run(data, **rows)
    assert list(results) == ["back", "there", "mean", "colour/full", "colour/mean"]
    assert results["mean"]["median_rank"] == (results["back"]["median_rank"] + results["there"]["median_rank"]) / 2
    assert results["colour/mean"]["balanced"] == results["colour/full"]["balanced"]
    assert runner.best_metric("there/rank5", results) == results["there"]["rank5"] > 0
    assert runner.best_metric("gone/rank5", results) is None
    labels = {name: [row.get(key) for key in ("kind", "group", "setting")] for name, row in results.items()}
    assert labels["mean"] == ["image_text", None, None] and labels["colour/mean"] == ["zero_shot", "colour", "mean"]
    table = tables.markdown(results_json(rows, results))
    assert table.count("| setting |") == 2 and "drop" not in table


@pytest.mark.parametrize(
    ("best", "message"),
    [
        ("there/mAP", "best='there/mAP': evals.there can pick a checkpoint by rank1, rank5, rank10"),
        ("mean/median_rank", "evals.mean can pick a checkpoint by rank1"),  # of which less is better
        ("colour/full/rank1", "evals.colour/full can pick a checkpoint by accuracy, balanced"),
        ("gone/rank1", "best='gone/rank1': there is no row 'gone' in evals; the rows are back, there, mean, colour/f"),
    ],
)
def test_the_best_must_name_a_metric_of_its_row(best, message):
    with pytest.raises(ConfigError, match=message):
        runner.check_best(best, several())


def test_means_are_of_rows_that_exist_and_of_one_kind():
    data = Captioned(draw(0, 20, SENTENCES))
    for names in (("there", "colour/full"), ()):
        with pytest.raises(ConfigError, match=r"evals.odd: mean_of=\(.*\), expected rows of one kind"):
            runner.check(several(odd=dict(mean_of=names)), data)
    for name in ("gone", "mean"):
        message = f"evals.odd: mean_of names '{name}'; it can name back, there, colour/full$"
        with pytest.raises(ConfigError, match=message):
            runner.check(several(odd=dict(mean_of=(name,))), data)
    with pytest.raises(ConfigError, match="evals.odd: the row has a key 'junk'; there are mean_of, group, setting"):
        runner.check(several(odd=dict(mean_of=("back",), junk="none")), data)


TOY = """
from jax_mmreid.evaluators import Evaluator

class Toy(Evaluator):
    COLUMNS = {"answer": "answer"}

    def check(self, data):
        self.check_keys(("answer",))

    def uses(self):
        return []

    def run(self, encoder):
        return {"answer": self.row["answer"], "protocol": "p", "feature": "f"}
"""


def test_a_kind_is_a_file_with_one_class_and_the_tools_of_evaluators_are_no_kinds(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "broken.py").write_text("import no_such_module")
    monkeypatch.setattr(evaluators, "__path__", [*evaluators.__path__, str(tmp_path)])
    rows = {"a": dict(kind="toy", answer=0.5, group="g", setting="s"), "m": dict(mean_of=("a",))}
    results = run(Captioned(draw(0, 5, SENTENCES)), **rows)
    assert results["a"] == dict(kind="toy", group="g", setting="s", answer=0.5, protocol="p", feature="f")
    assert "| s (g) | 50.0 |" in tables.markdown(results_json(rows, results))
    for name in ("runner", "encoder", "retreival"):
        known = "broken, image_text, pixels, retrieval, robustness, toy, zero_shot$"
        with pytest.raises(ConfigError, match=f"evals.a: kind='{name}': there is no such kind of .* there are {known}"):
            runner.check({"a": dict(kind=name)}, Captioned(draw(0, 5, SENTENCES)))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        runner.check({"a": dict(kind="broken")}, Captioned(draw(0, 5, SENTENCES)))


def test_a_defect_of_ours_is_not_dressed_as_an_error_of_the_row(monkeypatch):
    def broken(self, encoder):
        raise error("defect")

    monkeypatch.setattr(Retrieval, "run", broken)
    rows = {"a": dict(query=dict(split="test", use=("rgb",)), gallery=dict(split="test", use=("rgb",)), junk="none")}
    for error, message in ((ValueError, "^defect"), (DataError, "^evals.a: defect"), (ConfigError, "^evals.a: defect")):
        with pytest.raises(error, match=message):
            runner.run(rows, Whole(), VARIABLES, Data, None, **PLACED)


def test_there_is_a_table_for_each_kind_in_the_order_in_which_they_come():
    """A zero-shot row that is called like a setting of missing modalities is none."""
    rows = several(**missing_evals(("rgb", "nir", "tir"), "test", "same_camera"))
    retrieval = dict(kind="retrieval", group="")
    whole = retrieval | dict(mAP=0.8, rank1=0.5, rank5=0.75, rank10=0.875, rank20=1.0, mINP=0.125)
    both = dict(kind="image_text", rank1=0.25, rank5=0.5, rank10=0.75, median_rank=4.5, chance=0.125)
    colour = dict(kind="zero_shot", accuracy=0.5, balanced=0.25, chance=0.5, pictures=10, note="leaves out 3 pictures.")
    evals = {"back": both | dict(note="leaves out 2 pictures."), "full": whole | dict(setting="full")}
    evals |= {"colour/full": colour, "no_r": whole | dict(setting="no_r", mAP=0.6, rank1=0.6, note="leaves out 1 row.")}
    evals |= {"mean": both, "shade": colour | dict(group="shade", setting="full", accuracy=1.0)}
    results = results_json(rows, evals, forced=["seed (1 -> 2)"])
    assert tables.markdown(results) == EXPECTED


EXPECTED = """\
Checkpoint at step 27 (best), config 0123456789ab.

| setting | R@1 | R@5 | R@10 | median rank | chance |
|---|---|---|---|---|---|
| back | 25.0 | 50.0 | 75.0 | 4.5 | 12.5 |
| mean | 25.0 | 50.0 | 75.0 | 4.5 | 12.5 |

back leaves out 2 pictures.

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

-R leaves out 1 row.

| setting | accuracy | balanced | chance |
|---|---|---|---|
| colour/full | 50.0 | 25.0 | 50.0 |
| full (shade) | 100.0 | 25.0 | 50.0 |

colour/full leaves out 3 pictures.

full (shade) leaves out 3 pictures.

Forced: the weights were trained with another config: seed (1 -> 2).
"""
