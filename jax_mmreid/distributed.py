"""What happens to several processes: who writes, which rows a process reads, gathering, agreement.

Every branch on the number of processes stands here.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def shard() -> tuple[int, int]:
    """(index of this process, number of processes)."""
    return jax.process_index(), jax.process_count()


def is_writer() -> bool:
    """Whether this process writes the files of a run."""
    return jax.process_index() == 0


def gather(tree: Any) -> Any:
    """Arrays as numpy arrays, whole on every process.

    A global `jax.Array` is fetched; of numpy arrays [b,...] that differ between processes, the rows of all are
    concatenated in the order of the processes.
    """
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def agree(number: int) -> int:
    """The number that the first process has, on every process."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def all_true(flag: bool) -> bool:
    """Whether the flag is True on every process."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).all())
