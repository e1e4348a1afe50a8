"""Numbers of a run: metrics.jsonl, TensorBoard events, and the console, where a terminal gets a bar with its ETA."""

import json
import logging
import sys
import time
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

SHOWN = ("loss", "accuracy", "full/mAP", "mean_missing/mAP")  # what the console shows, if it was measured

log = logging.getLogger(__name__)


class Writer:
    """Writes scalars of steps start+1..stop; `active` is False on all processes but the first. Use as a context."""

    def __init__(self, workdir: str | Path, *, start: int, stop: int, rows_per_step: int, active: bool = True):
        self.active = active
        self.start, self.stop, self.rows = start, stop, rows_per_step
        self.clock = time.monotonic()
        self.last = (start, self.clock)
        if not active:
            return
        self.path = Path(workdir) / "metrics.jsonl"
        _forget_after(self.path, start)
        self.events = SummaryWriter(str(workdir), purge_step=start + 1)
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=stop, initial=start, unit="step", dynamic_ncols=True)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records `scalars` as the state of things after `step` updates."""
        if not self.active:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self.events.add_scalar(name, value, step)
        shown = {name: f"{scalars[name]:.3f}" for name in SHOWN if name in scalars}
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix(shown)
        else:
            text = "  ".join([f"step {step}/{self.stop}", *(f"{name} {value}" for name, value in shown.items())])
            if "samples_per_second" in scalars:
                left = (self.stop - step) * self.rows / scalars["samples_per_second"]
                text += f"  {time.monotonic() - self.clock:.0f}s, {left:.0f}s to go"
            log.info(text)

    def rate(self, step: int) -> dict[str, float]:
        """Samples per second since the last call."""
        (before, since), self.last = self.last, (step, time.monotonic())
        return {"samples_per_second": (step - before) * self.rows / max(self.last[1] - since, 1e-9)}

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        if self.active:
            self.events.close()
            if self.bar is not None:
                self.bar.close()


def _forget_after(path: Path, step: int) -> None:
    """Drops what an interrupted run wrote beyond the checkpoint that the run goes on from."""
    if path.exists():
        # A killed run leaves its last line torn.
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        path.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
