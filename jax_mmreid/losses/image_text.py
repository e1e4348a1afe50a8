"""Contrast of pictures with captions over a whole batch: CLIP (Radford et al., 2021) and SigLIP (Zhai et al., 2023).

    z[i,j] = scale unit(x[i]).unit(y[j]) + bias,   row i of x belongs to row i of y
    info_nce: half of log(1 + sum_j exp(z[i,j] - z[i,i])) + log(1 + sum_j exp(z[j,i] - z[i,i]))
    sigmoid:  log(1 + exp(-z[i,i])) + sum_j log(1 + exp(z[i,j]))

j runs over the negatives of i: the rows that exist and whose key differs from that of i. The columns of z come in
blocks, computed again in the backward pass, so no device ever holds all of z: with rows over n devices a device has
[B/n,block] of it, and of y one block at a time.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_mmreid.ops import masked

NONE = -1e30  # the logit of pairs that are not negatives; finite, so that rows without any negative have gradients


def info_nce(x: Array, y: Array, *, scale: Array, key: Array, where: Array, block: int) -> Array:
    """CLIP's symmetric cross-entropy, per pair.

    x, y [B,D] of any norm, key [B], where [B] the pairs that exist, `block` the largest number of columns at a time
        -> [B] float32, 0 where a pair does not exist.
    """
    x, y = (masked.unit(masked.blank(side, where)) for side in (x, y))
    own = scale * (x * y).sum(axis=-1)

    def add(total: Array, columns: Columns) -> tuple[Array, Array]:
        z = _negatives(scale * _products(x, columns.y), (key, where), columns)
        return jnp.logaddexp(total, jax.nn.logsumexp(z, axis=1)), jax.nn.logsumexp(z, axis=0)

    of_rows, of_columns = _over_columns(add, jnp.full(own.shape, NONE), Columns(y, key, where), block)
    return masked.blank((jax.nn.softplus(of_rows - own) + jax.nn.softplus(of_columns - own)) / 2, where)


def sigmoid(x: Array, y: Array, *, scale: Array, bias: Array, key: Array, where: Array, block: int) -> Array:
    """SigLIP's loss, a binary decision for every pair of rows; arguments and result are those of `info_nce`."""
    x, y = (masked.unit(masked.blank(side, where)) for side in (x, y))
    own = scale * (x * y).sum(axis=-1) + bias

    def add(total: Array, columns: Columns) -> tuple[Array, None]:
        z = _negatives(scale * _products(x, columns.y) + bias, (key, where), columns)
        return total + jax.nn.softplus(z).sum(axis=1), None

    negatives, _ = _over_columns(add, jnp.zeros(own.shape), Columns(y, key, where), block)
    return masked.blank(jax.nn.softplus(-own) + negatives, where)


class Columns(NamedTuple):
    """The captions of some pairs, with their keys and whether they exist."""

    y: Array  # [...,D]
    key: Array
    where: Array


def _products(x: Array, y: Array) -> Array:
    return jnp.einsum("bd,cd->bc", x, y, precision=jax.lax.Precision.HIGHEST)


def _negatives(z: Array, rows: tuple[Array, Array], columns: Columns) -> Array:
    """z [B,C] with NONE where the column is not a negative of the row."""
    key, where = (side[:, None] for side in rows)
    return jnp.where((key != columns.key) & where & columns.where, z, NONE)


def _over_columns(add: Callable, total: Array, columns: Columns, block: int) -> tuple[Array, Array | None]:
    """Scans `add` over blocks of columns: the last total [B], and what it returned for each column, [B] or None.

    Block k of n holds columns k, k + n, ..., so that each is spread over the devices as the batch is. Blocks have
    between half of `block` and `block` columns; where B has no such divisor, the last ones are filled up with columns
    that do not exist.
    """
    B = len(total)
    smallest = -(-B // max(block, 1))
    blocks = next((n for n in range(smallest, 2 * smallest) if B % n == 0), smallest)
    fill = -B % blocks

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1))  # False in `where`
        return x.reshape(-1, blocks, *x.shape[1:]).swapaxes(0, 1)

    total, of_columns = jax.lax.scan(jax.checkpoint(add), total, jax.tree.map(split, columns))
    return total, jax.tree.map(lambda x: x.T.reshape(-1)[:B], of_columns)
