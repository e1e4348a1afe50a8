"""Equality: the mesh changes where arrays live, never what they hold."""

import jax
import meshes
import numpy as np
import pytest
from conftest import start, tiny_config
from jax.sharding import PartitionSpec

from jax_mmreid.errors import ConfigError
from jax_mmreid.recipes.miss_reid import MISS_REID_GROUPS
from jax_mmreid.recipes.towers import TOWER_SHARDING
from jax_mmreid.sharding import make_mesh, state_sharding


@pytest.mark.slow
def test_eight_devices_equal_one(drawn, tmp_path):
    """Row B has batch norm, losses over the whole batch and the memory, here above a fixed tower.

    All methods on all meshes are in test_meshes.py.
    """
    changes = {"optim.rules": ((r"image/.*", "frozen"), *MISS_REID_GROUPS)}  # for a short compilation
    config = meshes.miss_reid(drawn, row="B", **changes)
    one, many = (meshes.run(meshes.on(config, shape), tmp_path / str(shape)) for shape in ((1, 1), (4, 2)))
    meshes.assert_equal(one, many)
    kernel = many.placed.params["heads"]["nir"]["classifier"]["kernel"]
    moment = many.placed.opt_state[0].inner_states["new"].inner_state[1].mu["heads"]["nir"]["classifier"]["kernel"]
    for leaf in (kernel, moment):
        assert leaf.sharding.spec == PartitionSpec(None, "model")
    assert many.placed.memory["proto"].sharding.spec == PartitionSpec(None, "model", None)
    assert many.placed.memory["has_visual"].sharding.spec == PartitionSpec(None, "model")
    assert many.placed.frozen["image"]["block_0"]["fc"]["kernel"].sharding.spec == PartitionSpec(None, "model")


def test_first_matching_rule_wins_and_the_default_is_replicated():
    mesh = make_mesh(data=4, model=2)
    tree = {"a": {"kernel": np.zeros((6, 4)), "bias": np.zeros(4)}, "b": np.zeros(())}
    rules = ((r"a/kernel$", (None, "model")), (r"kernel$", ("model", None)))
    found = state_sharding(mesh, jax.eval_shape(lambda: tree), rules)
    assert found["a"]["kernel"].spec == PartitionSpec(None, "model")
    assert found["a"]["bias"].spec == found["b"].spec == PartitionSpec()


def test_a_rule_that_does_not_divide_leaves_the_place_to_the_next():
    """Heads that do not divide: attention stays whole, and the rest of the block is split."""
    tree = {"attention": {"qkv": {"kernel": np.zeros((16, 3, 6, 5))}}, "fc": {"kernel": np.zeros((16, 64))}}
    shapes = jax.eval_shape(lambda: {"block_0": tree})
    for model, qkv in ((2, PartitionSpec(None, None, "model", None)), (4, PartitionSpec())):
        found = state_sharding(make_mesh(data=2, model=model), shapes, TOWER_SHARDING)["block_0"]
        assert found["attention"]["qkv"]["kernel"].spec == qkv
        assert found["fc"]["kernel"].spec == PartitionSpec(None, "model")


def test_fsdp_splits_the_largest_axis_that_is_free_and_divides():
    mesh = make_mesh(data=4, model=2)
    shapes = {"kernel": (6, 20, 8), "split": (16, 8), "odd": (7, 9), "small": (8,), "": ()}
    tree = {name: np.zeros(shape) for name, shape in shapes.items()}
    state = jax.eval_shape(lambda: {"params": tree, "memory": tree})
    found = state_sharding(mesh, state, ((r"split$", ("model", None)),), fsdp=9)
    specs = {name: x.spec for name, x in found["params"].items()}
    expected = {"kernel": (None, "data", None), "split": ("model", "data"), "odd": (None, None), "small": (), "": ()}
    assert specs == {name: PartitionSpec(*axes) for name, axes in expected.items()}
    assert found["memory"]["kernel"].spec == PartitionSpec()
    assert state_sharding(mesh, state, ())["params"]["kernel"].spec == PartitionSpec()


def test_identities_that_do_not_divide_are_refused_and_filled_up(drawn):
    with pytest.raises(
        ConfigError,
        match=r"classifier/kernel \(12, 12\) does not divide over 8 devices of axis 'model'; set config.mesh.model to "
        r"a divisor of 12, or where 12 is the number of identities config.model.class_multiple=8",
    ):
        start(tiny_config(drawn, row="A", **{"mesh.model": 8}), devices=jax.devices())
    exp, _, _ = start(tiny_config(drawn, row="B", **{"mesh.model": 8, "model.class_multiple": 8}), jax.devices())
    assert exp.abstract.params["heads"]["rgb"]["classifier"]["kernel"].shape == (12, 16)
    assert exp.abstract.memory["proto"].shape == (3, 16, 12)


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
