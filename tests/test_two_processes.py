"""Law: two processes of the command line start, disagree, stop, hang and resume together."""

import json
import random
import shutil
import signal
import time

import pytest
from pair import Pair

from jax_mmreid.checkpoint import newest


def numbers(workdir):
    """Everything that a run has logged, by step, but its speed; and the results of its evaluation."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    kept = [{key: x for key, x in line.items() if key != "samples_per_second"} for line in lines]
    return kept, json.loads((workdir / "results.json").read_text())["evals"]


def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path, port):
    """It arrives while the first step compiles."""
    workdir = tmp_path / "run"
    with Pair(workdir, tmp_path / "data", port, "--config.epochs=1000") as pair:
        pair.await_line(r"^training in .*: step 0 of")
        pair.send(1)
        assert pair.codes() == [75, 75], (pair.said(0), pair.said(1))
        step = newest(workdir)
        for number in range(2):
            assert f"stopped at step {step} of " in pair.complaint(number)
    assert 0 < step < 1000


@pytest.mark.slow
@pytest.mark.parametrize("moments", [3, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_a_run_that_is_stopped_at_any_moment_ends_as_an_uninterrupted_one(tmp_path, port, moments):
    """First before the first step, then anywhere: steps, evaluations, checkpoints; by a signal to either process."""
    flags = "--config.epochs=12", "--config.eval_every=1", "--config.save_every=1", "--config.log_every=1"
    whole, stopped, draw = tmp_path / "whole", tmp_path / "stopped", random.Random(0)
    with Pair(whole, tmp_path / "data", port, *flags) as pair:
        assert pair.codes() == [0, 0], pair.said(0)
    begin, stops = r"^training in .*: step (\d+) of", [0]
    for number in range(moments):
        with Pair(stopped, tmp_path / "data", port, *flags) as pair:
            pair.await_line(begin)
            time.sleep(draw.uniform(0, 6) if number > 1 else 0)
            pair.send(draw.randrange(2))
            codes = pair.codes()
            assert codes in ([75, 75], [0, 0]), (pair.said(0), pair.said(1))
            if codes == [0, 0]:  # the signal came when the last step was done
                break
            stops.append(newest(stopped))
            assert stops[-1] > stops[-2]
    else:
        with Pair(stopped, tmp_path / "data", port, *flags) as pair:
            assert pair.codes() == [0, 0], pair.said(0)
    assert len(stops) > min(moments, 5)  # the other signals came after the last step
    (want, results), (got, other) = numbers(whole), numbers(stopped)
    assert results == other
    by_step = [{(line["step"], "full/mAP" in line): line for line in lines} for lines in (want, got)]
    left_out = {(step, True) for step in stops}  # a run that has to stop does not evaluate first
    assert {key: x for key, x in by_step[0].items() if key in by_step[1] or key not in left_out} == by_step[1]


@pytest.mark.slow
@pytest.mark.parametrize("which", [pytest.param(signal.SIGKILL, marks=pytest.mark.exhaustive), signal.SIGSTOP])
def test_a_process_that_is_gone_or_stuck_ends_the_other_and_both_resume(tmp_path, port, which):
    workdir = tmp_path / "run"
    flags = "--config.epochs=30", "--config.watchdog.least=6", "--config.watchdog.multiple=3"
    with Pair(workdir, tmp_path / "data", port, *flags) as pair:
        pair.await_line(r"^step 90/")
        pair.send(1, which)
        begin = time.monotonic()
        assert pair.processes[0].wait(timeout=120) not in (0, 75)
        assert time.monotonic() - begin < 60
        if which == signal.SIGSTOP:
            assert "Timeout (0:" in pair.said(0) and "train.py" in pair.said(0)  # the stacks of its threads
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    with Pair(workdir, tmp_path / "copy", port, *flags) as pair:  # where the data are may differ
        assert pair.codes() == [0, 0], pair.said(0)
        assert "step 70 of" in pair.said(0)


@pytest.mark.slow
def test_what_differs_between_processes_is_named_before_the_first_step(tmp_path, port):
    folder, other = tmp_path / "data", tmp_path / "other"
    cases = {
        ("--config.seed=5",): (2, "process 1 differs from process 0 in config.seed (1111 -> 5); start all"),
        ("--config.log_every=3",): (2, "process 1 differs from process 0 in config.log_every (10 -> 3); start all"),
        ("--config.sed=5",): (2, "process 1: config has no field 'sed'; did you mean 'seed'?"),
        (f"--config.data.data_dir={other}",): (3, "process 1 differs from process 0 in the files of the data ("),
    }
    with Pair(tmp_path / "whole", folder, port, "--config.epochs=1") as pair:
        assert pair.codes() == [0, 0]
    shutil.copytree(folder, other)
    for folder_of_modality in (other / "test").iterdir():
        sorted(folder_of_modality.iterdir())[0].unlink()
    for number, (own, (code, message)) in enumerate(cases.items()):
        with Pair(tmp_path / f"{number}", folder, port, own=((), own)) as pair:
            assert pair.codes() == [code, code], (pair.said(0), pair.said(1))
            assert message in pair.complaint(0) and message in pair.complaint(1)
        assert not (tmp_path / f"{number}").exists() or newest(tmp_path / f"{number}") is None
