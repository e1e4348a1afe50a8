"""Numbers of a run: metrics.jsonl, TensorBoard events, and the console, where a terminal gets one line with its ETA."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator

import jax
from etils.epath import Path, PathLike
from tensorboardX import SummaryWriter
from tqdm import tqdm

from jax_mmreid.paths import in_bucket, place

SHOWN = ("loss", "accuracy", "full/mAP", "mean_missing/mAP")  # what the console shows, if it was measured

UPLOAD_SECONDS = 30.0  # between two writings of a file in a bucket; Google allows one a second

log = logging.getLogger(__name__)


class Writer:
    """Writes scalars of steps start+1..stop; `active` is False on all processes but the first. Use as a context.

    The rate and the time to go are of training steps alone: time spent in `paused` and in the first call of an
    `untimed` function, which compiles, counts nowhere.
    """

    def __init__(self, workdir: PathLike, *, start: int, stop: int, rows_per_step: int, active: bool = True):
        self.active = active
        self.start, self.stop, self.rows = start, stop, rows_per_step
        self.clock = self.since = time.monotonic()
        self.last, self.left_out = start, 0  # the step of the last `rate`, and steps since then that are not timed
        self.timed_steps, self.timed_seconds = 0, 0.0
        if not active:
            return
        self.lines = _Lines(place(workdir) / "metrics.jsonl", start)
        self.events = SummaryWriter(str(workdir), purge_step=start + 1)
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=stop, initial=start, unit="step", dynamic_ncols=True)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records `scalars` as the state of things after `step` updates."""
        if not self.active:
            return
        self.lines.add(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self.events.add_scalar(name, value, step)
        shown = {name: f"{scalars[name]:.3f}" for name in SHOWN if name in scalars}
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix(shown)
        else:
            text = "  ".join([f"step {step}/{self.stop}", *(f"{name} {value}" for name, value in shown.items())])
            if "samples_per_second" in scalars and self.timed_steps:
                left = (self.stop - step) * self.timed_seconds / self.timed_steps
                text += f"  {time.monotonic() - self.clock:.0f}s, {left:.0f}s to go"
            log.info(text)

    def rate(self, step: int) -> dict[str, float]:
        """Samples per second of the timed steps since the last call; {} if there are none."""
        now = time.monotonic()
        steps, seconds = step - self.last - self.left_out, now - self.since
        self.last, self.left_out, self.since = step, 0, now
        if steps <= 0:
            return {}
        self.timed_steps += steps
        self.timed_seconds += seconds
        return {"samples_per_second": steps * self.rows / max(seconds, 1e-9)}

    @contextlib.contextmanager
    def paused(self, steps: int = 0) -> Iterator[None]:
        """What happens inside is not timed; `steps` are the training steps that it takes."""
        begin = time.monotonic()
        if self.active:
            self.lines.upload()  # before a checkpoint, so that a run that resumes from it has the lines up to there
        try:
            yield
        finally:
            self.since += time.monotonic() - begin
            self.left_out += steps

    def untimed(self, step: Callable) -> Callable:
        """A training step whose first call, which compiles, is not timed."""
        calls = iter([True])

        def call(*args):
            if not next(calls, False):
                return step(*args)
            with self.paused(steps=1):
                return jax.block_until_ready(step(*args))

        return call

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        if self.active:
            self.lines.upload()
            self.events.close()
            if self.bar is not None:
                self.bar.close()


class _Lines:
    """Lines of JSON added to a file: on this machine at once, in a bucket every UPLOAD_SECONDS, since it is sent whole.

    Drops what an interrupted run wrote beyond `step`, that of the checkpoint which the run resumes from.
    """

    def __init__(self, path: Path, step: int):
        self.path, self.in_bucket = path, in_bucket(path)
        text = path.read_text() if path.exists() else ""
        # A killed run may leave its last line incomplete.
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        self.text = "".join(line for line in whole if json.loads(line)["step"] <= step)
        self.uploaded, self.since = text, time.monotonic()
        if self.text != text:
            path.write_text(self.text)

    def add(self, line: str) -> None:
        """Adds a line."""
        if not self.in_bucket:
            with self.path.open("a") as file:
                file.write(line)
            return
        self.text += line
        if time.monotonic() - self.since >= UPLOAD_SECONDS:
            self.upload()

    def upload(self) -> None:
        """Sends a file in a bucket, if it has new lines."""
        if self.in_bucket and self.text != self.uploaded:
            self.path.write_text(self.text)
            self.uploaded, self.since = self.text, time.monotonic()
