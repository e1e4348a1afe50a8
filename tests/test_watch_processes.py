"""The watcher in a thread or process of its own, beside the one that trains, and in two processes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import open_tiny
from watched import Run, few, opened

from jax_mmreid import evaluate, train, watch
from jax_mmreid.report import tables

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(drawn, tmp_path):
    return Run(tmp_path / "run", *opened(drawn))


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
from watched import few
from jax_mmreid import watch
from jax_mmreid.batch import Share
config = few(folder, **{"mesh.data": -1})
print([x["step"] for x in watch.watch(config, workdir, lambda: open_tiny(config, Share((int(index),), 2)))])
"""


@pytest.mark.exhaustive
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
