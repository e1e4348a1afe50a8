"""Training: the step, and the loop around it with its four blocks: step, log, evaluate, save.

Batch t, its augmentation and its dropout are functions of (seed, t), and the state is all that a step reads: a run
that stops and goes on from a checkpoint ends where an uninterrupted one does.
"""

import collections
import contextlib
import functools
import json
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import optax
from jax import Array
from jax.sharding import Mesh

from jax_mmreid import evaluators, experiment, sharding
from jax_mmreid.batch import Batch, Data
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import ConfigDict, config_hash, require_same, to_json
from jax_mmreid.errors import ConfigError, DataError, NonFiniteError, PreemptedError
from jax_mmreid.experiment import Experiment, Phase
from jax_mmreid.methods import Method
from jax_mmreid.ops import augment
from jax_mmreid.state import TrainState, merge, streams
from jax_mmreid.weights import init as weights_init
from jax_mmreid.writer import Writer

log = logging.getLogger(__name__)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    method: Method,
    tx: optax.GradientTransformation,
    weights: dict[str, float],
    augmentation: dict,
) -> tuple[TrainState, dict[str, Array]]:
    """One update: (state, batch of uint8 pictures) -> (state, scalars). Raises KeyError for a term without a weight."""
    rngs = streams(state.rng, state.step, ("augment", "dropout", "structure"))
    batch = batch | {"images": augment.augment(batch["images"], rngs["augment"], **augmentation)}

    def objective(params):
        out = method.loss(merge(params, state.frozen), state, batch, rngs)
        return sum(weights[name] * term for name, term in out.terms.items()), out

    (total, out), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, **out.updates)
    return state, {"loss": total, **out.terms, **out.scalars, "grad_norm": optax.tree.norm(grads)}


def compile_step(config: ConfigDict, exp: Experiment, phase: Phase) -> Callable:
    """The jitted `train_step` of a phase; it takes over the memory of the state it is given."""
    step = functools.partial(
        train_step,
        method=phase.method,
        tx=phase.tx,
        weights=config.weights.to_dict(),
        augmentation=config.aug.to_dict(),
    )
    shardings = jax.tree.map(lambda x: x.sharding, exp.abstract)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(exp.mesh)))


def train(config: ConfigDict, workdir: str | Path, data: Data) -> None:
    """Trains to the end of `config.epochs`, going on from the last checkpoint in `workdir` if there is one.

    Raises ConfigError for a workdir of another config, DataError for one of other data, NonFiniteError, PreemptedError.
    """
    workdir = Path(workdir)
    first = jax.process_index() == 0
    exp = experiment.build(config, data)
    evaluators.check(config, data)
    total = exp.phases[-1].stop
    meta = {"fingerprint": data.spec.fingerprint, "config_hash": config_hash(config), "seed": config.seed}
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir))
        stopping = stack.enter_context(_stop_signal())
        init_workdir(workdir, config, data, first, running=checkpoints.last() is not None)
        state = start_or_resume(config, exp, data, checkpoints)
        start = int(jax.device_get(state.step))
        log.info("training in %s: step %d of %d done", workdir, start, total)
        writer = stack.enter_context(
            Writer(workdir, start=start, stop=total, rows_per_step=data.spec.batch_size, active=first)
        )
        batches = prefetch_to_device(stack.enter_context(contextlib.closing(data.train(start, total))), exp.mesh)
        stack.enter_context(jax.transfer_guard("disallow"))
        step, stop, phase, run = start, False, None, None
        while step < total and not stop:
            if phase is not exp.phase(step):
                phase = exp.phase(step)
                run = compile_step(config, exp, phase)
            state, scalars = run(state, next(batches))
            step += 1

            stop = stopping.is_set()  # asked once, so that what stops the loop is also what saves
            saving = stop or step == total or _due(step, config.save_every * data.spec.steps_per_epoch)
            if saving or _due(step, config.log_every):
                scalars = _finite(step, jax.device_get(scalars))
                writer.write(step, scalars | writer.rate(step))

            results = {}
            begun = step >= config.eval_from * data.spec.steps_per_epoch
            if config.evals and begun and not stop and _due(step, config.eval_every * data.spec.steps_per_epoch):
                results = evaluators.run(config, phase.method, state.variables, data, exp.mesh)
                writer.write(step, evaluators.numbers(results))

            if saving:
                checkpoints.save(step, state, meta, evaluators.watched(config, results))
    if step < total:
        raise PreemptedError(f"stopped at step {step} of {total} and saved; the same command goes on from there")


def start_or_resume(config: ConfigDict, exp: Experiment, data: Data, checkpoints: Checkpoints) -> TrainState:
    """The state of the last checkpoint, or a new one, from `config.init`, whose method has seen the training data."""
    last = checkpoints.last()
    if last is not None:
        saved = checkpoints.meta(last)
        if saved["fingerprint"] != data.spec.fingerprint:
            raise DataError(
                f"{checkpoints.folder} was trained on other files or masks than {config.data.data_dir} now holds; "
                "restore the data, or choose another --workdir"
            )
        return checkpoints.restore(last, exp.abstract)
    if config.requires_init and not config.init:
        raise ConfigError("this stage goes on from a finished one; name its workdir: --config.init=runs/NAME")
    state = exp.create(jax.device_put(jax.random.PRNGKey(config.seed), sharding.replicated(exp.mesh)))
    if config.init:
        state = weights_init.start_from(
            state, weights_init.load(config.init), data.spec.image_size, config.requires_init
        )
    normalise = jax.jit(functools.partial(augment.normalise, mean=config.aug.mean, std=config.aug.std))

    def prepared() -> Iterator[Batch]:
        for batch in data.split("train"):
            batch = sharding.to_global(batch, exp.mesh)
            yield batch | {"images": {name: normalise(x) for name, x in batch["images"].items()}}

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


def init_workdir(workdir: Path, config: ConfigDict, data: Data, first: bool, running: bool) -> None:
    """Writes config.json, masks and vocabulary, or checks that a workdir with a checkpoint holds the same run."""
    path = workdir / "config.json"
    if running and path.exists():
        require_same(path, config)
    elif first:
        path.write_text(json.dumps(to_json(config), indent=2, sort_keys=True) + "\n")
        data.save_masks(workdir / "masks.npz")
        data.save_tokenizer(workdir / "tokenizer")


def _due(step: int, every: int) -> bool:
    """Every so many steps; 0 means never."""
    return every > 0 and step % every == 0


def _finite(step: int, scalars: dict[str, Array]) -> dict[str, float]:
    values = {name: float(x) for name, x in scalars.items()}
    bad = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise NonFiniteError(f"step {step}: {', '.join(bad)}; the last checkpoint is from before")
    return values


@contextlib.contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """While it lasts, SIGTERM sets an event instead of ending the process; the loop acts on it between two steps."""
    event = threading.Event()
    # Signals belong to the main thread, and several processes would each stop at a step of their own.
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
