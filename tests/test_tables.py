"""The text of results.md: settings of missing modalities as columns, pairs of them as heat maps, others as lines."""

import itertools

from labelled import labelled, results

from jax_mmreid.batch import MODALITIES, Modality
from jax_mmreid.recipes import missing_settings
from jax_mmreid.report import settings, tables

NAMES = ("full", "no_r", "no_n", "no_t", "no_rn", "no_rt", "no_nt", "mean_missing")


def row(mAP, rank1, **others):  # noqa: N803
    return dict(mAP=mAP, rank1=rank1, rank5=0.75, rank10=0.875, rank20=1.0, mINP=0.125, **others)


def printed(evals, modalities=("rgb", "nir", "tir")):
    """The tables of these results, without the first line."""
    text = tables.markdown(results(evals, modalities, step=27, which="best"))
    title, empty, *lines = text.splitlines()
    assert (title, empty) == ("Checkpoint at step 27 (best), config 0123456789ab.", "")
    return lines


def two_groups():
    """Results of two groups whose order is not that of the published tables, and one of no setting."""
    evals = {"mean_missing": row(0.4, 0.3), "no_nt": row(0.2, 0.0), "full": row(0.8, 0.5), "no_r": row(0.6, 0.6)}
    return evals | {"rgb>tir": row(0.1, 0.2), "zero/full": row(0.5, 0.0), "zero/no_r": row(0.25, 0.25)}


def test_settings_are_columns_in_percent_with_what_each_loses_and_other_rows_are_lines():
    assert printed(two_groups()) == [
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


def test_the_columns_stand_in_the_order_of_the_published_tables():
    lines = printed({name: row(0.5, 0.5) for name in reversed(NAMES)})
    assert lines[0] == "| setting | RNT | -R | -N | -T | -RN | -RT | -NT | Mean |" and len(lines) == 10
    lines = printed({name: row(0.5, 0.5) for name in ("alone/no_t", "alone/no_r")}, ("rgb", "tir"))
    assert lines[0] == "| setting (alone) | -R | -T |" and not any("drop" in line for line in lines)


def test_full_rows_alone_and_rows_without_one_are_lines_without_drops():
    full = row(0.8, 0.5)
    head = ["| setting | mAP | R-1 | R-5 | R-10 | R-20 | mINP |", "|---|---|---|---|---|---|---|"]
    numbers = "80.0 | 50.0 | 75.0 | 87.5 | 100.0 | 12.5 |"
    lines = printed({"all/ir": full, "all/mer": full, "indoor/mer": full})
    assert lines == [*head, *(f"| {name} | {numbers}" for name in ("ir (all)", "mer (all)", "mer (indoor)"))]
    lines = printed({"full": full, "zero/full": full}, ("rgb",))
    assert lines == [*head, f"| R | {numbers}", f"| R (zero) | {numbers}"]
    lines = printed({"people/text": row(0.4, 0.5), "people/full": full})  # of which one is compared with the other
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
    lines = printed(evals, ("rgb", "tir"))
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
        "Mean: 48.6 of all pairs (9), 31.3 that differ and share a modality (4), 50.0 that share none (2).",
        "",
        "pairs: R-1, rows query, columns gallery",
        "",
        "|    | RT     | -R     | -T     |",
        "|---|---|---|---|",
        "| RT | ░ 27.7 | ▒ 58.8 | █ 95.0 |",
        "| -R | ▒ 40.0 | ▓ 60.0 | █ 80.0 |",
        "| -T | █ 81.0 | ░ 20.0 |    0.0 |",  # 1 - 0.8 is a little less than 0.2
        "",
        "Mean: 51.4 of all pairs (9), 68.7 that differ and share a modality (4), 50.0 that share none (2).",
        "",
        "zero/pairs: mAP, rows query, columns gallery",
        "",
        "|    | RT     | -R     | -T     |",
        "|---|---|---|---|",
        *(f"| {name} | ▒ 50.0 | ▒ 50.0 | ▒ 50.0 |" for name in ("RT", "-R", "-T")),
        "",
        "Mean: 50.0 of all pairs (9), 50.0 that differ and share a modality (4), 50.0 that share none (2).",
        "",
        "zero/pairs: R-1, rows query, columns gallery",
        "",
        "|    | RT     | -R     | -T     |",
        "|---|---|---|---|",
        *(f"| {name} | ▒ 50.0 | ▒ 50.0 | ▒ 50.0 |" for name in ("RT", "-R", "-T")),
        "",
        "Mean: 50.0 of all pairs (9), 50.0 that differ and share a modality (4), 50.0 that share none (2).",
        "",
        "| setting | mAP | R-1 | R-5 | R-10 | R-20 | mINP | mAP drop | R-1 drop |",
        "|---|---|---|---|---|---|---|---|---|",
        "| tir>rgb | 0.0 | 0.0 | 75.0 | 87.5 | 100.0 | 12.5 | 100.0 % | 100.0 % |",
    ]


def test_notes_stand_below_the_tables_and_not_again_below_pairs():
    found = {"full": row(0.5, 0.5), "no_r": row(0.5, 0.5, note="leaves out 2 query rows.")}
    for query, gallery in itertools.product(("full", "no_r"), repeat=2):
        found[f"pairs/{query}>{gallery}"] = row(0.5, 0.5, note="leaves out 2 query rows.")
    assert [line for line in printed(found, ("rgb", "tir")) if "leaves out" in line] == ["-R leaves out 2 query rows."]


def test_names_of_results_mean_nothing():
    """Only fields do: rows that are called like settings or pairs are lines, under their whole names."""
    plain = {"kind": "retrieval", "protocol": "p", "feature": "f"}
    names = ("full", "no_r", "zero/no_t", "pairs/a>a", "pairs/a>b", "pairs/b>a", "pairs/b>b")
    evals = {name: plain for name in names}
    assert settings.forms(evals, ("rgb", "nir", "tir")) == settings.Forms({}, {}, list(names))
    assert [settings.label(name, evals[name], ("rgb", "nir", "tir")) for name in names] == list(names)
    renamed = {f"row{i}": x for i, x in enumerate(labelled(two_groups()).values())}
    whole = results({})
    expected = tables.markdown(whole | {"evals": labelled(two_groups())}).replace("rgb>tir", "row4")
    assert tables.markdown(whole | {"evals": renamed}) == expected


def test_settings_have_labels_in_the_order_of_the_published_tables():
    labels = missing_settings.labels(("rgb", "nir", "tir"))
    assert list(labels) == list(NAMES)
    assert list(labels.values()) == ["RNT", "-R", "-N", "-T", "-RN", "-RT", "-NT", "Mean"]
    assert missing_settings.labels(("ir",)) == {"full": "I", "mean_missing": "Mean"}


def test_a_modality_of_the_table_has_settings(monkeypatch):
    monkeypatch.setitem(MODALITIES, "depth", Modality("d"))
    rows = missing_settings.missing_evals(("rgb", "depth"), "test", "none")
    assert list(rows) == ["full", "no_r", "no_d", "mean_missing"] and rows["no_r"]["gallery"]["use"] == ("depth",)
    found = {name: row(0.5, 0.5) for name in rows}
    assert printed(found, ("rgb", "depth"))[0] == "| setting | RD | -R | -D | Mean |"
