"""What a config stands for on given data: a mesh, the phases of the recipe, and the state they act on."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from jax_mmreid import optim, sharding
from jax_mmreid.batch import Batch, Data
from jax_mmreid.config import ConfigDict, find
from jax_mmreid.errors import ConfigError
from jax_mmreid.methods import Method
from jax_mmreid.state import TrainState


class Phase(NamedTuple):
    """Steps start..stop-1 run `method` and are updated by `tx`, which moves the groups of this phase only."""

    start: int
    stop: int
    method: Method
    tx: optax.GradientTransformation


class Experiment(NamedTuple):
    """`create(rng)` makes the initial state in place; `abstract` is its shapes, dtypes and shardings."""

    mesh: Mesh
    phases: tuple[Phase, ...]
    create: Callable[[Array], TrainState]
    abstract: TrainState

    def phase(self, step: int) -> Phase:
        """The phase of update number `step`; after the last update, the last phase."""
        return [phase for phase in self.phases if phase.start <= step][-1]


def build(config: ConfigDict, data: Data, devices: list | None = None) -> Experiment:
    """Reads a config once and for all; raises ConfigError for what does not fit together."""
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sizes = {
        "data.identities * data.instances": data.spec.batch_size,
        "data.eval_batch_size": config.data.eval_batch_size,
    }
    for key, rows in sizes.items():
        if rows % mesh.shape["data"]:
            raise ConfigError(f"{key} = {rows} does not divide over {mesh.shape['data']} devices of axis 'data'")
    method = _method(config, data)
    phases = _phases(config, data, method)

    def init(rng: Array) -> TrainState:
        variables = method.init(rng, _example(data))
        params, frozen = optim.split_frozen(variables.pop("params"), config.optim.rules)
        opt_state = phases[0].tx.init(params)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step=step, params=params, frozen=frozen, opt_state=opt_state, rng=rng, **variables)

    try:
        shapes = jax.eval_shape(init, jax.random.PRNGKey(0))
    except ValueError as error:  # sizes that do not go together
        raise ConfigError(f"config.model does not fit the data: {str(error).splitlines()[0]}") from error
    shardings = sharding.state_sharding(mesh, shapes, config.sharding)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return Experiment(mesh, phases, jax.jit(init, out_shardings=shardings), abstract)


def _method(config: ConfigDict, data: Data) -> Method:
    try:
        return find("jax_mmreid.methods", config.method).create(
            data.spec, tokenize=data.tokenize, **config.model.to_dict()
        )
    except TypeError as error:
        raise ConfigError(f"config.model does not fit method {config.method!r}: {error}") from error
    except ValueError as error:  # a vocabulary that is not there yet
        raise ConfigError(str(error)) from error


def _phases(config: ConfigDict, data: Data, method: Method) -> tuple[Phase, ...]:
    starts = [start for start, _, _ in config.phases]
    if starts[:1] != [0] or sorted(set(starts)) != starts:
        raise ConfigError(f"config.phases start at epochs {starts}; they must begin with 0 and ascend")
    options = config.optim.to_dict()
    rules, lr, common = (options.pop(name) for name in ("rules", "lr", "schedule"))
    schedules = optim.make_schedules(lr, epochs=config.epochs, steps_per_epoch=data.spec.steps_per_epoch, **common)
    phases = []
    for (start, changes, groups), stop in zip(config.phases, [*starts[1:], config.epochs]):
        tx = optim.make_optimizer(schedules, rules, active=frozenset(groups), **options)
        first, last = (min(epoch, config.epochs) * data.spec.steps_per_epoch for epoch in (start, stop))
        phases.append(Phase(first, last, dataclasses.replace(method, **changes), tx))
    return tuple(phases)


def _example(data: Data) -> Batch:
    """A blank batch of one row, for shapes."""
    images = {m: jnp.zeros((1, *data.spec.image_size, 3)) for m in data.spec.modalities}
    present = {m: jnp.ones(1, bool) for m in data.spec.modalities}
    return {"images": images, "present": present} | {key: jnp.zeros(1, jnp.int32) for key in ("camid", "index")}
