"""What a watcher does once, over restarts too: it compiles, measures and writes every step, and keeps the best."""

import json
import shutil

import jax
import pytest
from watched import few
from watched import meanwhile as meanwhile
from watched import run as run
from watched import tiny as tiny

from jax_mmreid import evaluate, watch
from jax_mmreid.config import config_hash
from jax_mmreid.evaluators import encoder


@pytest.mark.slow
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
    row = lambda score: {"kind": "retrieval", "mAP": score}  # noqa: E731
    monkeypatch.setattr(evaluate.runner, "run", lambda *_, **__: {"full": row(next(scores)), "no_t": row(1.0)})
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
