"""Orbax: the training state by step, the last and the best kept; frozen parameters once per run.

    workdir/checkpoints/<step>/   model (step, params, batch_stats, memory), training (opt_state, rng), meta
    workdir/frozen/               the frozen parameters, written before the first step

Saving is asynchronous; a checkpoint is complete or invisible. Restoring needs an abstract state with shardings, so
the device count may change between two runs, and reads no optimizer state if the target has none.
"""

import math
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils.epath import PathLike
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jax_mmreid import paths
from jax_mmreid.state import TrainState

ITEMS = {"model": ("step", "params", "batch_stats", "memory"), "training": ("opt_state", "rng")}
BEST = "best"  # the name under which the metric that picks the best checkpoint is stored
STEPS = ocp.path.step.standard_name_format()


def _best_metric(metrics: dict[str, float]) -> float:
    return metrics[BEST]


def newest(workdir: PathLike) -> int | None:
    """The newest complete step of a run that may be going on, None if there is none yet."""
    found = ocp.path.step.latest_step_metadata(paths.absolute(workdir) / "checkpoints", STEPS)
    return None if found is None else found.step


class _Manager(ocp.CheckpointManager):
    """One that does not ask JAX's preemption service, whose calls are numbered otherwise (`distributed.stopping`)."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one workdir. Use as a context: leaving it waits for what is being written.

    With `reading` nothing in the workdir is made, changed or cleaned up: another process may be training in it.
    """

    def __init__(self, workdir: PathLike, reading: bool = False):
        self.folder = paths.absolute(workdir)
        # Orbax sorts by number, steps ascending among equals, and takes the end: a tie goes to the later step.
        keep = AnyPreservationPolicy([LatestN(1), BestN(get_metric_fn=_best_metric, n=1)])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=_best_metric,
            best_mode="max",
            # What Orbax calls read_only sets `create` too, with warnings on the console.
            create=not reading,
            cleanup_tmp_directories=False,
            # Else Orbax opens every step that it lists, and fails on one that the trainer deletes meanwhile.
            lightweight_initialize=reading,
        )
        self.manager = _Manager(self.folder / "checkpoints", options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.manager.close()

    def save(self, step: int, state: TrainState, meta: dict[str, Any], best_metric: float | None = None) -> None:
        """Starts writing `state`; `best_metric` is the number that picks the best checkpoint, if it was measured."""
        items = {name: ocp.args.StandardSave(_fields(state, name)) for name in ITEMS}
        args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
        self.manager.save(step, args=args, metrics={BEST: -math.inf if best_metric is None else best_metric})

    def save_frozen(self, frozen: Any) -> None:
        """Writes the frozen parameters; does nothing for a method that has none."""
        if frozen:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(self.folder / "frozen", frozen, force=True)

    def last(self) -> int | None:
        """The newest complete step, None if there is none."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step with the highest best_metric, of equal ones the latest; None if none was measured."""
        number, step = self._best()
        return None if number == -math.inf else step

    def is_better(self, best_metric: float | None) -> bool:
        """Whether a number is at least that of every checkpoint; False of None, for what was not measured."""
        return best_metric is not None and best_metric >= self._best()[0]

    def _best(self) -> tuple[float, int | None]:
        found = {step: self.manager.metrics(step) for step in self.steps()}  # None of a step that was deleted
        measured = [(_best_metric(metrics), step) for step, metrics in found.items() if metrics]
        return max(measured, default=(-math.inf, None))

    def steps(self) -> list[int]:
        """Every complete step, ascending."""
        return sorted(self.manager.all_steps())

    def meta(self, step: int) -> dict[str, Any]:
        """What `save` was given beside the state."""
        return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def misfits(self, step: int, target: TrainState) -> list[str]:
        """Paths of the model's arrays that `step` and the abstract `target` do not both have in the same shape."""
        folders = {"": self.folder / "checkpoints" / str(step) / "model"}
        ours = _shapes(_fields(target, "model"))
        if target.frozen:
            folders["frozen/"] = self.folder / "frozen"
            ours |= _shapes(target.frozen, "frozen/")
        stored = {}
        for prefix, folder in folders.items():
            if folder.exists():
                stored |= _shapes(ocp.PyTreeCheckpointHandler().metadata(folder).tree, prefix)
        return sorted(path for path in stored.keys() | ours.keys() if stored.get(path) != ours.get(path))

    def restore(self, step: int, target: TrainState) -> TrainState:
        """The state of `step`. `target` is abstract, with shardings; without `opt_state` only the model is read."""
        items = ("model", "training") if target.opt_state is not None else ("model",)
        args = {name: ocp.args.StandardRestore(_fields(target, name)) for name in items}
        restored = self.manager.restore(step, args=ocp.args.Composite(**args))
        frozen = target.frozen
        if frozen:
            with ocp.StandardCheckpointer() as checkpointer:
                frozen = checkpointer.restore(self.folder / "frozen", frozen)
        fields = {field: value for name in items for field, value in restored[name].items()}
        return target.replace(frozen=frozen, **fields)


def _fields(state: TrainState, item: str) -> dict[str, Any]:
    """The fields of an item; Orbax cannot store what has no leaves (the memory of a method without one)."""
    fields = {name: getattr(state, name) for name in ITEMS[item]}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _shapes(tree: Any, prefix: str = "") -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    return {prefix + jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape) for path, x in leaves}
