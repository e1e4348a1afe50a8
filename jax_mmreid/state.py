"""The training state: arrays only. What acts on it (method, optimizer, schedule) is passed beside it."""

import zlib
from collections.abc import Iterable
from typing import Any

import jax
from flax import struct, traverse_util
from jax import Array


@struct.dataclass
class TrainState:
    """Everything a step reads and writes, and everything a checkpoint must carry to go on without a seam.

    `frozen` are parameters that are never trained (a text tower): they are saved once per run, not at every step,
    and have no gradient and no optimizer state.
    """

    step: Array  # [] int32, updates done
    params: Any
    frozen: Any
    batch_stats: Any
    memory: Any
    opt_state: Any
    rng: Array  # the root key; never split, only folded

    @property
    def variables(self) -> dict[str, Any]:
        """What a method reads at test: all parameters, the statistics, the memory."""
        params = merge(self.params, self.frozen)
        return {"params": params, "batch_stats": self.batch_stats, "memory": self.memory}


def merge(params: Any, frozen: Any) -> dict:
    """One parameter tree from the trained and the frozen part."""
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(params) | traverse_util.flatten_dict(frozen))


def streams(rng: Array, step: Array, names: Iterable[str]) -> dict[str, Array]:
    """A key for every name at this step: the root folded with the step and a CRC of the name.

    Adding a stream never shifts another.
    """
    at_step = jax.random.fold_in(rng, step)
    return {name: jax.random.fold_in(at_step, zlib.crc32(name.encode())) for name in names}
