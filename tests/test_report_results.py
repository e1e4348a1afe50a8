"""Law: what the sections of a report on results, training and several runs show of written files."""

import json

import numpy as np
import pytest
from labelled import labelled, results
from written_runs import NAMES, make, row

from jax_mmreid.errors import ConfigError
from jax_mmreid.report import charts, curves, runs
from jax_mmreid.report import results as sections

PAIRS = {
    f"{group}/{q}>{g}": {"mAP": 0.1 * i + 0.02 * j, "rank1": 0.3, "feature": feature}
    for group, feature in (("pairs", "rgb>nir"), ("common/pairs", "rgb>nir, similarity=common, fallback=available"))
    for i, q in enumerate(("full", "no_r", "no_n"))
    for j, g in enumerate(("full", "no_r", "no_n"))
}


@pytest.fixture
def painted(monkeypatch):
    """What is drawn: the figures, in their order, as matplotlib has them."""
    figures, draw = [], charts.draw

    def record(paint, **size):
        return draw(lambda figure: (paint(figure), figures.append(figure)), **size)

    monkeypatch.setattr(charts, "draw", record)
    return figures


def curve(axes):
    """{label: (x, y)} of the labelled lines of a panel."""
    lines = {line.get_label(): tuple(map(list, line.get_data())) for line in axes.lines}
    return {label: data for label, data in lines.items() if not label.startswith("_")}


def test_the_tables_are_those_of_results_md_without_pairs():
    whole = results(
        {"full": row(0.5), "no_r": row(0.25), **PAIRS}, columns={"retrieval": {"mAP": "mAP"}}, advice="More."
    )
    found = sections.section(whole)
    assert found.text == "Checkpoint at step 9 (last), config 0123456789ab.\n\nMore."
    ((caption, rows),) = found.tables
    assert caption == "" and rows[0] == ["setting", "RNT", "-R"]
    assert rows[1:3] == [["mAP", "50.0", "25.0"], ["mAP drop", "", "50.0 %"]]


def test_rows_that_are_left_out_are_one_table_for_all_groups():
    skipped = {"skipped": {"query": 3, "gallery": 0}, "note": "leaves out 3 query rows."}
    evals = {"full": row(0.5), "no_r": row(0.25) | skipped, "zero/full": row(0.5), "zero/no_r": row(0.25) | skipped}
    found = sections.section(results(evals, columns={"retrieval": {"mAP": "mAP"}}))
    assert "leaves" not in found.text and len(found.tables) == 3
    assert [list(cells) for cells in found.tables[-1][1]] == [["setting", "query", "gallery"], ["-R", "3", "0"]]


def test_a_heat_map_has_queries_as_rows_and_galleries_as_columns(painted):
    found = sections.pairs(results(PAIRS))
    assert [x.name for x in found.pictures] == ["pairs_pairs", "pairs_common_pairs"]
    assert "Compared by whole vectors" in found.pictures[0].caption
    assert "modalities that both have" in found.pictures[1].caption
    axes = painted[0].axes[0]
    assert [x.get_text() for x in axes.get_yticklabels()] == ["RNT", "-R", "-N"]
    np.testing.assert_allclose(axes.images[0].get_array(), 10 * np.arange(3)[:, None] + 2 * np.arange(3))
    assert [x.get_text() for x in axes.texts] == [f"{10 * i + 2 * j:.1f}" for i in range(3) for j in range(3)]
    assert sections.pairs(results({"full": row(0.5)})) is None


def test_damages_are_curves_by_severity_with_the_result_without_the_modality(painted):
    def damage(group, setting, clean, missing):
        metrics = {f"severity{s}": clean - 0.1 * s for s in (1, 2, 3, 4, 5)}
        return dict(kind="robustness", group=group, setting=setting, clean=clean, missing=missing, **metrics)

    evals = {f"{g}/{name}": damage(g, name, 0.9, 0.5) for g in ("rgb", "tir") for name in ("blur", "mean")}
    evals |= {f"s/{name}": damage("swapped", name, 0.8, m) for name, m in (("a+b", 0.2), ("b+c", 0.3), ("mean", 0.25))}
    found = sections.robustness({"evals": evals})
    assert [x.name for x in found.pictures] == ["robustness"]
    panels = {axes.get_title(): axes for axes in painted[0].axes if axes.get_title()}
    assert list(panels) == ["rgb", "tir", "swapped"]
    steps, values = curve(panels["rgb"])["blur"]
    assert steps == [0, 1, 2, 3, 4, 5] and values == pytest.approx([90, 80, 70, 60, 50, 40])
    missing = {
        name: [line.get_ydata()[0] for line in x.lines if line.get_linestyle() == "--"] for name, x in panels.items()
    }
    assert missing == {"rgb": [50], "tir": [50], "swapped": pytest.approx([20, 30])}
    assert sections.robustness(results({"full": row(0.5)})) is None


@pytest.fixture
def logged(tmp_path):
    """A workdir whose last line is being written; its second phase begins at step 20."""
    folder = make(tmp_path / "a", {"full": row(0.5)}, row="A", phases=((0, {}, ()), (4, {}, ())))
    (folder / "data_spec.json").write_text(json.dumps({"steps_per_epoch": 5}))
    lines = [
        {"step": s, "loss": 9 - s / 10, "triplet": 0.5, "lr/a": 0.1, "lr/b": 0.1, "lr/c": s, "accuracy": s / 40}
        for s in (10, 20, 30)
    ]
    evaluated = [{"step": s, "full/mAP": s / 40, "pairs/full>no_r/mAP": 0.1, "full/rank1": 0.1} for s in (20, 30)]
    text = "".join(json.dumps(x) + "\n" for x in (*lines, *evaluated))
    (folder / "metrics.jsonl").write_text(text + '{"step": 40, "lo')
    return folder


def test_training_is_drawn_as_far_as_it_is_logged(logged, painted):
    log = curves.read(logged, "a")
    found = curves.section([log])
    assert [x.name for x in found.pictures] == ["curves_losses", "curves_progress", "curves_evaluations"]
    losses, progress, evaluations = (figure.axes for figure in painted)
    assert curve(losses[0]) == {"loss": ([10, 20, 30], [8, 7, 6])} and curve(losses[1]).keys() == {"triplet"}
    assert curve(progress[1]) == {"a, b": ([10, 20, 30], [0.1] * 3), "c": ([10, 20, 30], [10, 20, 30])}
    assert curve(evaluations[0]) == {"full": ([20, 30], [50, 75])}
    assert log.phases == (20,) and "Grey" in found.text
    assert curves.section([log._replace(lines=[])]) is None
    pictures = curves.section([log, log._replace(name="b")]).pictures
    assert pictures[-1].name == "curves_runs" and curve(painted[-1].axes[1]).keys() == {"a", "b"}


def write(folder, rate, shift, seed=1, **changes):
    evals = {name: row(0.5 + shift + i / 100) for i, name in enumerate(NAMES)}
    return make(folder, evals, row="A", seed=seed, **{"missing.eta": (rate, rate, 0.0)} | changes)


def test_lines_over_the_missing_rate_join_runs_that_differ_in_nothing_else(tmp_path, painted):
    folders = [
        write(tmp_path / f"a,eta={rate}/seed{seed}", rate, -rate / 3 + 0.01 * seed, seed)
        for rate in (0.6, 0.0, 0.3)
        for seed in (1, 2)
    ]
    folders += [write(tmp_path / f"b,eta={rate}", rate, 0.1, epochs=7) for rate in (0.0, 0.3)]
    found = runs.section(folders)
    assert [x.name for x in found.pictures] == ["settings", "missing_rates"]
    full, mean = painted[1].axes
    for axes, first in ((full, 51.5), (mean, 58.5)):
        bars = {bar.get_label(): bar.lines[0].get_data() for bar in axes.containers}
        assert {label: list(x) for label, (x, _) in bars.items()} == {"a": [0, 20, 40], "b": [0, 20]}
        assert list(bars["a"][1]) == pytest.approx([first, first - 10, first - 20])
    spread = full.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert np.diff(spread) == pytest.approx(2 * np.std([0, 1], ddof=1))
    assert runs.section(folders[:1]) is None


def test_runs_show_the_rows_that_two_of_them_have(tmp_path, painted):
    both, alone = {"full": row(0.5), "no_r": row(0.25)}, {**labelled(PAIRS), "other": row(0.1)}
    folders = [make(tmp_path / "a", both | alone, row="A"), make(tmp_path / "b", both, row="A", epochs=7)]
    (tmp_path / "c").mkdir()
    found = runs.section([*folders, tmp_path / "c"])
    assert f"Without results: {tmp_path / 'c'}." in found.text
    assert [caption for caption, _ in found.tables] == [""] and len(found.tables[0][1]) == 3
    folders[1].joinpath("results.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot read"):
        runs.section(folders)


def test_runs_of_other_methods_show_all_rows(tmp_path, painted):
    folders = [make(tmp_path / "a", {"x": row(0.5)}, row="A"), make(tmp_path / "b", {"y": row(0.25)}, row="A")]
    found = runs.section(folders)
    assert [cells[:2] for cells in found.tables[0][1][1:]] == [["a", "x"], ["b", "y"]]
    assert [x.get_text() for x in painted[0].axes[0].get_xticklabels()] == ["x", "y"]
