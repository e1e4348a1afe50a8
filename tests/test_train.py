"""Training as a whole: the loop resumes exactly, freezes what it must, stops when it must, and learns."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close, build, load_config, open_tiny, tiny_config, tiny_tvi_config

from jax_mmreid import evaluate, train
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import ConfigDict
from jax_mmreid.errors import ConfigError, DataError, NonFiniteError, PreemptedError
from jax_mmreid.methods.miss_reid import MissReID


def small(folder, row="F", **changes):
    """The tiny experiment with one layer and two modalities, half of whose pictures are missing."""
    return tiny_config(folder, row=row, eta="0.5", modalities="nir/tir", **{"model.image.layers": 1} | changes)


def last_state(config, workdir, data=None):
    exp = build(config, data or open_tiny(config))
    with Checkpoints(workdir) as checkpoints:
        return jax.device_get(checkpoints.restore(checkpoints.last(), exp.abstract))


class Run(NamedTuple):
    """A finished run and what was seen of it on the way."""

    config: ConfigDict
    workdir: Path
    traces: list  # of the loss: whether it had its text terms
    states: dict  # by step: the first one and those that were saved


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    """Three epochs with text terms in the last, evaluated after each."""
    config = small(drawn, eval_every=1)
    with config.unlocked():
        config.evals = {name: config.evals[name].to_dict() for name in ("full", "no_n")}
    workdir = tmp_path_factory.mktemp("run")
    traces, states = [], {}
    loss, begin, save = MissReID.loss, train.start_or_resume, Checkpoints.save

    def seen(state):
        states[int(state.step)] = jax.tree.map(np.array, jax.device_get(state))  # copies: the step reuses the memory
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MissReID, "loss", lambda self, *args: traces.append(self.text_terms) or loss(self, *args))
        patch.setattr(train, "start_or_resume", lambda *args: seen(begin(*args)))
        patch.setattr(Checkpoints, "save", lambda self, step, state, *args: save(self, step, seen(state), *args))
        train.train(config, workdir, open_tiny(config))
    return Run(config, workdir, traces, states)


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_half_of_all_pictures_missing_trains_without_nan(run):
    lines = lines_of(run.workdir)
    assert lines[-1]["step"] == 3 * open_tiny(run.config).spec.steps_per_epoch
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert np.mean([line["present"] for line in lines if "present" in line]) < 0.8
    state = last_state(run.config, run.workdir)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_step_is_traced_once_per_phase(run):
    assert run.traces == [False, True]


def test_the_text_tower_never_moves_and_the_language_side_waits(run):
    first, _, waiting, after = (run.states[step] for step in sorted(run.states))
    language = {"text_nir", "text_tir"}
    for state in (waiting, after):
        assert_trees_close(first.frozen, state.frozen, atol=0)
    assert "text" in first.frozen and language < first.params["heads"].keys()
    for part in ("prompts", "inversion"):
        assert_trees_close(first.params[part], waiting.params[part], atol=0)
        assert moved(first.params[part], after.params[part])
    for name, head in first.params["heads"].items():
        assert moved(head["classifier"], waiting.params["heads"][name]["classifier"]) == (name not in language)
        assert moved(head["classifier"], after.params["heads"][name]["classifier"])
        if name in language:
            assert_trees_close(head, waiting.params["heads"][name], atol=0)


def moved(before, after):
    return any(np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (before, after))))


@pytest.mark.parametrize("stop_after", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_stopped_run_resumes_and_ends_where_an_uninterrupted_one_does(run, tmp_path, stop_after):
    config, workdir, *_ = run
    data = open_tiny(config)

    class Interrupted:
        """The same data; SIGTERM arrives while batch `stop_after` is read, one ahead of the step."""

        def __getattr__(self, name):
            return getattr(data, name)

        def train(self, first, stop):
            for number, batch in enumerate(data.train(first, stop), first):
                if number == stop_after:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    with pytest.raises(PreemptedError, match=rf"stopped at step {stop_after} of 2\d and saved"):
        train.train(config, tmp_path, Interrupted())
    train.train(config, tmp_path, data)
    assert_trees_close(last_state(config, workdir), last_state(config, tmp_path), atol=0)
    steps = [line["step"] for line in lines_of(tmp_path)]
    assert steps == sorted(steps)


def test_another_seed_starts_differently(run):
    exp = build(run.config, open_tiny(run.config))
    key = jax.device_put(jax.random.PRNGKey(run.config.seed + 1), train.sharding.replicated(exp.mesh))
    other, first = (params["image"]["class_embedding"] for params in (exp.create(key).params, run.states[0].params))
    assert np.abs(other - first).max() > 0
    rows = [next(open_tiny(small(run.config.data.data_dir, seed=seed)).train(0, 1))["index"] for seed in (1, 2)]
    assert (rows[0] != rows[1]).any()


def test_a_finished_run_has_nothing_left_to_do(run):
    config, workdir, *_ = run
    before = (workdir / "metrics.jsonl").read_text()
    train.train(config, workdir, open_tiny(config))
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("use", [("text",), ("rgb", "text")])
def test_a_row_without_a_vector_is_refused_before_training(drawn, tmp_path, use):
    """A former defect: Miss-ReID ranked vectors of zeros for captions, here mAP .33."""
    config = tiny_config(drawn, row="A", **{"data.text.tokenizer": "train", "data.text.vocab_size": 520})
    with config.unlocked():
        config.data.options.captioner = "Blip"
        config.evals.full.query.use = use
    with pytest.raises(ConfigError, match="^evals.full: miss_reid"):
        train.train(config, tmp_path, open_tiny(config))
    assert not (tmp_path / "config.json").exists()


def test_captions_that_a_row_needs_are_looked_for_before_training(drawn_sysu, tmp_path, monkeypatch):
    """A former defect: with captions of one modality in the queries, evaluation after training ended in KeyError."""
    config = tiny_tvi_config(drawn_sysu)
    data = open_tiny(config)
    query = data._splits["query"].split.captions
    monkeypatch.delitem(query.captions, "ir")
    assert "text/ir" not in data.present("query") and "text/rgb" in data.present("query")
    with pytest.raises(ConfigError, match="^evals.all/fusion: tvi_lfm: ir.text needs captions of ir"):
        train.train(config, tmp_path, data)


def test_a_workdir_of_another_config_is_refused(run):
    config, workdir, *_ = run
    other = small(config.data.data_dir, **{"model.tau": 0.1})
    with pytest.raises(ConfigError, match=r"another config: model.tau \(0.05 -> 0.1\); choose another --workdir"):
        train.train(other, workdir, open_tiny(other))


@pytest.fixture
def idle(monkeypatch):
    """Steps that only count, for what the loop does around them."""
    step = jax.jit(lambda state: (state.replace(step=state.step + 1), {"loss": jnp.float32(1)}), donate_argnums=0)
    monkeypatch.setattr(train, "compile_step", lambda *_: lambda state, batch: step(state))


def test_a_workdir_without_a_checkpoint_may_take_another_config(drawn, tmp_path, idle):
    (tmp_path / "config.json").write_text('{"seed": 5}')
    config = small(drawn, row="A")
    train.train(config, tmp_path, open_tiny(config))
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == config.seed


def test_a_workdir_of_other_files_is_refused(run, tmp_path):
    config, workdir, *_ = run
    shutil.copytree(config.data.data_dir, tmp_path / "copy")
    for folder in ("RGB", "NI", "TI"):
        sorted((tmp_path / "copy" / "train_171" / folder).iterdir())[0].unlink()
    moved = small(tmp_path / "copy")
    with pytest.raises(DataError, match="was trained on other files or masks"):
        train.train(moved, workdir, open_tiny(moved))


def test_masks_are_kept_beside_the_run_and_can_be_used_again(run):
    config, workdir, *_ = run
    again = small(config.data.data_dir, **{"missing.mask_file": str(workdir / "masks.npz")})
    np.testing.assert_array_equal(open_tiny(again).present_train, open_tiny(config).present_train)


def test_without_its_config_a_workdir_is_still_of_its_config(run, tmp_path):
    """A former defect: with config.json deleted a run resumed under another learning rate."""
    config, workdir, *_ = run
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    other = small(config.data.data_dir, **{"optim.lr.new": 1e-2})
    with pytest.raises(ConfigError, match="has a checkpoint of another config .*; restore its config.json"):
        train.train(other, tmp_path / "run", open_tiny(other))
    assert not (tmp_path / "run" / "config.json").exists()
    train.train(config, tmp_path / "run", open_tiny(config))
    for name in ("config.json", "data_spec.json"):
        assert (tmp_path / "run" / name).read_text() == (workdir / name).read_text()


@pytest.fixture
def spoiled(idle, monkeypatch):
    """A function that makes the loss NaN from a step on."""
    original, steps = train.compile_step, []

    def spoil(step):
        def compile_step(*args):
            run = original(*args)

            def spoiled(state, batch):
                steps.append(1)
                state, scalars = run(state, batch)
                return state, scalars | ({"loss": jax.device_put(np.nan)} if len(steps) >= step else {})

            return spoiled

        monkeypatch.setattr(train, "compile_step", compile_step)

    return spoil


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(drawn, tmp_path, spoiled):
    spoiled(1)
    config = small(drawn, row="A")
    with pytest.raises(NonFiniteError, match="step 2: .*loss=nan.*; no checkpoint was saved yet"):
        train.train(config, tmp_path, open_tiny(config))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last() is None


def test_a_loss_that_is_not_finite_is_found_before_an_evaluation_and_before_a_save(drawn, tmp_path, spoiled):
    """A former defect: a NaN that appeared after the last log step ended as a DataError of the evaluation."""
    config = small(drawn, row="A", eval_every=2, save_every=1, log_every=1000)
    data = open_tiny(config)
    epoch = data.spec.steps_per_epoch
    spoiled(2 * epoch)
    with pytest.raises(
        NonFiniteError, match=rf"step {2 * epoch}: .*=nan.*; the last good checkpoint is of step {epoch}$"
    ):
        train.train(config, tmp_path, data)


def test_a_term_without_a_weight_is_an_error(drawn, tmp_path):
    config = small(drawn, row="A")
    with config.unlocked():
        del config.weights["identity"]
    with pytest.raises(KeyError, match="identity"):
        train.train(config, tmp_path, open_tiny(config))


def test_evaluation_in_training_is_logged_and_picks_the_best(run):
    config, workdir, *_ = run
    lines, data = lines_of(workdir), open_tiny(config)
    measured = {line["step"]: line["full/mAP"] for line in lines if "full/mAP" in line}
    assert sorted(measured) == [epoch * data.spec.steps_per_epoch for epoch in (1, 2, 3)]
    result = evaluate.evaluate(config, workdir, data, step="best")
    assert result["step"] == max(measured, key=lambda step: (measured[step], step))
    assert {"lr/tower", "lr/new", "grad_norm", "update_norm", "param_norm"} <= set(lines[0])
    assert result["evals"]["full"]["mAP"] == pytest.approx(measured[result["step"]], abs=1e-6)


def test_the_best_may_be_a_step_at_which_nothing_else_is_saved(drawn, tmp_path, idle, monkeypatch):
    """A former defect: `best` saw only steps that were both evaluated and saved."""
    scores = iter((0.25, 0.75, 0.5))
    monkeypatch.setattr(train, "_run_evals", lambda *_: {"full": {"mAP": next(scores)}})
    config = small(drawn, row="A", eval_every=1, save_every=0)
    data = open_tiny(config)
    train.train(config, tmp_path, data)
    with Checkpoints(tmp_path) as checkpoints:
        assert (
            checkpoints.best() == 2 * data.spec.steps_per_epoch and checkpoints.last() == 3 * data.spec.steps_per_epoch
        )


@pytest.mark.slow
def test_the_quickstart_generalises_to_held_out_identities(tmp_path):
    config = load_config("quickstart")
    config.data.data_dir = str(tmp_path / "drawn")
    data = open_tiny(config)
    train.train(config, tmp_path / "run", data)
    evals = evaluate.evaluate(config, tmp_path / "run", data)["evals"]
    assert evals["full"]["mAP"] >= 0.80
    assert evals["mean_missing"]["mAP"] >= 0.45
    assert evals["full"]["mAP"] > evals["mean_missing"]["mAP"] > evals["no_rn"]["mAP"]
