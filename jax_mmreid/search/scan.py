"""The k best rows of a gallery in tiles, on the devices that hold them: found coarsely, compared exactly, and proven.

First all rows are compared with their numbers rounded to `dtype`, and only the greatest score of every GROUP
neighbours is kept. The rows of the best groups are then compared in float32. Rounding moves a score by at most
`error`; so the matches are those of a comparison of all rows in float32 if the last of them exceeds the greatest
coarse score that was left out by more than this. Otherwise the caller takes more groups.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_mmreid.metrics.similarity import NO_SCORE, Packing, similarities
from jax_mmreid.metrics.vectors import WHOLE

GROUP = 16  # divides the sides of all tiles
CHUNK = 8  # groups that are compared exactly at once: every such product has one shape, so equal rows score alike


class Found(NamedTuple):
    """The k best rows for each of b queries, the best first, of equal scores the lower row."""

    rows: Array  # [b,k] int32; any number where the score is NO_SCORE
    scores: Array  # [b,k], NO_SCORE where the mask leaves too few
    left_out: Array  # [b], no coarse score of a row that was not compared exactly is greater; NO_SCORE if there is none


def coarse_dtype(mesh: Mesh) -> jnp.dtype:
    """bfloat16 where its matrix product is several times as fast as that of float32: CPUs with AMX, GPUs and TPUs."""
    if mesh.devices.flat[0].platform != "cpu":
        return jnp.dtype(jnp.bfloat16)
    flags = Path("/proc/cpuinfo")
    amx = flags.is_file() and "amx_bf16" in flags.read_text()
    return jnp.dtype(jnp.bfloat16 if amx else jnp.float32)


def whole_chunks(groups: int) -> int:
    """So many groups or a few more, as `best` takes them."""
    return -(-groups // CHUNK) * CHUNK


@functools.partial(jax.jit, static_argnames=("packing", "dtype"))
def rounding(rows: Array, *, packing: Packing, dtype: jnp.dtype) -> Array:
    """How far rounding to `dtype` moves each packed row [...,W]: [...], relative to the length of the part that it
    moves most."""
    M, D, F = packing
    kind = jnp.finfo(dtype)
    parts = rows[..., : M * D].reshape(*rows.shape[:-1], M, D)
    vectors = [parts] + ([rows[..., None, -F:]] if F else [])

    def moved(x: Array) -> Array:
        error = x - jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
        squares = jnp.sum(x * x, axis=-1)
        return jnp.max(jnp.sqrt(jnp.sum(error * error, axis=-1) / jnp.where(squares > 0, squares, 1)), axis=-1)

    return functools.reduce(jnp.maximum, map(moved, vectors))


@functools.partial(jax.jit, static_argnames=("mesh", "packing", "dtype"))
def greatest_rounding(tiles: Array, *, mesh: Mesh, packing: Packing, dtype: jnp.dtype) -> Array:
    """The greatest `rounding` of tiles [T,g,W], computed tile by tile where they are."""

    def body(tiles: Array) -> Array:
        return jax.lax.map(lambda tile: rounding(tile, packing=packing, dtype=dtype).max(), tiles)

    each = jax.shard_map(body, mesh=mesh, in_specs=P(mesh.axis_names), out_specs=P(mesh.axis_names))
    return jax.lax.with_sharding_constraint(each(tiles).max(), NamedSharding(mesh, WHOLE))


def error(query: Array, gallery: Array, packing: Packing) -> Array:
    """How much a coarse score may differ from that in float32, for the `rounding` of a query and of the gallery.

    By Cauchy's inequality |q.g - q'.g'| is at most |q - q'| |g| + |q'| |g - g'|, whichever modalities are compared.
    The last term covers the sums of both products, in float32 whatever `dtype`.
    """
    return query + gallery + query * gallery + packing.total * 2.0**-23


@functools.partial(jax.jit, static_argnames=("mesh", "packing", "complete", "k", "groups", "dtype"))
def best(
    query: Array,
    tiles: Array,
    mask: Array,
    *,
    mesh: Mesh,
    packing: Packing,
    complete: bool,
    k: int,
    groups: int,
    dtype: jnp.dtype,
) -> Found:
    """The best of the rows [T,g,W] where the mask [T,g] is True, for queries [b,W]; `groups` (a multiple of CHUNK) of
    each device are compared exactly.

    With `complete` no row lacks anything, so that the dot products of all parts together are the similarities.
    """
    columns, form = (packing.modalities * packing.width, None) if complete else (packing.total, packing)

    def body(query: Array, tiles: Array, mask: Array) -> tuple[Array, Array, Array]:
        query = query[:, :columns]

        def greatest(_: None, tile: tuple) -> tuple[None, Array]:
            rows, mask = tile
            scores = similarities(rows[:, :columns], query, form, dtype)
            return None, jnp.where(mask[:, None], scores, NO_SCORE).reshape(-1, GROUP, len(query)).max(axis=1)

        coarse = jax.lax.scan(greatest, None, (tiles, mask))[1].reshape(-1, len(query)).T
        count = coarse.shape[1]
        coarse = jnp.pad(coarse, ((0, 0), (0, max(0, groups - count))), constant_values=NO_SCORE)
        coarse, chosen = jax.lax.top_k(coarse, groups)
        # No more than the least of the chosen; a reduction, since a slice makes XLA sort in place of its top_k.
        left_out = coarse.min(axis=1, keepdims=True) if groups < count else jnp.full_like(coarse[:, :1], NO_SCORE)
        chosen = jnp.sort(chosen, axis=1)  # in the order of the rows
        grouped, shown = tiles.reshape(count, GROUP, -1), mask.reshape(count, GROUP)

        def exact(one: tuple) -> tuple[Array, Array]:
            query, chosen = one

            def compared(group: Array) -> Array:
                rows = grouped[group].reshape(CHUNK * GROUP, -1)
                scores = similarities(rows[:, :columns], query[None], form)[:, 0]
                scores = jnp.where(scores == 0, 0, scores)  # one zero, not two, of which one would be the greater
                return jnp.where((shown[group] & (group < count)[:, None]).reshape(-1), scores, NO_SCORE)

            scores = jax.lax.map(compared, chosen.reshape(-1, CHUNK)).reshape(-1)
            scores, place = jax.lax.top_k(scores, k)
            return chosen[place // GROUP] * GROUP + place % GROUP, scores

        rows, scores = jax.lax.map(exact, (query, chosen))
        return rows + jax.lax.axis_index(mesh.axis_names) * mask.size, scores, left_out

    split, side_by_side = P(mesh.axis_names), P(None, mesh.axis_names)
    each = jax.shard_map(body, mesh=mesh, in_specs=(WHOLE, split, split), out_specs=(side_by_side,) * 3)
    rows, scores, left_out = jax.lax.with_sharding_constraint(each(query, tiles, mask), NamedSharding(mesh, WHOLE))
    scores, place = jax.lax.top_k(scores, k)
    return Found(jnp.take_along_axis(rows, place, axis=1), scores, left_out.max(axis=1))
