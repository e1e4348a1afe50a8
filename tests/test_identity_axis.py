"""Identities that devices share: nothing has an axis of all of them, and padding of that axis has no influence.

Losses and memory index that axis as if it were whole; the compiler keeps every lookup and update on the device that
holds the entry. The compiled text is read here, so that this does not get lost.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close, start, tiny_config
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import axes

from jax_mmreid.errors import ConfigError
from jax_mmreid.losses.branch import BranchLoss
from jax_mmreid.losses.prototypes import MemoryFields, Prototypes
from jax_mmreid.losses.triplet import batch_hard_triplet, in_blocks, weighted_triplet
from jax_mmreid.models.heads import Head, init_heads
from jax_mmreid.models.towers import in_microbatches
from jax_mmreid.ops import masked, memory
from jax_mmreid.sharding import make_mesh

B, M, D, K = 24, 2, 7, 1003
FILL = 5  # 1003 + 5 = 8 x 126
NAMES = ("rgb", "tir")
COLLECTIVE = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\(")


def batch(seed, classes=K):
    rng = np.random.default_rng(seed)
    feats, text = rng.normal(size=(2, B, M, D)).astype(np.float32)
    labels = np.repeat(rng.choice(classes, B // 2, replace=False), 2).astype(np.int32)
    return dict(feats=feats, text=text, label=labels, present=rng.random((B, M)) < 0.7)


def identity_losses(fill, update="per_step_sequential"):
    """Parameters, statistics and a memory of half the identities, and the losses of a step with what it changes."""
    head = Head(K, fill=fill)
    losses = BranchLoss(head, margin=None, smoothing=0.1)
    prototypes = Prototypes(MemoryFields(0.2, update, "after_loss", True), tau=0.3, steps_per_epoch=1, visual=True)
    params, stats = init_heads(Head(K), jax.random.PRNGKey(0), dict.fromkeys(NAMES, D))
    bank = memory.empty(M, K, D, update=update)
    known = np.arange(K) % 2 == 0
    proto = masked.unit(np.random.default_rng(9).normal(size=bank["proto"].shape)) * known[:, None]
    bank |= {"proto": proto, "has_visual": jnp.broadcast_to(known, (M, K))}
    params = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, fill))) if x.ndim == 2 else x, params)
    bank = {name: jnp.pad(x, ((0, 0), (0, fill), (0, 0))[: x.ndim]) for name, x in bank.items()}

    def step(params, bank, batch):
        def objective(params, feats):
            found = losses(params, stats, NAMES, feats, batch["present"], batch["label"])
            terms = prototypes.terms(bank, 0, batch["label"], feats, batch["present"], batch["text"])
            return found.identity + sum(terms[0].values()), (found.terms("") | terms[0], found.accuracy, terms[1])

        return jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(params, batch["feats"])

    return params, bank, step


def own(tree):
    """The tree without what fills up."""
    return jax.tree.map(lambda x: x[:, :K] if x.ndim > 1 and x.shape[1] == K + FILL else x, tree)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["per_step_batch_mean", "per_epoch_mean"])
def test_padding_of_identities_has_no_influence(update):
    params, bank, step = identity_losses(0, update)
    more, larger, padded_step = identity_losses(FILL, update)
    expected, found = jax.jit(step)(params, bank, batch(0)), jax.jit(padded_step)(more, larger, batch(0))
    assert_trees_close(own(found), expected, atol=1e-6, rtol=1e-6)
    (_, (_, _, after)), grads = found
    for x in jax.tree.leaves((after, [grads[0][name]["classifier"] for name in NAMES])):
        assert x.shape[1] == K + FILL and not x[:, K:].any()


@pytest.mark.parametrize("shape, update", [((2, 4), "per_step_sequential"), ((1, 8), "per_epoch_mean")])
def test_devices_share_identities(shape, update):
    """The same losses, gradients and updates as on one device, and no array has an axis of all identities."""
    params, bank, step = identity_losses(FILL, update)
    inputs = batch(1)
    expected = jax.jit(step)(params, bank, inputs)
    mesh = make_mesh(data=shape[0], model=shape[1])
    on_model = lambda x: NamedSharding(mesh, P(None, "model") if x.ndim > 1 else P())  # noqa: E731
    placed = jax.device_put((params, bank), jax.tree.map(on_model, (params, bank)))
    split = jax.device_put(inputs, NamedSharding(mesh, P("data")))
    compiled = jax.jit(step).lower(*placed, split).compile()
    assert_trees_close(compiled(*placed, split), expected, atol=1e-6, rtol=1e-5)
    text = compiled.as_text()
    assert (K + FILL) // shape[1] in axes(text) and max(axes(text)) < K
    # Of what devices exchange only gradients of the classifier, over "data", have an axis of identities.
    exchanged = [line for line in text.splitlines() if COLLECTIVE.search(line)]
    large = [line for line in exchanged if axes(line) & {(K + FILL) // shape[1]}]
    assert exchanged and all("transpose" in line and "classifier" in line for line in large)


@pytest.mark.parametrize("loss", [batch_hard_triplet, weighted_triplet])
def test_blocks_are_mined_by_themselves(loss):
    inputs, jitted = batch(2, classes=20), jax.jit(loss)
    kinds = [inputs["feats"][:, m] for m in range(M)]
    where = [inputs["present"][:, m] for m in range(M)]
    found = jax.jit(functools.partial(in_blocks, loss, 3))(kinds, inputs["label"], where)
    for i, rows in enumerate(np.split(np.arange(B), 3)):
        x, mask = (
            np.stack([kind[rows] for kind in side], axis=1).reshape(-1, *side[0].shape[1:]) for side in (kinds, where)
        )
        expected = jitted(x, np.repeat(inputs["label"][rows], M), where=mask)
        for a, b in zip(found, expected):
            np.testing.assert_allclose(a[i * len(x) : (i + 1) * len(x)], b, rtol=1e-6, atol=1e-6)


def test_mining_in_blocks_needs_no_other_device():
    mesh = make_mesh(data=4, model=1, devices=jax.devices()[:4])
    inputs = batch(3)
    rows = jax.device_put(
        (inputs["feats"][:, 0], inputs["label"], inputs["present"][:, 0]), NamedSharding(mesh, P("data"))
    )

    def mined(blocks, x, labels, where):
        loss = lambda x: in_blocks(batch_hard_triplet, blocks, [x], labels, [where])[0]  # noqa: E731
        value, pull = jax.vjp(loss, x)
        return value, pull(jnp.ones_like(value))

    texts = [jax.jit(functools.partial(mined, blocks)).lower(*rows).compile().as_text() for blocks in (1, 4)]
    assert COLLECTIVE.search(texts[0]) and not COLLECTIVE.search(texts[1])


def test_microbatches_equal_one_pass_and_stay_where_they_are():
    mesh = make_mesh(data=4, model=1, devices=jax.devices()[:4])
    rng = np.random.default_rng(4)
    weights, x = rng.normal(size=(D, 9)).astype(np.float32), rng.normal(size=(B, D)).astype(np.float32)

    def loss(count, x, weights):
        rows = (x, None, x[:, 0])
        y, first = in_microbatches(lambda rows: (jnp.tanh(rows[0] @ weights), rows[2]), rows, count)
        return (y @ y.T * first).sum()  # over all pairs of rows

    expected = jax.value_and_grad(functools.partial(loss, 1), argnums=(0, 1))(x, weights)
    for count in (2, 24):
        found = jax.jit(jax.value_and_grad(functools.partial(loss, count), argnums=(0, 1)))(x, weights)
        assert_trees_close(found, expected, atol=1e-5, rtol=1e-5)
    features = jax.jit(lambda x: in_microbatches(lambda x: jnp.tanh(x @ weights), x, 3))
    placed = jax.device_put(x, NamedSharding(mesh, P("data")))
    text = features.lower(placed).compile().as_text()
    assert not COLLECTIVE.search(text)
    np.testing.assert_array_equal(features(placed), features(x))


@pytest.mark.parametrize("field", ["microbatches", "mining_blocks"])
def test_parts_that_do_not_divide_the_batch_are_refused(drawn, field):
    with pytest.raises(ConfigError, match=f"config.model.{field}=3 does not divide the 8 rows of a batch"):
        start(tiny_config(drawn, **{f"model.{field}": 3}))
