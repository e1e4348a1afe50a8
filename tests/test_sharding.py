"""Equality: the mesh changes where arrays live, never what they hold."""

import functools

import jax
import numpy as np
import pytest
from conftest import assert_trees_close, build, open_tiny, start, tiny_config
from jax.sharding import PartitionSpec

from jax_mmreid import train
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.errors import ConfigError
from jax_mmreid.recipes.miss_reid import MISS_REID_GROUPS
from jax_mmreid.sharding import make_mesh, state_sharding, to_global


def run_steps(config, devices, workdir, steps=3):
    """State and losses after the memory is filled and `steps` updates of the last phase are made."""
    data = open_tiny(config)
    exp = build(config, data, devices=devices)
    with Checkpoints(workdir) as checkpoints:
        state = train.start_or_resume(config, exp, data, checkpoints)
    step = train.compile_step(config, exp, exp.phases[-1])
    losses = []
    for batch in data.train(0, steps):
        assert not all(x.all() for x in batch["present"].values())
        state, scalars = step(state, to_global(batch, exp.mesh))
        losses.append(jax.device_get(scalars))
    return jax.device_get(state), losses, state


@pytest.fixture(scope="module")
def one_device(drawn, tmp_path_factory):
    """A function of the row of Table 1: the config, and what its steps are on one device."""

    @functools.cache
    def found(row):
        # Adam's first steps are the sign of a gradient even where that is rounding noise around an exact zero, as for
        # the bias of the keys; a larger eps takes this amplification out, and nothing else.
        changes = {"data.instances": 4, "optim.eps": 1e-3, "model.image.layers": 1}
        if row == "B":  # for a short compilation
            changes["optim.rules"] = ((r"image/.*", "frozen"), *MISS_REID_GROUPS)
        config = tiny_config(drawn, row=row, eta="0.3/0.5", modalities="nir/tir", **changes)
        return config, run_steps(config, jax.devices()[:1], tmp_path_factory.mktemp("one"))

    return found


@pytest.mark.parametrize(
    ("row", "shape"), [("B", (8, 1)), *(pytest.param("F", shape, marks=pytest.mark.slow) for shape in ((8, 1), (4, 2)))]
)
def test_eight_devices_equal_one(one_device, row, shape, tmp_path):
    """Row B has batch norm, losses over the whole batch and the memory, here above a fixed tower; row F everything."""
    config, (state, losses, _) = one_device(row)
    config = config.copy_and_resolve_references()
    config.mesh = dict(data=shape[0], model=shape[1])
    other, other_losses, placed = run_steps(config, jax.devices(), tmp_path)
    assert_trees_close(losses, other_losses, atol=1e-5, rtol=1e-5)
    assert_trees_close(state, other, atol=1e-5, rtol=1e-5)
    if shape[1] == 2:
        kernel = placed.params["image"]["block_0"]["fc"]["kernel"]
        moment = placed.opt_state[0].inner_states["tower"].inner_state[1].mu["image"]["block_0"]["fc"]["kernel"]
        for leaf in (kernel, moment):
            assert leaf.sharding.spec == PartitionSpec(None, "model")
        assert placed.memory["proto"].sharding.spec == PartitionSpec(None, None, "model")


def test_first_matching_rule_wins_and_the_default_is_replicated():
    mesh = make_mesh(data=4, model=2)
    tree = {"a": {"kernel": np.zeros((6, 4)), "bias": np.zeros(4)}, "b": np.zeros(())}
    rules = ((r"a/kernel$", (None, "model")), (r"kernel$", ("model", None)))
    found = state_sharding(mesh, jax.eval_shape(lambda: tree), rules)
    assert found["a"]["kernel"].spec == PartitionSpec(None, "model")
    assert found["a"]["bias"].spec == found["b"].spec == PartitionSpec()


def test_an_axis_that_does_not_divide_is_named():
    mesh = make_mesh(data=4, model=2)
    with pytest.raises(ConfigError, match=r"kernel \(6, 5\) does not divide over 2 devices of axis 'model'"):
        state_sharding(mesh, {"kernel": jax.ShapeDtypeStruct((6, 5), np.float32)}, ((r"kernel", (None, "model")),))


def test_a_rule_for_another_number_of_axes_is_named():
    mesh = make_mesh(data=4, model=2)
    with pytest.raises(ConfigError, match=r"bias \(6,\) has 1 axes, its rule \(None, 'model'\) has 2"):
        state_sharding(mesh, {"bias": jax.ShapeDtypeStruct((6,), np.float32)}, ((r"bias", (None, "model")),))


def test_a_mesh_that_does_not_fit_is_refused():
    assert make_mesh(data=3, model=2).shape == {"data": 3, "model": 2}
    for data, model in ((5, 2), (0, 2), (-1, 9)):
        with pytest.raises(ConfigError, match=f"x model={model} does not fit 8 devices"):
            make_mesh(data=data, model=model)


def test_a_batch_that_does_not_divide_is_refused(drawn):
    with pytest.raises(ConfigError, match="= 12 does not divide over 8 devices"):
        start(tiny_config(drawn, **{"data.instances": 3, "mesh.data": -1}), devices=jax.devices())
