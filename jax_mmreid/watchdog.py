"""The end of a process whose step takes too long, because another process is gone or stuck."""

import collections
import faulthandler
import statistics
import time
from typing import Any

import jax

from jax_mmreid import distributed

STEPS = 50  # whose times are remembered


class Watchdog:
    """Ends one process of several that waits too long, with the stacks of its threads and exit code 1.

    A process that is gone or stuck leaves the others in a collective that never returns. A step may take `multiple`
    times the median of the last STEPS steps, and at least `least` seconds; everything else (the first step with its
    compilation, an evaluation, a checkpoint) `other` seconds. Use as a context. In one process alone, and with
    multiple=0, it does nothing.
    """

    def __init__(self, *, multiple: float, least: float, other: float):
        self.multiple, self.least, self.other = multiple, least, other
        self.active = distributed.is_multiprocess() and multiple > 0
        self.seconds, self.since, self.running = collections.deque(maxlen=STEPS), 0.0, None

    def step(self, results: Any) -> None:
        """After the call of each step, with its results: waits for those of the step before, and watches this one."""
        if not self.active:
            return
        jax.block_until_ready(self.running)  # calls return before their step is done, so their times say nothing
        now = time.monotonic()
        if self.running is not None:
            self.seconds.append(now - self.since)
        self.running, self.since = results, now
        median = statistics.median(self.seconds) if self.seconds else 0.0
        self._allow(max(self.least, self.multiple * median) if self.seconds else self.other)

    def no_step(self) -> None:
        """Before anything that is no step."""
        self.running = None
        self._allow(self.other)

    def __enter__(self) -> "Watchdog":
        self.no_step()
        return self

    def __exit__(self, *_) -> None:
        self._allow(0.0)

    def _allow(self, seconds: float) -> None:
        """This many seconds from now on, 0 for any number."""
        if self.active and seconds:
            faulthandler.dump_traceback_later(seconds, exit=True)
        elif self.active:
            faulthandler.cancel_dump_traceback_later()
