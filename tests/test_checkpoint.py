"""Checkpoints: what is restored is what was saved, bit for bit, on any mesh; the last and the best are kept."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import build, open_tiny, tiny_config

from jax_mmreid import train
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import config_hash
from jax_mmreid.state import TrainState

META = {"fingerprint": "0123456789abcdef", "seed": 7}


def filled(abstract):
    """A state of these shapes with another number in every place, so that nothing can be taken for anything else."""
    rng = np.random.default_rng(0)

    def fill(x):
        if x.dtype == jnp.bool_:
            values = rng.random(x.shape) < 0.5
        elif jnp.issubdtype(x.dtype, jnp.integer):
            values = rng.integers(1, 2**31 - 1, x.shape)
        else:
            values = rng.standard_normal(x.shape)
        return jax.device_put(np.asarray(values, x.dtype), x.sharding)

    return jax.tree.map(fill, abstract)


@pytest.fixture(scope="module")
def saved(drawn, tmp_path_factory):
    """(config, data, experiment, state with every part in place, workdir in which it is saved as step 5)."""
    config = tiny_config(drawn)
    data = open_tiny(config)
    exp = build(config, data)
    state = filled(exp.abstract)
    assert all(jax.tree.leaves(part) for part in (state.frozen, state.batch_stats, state.memory, state.opt_state))
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save_frozen(state.frozen)
        checkpoints.save(5, state, META, 0.5)
    return config, data, exp, state, workdir


def small(step):
    """A state of a few numbers that tell the step."""
    return TrainState(
        step=jnp.int32(step),
        params={"w": jnp.full(3, step / 7)},
        frozen={},
        batch_stats={"mean": jnp.full(2, step / 11)},
        memory={},
        opt_state={"mu": jnp.full(3, step / 13)},
        rng=jax.random.PRNGKey(step),
    )


def save_all(workdir, best_metric):
    """Saves steps 3, 6, 9, ... with these best metrics."""
    with Checkpoints(workdir) as checkpoints:
        for step, value in zip(range(3, 100, 3), best_metric):
            checkpoints.save(step, small(step), META | {"step": step}, value)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def test_what_is_restored_is_what_was_saved_bit_for_bit(saved):
    _, _, exp, state, workdir = saved
    with Checkpoints(workdir) as checkpoints:
        assert_equal(checkpoints.restore(5, exp.abstract), state)
        assert checkpoints.meta(5) == META


def test_another_mesh_changes_where_it_lives_and_not_what_it_is(saved):
    config, data, _, state, workdir = saved
    config = config.copy_and_resolve_references()
    config.mesh = dict(data=4, model=2)
    other = build(config, data)
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(5, other.abstract)
    assert_equal(restored, state)
    assert jax.tree.all(jax.tree.map(lambda x, target: x.sharding == target.sharding, restored, other.abstract))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(restored.opt_state))


def test_a_model_is_read_without_its_optimizer(saved, tmp_path):
    _, _, exp, state, workdir = saved
    shutil.copytree(workdir, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "checkpoints" / "5" / "training")
    with Checkpoints(tmp_path / "copy") as checkpoints:
        restored = checkpoints.restore(5, exp.abstract.replace(opt_state=None, rng=None))
    assert restored.opt_state is None and restored.rng is None
    assert_equal(restored, state.replace(opt_state=None, rng=None))


def test_a_model_fits_its_own_checkpoint_and_misfits_are_named(saved, tmp_path):
    _, _, exp, _, workdir = saved
    target = exp.abstract.replace(opt_state=None, rng=None)
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.misfits(5, exp.abstract) == checkpoints.misfits(5, target) == []
        params = dict(target.params)
        del params["prompts"]
        params["more"] = params["heads"]["rgb"]["classifier"]["kernel"]
        found = checkpoints.misfits(5, target.replace(params=params))
        assert found == ["params/more", "params/prompts"]
    shutil.copytree(workdir, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "frozen")
    with Checkpoints(tmp_path / "copy") as checkpoints:
        assert {path.split("/")[0] for path in checkpoints.misfits(5, target)} == {"frozen"}


def test_frozen_parameters_are_not_part_of_a_step(saved):
    _, _, exp, state, workdir = saved
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(5, exp.abstract.replace(frozen={}))
    assert_equal(restored, state.replace(frozen={}))
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(workdir / "checkpoints" / "5" / "model").item_metadata.tree
    assert set(stored) == {"step", "params", "batch_stats", "memory"}
    assert set(stored["params"]) == set(state.params) and set(state.frozen) == {"text"}


def test_frozen_parameters_are_written_by_a_new_run_and_not_again(saved, tmp_path):
    config, data, exp, state, _ = saved
    exp = exp._replace(create=lambda _: state)
    with Checkpoints(tmp_path) as checkpoints:
        state = train.start_or_resume(config, exp, data, checkpoints)
        written = {file: file.stat().st_mtime_ns for file in (tmp_path / "frozen").rglob("*")}
        meta = {"fingerprint": data.spec.fingerprint, "config_hash": config_hash(config)}
        checkpoints.save(1, state, meta)
    assert written
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(train.start_or_resume(config, exp, data, checkpoints), state)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "frozen").rglob("*")} == written


def test_a_method_without_frozen_parameters_writes_none(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_frozen({})
    assert not (tmp_path / "frozen").exists()


def test_the_best_and_the_last_are_kept(tmp_path):
    save_all(tmp_path, (0.2, 0.9, 0.4))
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.last()) == ([6, 9], 6, 9)
        for step in (6, 9):
            assert_equal(checkpoints.restore(step, jax.eval_shape(lambda: small(0))), small(step))
            assert checkpoints.meta(step) == META | {"step": step}
    assert sorted(x.name for x in (tmp_path / "checkpoints").iterdir()) == ["6", "9"]


def test_the_best_may_be_the_last(tmp_path):
    save_all(tmp_path, (0.2, 0.4, 0.9))
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.last()) == ([9], 9, 9)


@pytest.mark.parametrize("apart", [False, True])
def test_of_equally_good_steps_the_latest_is_the_best(tmp_path, apart):
    best_metric = (0.4, 0.9, 0.2, 0.9, 0.9, 0.3)  # 6, 12 and 15 are equal, and 18 is the last
    if apart:  # a run that stops and goes on after every save
        for step, value in zip(range(3, 100, 3), best_metric):
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(step, small(step), META, value)
    else:
        save_all(tmp_path, best_metric)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.last()) == ([15, 18], 15, 18)
        assert_equal(checkpoints.restore(15, jax.eval_shape(lambda: small(0))), small(15))


def test_steps_that_were_not_measured_leave_the_best_as_it_is(tmp_path):
    save_all(tmp_path, (0.9, None, None))
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.last()) == ([3, 9], 3, 9)


def test_without_a_measurement_there_is_no_best(tmp_path):
    save_all(tmp_path, (None, None))
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.last()) == ([6], None, 6)


def test_an_empty_workdir_has_no_step(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.last()) == ([], None, None)


def test_a_checkpoint_that_was_not_finished_is_invisible(tmp_path):
    save_all(tmp_path, (0.2, 0.9))
    folder = tmp_path / "checkpoints"
    unfinished = folder / "9.orbax-checkpoint-tmp"  # the name under which Orbax writes until all is there
    shutil.copytree(folder / "6", unfinished)
    (unfinished / "commit_success.txt").unlink(missing_ok=True)
    shutil.rmtree(unfinished / "training")
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.last()) == ([6], 6, 6)
        checkpoints.save(9, small(9), META, 0.95)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last() == 9
        assert_equal(checkpoints.restore(9, jax.eval_shape(lambda: small(0))), small(9))


def test_saving_returns_before_the_state_may_change(tmp_path):
    """The loop gives its state away to the next step while it is still being written."""
    state = small(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, META)
        jax.tree.map(lambda x: x.delete(), state)
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore(3, jax.eval_shape(lambda: small(0))), small(3))
