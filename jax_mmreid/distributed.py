"""What happens to several processes: who writes, which rows a process reads, gathering, agreement,
stopping.

Every branch on the number of processes stands here.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def shard() -> tuple[int, int]:
    """(index of this process, number of processes)."""
    return jax.process_index(), jax.process_count()


def is_multiprocess() -> bool:
    """Whether several processes take part."""
    return jax.process_count() > 1


def is_writer() -> bool:
    """Whether this process writes the files of a run."""
    return jax.process_index() == 0


def gather(tree: Any) -> Any:
    """Arrays as numpy arrays, whole on every process.

    A global `jax.Array` is fetched; of numpy arrays [b,...] that differ between processes, the rows of all are
    concatenated in the order of the processes.
    """
    if is_multiprocess():
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def agree(number: int) -> int:
    """The number that the first process has, on every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if is_multiprocess() else number


def all_true(flag: bool) -> bool:
    """Whether the flag is True on every process."""
    return bool(multihost_utils.process_allgather(np.asarray(flag)).all()) if is_multiprocess() else flag


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """While it lasts, SIGTERM sets an event instead of ending the process; the loop acts on it between two steps."""
    event = threading.Event()
    # Signals belong to the main thread, and several processes would each stop at a step of their own.
    if threading.current_thread() is not threading.main_thread() or is_multiprocess():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
