"""The text of the tables of runs side by side, and the published numbers in them."""

import itertools
import statistics

import pytest
from conftest import load_config
from written_runs import NAMES, make, row, write_sweep

from jax_mmreid.errors import ConfigError
from jax_mmreid.report import compare

MANY = "Percent; mean ± sample standard deviation where there are several runs."


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path)


def test_settings_of_missing_modalities_are_columns(sweep):
    assert compare.markdown(compare.summary([sweep])).splitlines() == [
        MANY,
        "3 runs, seeds 1, 2, 3: row=A,eta=0.",
        "1 run, seed 1: row=F,eta=0.",
        "",
        "| mAP | RNT | -R | -N | -T | -RN | -RT | -NT | Mean | Mean R-1 |",
        "|---|---|---|---|---|---|---|---|---|---|",
        "| row=A,eta=0 | 49.3 ± 2.1 | 50.3 ± 2.1 | 51.3 ± 2.1 | 52.3 ± 2.1 | 53.3 ± 2.1 | 54.3 ± 2.1 | 55.3 ± 2.1 "
        "| 56.3 ± 2.1 | 25.0 ± 0.0 |",
        "| row=F,eta=0 | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 |",
        "| published | 76.9 |  |  |  |  |  |  | 75.0 | 55.7 |",
        "| difference | -1.9 |  |  |  |  |  |  | +0.0 | +19.3 |",
        "| row=F,eta=0 (zero) | 50.0 | 50.0 | 50.0 |  | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 |",
    ]


def test_another_metric_is_shown_when_asked_for(sweep):
    lines = compare.markdown(compare.summary([sweep]), "rank1").splitlines()
    assert lines[4] == "| R-1 | RNT | -R | -N | -T | -RN | -RT | -NT | Mean |"
    assert lines[6].startswith("| row=A,eta=0 | 25.0 ± 0.0 | 25.0 ± 0.0 |")
    with pytest.raises(ConfigError, match="--metric=map: no result has it; there are mAP, rank1$"):
        compare.markdown(compare.summary([sweep]), "map")


def test_other_rows_are_lines_with_the_columns_that_there_are(tmp_path):
    ir = row(0.125, 0.25, rank5=0.375, rank10=0.5, rank20=0.625, mINP=0.75)
    published = {"all/ir": {"rank1": 0.2, "mAP": 0.1, "mINP": 0.8}}
    make(tmp_path / "base", {"all/ir": ir}, published=published, epochs=7)
    other = {"accuracy": 0.875, "chance": 0.5, "TPR": 0.25, "protocol": "p"}
    pairs = {"rank1": 0.5, "median_rank": 1.0, "protocol": "p"}
    make(tmp_path / "clip", {"zero_shot": other, "text>rgb": pairs, "full": row(1.0)})
    assert compare.markdown(compare.summary([tmp_path])).splitlines() == [
        MANY,
        "1 run, seed 1111: base; clip.",
        "",
        "| run | row | mAP | R-1 | R-5 | R-10 | R-20 | mINP |",
        "|---|---|---|---|---|---|---|---|",
        "| base | all/ir | 12.5 | 25.0 | 37.5 | 50.0 | 62.5 | 75.0 |",
        "| published | all/ir | 10.0 | 20.0 |  |  |  | 80.0 |",
        "| difference | all/ir | +2.5 | +5.0 |  |  |  | -5.0 |",
        "| clip | full | 100.0 | 100.0 |  |  |  |  |",
        "",
        "| run | row | accuracy | chance | TPR |",
        "|---|---|---|---|---|",
        "| clip | zero_shot | 87.5 | 50.0 | 25.0 |",
        "",
        "| run | row | R@1 | median rank |",
        "|---|---|---|---|",
        "| clip | text>rgb | 50.0 | 1.0 |",
    ]
    clip = compare.summary([tmp_path / "clip"])
    assert "| accuracy |" in compare.markdown(clip, "accuracy")
    with pytest.raises(ConfigError, match="no result has it; there are accuracy, chance, TPR, rank1, median_rank, mAP"):
        compare.markdown(clip, "mINP")


def test_settings_and_other_rows_have_a_table_each_and_two_modalities_fewer_columns(tmp_path):
    evals = {name: row(0.5) for name in ("no_t", "mean_missing", "full", "no_r", "rgb>tir")}
    make(tmp_path / "a", evals, modalities="rgb/tir")
    lines = compare.markdown(compare.summary([tmp_path])).splitlines()
    assert lines[3] == "| mAP | RT | -R | -T | Mean | Mean R-1 |"
    assert lines[7:] == ["| run | row | mAP | R-1 |", "|---|---|---|---|", "| a | rgb>tir | 50.0 | 50.0 |"]
    make(tmp_path / "b", {name: row(0.5) for name in NAMES})
    head = compare.markdown(compare.summary([tmp_path])).splitlines()[3]
    assert head == "| mAP | full | -R | -N | -T | -RN | -RT | -NT | Mean | Mean R-1 |"


@pytest.fixture
def pairs(tmp_path):
    """A group of two seeds with pairs of three settings and of one seed with two kinds of them, and a row beside."""
    three = [f"{query}>{gallery}" for query in ("full", "no_r", "no_t") for gallery in ("full", "no_r", "no_t")]
    for seed in (1, 2):
        evals = {"full": row(0.75), "no_r": row(0.5), "no_t": row(0.25), "rgb>tir": row(0.125)}
        evals |= {f"pairs/{pair}": row(0.1 * i + 0.1 * seed, 0.25) for i, pair in enumerate(three)}
        make(tmp_path / "a" / f"seed{seed}", evals, seed=seed, modalities="rgb/tir")
    evals = {f"{name}/{query}>{gallery}": row(1.0) for name in ("zero/pairs", "x") for query, gallery in PRODUCT}
    make(tmp_path / "b", evals)
    return tmp_path


PRODUCT = (("full", "full"), ("full", "mer"), ("mer", "full"), ("mer", "mer"))


def test_pairs_are_a_heat_map_of_means_for_every_group_and_no_lines(pairs):
    ones = [
        "|     | RNT     | mer     |",
        "|---|---|---|",
        "| RNT | █ 100.0 | █ 100.0 |",
        "| mer | █ 100.0 | █ 100.0 |",
    ]
    assert compare.markdown(compare.summary([pairs])).splitlines()[3:] == [
        "",
        "| mAP | RT | -R | -T |",
        "|---|---|---|---|",
        "| a | 75.0 ± 0.0 | 50.0 ± 0.0 | 25.0 ± 0.0 |",
        "",
        "a, pairs: mAP, rows query, columns gallery",
        "",
        "|    | RT     | -R     | -T     |",
        "|---|---|---|---|",
        "| RT |   15.0 | ░ 25.0 | ░ 35.0 |",
        "| -R | ▒ 45.0 | ▒ 55.0 | ▓ 65.0 |",
        "| -T | ▓ 75.0 | █ 85.0 | █ 95.0 |",
        "",
        "b, zero/pairs: mAP, rows query, columns gallery",
        "",
        *ones,
        "",
        "b, x: mAP, rows query, columns gallery",
        "",
        *ones,
        "",
        "| run | row | mAP | R-1 |",
        "|---|---|---|---|",
        "| a | rgb>tir | 12.5 ± 0.0 | 12.5 ± 0.0 |",
    ]


def test_a_heat_map_shows_the_metric_that_is_asked_for(pairs):
    table = compare.summary([pairs])
    lines = compare.markdown(table, "rank1").splitlines()
    start = lines.index("a, pairs: R-1, rows query, columns gallery")
    assert lines[start + 4] == "| RT | ░ 25.0 | ░ 25.0 | ░ 25.0 |"
    make(pairs / "c", {"colour": {"accuracy": 0.875, "protocol": "p"}})
    lines = compare.markdown(compare.summary([pairs]), "accuracy").splitlines()
    assert lines[3:] == [
        "",
        "| run | row | mAP | R-1 |",
        "|---|---|---|---|",
        "| a | rgb>tir | 12.5 ± 0.0 | 12.5 ± 0.0 |",
        "",
        "| run | row | accuracy |",
        "|---|---|---|",
        "| c | colour | 87.5 |",
    ]


def test_what_makes_a_mean_doubtful_is_printed(tmp_path):
    make(tmp_path / "seed1", {"full": row(0.5, mINP=0.5)}, seed=1, written={"step": 6, "steps": 6})
    make(tmp_path / "seed2", {"full": row(0.5)}, seed=2, written={"forced": ["data.options.trial (1 -> 2)"]})
    lines = compare.markdown(compare.summary([tmp_path])).splitlines()
    assert lines[1:3] == [
        f"2 runs, seeds 1, 2, checkpoints of steps 6, 9: {tmp_path.name}.",
        f"Evaluated with --force, under another config than the run's own: {tmp_path}/seed2.",
    ]
    assert lines[-1] == f"| {tmp_path.name} | full | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 (n=1) |"


STATED = {
    "sysu_mm01": ("", "stage=base", "stage=base,row=B"),
    "regdb": ("", "stage=base", "trial=7"),
    "llcm": ("", "protocol=official", "stage=base,protocol=official"),
    "rgbnt201": ("", "row=B", "eta=0.1", "row=A,eta=0.1", "eta=0.1/0.3/0.5", "pairs=1", "eta=0.1,pairs=1"),
    "rgbnt100": ("", "row=F,eta=0.0/0/0"),
}
SILENT = {
    "sysu_mm01": ("shots=10", "row=B"),
    "regdb": ("epochs=60",),
    "llcm": ("stage=base",),  # which the published code scores by an easier protocol
    "rgbnt201": ("row=A,eta=0.3", "tower=vit_l14", "epochs=60", "preset=equations"),
    "rgbnt100": ("row=A", "modalities=rgb/nir,eta=0.1/0.3"),
    "msvr310": ("",),
    "manifest": ("",),
    "quickstart": ("", "row=A", "method=tvi_lfm"),
}


@pytest.mark.parametrize("name, arg", [(name, arg) for name, args in STATED.items() for arg in args])
def test_published_numbers_are_of_rows_that_there_are_and_agree_with_their_mean(name, arg):
    config = load_config(name, arg)
    published = config.published.to_dict()
    assert published and {name.partition("/")[0] if ">" in name else name for name in published} <= set(config.evals)
    for metric in ("mAP", "rank1"):
        parts = [published[x][metric] for x in NAMES[1:-1] if metric in published.get(x, {})]
        if parts:
            assert len(parts) == 6
            assert statistics.mean(parts) == pytest.approx(published["mean_missing"][metric], abs=6e-4)


@pytest.mark.parametrize("name, arg", [(name, arg) for name, args in SILENT.items() for arg in args])
def test_nothing_is_published_for_other_arguments(name, arg):
    assert load_config(name, arg).published.to_dict() == {}


def test_the_published_numbers():
    published = load_config("rgbnt201").published
    assert (published.full.mAP, published.mean_missing.mAP, published.mean_missing.rank1) == (0.769, 0.546, 0.557)
    assert load_config("rgbnt201", "row=D,eta=0.1").published.mean_missing.to_dict() == {"mAP": 0.494, "rank1": 0.498}
    assert load_config("rgbnt100").published.no_rt.to_dict() == {"mAP": 0.577, "rank1": 0.782}
    indoor = load_config("sysu_mm01").published["indoor/mer"].to_dict()
    assert indoor == {"rank1": 0.8906, "mAP": 0.9078, "mINP": 0.8839}


@pytest.mark.parametrize("row", ["A", "F"])
def test_the_diagonal_of_the_published_pairs_is_the_published_table(row):
    published = load_config("rgbnt201", f"row={row},eta=0.1,pairs=1").published
    pairs = [name for name in published if ">" in name]
    assert len(pairs) == 49
    for name in NAMES[:-1]:
        for metric, number in published[name].items():
            assert published[f"pairs/{name}>{name}"][metric] == pytest.approx(number, abs=0.0011)
    assert published["pairs/no_rt>no_rn"].mAP == {"A": 0.037, "F": 0.058}[row]


def test_pairs_are_compared_with_published_ones(tmp_path):
    evals = {f"pairs/{query}>{gallery}": row(0.5) for query, gallery in itertools.product(NAMES[:2], repeat=2)}
    published = {name: {"mAP": number} for name, number in zip(evals, (0.25, 0.5, 0.499, 0.75))}
    make(tmp_path / "a", evals, published=published)
    lines = compare.markdown(compare.summary([tmp_path])).splitlines()
    start = next(i for i, line in enumerate(lines) if "pairs: mAP, difference to the published, rows query" in line)
    assert [line.replace(" ", "") for line in lines[start + 2 : start + 6]] == [
        "||RNT|-R|", "|---|---|---|", "|RNT|+25.0|+0.0|", "|-R|+0.1|-25.0|"
    ]  # fmt: skip
    assert "difference" not in compare.markdown(compare.summary([tmp_path]), "rank1")
