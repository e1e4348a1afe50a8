"""The watcher: what it waits for, which checkpoints it measures, what it writes, and that it disturbs no run."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import build, open_tiny, tiny_config
from tensorboardX.proto.event_pb2 import Event
from watched import Run, few
from watched import meanwhile as meanwhile
from watched import run as run
from watched import tiny as tiny

from jax_mmreid import evaluate, watch
from jax_mmreid import run as running
from jax_mmreid.checkpoint import Checkpoints, newest
from jax_mmreid.config import to_json
from jax_mmreid.errors import ConfigError
from jax_mmreid.report import tables


def files(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_it_waits_for_a_run_and_opens_nothing_before_there_is_one(run, meanwhile):
    opened = []
    watcher = watch.watch(run.config, run.workdir, lambda: opened.append(1) or run.data)
    meanwhile += [lambda: None, run.init_workdir, lambda: opened.append(0), lambda: run.save(6)]
    assert next(watcher)["step"] == 6 and opened == [0, 1] and not meanwhile
    meanwhile += [lambda: None, lambda: run.save(9)]
    assert next(watcher)["step"] == 9 and opened == [0, 1] and not meanwhile


@pytest.mark.slow
def test_it_measures_the_newest_and_leaves_out_what_came_and_went(run):
    run.init_workdir()
    run.save(3, 6)
    watcher = run.watch()
    assert next(watcher)["step"] == 6
    run.save(9, 12)
    assert next(watcher)["step"] == 12
    run.save(run.total)
    assert [results["step"] for results in watcher] == [run.total]
    assert [line["step"] for line in run.history()] == [6, 12, run.total]


def test_what_it_writes_is_what_an_evaluation_of_the_same_step_gives(run):
    run.init_workdir()
    watcher, expected = run.watch(), {}
    for step in (6, run.total):
        run.save(step)
        results = next(watcher)
        assert run.results() == results and results["which"] == "last" and results["config_hash"]
        assert (run.workdir / "results.md").read_text() == tables.markdown(results)
        expected[step] = run.evaluate()["evals"]
        assert results["evals"] == expected[step]
    assert next(watcher, None) is None
    assert len({evals["full"]["mAP"] for evals in expected.values()}) == 2
    numbers = {
        step: {f"{row}/{key}": x for row in evals for key, x in evals[row].items() if isinstance(x, float)}
        for step, evals in expected.items()
    }
    assert "no_t/mINP" in numbers[6]
    assert run.history() == [{"step": step, **row} for step, row in numbers.items()]
    shown = scalars(run.workdir / "eval")
    assert {step for step, _ in shown} == set(numbers) and len(shown) == sum(map(len, numbers.values()))
    for step, row in numbers.items():
        assert shown[step, "no_t/mINP"] == np.float32(row["no_t/mINP"])


def scalars(folder):
    """{(step, name): value} of the TensorBoard files in a folder."""
    found = {}
    for file in folder.glob("events.out.tfevents.*"):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
            data = data[16 + length :]
    return found


def test_a_step_is_measured_by_the_method_of_its_phase(drawn, tmp_path, monkeypatch):
    """As `evaluate` does it: before the text features begin, zeros stand in for pictures."""
    config = tiny_config(drawn)
    data = open_tiny(config)
    exp = build(config, data)
    seen = []
    monkeypatch.setattr(evaluate.runner, "run", lambda rows, method, *_, **__: seen.append(method) or {})
    run = Run(tmp_path / "run", config, data, exp)
    run.init_workdir()
    watcher = run.watch()
    with Checkpoints(run.workdir) as checkpoints:
        state = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), exp.abstract)
        checkpoints.save_frozen(state.frozen)
    for step in (exp.phases[1].start, run.total):
        run.save(step)
        next(watcher)
    assert seen == [phase.method for phase in exp.phases] and seen[0] != seen[1]


@pytest.mark.parametrize("half", [False, True])
def test_a_checkpoint_that_is_deleted_while_it_is_read_gives_way_to_the_newer(run, monkeypatch, half):
    run.init_workdir()
    run.save(6)
    original, asked = Checkpoints.restore, []

    def restore(self, step, target):
        asked.append(step)
        if step == 6:
            folder = run.workdir / "checkpoints" / "6"
            shutil.copytree(folder / "metrics", run.workdir / "kept")
            run.save(9)
            assert not folder.exists()
            if half:  # its name is still there
                shutil.copytree(run.workdir / "kept", folder / "metrics")
        return original(self, step, target)

    monkeypatch.setattr(Checkpoints, "restore", restore)
    assert next(run.watch())["step"] == 9
    assert asked == [6, 9] and [line["step"] for line in run.history()] == [9]


def test_a_checkpoint_that_cannot_be_read_is_an_error(run):
    run.init_workdir()
    run.save(6)
    shutil.rmtree(run.workdir / "checkpoints" / "6" / "model")
    with pytest.raises(Exception, match="model"):
        next(run.watch())
    assert not (run.workdir / "results.json").exists()


def test_a_run_of_another_config_is_refused_when_it_is_there(run, meanwhile, drawn):
    other = few(drawn, seed=7)
    run.init_workdir(other)
    meanwhile += [lambda: run.save(6)]
    for _ in range(2):  # the second time without a wait
        with pytest.raises(ConfigError, match=r"run holds a run of another config: seed \(7 -> 1111\); choose another"):
            next(run.watch())
    assert not (run.workdir / "eval").exists() and not (run.workdir / "results.json").exists()


def test_a_workdir_without_a_checkpoint_may_be_of_another_config(run, meanwhile, drawn):
    """As the trainer has it, which writes its own config.json over that."""
    run.init_workdir(few(drawn, seed=7))
    ours = json.dumps(to_json(run.config))
    meanwhile += [lambda: (run.workdir / "config.json").write_text(ours), lambda: run.save(6)]
    assert next(run.watch())["step"] == 6


def test_checkpoints_without_a_config_are_no_run(run, meanwhile):
    run.init_workdir()
    run.save(6)
    config = run.workdir / "config.json"
    config.rename(run.workdir / "kept")
    meanwhile += [lambda: (run.workdir / "kept").rename(config)]
    assert next(run.watch())["step"] == 6 and not meanwhile


def test_the_checkpoints_of_a_live_run_are_left_as_they_are(run):
    run.init_workdir()
    run.save(6)
    shutil.copytree(run.workdir / "checkpoints" / "6", run.workdir / "checkpoints" / "9.orbax-checkpoint-tmp")
    before = files(run.workdir / "checkpoints")
    next(run.watch())
    run.evaluate()
    assert files(run.workdir / "checkpoints") == before


def test_reading_makes_no_folder(run):
    run.init_workdir()
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        run.evaluate()
    assert newest(run.workdir) is None and not (run.workdir / "checkpoints").exists()


def test_a_step_that_is_being_deleted_does_not_keep_others_from_being_read(run):
    run.init_workdir()
    run.save(6)
    gone = run.workdir / "checkpoints" / "3"
    (gone / "metrics").mkdir(parents=True)
    (gone / "metrics" / "metrics").write_text("")  # Orbax would want to know how good it is
    with Checkpoints(run.workdir, reading=True) as checkpoints:
        assert checkpoints.steps() == [3, 6] and checkpoints.last() == 6
        shutil.rmtree(gone)
        assert checkpoints.best() is None  # of those that are there none was measured
    assert next(run.watch())["step"] == 6


def test_a_run_is_not_finished_while_it_is_watched(run):
    run.init_workdir()
    job = running.Job(run.config, run.workdir)
    assert not running.is_finished(job)
    run.save(6)
    watcher = run.watch()
    next(watcher)
    assert not running.is_finished(job)
    run.save(run.total)
    next(watcher)
    assert running.is_finished(job)
