"""Runs side by side: what is one group, its means and spreads, which folders are runs, and the command."""

import json
import statistics
import subprocess
import sys

import pytest
from written_runs import make, row, write_sweep

from jax_mmreid.errors import ConfigError
from jax_mmreid.report import compare
from jax_mmreid.tools import compare as tool


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path)


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
