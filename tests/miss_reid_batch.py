"""Random batches with missing pictures, and the loss of a method as a function of them."""

import jax.numpy as jnp
import numpy as np

from jax_mmreid.state import merge, streams


def float_batch(rng, rows, modalities, size=(32, 16), classes=12):
    """A normalised batch in which every row has at least one modality."""
    present = rng.random((rows, len(modalities))) < 0.6
    present[np.arange(rows), rng.integers(0, len(modalities), rows)] = True
    return {
        "images": {m: jnp.asarray(rng.normal(size=(rows, *size, 3)), jnp.float32) for m in modalities},
        "present": {m: jnp.asarray(present[:, i]) for i, m in enumerate(modalities)},
        "label": jnp.asarray(np.repeat(rng.permutation(classes)[: rows // 2], 2), jnp.int32),
        "camid": jnp.asarray(rng.integers(1, 4, rows), jnp.int32),
        "index": jnp.arange(rows, dtype=jnp.int32),
    }


def loss_of(method):
    return lambda state, batch: method.loss(
        merge(state.params, state.frozen), state, batch, streams(state.rng, state.step, ("dropout",))
    )
