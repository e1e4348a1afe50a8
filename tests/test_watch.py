"""The watcher: every checkpoint that it sees is measured once, on what was built once, beside a run that goes on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import build, noise, open_tiny, tiny_config
from tensorboardX.proto.event_pb2 import Event

from jax_mmreid import evaluate, train, watch
from jax_mmreid import run as running
from jax_mmreid.checkpoint import Checkpoints, newest
from jax_mmreid.config import config_hash, to_json
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import encoder
from jax_mmreid.report import tables

ROOT = Path(__file__).parent.parent


def few(folder, **changes):
    """A method without text and two rows of evaluation; `changes` as in tiny_config."""
    config = tiny_config(folder, row="A", **changes)
    with config.unlocked():
        for name in set(config.evals) - {"full", "no_t"}:
            del config.evals[name]
    return config


@pytest.fixture(scope="module")
def tiny(drawn):
    """(config, data, experiment)."""
    config = few(drawn)
    data = open_tiny(config)
    return config, data, build(config, data)


class Run:
    """A run that saves when a test tells it to; the weights of a step are a function of the step."""

    def __init__(self, workdir, config, data, exp):
        self.workdir, self.config, self.data, self.exp = workdir, config, data, exp
        self.total = exp.phases[-1].stop

    def init_workdir(self, config=None):
        self.workdir.mkdir(parents=True)
        train.init_workdir(self.workdir, config or self.config, self.data, self.exp.spec, fresh=True)

    def save(self, *steps):
        for step in steps:
            with Checkpoints(self.workdir) as checkpoints:
                checkpoints.save(step, noise(self.exp.abstract, seed=step), {})

    def watch(self, config=None):
        return watch.watch(config or self.config, self.workdir, lambda: self.data)

    def evaluate(self):
        return evaluate.evaluate(self.config, self.workdir, self.data)

    def history(self):
        return [json.loads(line) for line in (self.workdir / "eval" / "metrics.jsonl").read_text().splitlines()]

    def results(self, name="results"):
        return json.loads((self.workdir / f"{name}.json").read_text())


@pytest.fixture
def run(tiny, tmp_path):
    return Run(tmp_path / "run", *tiny)


@pytest.fixture
def meanwhile(monkeypatch):
    """A list of what happens while the watcher sleeps, one entry each time; it may not sleep more often."""
    script = []
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: script.pop(0)()))
    return script


def files(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.slow
def test_a_run_is_followed_from_before_it_begins_to_its_last_step(drawn, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="jax_mmreid.watch")
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)
    config, workdir = few(drawn), tmp_path / "run"
    data = open_tiny(config)
    watcher = watch.watch(config, workdir, lambda: open_tiny(config))
    trainer = threading.Timer(0.3, train.train, (config, workdir, data))
    trainer.start()
    try:
        seen = list(watcher)
    finally:
        trainer.join()
    steps = [results["step"] for results in seen]
    assert steps == sorted(set(steps)) and steps[-1] == 3 * data.spec.steps_per_epoch
    assert set(steps) <= {epoch * data.spec.steps_per_epoch for epoch in (1, 2, 3)}
    assert caplog.messages[0] == f"waiting for the first checkpoint of a run in {workdir}"
    assert sum("first checkpoint" in message for message in caplog.messages) == 1
    assert json.loads((workdir / "results.json").read_text()) == seen[-1]
    assert (workdir / "results.md").read_text() == tables.markdown(seen[-1])
    assert evaluate.evaluate(config, workdir, data)["evals"] == seen[-1]["evals"]


def test_it_waits_for_a_run_and_opens_nothing_before_there_is_one(run, meanwhile):
    opened = []
    watcher = watch.watch(run.config, run.workdir, lambda: opened.append(1) or run.data)
    meanwhile += [lambda: None, run.init_workdir, lambda: opened.append(0), lambda: run.save(6)]
    assert next(watcher)["step"] == 6 and opened == [0, 1] and not meanwhile
    meanwhile += [lambda: None, lambda: run.save(9)]
    assert next(watcher)["step"] == 9 and opened == [0, 1] and not meanwhile


def test_it_measures_the_newest_and_leaves_out_what_came_and_went(run):
    run.init_workdir()
    run.save(3, 6)
    watcher = run.watch()
    assert next(watcher)["step"] == 6
    run.save(9, 12, 15)
    assert next(watcher)["step"] == 15
    run.save(run.total)
    assert [results["step"] for results in watcher] == [run.total]
    assert [line["step"] for line in run.history()] == [6, 15, run.total]


def test_what_it_writes_is_what_an_evaluation_of_the_same_step_gives(run):
    run.init_workdir()
    watcher, expected = run.watch(), {}
    for step in (6, 9, run.total):
        run.save(step)
        results = next(watcher)
        assert run.results() == results and results["which"] == "last" and results["config_hash"]
        assert (run.workdir / "results.md").read_text() == tables.markdown(results)
        expected[step] = run.evaluate()["evals"]
        assert results["evals"] == expected[step]
    assert next(watcher, None) is None
    assert len({evals["full"]["mAP"] for evals in expected.values()}) == 3
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


def test_a_second_checkpoint_compiles_nothing(run):
    compiled = []

    def listen(event, _, **__):
        compiled.extend([event] if event.startswith("/jax/core/compile") else [])

    run.init_workdir()
    jax.clear_caches()
    run.save(6)
    watcher = run.watch()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        next(watcher)
        assert compiled
        sizes = encoder.encode._cache_size(), encoder.embed._cache_size()
        assert min(sizes) > 0
        run.save(9)
        compiled.clear()
        assert next(watcher)["step"] == 9
        assert compiled == [] and sizes == (encoder.encode._cache_size(), encoder.embed._cache_size())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


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


def interrupted():
    raise KeyboardInterrupt


def test_a_new_watcher_resumes_where_the_last_one_ended(run, meanwhile):
    run.init_workdir()
    run.save(6)
    watcher = run.watch()
    next(watcher)
    meanwhile += [lambda: run.save(9), interrupted]
    assert next(watcher)["step"] == 9
    with pytest.raises(KeyboardInterrupt):
        next(watcher)
    before = run.history(), run.results()

    def look():
        assert (run.history(), run.results()) == before
        run.save(12)

    meanwhile += [look]
    assert next(run.watch())["step"] == 12 and not meanwhile
    assert [line["step"] for line in run.history()] == [6, 9, 12] and run.history()[:2] == before[0]


def test_a_watcher_that_was_killed_before_its_results_measures_again_and_writes_once(run, monkeypatch):
    run.init_workdir()
    run.save(6)
    next(run.watch())
    run.save(9)
    with monkeypatch.context() as patch:
        patch.setattr(watch, "write_results", lambda workdir, results: results["which"] == "best" or interrupted())
        with pytest.raises(KeyboardInterrupt):
            next(run.watch())
    assert [line["step"] for line in run.history()] == [6, 9] and run.results()["step"] == 6
    with (run.workdir / "eval" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "fu')
    assert next(run.watch())["step"] == 9
    assert [line["step"] for line in run.history()] == [6, 9] and run.results()["step"] == 9


def test_a_run_that_is_over_and_known_leaves_nothing_to_do(run, caplog):
    caplog.set_level("INFO", logger="jax_mmreid.watch")
    run.init_workdir()
    run.save(run.total)
    assert len(list(run.watch())) == 1
    before = (run.workdir / "results.json").read_text(), run.history()
    assert list(run.watch()) == []
    assert caplog.messages[-1] == f"step {run.total} of {run.total} has been evaluated before; results in {run.workdir}"
    assert ((run.workdir / "results.json").read_text(), run.history()) == before


def test_a_step_that_only_an_evaluation_has_measured_gets_into_the_history(run):
    run.init_workdir()
    run.save(run.total)
    run.evaluate()
    assert len(list(run.watch())) == 1 and [line["step"] for line in run.history()] == [run.total]


def test_the_history_of_a_run_that_was_begun_anew_is_its_own(run):
    run.init_workdir()
    run.save(12)
    next(run.watch())
    shutil.rmtree(run.workdir / "checkpoints")
    run.save(3)
    watcher = run.watch()
    next(watcher)
    run.save(6)
    next(watcher)
    assert [line["step"] for line in run.history()] == [3, 6]


def test_the_best_that_was_seen_is_kept_over_restarts(run, monkeypatch):
    """Of equals the later, as the trainer has it."""
    run.init_workdir()
    scores, best = iter((0.5, 0.25, 0.75, 0.75, 0.5)), []
    monkeypatch.setattr(evaluate.runner, "run", lambda *_, **__: {"full": {"mAP": next(scores)}, "no_t": {"mAP": 1.0}})
    monkeypatch.setattr(evaluate.tables, "markdown", lambda results: f"{results['step']} {results['which']}")
    for step in (3, 6, 9, 12, 15):
        run.save(step)
        next(run.watch())
        best.append(run.results("results_best")["step"])
        assert run.results() == run.results() | {"step": step, "which": "last"}
        assert (run.workdir / "results_best.md").read_text() == f"{best[-1]} best"
    assert best == [3, 3, 9, 12, 12]
    kept = run.results("results_best")
    assert kept["which"] == "best" and kept["evals"]["full"]["mAP"] == 0.75


def test_the_best_of_another_config_is_replaced(run):
    run.init_workdir()
    run.save(6)
    other = {"step": 3, "config_hash": "0123456789ab", "evals": {"full": {"mAP": 1.0}}}
    (run.workdir / "results_best.json").write_text(json.dumps(other))
    next(run.watch())
    kept = run.results("results_best")
    assert kept["step"] == 6 and kept["config_hash"] == config_hash(run.config)


def test_nothing_is_best_in_what_is_not_measured(run, drawn):
    config = few(drawn, best="mean_missing/mAP")
    run.init_workdir(config)
    run.save(6)
    next(run.watch(config))
    assert run.results()["step"] == 6 and not (run.workdir / "results_best.json").exists()


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


def command(*args, **options):
    """The command line in a process of its own, on one device, or on as many as `devices` says."""
    flags = f"--xla_force_host_platform_device_count={options.pop('devices', 1)}"
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, *args], cwd=ROOT, env=env, **pipes)


def quickstart(folder, workdir, *flags):
    """The quickstart on a few small pictures."""
    return (
        *("-m", "jax_mmreid.main", f"--config={ROOT}/configs/quickstart.py:row=A", f"--workdir={workdir}"),
        *(f"--config.data.data_dir={folder}", "--config.data.image_size=(32,16)", "--config.data.threads=0"),
        *("--config.data.identities=2", "--config.data.instances=2", "--config.data.eval_batch_size=8"),
        *("--config.model.image.layers=1", "--config.mesh.data=1", "--config.epochs=2", "--config.save_every=1"),
        *("--config.data.options.num_train_ids=4", "--config.data.options.num_test_ids=3"),
        *("--config.data.options.height=32", *flags),
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_watcher_ends_on_a_signal(number, tmp_path):
    process = command(*quickstart(tmp_path / "data", tmp_path / "run", "--mode=eval", "--watch"))
    for line in process.stderr:
        if line.startswith("waiting for the first checkpoint"):
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and out == "" and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_watcher_beside_a_training_process_prints_a_table_for_every_checkpoint_it_saw(tmp_path):
    given = tmp_path / "data", tmp_path / "run"
    watcher = command(*quickstart(*given, "--mode=eval", "--watch"))
    trainer = command(*quickstart(*given))
    _, complaint = trainer.communicate(timeout=300)
    assert trainer.returncode == 0, complaint
    out, err = watcher.communicate(timeout=120)
    assert watcher.returncode == 0, err
    ours = r"jax \d|training data: \d|waiting for |step \d+/\d+  full/mAP|evaluated checkpoint |step \d+ was deleted "
    for line in err.splitlines():
        assert re.match(ours, line), line
    steps = [json.loads(line)["step"] for line in (given[1] / "eval" / "metrics.jsonl").read_text().splitlines()]
    assert re.findall(r"^Checkpoint at step (\d+) \(last\)", out, re.MULTILINE) == [str(step) for step in steps]
    results = json.loads((given[1] / "results.json").read_text())
    assert results["step"] == results["steps"] == steps[-1]


TWO = """
import sys
import jax
index, port, folder, workdir = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
from conftest import open_tiny
from test_watch import few
from jax_mmreid import watch
config = few(folder, **{"mesh.data": -1})
print([x["step"] for x in watch.watch(config, workdir, lambda: open_tiny(config, (int(index), 2)))])
"""


@pytest.mark.slow
def test_two_processes_follow_the_same_steps(run, drawn, port):
    run.init_workdir()
    run.save(6)
    processes = [command("-c", TWO, str(i), str(port), str(drawn), str(run.workdir), devices=4) for i in range(2)]
    try:
        while not (run.workdir / "results.json").exists() and None in [process.poll() for process in processes]:
            time.sleep(0.1)
        run.save(run.total)
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    # Gloo writes to stdout too.
    assert [out.splitlines()[-1:] for out, _ in said] == [[f"[6, {run.total}]"]] * 2, said
    assert [line["step"] for line in run.history()] == [6, run.total]
    found, expected = run.results()["evals"], run.evaluate()["evals"]
    for name, row in expected.items():
        assert row == pytest.approx(found[name], abs=1e-6)
