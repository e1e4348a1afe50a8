"""Retrieval vectors on the host or on devices, and choosing rows of them without a way over the host.

Vectors that a tower made on devices stay there until they are ranked; only their squared lengths come to the host.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_mmreid.metrics.similarity import Packing

WHOLE = P()  # on every device


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """n vectors of D numbers: vector i is array[index[i]]. Rows of the array that no index names mean nothing."""

    array: np.ndarray | Array  # [N,D] float32
    squares: np.ndarray  # [N] squared lengths, in float32
    index: np.ndarray  # [n]
    packing: Packing | None = None  # of rows that `metrics.similarity` compares; None: by their dot products

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: np.ndarray) -> "Vectors":
        """The vectors of these rows, an index or a mask; nothing is copied."""
        return dataclasses.replace(self, index=self.index[rows])

    @property
    def width(self) -> int:
        return self.array.shape[1]

    @property
    def squared_lengths(self) -> np.ndarray:
        """[n]; two vectors whose squared lengths are finite have a finite dot product."""
        return self.squares[self.index]

    def placed(self, rows: np.ndarray, mesh: Mesh, spec: P = WHOLE) -> Array:
        """The vectors [...,D] of rows [...] as a global array, zeros where a row is -1."""
        place = np.where(rows < 0, -1, self.index[rows]).astype(np.int32)
        if isinstance(self.array, np.ndarray):
            found = self.array[place]
            found[place < 0] = 0
            return put(found, mesh, spec)
        return _take(self.array, put(place, mesh, spec), sharding=NamedSharding(mesh, spec))

    def local(self, mesh: Mesh) -> np.ndarray | Array:
        """All n vectors [n,D]: on the host, or those on devices whole on one device of this process."""
        if isinstance(self.array, np.ndarray):
            return self.array[self.index]
        return self.placed(np.arange(len(self)), mesh).addressable_data(0)


def on_host(array: np.ndarray, packing: Packing | None = None) -> Vectors:
    """Vectors [n,D] of the host, read as float32."""
    array = array.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        return Vectors(array, np.einsum("nd,nd->n", array, array), np.arange(len(array)), packing)


def on_devices(
    batches: Sequence[Array], valid: Sequence[np.ndarray], mesh: Mesh, packing: Packing | None = None
) -> Vectors:
    """The rows of global arrays, all of one shape [B,D] and split over devices by rows, that are valid [B]."""
    array, squares = _join(tuple(batches), whole=NamedSharding(mesh, WHOLE))
    # Row i of batch b is row i * batches + b of the array: so no row leaves its device.
    index = np.concatenate([np.flatnonzero(keep) * len(batches) + b for b, keep in enumerate(valid)])
    return Vectors(array, jax.device_get(squares), index, packing)


def block_side(rows: int, most: int | None = None) -> int:
    """How many rows a block has: a power of two near `rows`, so that few shapes are compiled, and at most `most`."""
    side = max(16, 1 << (rows - 1).bit_length())
    return side if most is None else min(most, side)


def put(x: np.ndarray, mesh: Mesh, spec: P = WHOLE) -> Array:
    """A host array that every process has whole as a global one; an intended transfer that no guard forbids."""
    with jax.transfer_guard("allow"):
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])


@functools.partial(jax.jit, static_argnames="whole")
def _join(batches: tuple[Array, ...], *, whole: NamedSharding) -> tuple[Array, Array]:
    """[B,D] n times -> [B*n,D] float32, the batches interleaved; and the squared lengths [B*n] on every device."""
    array = jnp.stack(batches, axis=1).astype(jnp.float32)
    array = array.reshape(-1, array.shape[-1])
    squares = jnp.einsum("nd,nd->n", array, array, precision=jax.lax.Precision.HIGHEST)
    return array, jax.lax.with_sharding_constraint(squares, whole)


@functools.partial(jax.jit, static_argnames="sharding")
def _take(array: Array, place: Array, *, sharding: NamedSharding) -> Array:
    """array[place], zeros where a place is -1."""
    found = jnp.where(place[..., None] < 0, 0, array[place])
    return jax.lax.with_sharding_constraint(found, sharding)
