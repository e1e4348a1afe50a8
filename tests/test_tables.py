"""The text of results.md: settings of missing modalities as columns, pairs of them as heat maps, others as lines."""

import itertools

import pytest
from conftest import tiny_config

from jax_mmreid.config import missing_evals
from jax_mmreid.report import settings, tables

NAMES = ("full", "no_r", "no_n", "no_t", "no_rn", "no_rt", "no_nt", "mean_missing")


def row(mAP, rank1, **others):  # noqa: N803
    return dict(mAP=mAP, rank1=rank1, rank5=0.75, rank10=0.875, rank20=1.0, mINP=0.125, **others)


def told(evals, modalities="rgb/nir/tir", **rows):
    """What is said of these results of the tiny experiment, which has `rows` beside its own; without the first line."""
    config = tiny_config("data", modalities=modalities)
    with config.unlocked():
        config.evals.update(rows)
    title, empty, *lines = tables.markdown(
        config, {"step": 27, "which": "best", "config_hash": "0123456789ab", "evals": evals}
    ).splitlines()
    assert (title, empty) == ("Checkpoint at step 27 (best), config 0123456789ab.", "")
    return lines


def two_prefixes():
    """Results of two prefixes whose order is not that of a poster, and one of no setting."""
    evals = {"mean_missing": row(0.4, 0.3), "no_nt": row(0.2, 0.0), "full": row(0.8, 0.5), "no_r": row(0.6, 0.6)}
    return evals | {"rgb>tir": row(0.1, 0.2), "zero/full": row(0.5, 0.0), "zero/no_r": row(0.25, 0.25)}


def test_settings_are_columns_in_percent_with_what_each_loses_and_other_rows_are_lines():
    assert told(two_prefixes()) == [
        "| setting | RNT | -R | -NT | Mean |",
        "|---|---|---|---|---|",
        "| mAP | 80.0 | 60.0 | 20.0 | 40.0 |",
        "| mAP drop |  | 25.0 % | 75.0 % | 50.0 % |",
        "| R-1 | 50.0 | 60.0 | 0.0 | 30.0 |",
        "| R-1 drop |  | -20.0 % | 100.0 % | 40.0 % |",
        "| R-5 | 75.0 | 75.0 | 75.0 | 75.0 |",
        "| R-10 | 87.5 | 87.5 | 87.5 | 87.5 |",
        "| R-20 | 100.0 | 100.0 | 100.0 | 100.0 |",
        "| mINP | 12.5 | 12.5 | 12.5 | 12.5 |",
        "",
        "| setting (zero) | RNT | -R |",
        "|---|---|---|",
        "| mAP | 50.0 | 25.0 |",
        "| mAP drop |  | 50.0 % |",
        "| R-1 | 0.0 | 25.0 |",
        "| R-1 drop |  | 0.0 % |",  # nothing can be lost of 0
        "| R-5 | 75.0 | 75.0 |",
        "| R-10 | 87.5 | 87.5 |",
        "| R-20 | 100.0 | 100.0 |",
        "| mINP | 12.5 | 12.5 |",
        "",
        "| setting | mAP | R-1 | R-5 | R-10 | R-20 | mINP | mAP drop | R-1 drop |",
        "|---|---|---|---|---|---|---|---|---|",
        "| rgb>tir | 10.0 | 20.0 | 75.0 | 87.5 | 100.0 | 12.5 | 87.5 % | 60.0 % |",
    ]


def test_the_columns_stand_in_the_order_of_the_poster():
    lines = told({name: row(0.5, 0.5) for name in reversed(NAMES)})
    assert lines[0] == "| setting | RNT | -R | -N | -T | -RN | -RT | -NT | Mean |" and len(lines) == 10
    lines = told({name: row(0.5, 0.5) for name in ("alone/no_t", "alone/no_r")}, "rgb/tir")
    assert lines[0] == "| setting (alone) | -R | -T |" and not any("drop" in line for line in lines)


def test_full_rows_alone_and_rows_without_one_are_lines_without_drops():
    full = row(0.8, 0.5)
    head = ["| setting | mAP | R-1 | R-5 | R-10 | R-20 | mINP |", "|---|---|---|---|---|---|---|"]
    numbers = "80.0 | 50.0 | 75.0 | 87.5 | 100.0 | 12.5 |"
    lines = told({"all/ir": full, "all/mer": full, "indoor/mer": full})
    assert lines == [*head, *(f"| {name} | {numbers}" for name in ("ir (all)", "mer (all)", "mer (indoor)"))]
    lines = told({"full": full, "zero/full": full}, "rgb")
    assert lines == [*head, f"| R | {numbers}", f"| R (zero) | {numbers}"]
    lines = told({"people/text": row(0.4, 0.5), "people/full": full})  # of which one is compared with the other
    assert lines[2:] == [
        "| text (people) | 40.0 | 50.0 | 75.0 | 87.5 | 100.0 | 12.5 | 50.0 % | 0.0 % |",
        f"| RNT (people) | {numbers}  |  |",
    ]


def pairs(name, values):
    """Results of pairs of three settings whose mAP are `values`, row by row; R-1 is the opposite."""
    names = (f"{name}/{query}>{gallery}" for query, gallery in itertools.product(("full", "no_r", "no_t"), repeat=2))
    return {name: row(value, 1 - value) for name, value in zip(names, values)}


def test_pairs_are_heat_maps_between_settings_and_other_rows():
    evals = {"full": row(0.72, 0.28), "no_r": row(0.4, 0.6), "tir>rgb": row(0.0, 0.0)}
    evals |= pairs("pairs", (0.723, 0.412, 0.05, 0.6, 0.4, 0.2, 0.19, 0.8, 1.0))
    evals |= pairs("zero/pairs", (0.5,) * 9)
    lines = told(evals, "rgb/tir")
    assert lines[0] == "| setting | RT | -R |" and lines[10] == ""
    assert lines[11:] == [
        "pairs: mAP, rows query, columns gallery",
        "",
        "|    | RT     | -R     | -T      |",
        "|---|---|---|---|",
        "| RT | ▓ 72.3 | ▒ 41.2 |    5.0  |",
        "| -R | ▓ 60.0 | ▒ 40.0 | ░ 20.0  |",
        "| -T |   19.0 | █ 80.0 | █ 100.0 |",
        "",
        "pairs: R-1, rows query, columns gallery",
        "",
        "|    | RT     | -R     | -T     |",
        "|---|---|---|---|",
        "| RT | ░ 27.7 | ▒ 58.8 | █ 95.0 |",
        "| -R | ▒ 40.0 | ▓ 60.0 | █ 80.0 |",
        "| -T | █ 81.0 | ░ 20.0 |    0.0 |",  # 1 - 0.8 is a little less than 0.2
        "",
        "zero/pairs: mAP, rows query, columns gallery",
        "",
        "|    | RT     | -R     | -T     |",
        "|---|---|---|---|",
        *(f"| {name} | ▒ 50.0 | ▒ 50.0 | ▒ 50.0 |" for name in ("RT", "-R", "-T")),
        "",
        "zero/pairs: R-1, rows query, columns gallery",
        "",
        "|    | RT     | -R     | -T     |",
        "|---|---|---|---|",
        *(f"| {name} | ▒ 50.0 | ▒ 50.0 | ▒ 50.0 |" for name in ("RT", "-R", "-T")),
        "",
        "| setting | mAP | R-1 | R-5 | R-10 | R-20 | mINP | mAP drop | R-1 drop |",
        "|---|---|---|---|---|---|---|---|---|",
        "| tir>rgb | 0.0 | 0.0 | 75.0 | 87.5 | 100.0 | 12.5 | 100.0 % | 100.0 % |",
    ]


def test_what_is_left_out_is_said_of_settings_and_not_again_of_their_pairs():
    rows = missing_evals(("rgb", "tir"), "test", "same_camera", incomplete="skip", pairs=True)
    skipped = {"full": 0, "no_r": 2, "no_t": 3}
    found = {name: row(0.5, 0.5, skipped=dict(query=n, gallery=n)) for name, n in skipped.items()}
    for query, gallery in itertools.product(skipped, repeat=2):
        left_out = dict(query=skipped[query], gallery=skipped[gallery])
        found[f"pairs/{query}>{gallery}"] = row(0.5, 0.5, skipped=left_out)
    notes = [line for line in told(found, "rgb/tir", **rows) if "leaves out" in line]
    assert notes == [
        f"-{letter} leaves out {n} query rows and {n} gallery rows, which have no picture that it uses."
        for letter, n in (("R", 2), ("T", 3))
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("pairs/a>a", "pairs/a>b", "pairs/b>a"),  # one is lacking
        ("pairs/a>b", "pairs/b>a"),
        ("pairs/a>a",),
        ("a>a", "a>b", "b>a", "b>b"),  # of no row
    ],
)
def test_names_of_pairs_that_are_no_square_are_other_rows(names):
    assert settings.parts(names) == settings.Parts({}, {}, list(names))


def test_names_are_sorted_out_whatever_their_order():
    names = ["x", "zero/no_t", "pairs/b>a", "no_r", "pairs/a>b", "zero/full", "pairs/b>b", "y/no_x", "pairs/a>a"]
    assert settings.parts(iter(names)) == settings.Parts(
        settings={"zero": {"full": "zero/full", "no_t": "zero/no_t"}, "": {"no_r": "no_r"}},
        pairs={"pairs": {tuple(x): f"pairs/{x[0]}>{x[1]}" for x in ("ba", "ab", "bb", "aa")}},
        others=["x", "y/no_x"],
    )
    assert list(settings.parts(names).settings["zero"]) == ["full", "no_t"]


def test_labels_are_those_of_the_poster():
    labels = {"full": "RNT", "no_r": "-R", "no_rn": "-RN", "mean_missing": "Mean", "mer": "mer", "normal": "normal"}
    assert {name: settings.label(name, ("rgb", "nir", "tir")) for name in labels} == labels
    assert settings.label("full", ()) == "full"
