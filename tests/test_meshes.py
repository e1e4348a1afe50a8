"""Equality of all methods on every mesh of eight devices, in small; what is compiled for a million identities."""

import functools
import json

import jax
import meshes
import pytest
from conftest import open_tiny, tiny_config
from meshes import SHAPES, on

from jax_mmreid import evaluate, train

pytestmark = pytest.mark.slow

CASES = {
    "miss_reid": ("drawn", meshes.miss_reid, {}),
    "tvi_lfm base": ("drawn_sysu", meshes.tvi_lfm, {"stage": "base"}),
    "tvi_lfm lfm": ("drawn_sysu", meshes.tvi_lfm, {}),
    "clip": ("drawn", meshes.clip, {}),
    "fsdp": ("drawn", meshes.miss_reid, {"fsdp": 32}),
    "per_epoch_mean": ("drawn", meshes.miss_reid, {"model.memory.update": "per_epoch_mean"}),
    "parts": ("drawn", meshes.miss_reid, {"model.mining_blocks": 4, "model.microbatches": 2}),
}
METHODS = list(CASES)[:4]
OFTEN = [("miss_reid", (2, 4)), ("tvi_lfm lfm", (4, 2)), ("clip", (8, 1)), ("fsdp", (2, 4))]
SELDOM = [(case, shape) for case in METHODS for shape in SHAPES]
SELDOM += [("fsdp", (8, 1)), ("per_epoch_mean", (2, 4)), ("parts", (2, 4))]
MESHES = OFTEN + [pytest.param(*x, marks=pytest.mark.exhaustive) for x in SELDOM if x not in OFTEN]


@pytest.fixture(scope="module")
def one_device(request, tmp_path_factory):
    """A function of a case: its config and what its steps are on one device."""

    @functools.cache
    def found(case):
        folder, make, changes = CASES[case]
        config = make(request.getfixturevalue(folder), **changes)
        return config, meshes.run(on(config, (1, 1)), tmp_path_factory.mktemp("one"))

    return found


@pytest.mark.parametrize("case, shape", MESHES, ids=str)
def test_eight_devices_equal_one(one_device, case, shape, tmp_path):
    config, one = one_device(case)
    many = meshes.run(on(config, shape), tmp_path)
    meshes.assert_equal(one, many)
    if case == "fsdp":
        kernel = many.placed.params["image"]["block_0"]["fc"]["kernel"]  # [16,64]
        assert kernel.addressable_shards[0].data.size * 8 == kernel.size


def test_a_checkpoint_goes_on_on_another_mesh(one_device, tmp_path):
    config, one = one_device("miss_reid")
    for shape in ((1, 1), (8, 1)):
        workdir = tmp_path / str(shape)
        meshes.run(on(config, (4, 2)), workdir, stop=2)
        after = meshes.run(on(config, shape), workdir, start=2)
        meshes.assert_equal(one._replace(losses=one.losses[2:]), after)


@pytest.mark.exhaustive
@pytest.mark.parametrize("shape", [(1, 8), (2, 4)], ids=str)
def test_a_step_with_200_000_identities_equals_that_of_one_device(drawn, tmp_path, shape):
    config = meshes.miss_reid(drawn)
    one, many = (meshes.run(on(config, x), tmp_path / str(x), stop=2, classes=200_000) for x in ((1, 1), shape))
    meshes.assert_equal(one, many)
    proto, label = many.state.memory["proto"], one.state.memory["has_visual"].any(axis=0)
    assert proto.shape[1] == 200_000 and 1 < label.sum() <= 12 and (proto[:, label] != 0).any()
    assert many.placed.memory["proto"].addressable_shards[0].data.shape[1] == 200_000 // shape[1]


def test_tables_do_not_depend_on_how_parameters_are_split(drawn, tmp_path):
    """An evaluation in training and one after it, with parameters split over `data` and without."""
    changes = {"modalities": "nir/tir", "epochs": 1, "eval_every": 1, "data.instances": 4, "model.image.layers": 1}
    tables = []
    for fsdp in (32, 0):
        config = on(tiny_config(drawn, row="A", fsdp=fsdp, **changes), (8, 1))
        if fsdp:
            train.train(config, tmp_path, open_tiny(config))
        tables.append(evaluate.evaluate(config, tmp_path, open_tiny(config))["evals"])
    assert tables[0] == tables[1]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["full/mAP"] == tables[0]["full"]["mAP"]


def test_microbatches_do_not_change_a_step(one_device, tmp_path):
    config, _ = one_device("miss_reid")
    one, four = (on(config, (1, 1)) for _ in range(2))
    four.model.microbatches = 4
    meshes.assert_equal(*(meshes.run(x, tmp_path / str(x.model.microbatches), stop=1) for x in (one, four)), 1e-6)


def test_microbatches_need_less_memory(drawn):
    config = on(meshes.miss_reid(drawn, row="A", **{"data.instances": 32, "model.image.layers": 3}), (2, 1))
    sizes = []
    for count in (1, 4):
        config.model.microbatches = count
        step = meshes.compiled(config, meshes.build(config, open_tiny(config)))
        sizes.append(step.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 0.5 * sizes[0]


IDENTITIES = 1_000_000


@pytest.mark.parametrize("case, shape", [("miss_reid", (1, 8)), ("fsdp", (2, 4)), ("tvi_lfm base", (1, 8))], ids=str)
def test_no_device_holds_anything_of_a_million_identities(request, case, shape):
    """Classifiers, moments and prototypes, and the logits of a batch, in the step as it is compiled."""
    folder, make, changes = CASES[case]
    config = on(make(request.getfixturevalue(folder), **changes), shape)
    exp = meshes.build(config, open_tiny(config), IDENTITIES)
    step, start = meshes.compiled(config, exp), exp.create.lower(jax.random.PRNGKey(0)).compile()
    for program in (step, start):
        assert max(meshes.axes(program.as_text())) == IDENTITIES // shape[1]
    sizes = {path: x.size * x.dtype.itemsize for path, x in jax.tree.leaves_with_path(exp.abstract)}
    shared = sum(sizes[path] for path, x in jax.tree.leaves_with_path(exp.abstract) if IDENTITIES in x.shape)
    others = sum(sizes.values()) - shared
    assert shared > 1e8 > 10 * others
    assert step.memory_analysis().argument_size_in_bytes < 1.001 * shared / shape[1] + others
    assert step.memory_analysis().temp_size_in_bytes < 2 * shared / shape[1]
