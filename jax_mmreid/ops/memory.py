"""Prototype memory: one unit vector per modality and training identity (Miss-ReID, NeurIPS 2025, Eq. 2-3).

    fill    p[m,k]  = unit(mean of the unit features of identity k in modality m), zero if it has none  (Eq. 2)
    update  p[m,k] <- unit(alpha p[m,k] + (1 - alpha) f)                                                (Eq. 3)

The prototypes are a float32 array proto [M,K,D] of unit or zero rows. A zero row is a prototype that does not exist
yet; the update needs no special case for it, since unit(alpha 0 + (1 - alpha) f) = f. Features are normalised here and
get no gradient; entries outside `where` are never read.

Identities may be split over devices. A batch takes out the entries of its identities (`read`), works on these, and puts
them back: a device reads and writes what it holds, and what devices exchange has the size of a batch.
"""

import jax
import jax.numpy as jnp

from jax_mmreid.ops import masked

# When prototypes are updated: after every sample, once a batch, once an epoch.
UPDATES = ("per_step_sequential", "per_step_batch_mean", "per_epoch_mean")


def init(modalities: int, identities: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Zeros (sums [M,K,D] float32, counts [M,K] int32) to start accumulating from."""
    return jnp.zeros((modalities, identities, width)), jnp.zeros((modalities, identities), jnp.int32)


def read(bank: jax.Array, labels: jax.Array) -> jax.Array:
    """The entries of the identities of a batch: bank [M,K,...], labels [B] -> [M,B,...]."""
    return jnp.asarray(bank)[:, labels]


def accumulate(
    sums: jax.Array, counts: jax.Array, feats: jax.Array, labels: jax.Array, where: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Adds the unit features of a batch to sums and counts; feats [B,M,D], labels [B], where [B,M]."""
    added = _added(read(sums, labels), read(counts, labels), feats, labels, where)
    return _write(sums, added[0], labels, where), _write(counts, added[1], labels, where)


def finalize(sums: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(proto [M,K,D], has_visual [M,K] bool) from sums and counts; Eq. 2."""
    return masked.unit(sums), counts > 0


def valid(proto: jax.Array) -> jax.Array:
    """[M,K] bool: which rows of proto [M,K,D] hold a prototype."""
    return jnp.any(proto != 0, axis=-1)


def ema(proto: jax.Array, sums: jax.Array, counts: jax.Array, alpha: float) -> jax.Array:
    """One step of Eq. 3 for every identity with a count, where f is the mean of its unit features."""
    mean = sums / jnp.maximum(counts, 1)[..., None]
    return jnp.where((counts > 0)[..., None], masked.unit(alpha * proto + (1 - alpha) * mean), proto)


def update_mean(proto: jax.Array, feats: jax.Array, labels: jax.Array, where: jax.Array, alpha: float) -> jax.Array:
    """`ema` of one batch: feats [B,M,D], labels [B], where [B,M]; independent of the order of rows."""
    (M, _, D), B = proto.shape, len(labels)
    rows = ema(read(proto, labels), *_added(*init(M, B, D), feats, labels, where), alpha)
    return _write(proto, rows, labels, where)


def update_sequential(
    proto: jax.Array, feats: jax.Array, labels: jax.Array, where: jax.Array, alpha: float
) -> jax.Array:
    """Eq. 3 for one sample after the other, feats [B,M,D], labels [B], where [B,M]; the last has the largest weight."""

    def step(rows, sample):
        feat, row, present = sample  # [M,D], [], [M]
        old = jax.lax.dynamic_index_in_dim(rows, row, axis=1, keepdims=False)
        new = jnp.where(present[:, None], masked.unit(alpha * old + (1 - alpha) * feat), old)
        return jax.lax.dynamic_update_index_in_dim(rows, new, row, axis=1), None

    first = _first(labels)
    rows, _ = jax.lax.scan(step, read(proto, labels), (_inputs(feats, where), first, where))
    return _write(proto, read(rows, first), labels, where)


def empty(modalities: int, identities: int, width: int, *, update: str) -> dict[str, jax.Array]:
    """A memory without prototypes: proto [M,K,D], has_visual [M,K], and for per_epoch_mean sums and counts."""
    sums, counts = init(modalities, identities, width)
    bank = {"proto": sums, "has_visual": counts > 0}
    return bank | {"sums": sums, "counts": counts} if update == "per_epoch_mean" else bank


def update(
    bank: dict[str, jax.Array],
    feats: jax.Array,
    labels: jax.Array,
    where: jax.Array,
    *,
    alpha: float,
    update: str,
    epoch_ends: jax.Array,
) -> dict[str, jax.Array]:
    """The memory after a batch; `update` is one of UPDATES, `epoch_ends` [] bool is used by per_epoch_mean only."""
    if update != "per_epoch_mean":
        step = update_sequential if update == "per_step_sequential" else update_mean
        return bank | {"proto": step(bank["proto"], feats, labels, where, alpha)}
    sums, counts = accumulate(bank["sums"], bank["counts"], feats, labels, where)
    return bank | {
        "proto": jnp.where(epoch_ends, ema(bank["proto"], sums, counts, alpha), bank["proto"]),
        "sums": jnp.where(epoch_ends, 0, sums),
        "counts": jnp.where(epoch_ends, 0, counts),
    }


def _inputs(feats: jax.Array, where: jax.Array) -> jax.Array:
    return masked.unit(masked.blank(jax.lax.stop_gradient(feats), where))


def _first(labels: jax.Array) -> jax.Array:
    """The first row of each row's identity: labels [B] -> [B]."""
    return jnp.argmax(labels[:, None] == labels, axis=1)


def _added(
    sums: jax.Array, counts: jax.Array, feats: jax.Array, labels: jax.Array, where: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums [M,B,D] and counts [M,B] of the identity of each row with the unit features of its rows added."""
    first = _first(labels)
    sums = sums.at[:, first].add(_inputs(feats, where).swapaxes(0, 1))
    counts = counts.at[:, first].add(where.T.astype(counts.dtype))
    return read(sums, first), read(counts, first)


def _write(bank: jax.Array, rows: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
    """The bank [M,K,...] with the entries [M,B,...] of the identities of the rows that `where` [B,M] has something of.

    Rows of one identity hold the same entry.
    """
    outside = bank.shape[1]  # where nothing is written
    return jnp.asarray(bank).at[:, jnp.where(where.any(axis=1), labels, outside)].set(rows, mode="drop")
