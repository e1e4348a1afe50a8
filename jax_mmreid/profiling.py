"""A trace of a few training steps: what the devices and the host did, to be looked at in XProf or TensorBoard."""

import contextlib
import logging
from typing import Any

import jax
from etils.epath import PathLike

from jax_mmreid.errors import ConfigError
from jax_mmreid.paths import place, written_on_disk

FOLDER = "profile"  # in the workdir; each process has a folder of its own in it

log = logging.getLogger(__name__)


class Trace:
    """Writes a `jax.profiler` trace of the steps start+1..stop into WORKDIR/profile; with start = stop it does nothing.

    Use as a context, which ends a trace that is not at its end. Steps that compile take longest; a trace that begins a
    few steps later shows the others. Raises ConfigError unless 0 <= start <= stop.
    """

    def __init__(self, workdir: PathLike, steps: tuple[int, ...]):
        if len(steps) != 2 or not 0 <= steps[0] <= steps[1]:
            raise ConfigError(f"config.profile={steps}: expected (start, stop) with 0 <= start <= stop")
        self.start, self.stop = steps
        self.folder = place(workdir) / FOLDER / f"process{jax.process_index()}"
        self.running = contextlib.ExitStack()
        self.is_running = False

    def before(self, step: int, results: Any = None) -> None:
        """Before each step: how many are done, and what the last one returned, which the trace is to contain."""
        if not self.is_running and self.start <= step < self.stop:
            jax.block_until_ready(results)
            folder = self.running.enter_context(written_on_disk(self.folder))
            self.running.enter_context(jax.profiler.trace(str(folder)))
            self.is_running = True
        elif self.is_running and step >= self.stop:
            self._end(results)

    def _end(self, results: Any = None) -> None:
        jax.block_until_ready(results)
        self.running.close()
        self.is_running = False
        log.info("trace of steps in %s", self.folder)

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_) -> None:
        if self.is_running:
            self._end()
