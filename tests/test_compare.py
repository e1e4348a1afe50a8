"""Runs side by side: what is one group, its means and spreads, and the text of the tables."""

import itertools
import json
import statistics
import subprocess
import sys

import pytest
from conftest import load_config, tiny_config
from labelled import results

from jax_mmreid.config import to_json
from jax_mmreid.errors import ConfigError
from jax_mmreid.report import compare
from jax_mmreid.tools import compare as tool

NAMES = ("full", "no_r", "no_n", "no_t", "no_rn", "no_rt", "no_nt", "mean_missing")
MANY = "Percent; mean ± sample standard deviation where there are several runs."


def make(folder, evals, written=None, **changes):
    """A finished run, its config that of `tiny_config` changed in dotted fields (a trial and `published` freely).

    `written` are fields of results.json that differ from those of a finished run.
    """
    trial, published = (changes.pop(name, None) for name in ("trial", "published"))
    config = to_json(tiny_config("data", **changes))
    config["data"]["options"] |= {"trial": trial} if trial else {}
    config["published"] = published or {}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    whole = results(evals, config["data"]["modalities"]) | (written or {})
    (folder / "results.json").write_text(json.dumps(whole))
    return folder


def row(mAP, rank1=None, **others):  # noqa: N803
    """A row's results, of which words and counts are no metric."""
    return {"mAP": mAP, "rank1": mAP if rank1 is None else rank1, "trials": 10, "protocol": "p", **others}


@pytest.fixture
def sweep(tmp_path):
    """Rows A and F, the latter scored in two ways, over seeds 1 to 3 and seed 1."""
    for seed, shift in ((1, 0.0), (2, 0.01), (3, -0.03)):
        evals = {name: row(0.5 + shift + i / 100, 0.25) for i, name in enumerate(NAMES)}
        make(tmp_path / "row=A,eta=0" / f"seed{seed}", evals, row="A", seed=seed)
    evals = {name: row(0.75) for name in NAMES} | {f"zero/{name}": row(0.5) for name in NAMES if name != "no_t"}
    published = {"full": {"mAP": 0.769}, "mean_missing": {"mAP": 0.7501, "rank1": 0.557}}
    make(tmp_path / "row=F,eta=0" / "seed1", evals, seed=1, published=published)
    return tmp_path


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


def test_means_and_spreads_are_those_of_statistics(tmp_path):
    values = [0.31, 0.5, 0.47, 0.2]
    for seed, value in enumerate(values):
        make(tmp_path / f"seed{seed}", {"full": row(value, 1 - value)}, seed=seed)
    table = compare.summary([tmp_path])
    ((name, group),) = table["groups"].items()
    assert table["unfinished"] == {}
    assert (name, group["runs"], group["seeds"], group["trials"]) == (tmp_path.name, 4, [0, 1, 2, 3], [])
    mean, std = statistics.mean(values), statistics.stdev(values)
    assert group["rows"]["full"]["mAP"] == {"mean": pytest.approx(mean), "std": pytest.approx(std), "n": 4}
    assert group["rows"]["full"]["rank1"] == {"mean": pytest.approx(1 - mean), "std": pytest.approx(std), "n": 4}
    assert group["rows"]["full"].keys() == {"mAP", "rank1"} and group["differs"] == {}


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


def test_comparing_needs_no_jax():
    code = "import sys, jax_mmreid.tools.compare; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def grouped(*folders):
    """The names of the runs' folders, group by group."""
    groups = compare.summary(folders)["groups"].values()
    return sorted(sorted(folder.rpartition("/")[2] for folder in group["folders"]) for group in groups)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 7}, {"trial": 3}, {"mesh.data": 8}, {"data.data_dir": "x"}, {"published": {"full": {"mAP": 0.5}}}],
)
def test_what_repeats_a_run_or_leaves_it_the_same_is_one_group(changes, tmp_path):
    make(tmp_path / "a", {"full": row(0.5)})
    make(tmp_path / "b", {"full": row(0.5)}, **changes)
    assert grouped(tmp_path) == [["a", "b"]]


@pytest.mark.parametrize("changes", [{"epochs": 4}, {"eta": "0.1"}, {"missing.seed": 1}, {"optim.lr.tower": 0.5}])
def test_any_other_field_makes_another_group(changes, tmp_path):
    make(tmp_path / "a", {"full": row(0.5)})
    make(tmp_path / "b", {"full": row(0.5)}, **changes)
    assert grouped(tmp_path) == [["a"], ["b"]]


@pytest.mark.parametrize(
    "evals",
    [{"full": row(0.5, protocol="other")}, {"full": row(0.5, feature="f2")}, {"full": row(0.5), "mer": row(0.5)}],
)
def test_runs_that_measured_other_rows_have_no_mean(evals, tmp_path):
    """Though the rows are free to change: one training may be scored as two settings of a table."""
    make(tmp_path / "a", {"full": row(0.5)})
    make(tmp_path / "b", evals)
    assert grouped(tmp_path) == [["a"], ["b"]]


def test_weights_of_another_seed_are_the_same_start(tmp_path):
    evals = {"full": row(0.5)}
    for trial in (1, 2):  # runs that are there
        make(tmp_path / f"base{trial}", evals, trial=trial, seed=trial, epochs=5)
        make(tmp_path / f"lfm{trial}", evals, trial=trial, init=str(tmp_path / f"base{trial}"))
        make(tmp_path / f"gone{trial}", evals, epochs=4, init=f"elsewhere/trial{trial}/seed{trial}/base")
        make(tmp_path / f"part{trial}", evals, init=f"elsewhere/seed{trial}:text,{tmp_path}/base{trial}:image")
    longer = make(tmp_path / "longer", evals, epochs=6)
    make(tmp_path / "from_longer", evals, trial=1, init=str(longer))
    make(tmp_path / "from_clip", evals, trial=1, init="weights/clip")
    make(tmp_path / "other_part", evals, init=f"elsewhere/seed1:text,{tmp_path}/base1:text")
    twice = [[f"{name}{trial}" for trial in (1, 2)] for name in ("base", "gone", "lfm", "part")]
    assert grouped(tmp_path) == sorted([*twice, ["from_clip"], ["from_longer"], ["longer"], ["other_part"]])


def test_a_folder_of_weights_that_is_no_run_is_its_name(tmp_path):
    for name in ("a", "b"):  # as transformers keeps them
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "clip"}))
        make(tmp_path / f"from_{name}", {"full": row(0.5)}, init=str(tmp_path / name))
    assert grouped(tmp_path) == [["from_a"], ["from_b"]]


def test_the_order_of_folders_moves_lines_but_no_number(sweep):
    a, f = sweep / "row=A,eta=0", sweep / "row=F,eta=0"
    seeds = [a / f"seed{seed}" for seed in (3, 1, 2)]
    tables = [compare.summary(dirs)["groups"] for dirs in ([sweep], [f, a], [*seeds, f], [f / "seed1", sweep, a])]
    assert [list(table) for table in tables] == [["row=A,eta=0", "row=F,eta=0"], ["row=F,eta=0", "row=A,eta=0"]] * 2
    for table in tables[1:]:
        for name, group in table.items():
            assert {**group, "folders": 0} == {**tables[0][name], "folders": 0}


def test_folders_that_do_not_name_the_groups_leave_it_to_the_fields(tmp_path):
    runs = {"x1": {}, "x2": {"seed": 2}, "y": {"row": "D"}, "z": {"row": "A", "epochs": 3}}
    for name, changes in runs.items():
        make(tmp_path / name, {"full": row(0.5)}, **changes)
    table = compare.summary([tmp_path])["groups"]
    assert list(table) == [
        "model.bhipr=True, model.ldmmc=True",
        "model.bhipr=True, model.ldmmc=False",
        "model.bhipr=False, model.ldmmc=False",
    ]
    first = next(iter(table.values()))
    assert first["runs"] == 2 and first["differs"]["model.iosm"] is True and "seed" not in first["differs"]


def test_several_stages_below_trials_and_seeds_are_called_by_what_is_left(tmp_path):
    for trial, seed in ((1, 1), (1, 2), (2, 1), (2, 2)):
        for stage, epochs in (("base", 4), ("lfm", 5)):
            folder = tmp_path / f"trial{trial}" / f"seed{seed}" / stage
            make(folder, {"ir": row(trial / 4)}, trial=trial, seed=seed, epochs=epochs)
    text = compare.markdown(compare.summary([tmp_path]))
    assert "4 runs, seeds 1, 2, trials 1, 2: base; lfm." in text and "| lfm | ir | 37.5 ± 14.4 | 37.5 ± 14.4 |" in text


def test_what_makes_a_mean_doubtful_is_printed(tmp_path):
    make(tmp_path / "seed1", {"full": row(0.5, mINP=0.5)}, seed=1, written={"step": 6, "steps": 6})
    make(tmp_path / "seed2", {"full": row(0.5)}, seed=2, written={"forced": ["data.options.trial (1 -> 2)"]})
    lines = compare.markdown(compare.summary([tmp_path])).splitlines()
    assert lines[1:3] == [
        f"2 runs, seeds 1, 2, checkpoints of steps 6, 9: {tmp_path.name}.",
        f"Evaluated with --force, under another config than the run's own: {tmp_path}/seed2.",
    ]
    assert lines[-1] == f"| {tmp_path.name} | full | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 (n=1) |"


def test_unfinished_runs_are_left_out_and_named(tmp_path):
    """A run that a watcher follows has results before it ends."""
    for seed, step in ((1, 9), (2, 3), (3, 9)):
        make(tmp_path / f"seed{seed}", {"full": row(step / 9)}, seed=seed, written={"step": step})
    table = compare.summary([tmp_path])
    (group,) = table["groups"].values()
    assert group["seeds"] == [1, 3] and group["rows"]["full"]["mAP"]["mean"] == 1
    assert table["unfinished"] == {f"{tmp_path}/seed2": "step 3 of 9"}
    assert f"Left out, since not finished: {tmp_path}/seed2 (step 3 of 9)." in compare.markdown(table).splitlines()
    with pytest.raises(ConfigError, match=f"^no run is finished: {tmp_path}/seed2 .step 3 of 9.$"):
        compare.summary([tmp_path / "seed2"])


def test_folders_without_results_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "results.json").write_text("{}")  # of a sweep, which has no config
    for folder in (tmp_path, tmp_path / "run", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=f"^{folder}: no run with results there or below"):
            compare.summary([folder])
    (tmp_path / "run" / "results.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot read .*/run/results.json: Expecting"):
        compare.summary([tmp_path])
    (tmp_path / "run" / "results.json").write_text('{"step": 9, "evals": {}}')
    with pytest.raises(ConfigError, match="/run: results.json is of an older version; evaluate the run again"):
        compare.summary([tmp_path])


def test_a_workdir_is_one_run_whatever_lies_below_it(tmp_path):
    make(tmp_path / "run", {"full": row(0.5)})
    make(tmp_path / "run" / "before" / "it", {"full": row(0.5)}, epochs=4)
    assert grouped(tmp_path / "run") == [["run"]] and grouped(tmp_path) == [["it"], ["run"]]
    assert grouped(tmp_path, tmp_path / "run" / ".." / "run") == [["it"], ["run"]]  # each once


@pytest.mark.parametrize("text, expected", [("3", [3]), ("1-4", [1, 2, 3, 4]), ("1,7-9", [1, 7, 8, 9])])
def test_numbers(text, expected):
    assert compare.numbers(text) == expected


def test_what_is_written_is_what_is_returned(sweep):
    text = compare.write([sweep / "row=A,eta=0", sweep / "row=F,eta=0"], sweep)
    assert (sweep / "results.md").read_text() == text
    assert json.loads((sweep / "results.json").read_text()) == compare.summary([sweep])


def test_the_command_line(sweep, capsys):
    dirs = [str(sweep / "row=A,eta=0"), str(sweep / "row=F,eta=0")]
    assert tool.main([*dirs, "--metric=rank1"]) == 0
    assert capsys.readouterr() == (compare.markdown(compare.summary(dirs), "rank1"), "")
    for args, message in (
        ([str(sweep), "--metric=accuracy"], "--metric=accuracy: no result has it; there are mAP, rank1"),
        (["nowhere"], "nowhere: no run with results there or below (results.json beside config.json)"),
    ):
        assert tool.main(args) == 2
        assert capsys.readouterr() == ("", f"compare: {message}\n")


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
