"""Every masked loss as a method reduces it over a batch, and random batches of partly masked features."""

import functools

import jax
import numpy as np

from jax_mmreid.losses.contrastive import prototype_nce
from jax_mmreid.losses.identity import cross_entropy
from jax_mmreid.losses.triplet import batch_hard_triplet, weighted_triplet
from jax_mmreid.ops import masked, memory

B, D, K = 11, 7, 5


def proto_of(seed, missing=()):
    proto = np.array(masked.unit(np.random.default_rng(seed).normal(size=(K, D))))
    proto[list(missing)] = 0
    return proto


PROTO = proto_of(9, missing=[3])


# name -> the batch loss of x [B,D], labels [B], where [B], as a method would reduce it
def reduced_triplet(x, labels, where, margin=None):
    loss, anchors = batch_hard_triplet(x, labels, margin=margin, where=where)
    return masked.mean(loss, anchors)


def reduced_weighted(x, labels, where):
    loss, anchors = weighted_triplet(x, labels, where=where)
    return masked.mean(loss, anchors)


def reduced_cross_entropy(x, labels, where):
    return masked.mean(cross_entropy(x, labels, where=where), where)


def reduced_nce(x, labels, where):
    valid = memory.valid(PROTO)
    return masked.mean(prototype_nce(x, labels, PROTO, tau=0.05, valid=valid, where=where), where & valid[labels])


LOSSES = {
    "triplet": jax.jit(jax.value_and_grad(reduced_triplet)),
    "margin": jax.jit(jax.value_and_grad(functools.partial(reduced_triplet, margin=0.3))),
    "weighted": jax.jit(jax.value_and_grad(reduced_weighted)),
    "cross_entropy": jax.jit(jax.value_and_grad(reduced_cross_entropy)),
    "nce": jax.jit(jax.value_and_grad(reduced_nce)),
}


def batch(seed, rows=B, present=0.7):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, D)).astype(np.float32)
    return x, rng.integers(0, K, rows).astype(np.int32), rng.random(rows) < present


def torch_value_and_grad(torch, f, x):
    """f(x) and its gradient, by PyTorch."""
    x = torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True)
    value = f(x)
    value.backward()
    return value.item(), x.grad.numpy()
