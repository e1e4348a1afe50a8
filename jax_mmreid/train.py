"""Training: the step, and the loop around it with its four blocks: step, log, evaluate, save.

Batch t, its augmentation and its dropout are functions of (seed, t), and the state is all that a step reads: a run
that stops and resumes from a checkpoint ends where an uninterrupted one does.
"""

import collections
import contextlib
import functools
import json
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from etils.epath import Path, PathLike
from jax import Array
from jax.sharding import Mesh

from jax_mmreid import distributed, experiment, sharding
from jax_mmreid.batch import Batch, Data, DataSpec
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import ConfigDict, config_hash, require_same, to_json
from jax_mmreid.errors import ConfigError, DataError, NonFiniteError, PreemptedError
from jax_mmreid.evaluators import runner
from jax_mmreid.experiment import Experiment, Phase, model_spec
from jax_mmreid.methods import Method
from jax_mmreid.ops import augment
from jax_mmreid.paths import place
from jax_mmreid.profiling import Trace
from jax_mmreid.state import TrainState, merge, streams
from jax_mmreid.watchdog import Watchdog
from jax_mmreid.weights import init as weights_init
from jax_mmreid.writer import Writer

log = logging.getLogger(__name__)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    method: Method,
    tx: optax.GradientTransformation,
    rates: dict[str, Callable[[Array], Array]],
    weights: dict[str, float],
    augmentation: dict,
    gather: Callable[[Any], Any],
) -> tuple[TrainState, dict[str, Array]]:
    """One update: (state, batch of uint8 pictures) -> (state, scalars). Raises KeyError for a term without a weight.

    `gather` is that of the experiment.
    """
    rngs = streams(state.rng, state.step, ("augment", *method.streams))
    batch = batch | {"images": augment.augment(batch["images"], rngs["augment"], **augmentation)}

    def objective(params):
        out = method.loss(gather(merge(params, state.frozen)), state, batch, rngs)
        return sum(weights[name] * term for name, term in out.terms.items()), out

    (total, out), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = {"grad_norm": grads, "update_norm": updates, "param_norm": params}
    scalars = {name: optax.tree.norm(tree) for name, tree in norms.items()}
    scalars |= {f"lr/{group}": rate(state.step) for group, rate in rates.items()}
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, **out.updates)
    return state, {"loss": total, **out.terms, **out.scalars, **scalars}


def compile_step(config: ConfigDict, exp: Experiment, phase: Phase) -> Callable:
    """The jitted `train_step` of a phase; it takes over the memory of the state it is given."""
    step = functools.partial(
        train_step,
        method=phase.method,
        tx=phase.tx,
        rates=phase.rates,
        weights=config.weights.to_dict(),
        augmentation=config.aug.to_dict(),
        gather=exp.gather,
    )
    shardings = jax.tree.map(lambda x: x.sharding, exp.abstract)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(exp.mesh)))


def train(config: ConfigDict, workdir: PathLike, data: Data) -> None:
    """Trains to the end of `config.epochs`, resuming from the last checkpoint in `workdir` if there is one.

    Raises ConfigError for a workdir of another config, DataError for one of other data, NonFiniteError, PreemptedError.
    """
    workdir, spec = place(workdir), model_spec(config, data)
    exp = experiment.build(config, spec, data.tokenize)
    check_evals(config, exp, data)
    if config.eval_every:
        runner.check_best(config.best, config.evals.to_dict())
    total = exp.phases[-1].stop
    meta = {"fingerprint": spec.fingerprint, "config_hash": config_hash(config), "seed": config.seed}
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir))
        must_stop = stack.enter_context(distributed.stopping())
        watchdog = stack.enter_context(Watchdog(**config.watchdog))
        state = start_or_resume(config, exp, data, checkpoints)
        init_workdir(workdir, config, data, spec, fresh=checkpoints.last() is None)
        start = int(jax.device_get(state.step))
        log.info("training in %s: step %d of %d done", workdir, start, total)
        writer = Writer(workdir, start=start, stop=total, rows_per_step=spec.batch_size, active=distributed.is_writer())
        stack.enter_context(writer)
        batches = stack.enter_context(contextlib.closing(data.train(start, total)))
        batches = prefetch_to_device(batches, exp.mesh)
        trace = stack.enter_context(Trace(workdir, config.profile))
        stack.enter_context(jax.transfer_guard("disallow"))
        step, stop, phase, run = start, False, None, None
        while step < total and not stop:
            if phase is not exp.phase(step):
                watchdog.no_step()
                phase = exp.phase(step)
                run = writer.untimed(compile_step(config, exp, phase))
            trace.before(step, state)
            state, scalars = run(state, next(batches))
            step += 1
            watchdog.step(scalars)
            stop = must_stop()  # asked once, so that what stops the loop is also what saves
            evaluating = not stop and _evaluates(config, step, spec)
            saving = stop or step == total or _due(step, config.save_every * spec.steps_per_epoch)
            if saving or evaluating:
                watchdog.no_step()
            if saving or evaluating or _due(step, config.log_every):
                scalars = _finite(step, jax.device_get(scalars), checkpoints)
                writer.write(step, scalars | writer.rate(step))

            best = None
            if evaluating:
                with writer.paused():
                    results = _run_evals(config, exp, phase.method, state.variables, data)
                writer.write(step, runner.numbers(results))
                best = runner.best_metric(config.best, results)

            if saving or checkpoints.is_better(best):
                with writer.paused():
                    checkpoints.save(step, state, meta, best)
    if step < total:
        raise PreemptedError(f"stopped at step {step} of {total} and saved; the same command resumes from there")


def start_or_resume(config: ConfigDict, exp: Experiment, data: Data, checkpoints: Checkpoints) -> TrainState:
    """The state of the last checkpoint, or a new one, from `config.init`, after `Method.begin` on the training data."""
    last, kept = checkpoints.last(), checkpoints.folder / "config.json"
    distributed.require_equal({}, {f"the newest checkpoint in {checkpoints.folder}": str(last)})
    if last is not None:
        if kept.exists():
            require_same(kept, config)
        saved = checkpoints.meta(last)
        if saved["fingerprint"] != data.spec.fingerprint:
            raise DataError(
                f"{checkpoints.folder} was trained on other files or masks than {config.data.data_dir} now holds; "
                "restore the data, or choose another --workdir"
            )
        if saved["config_hash"] != config_hash(config):
            raise ConfigError(
                f"{checkpoints.folder} has a checkpoint of another config (hash {saved['config_hash']}, this one has "
                f"{config_hash(config)}); restore its config.json to see what differs, or choose another --workdir"
            )
        return checkpoints.restore(last, exp.abstract)
    if config.requires_init and not config.init:
        raise ConfigError(
            f"this config starts from trained weights of {', '.join(config.requires_init)}; name a workdir or a "
            "converted folder that has them: --config.init=runs/NAME"
        )
    state = exp.create(jax.device_put(jax.random.PRNGKey(config.seed), sharding.replicated(exp.mesh)))
    if config.init:
        loaded, size = weights_init.load(config.init), data.spec.image_size
        state = weights_init.start_from(state, loaded, size, required=config.requires_init, source=config.init)
    normalise = jax.jit(functools.partial(augment.normalise, mean=config.aug.mean, std=config.aug.std))

    def prepared() -> Iterator[Batch]:
        for batch in data.split("train"):
            batch = sharding.to_global(batch, exp.mesh)
            yield batch | {"images": {name: normalise(x) for name, x in batch["images"].items()}}

    state = state.replace(params=exp.gather(state.params), frozen=exp.gather(state.frozen))
    state = exp.phases[0].method.begin(state, prepared())
    checkpoints.save_frozen(state.frozen)
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding, exp.abstract))


def prefetch_to_device(batches: Iterator[Batch], mesh: Mesh) -> Iterator[Batch]:
    """The batches as global arrays, one ahead: the next one moves to the devices while they work on this one."""
    ahead = collections.deque()  # holds no batch that was handed out, whose memory is the step's to free
    for batch in batches:
        ahead.append(sharding.to_global(batch, mesh))
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


def init_workdir(workdir: Path, config: ConfigDict, data: Data, spec: DataSpec, fresh: bool) -> None:
    """Writes config, data spec, masks and vocabulary of a fresh run; of one that is resumed, what was deleted."""
    if not distributed.is_writer():
        return
    files = {
        "config.json": lambda path: path.write_text(json.dumps(to_json(config), indent=2, sort_keys=True) + "\n"),
        "data_spec.json": lambda path: path.write_text(spec.to_json()),
        "masks.npz": data.save_masks,
        "tokenizer": data.save_tokenizer,
    }
    for name, write in files.items():
        if fresh or not (workdir / name).exists():
            write(workdir / name)


def check_evals(config: ConfigDict, exp: Experiment, data: Data) -> None:
    """Raises ConfigError or DataError for a row of `config.evals` that cannot be measured, before any time is spent."""
    rows = config.evals.to_dict()
    runner.check(rows, data)
    runner.check_method(rows, exp.phases[-1].method, exp.abstract.variables, data)


def _run_evals(config: ConfigDict, exp: Experiment, method: Method, variables: dict, data: Data) -> dict[str, dict]:
    rows, spec = runner.learned(config.evals.to_dict()), exp.spec
    return runner.run(rows, method, exp.gather(variables), data, exp.mesh, mean=spec.mean, std=spec.std)


def _evaluates(config: ConfigDict, step: int, spec: DataSpec) -> bool:
    begun = step >= config.eval_from * spec.steps_per_epoch
    return bool(config.evals) and begun and _due(step, config.eval_every * spec.steps_per_epoch)


def _due(step: int, every: int) -> bool:
    """Every so many steps; 0 means never."""
    return every > 0 and step % every == 0


def _finite(step: int, scalars: dict[str, Array], checkpoints: Checkpoints) -> dict[str, float]:
    values = {name: float(x) for name, x in scalars.items()}
    bad = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        last = checkpoints.last()
        kept = "no checkpoint was saved yet" if last is None else f"the last good checkpoint is of step {last}"
        raise NonFiniteError(f"step {step}: {', '.join(bad)}; {kept}")
    return values
