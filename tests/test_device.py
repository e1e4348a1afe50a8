"""What only an accelerator can show: the step agrees with the CPU's, and the published size trains in bfloat16.

JAX_PLATFORMS=cuda,cpu python -m pytest -n 0 -m device tests/test_device.py
"""

import jax
import numpy as np
import pytest
from conftest import assert_trees_close, build, load_config, open_tiny, tiny_config

from jax_mmreid import train
from jax_mmreid.sharding import to_global

pytestmark = pytest.mark.device


def updates(config, device, steps=3):
    """Losses and memory after some steps of the last phase on one device."""
    data = open_tiny(config)
    exp = build(config, data, devices=[device])
    state = exp.create(jax.device_put(jax.random.PRNGKey(0), device))
    step, losses = train.compile_step(config, exp, exp.phases[-1]), []
    for batch in data.train(0, steps):
        state, scalars = step(state, to_global(batch, exp.mesh))
        losses.append(jax.device_get(scalars))
    return losses, jax.device_get(state.memory)


def test_the_accelerator_agrees_with_the_cpu(drawn):
    config = tiny_config(drawn, eta="0.3", **{"optim.eps": 1e-3})
    with jax.default_matmul_precision("highest"):
        (here, memory), (there, reference) = (updates(config, d) for d in (jax.devices()[0], jax.devices("cpu")[0]))
    assert_trees_close(here, there, atol=1e-3, rtol=1e-3)
    assert_trees_close(memory, reference, atol=1e-3)


def test_the_published_size_trains_in_bfloat16(drawn):
    config = load_config("rgbnt201", "eta=0.3")
    tiny = tiny_config(drawn)
    config.data.update(name="synthetic", data_dir=tiny.data.data_dir, options=tiny.data.options)
    config.data.update(identities=4, instances=2)
    config.model.dtype = "bfloat16"
    losses, memory = updates(config, jax.devices()[0])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((losses, memory)))
