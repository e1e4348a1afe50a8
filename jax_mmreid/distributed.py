"""Several processes: which rows each reads, gathering, agreement, who writes, how they stop.

Every branch on the number of processes stands here. One process alone pays nothing.
"""

import collections
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jax_mmreid.batch import Share
from jax_mmreid.errors import EXIT_CODES, ConfigError, DataError

log = logging.getLogger(__name__)

# The calls of JAX's preemption service, which like it are one for the process. After a signal it chooses the number
# that follows the greatest of all processes' last calls. So numbers have no gap, from 1 on; with those of steps, a run
# that resumes would never come to the one that was chosen before its first call.
_CALLS = itertools.count(1)
GRACE = 3.0  # seconds that the first process, without which the others end at once, is the last to leave


def describe() -> str:
    """The devices by process, in a line for the log."""
    counts = collections.Counter(device.process_index for device in jax.devices())
    kind = jax.devices()[0].device_kind
    if not is_multiprocess():
        return f"{len(jax.devices())} x {kind}"
    each = ", ".join(f"{index}: {count}" for index, count in sorted(counts.items()))
    return f"{len(jax.devices())} x {kind} in {len(counts)} processes ({each}); this is process {jax.process_index()}"


def is_multiprocess() -> bool:
    """Whether several processes take part."""
    return jax.process_count() > 1


def is_writer() -> bool:
    """Whether this process writes the files of a run."""
    return jax.process_index() == 0


def share(mesh: Callable[[], Mesh]) -> Share:
    """The rows of every batch that this process reads: those of its devices, of one process alone all.

    A batch is split over the axis "data" of the mesh; processes whose devices have the same part of it read the same.
    """
    if not is_multiprocess():
        return Share()
    devices = mesh().devices  # [data,model]
    mine = [i for i, part in enumerate(devices) if any(x.process_index == jax.process_index() for x in part)]
    return Share(tuple(mine), len(devices))


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
def together() -> Iterator[None]:
    """What happens inside may fail on some processes only: then all raise the error of the first that failed.

    Every process must get here. Errors that have no exit code are raised where they occur, at once.
    """
    failure = None
    try:
        yield
    except tuple(EXIT_CODES) as error:
        if not is_multiprocess():
            raise
        failure = error
    if not is_multiprocess():
        return
    said = _exchange([type(failure).__name__, str(failure)] if failure else [])
    for number, one in enumerate(said):
        if one:
            (kind,) = (kind for kind in EXIT_CODES if kind.__name__ == one[0])
            raise kind(f"process {number}: {one[1]}") from failure


def require_equal(config: Mapping[str, str], data: Mapping[str, str]) -> None:
    """Raises ConfigError for entries of `config` that differ between processes, DataError for those of `data`.

    The message names what differs, and the process that differs from the first. Every process must get here.
    """
    if not is_multiprocess():
        return
    for kind, facts in ((ConfigError, config), (DataError, data)):
        first, *others = _exchange(dict(facts))
        for number, other in enumerate(others, 1):
            differs = [f"{key} ({first.get(key)} -> {other.get(key)})" for key in first if first[key] != other.get(key)]
            if differs:
                raise kind(
                    f"process {number} differs from process 0 in {'; '.join(differs)}; start all processes with the "
                    "same code, packages, command and data"
                )


def _exchange(value: Any) -> list[Any]:
    """The value, made of what JSON has, of every process in their order, on every process."""
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(own))).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(own)] = own
    found = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(found, sizes)]


def leave(code: int) -> None:
    """Ends this process at once with an exit code if others may still wait for it; does nothing in one alone.

    An orderly end of JAX would first wait for the others, which wait for this one.
    """
    if is_multiprocess():
        if is_writer():
            time.sleep(GRACE)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """While it lasts, SIGTERM does not end the process: a function says after each step whether to save and stop there.

    Every process calls it once after each step; all get True after the same step, after a signal to any of them.
    """
    if is_multiprocess():  # JAX's preemption service has the signal; a handler of Python's would displace it
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_CALLS))
        return
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
