"""What a config and a data spec stand for: a mesh, the phases of the recipe, and the state they act on.

Nothing here reads a picture: `build` needs the spec of the data alone, which every workdir holds.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from jax_mmreid import optim, sharding
from jax_mmreid.batch import Data, DataSpec, one_row
from jax_mmreid.config import RANGES, ConfigDict, find, numeric_fields
from jax_mmreid.errors import ConfigError
from jax_mmreid.methods import Method, read_fields
from jax_mmreid.ops import augment
from jax_mmreid.ranges import check_ranges
from jax_mmreid.state import TrainState


class Phase(NamedTuple):
    """Steps start..stop-1 run `method` and are updated by `tx`, which moves the groups of this phase only."""

    start: int
    stop: int
    method: Method
    tx: optax.GradientTransformation
    rates: dict[str, Callable[[Array], Array]]  # the learning rate of each trained group at a step


class Experiment(NamedTuple):
    """`create(rng)` makes the initial state in place; `abstract` is its shapes, dtypes and shardings.

    `gather` is `sharding.gathered` where `config.fsdp` splits parameters: what computes with them calls it.
    """

    spec: DataSpec
    mesh: Mesh
    phases: tuple[Phase, ...]
    create: Callable[[Array], TrainState]
    abstract: TrainState
    gather: Callable[[Any], Any]

    def phase(self, step: int) -> Phase:
        """The phase of update number `step`; after the last update, the last phase."""
        return [phase for phase in self.phases if phase.start <= step][-1]


def build(
    config: ConfigDict,
    spec: DataSpec,
    tokenize: Callable[[Sequence[str]], np.ndarray] | None = None,
    devices: list | None = None,
) -> Experiment:
    """Reads a config once and for all.

    `tokenize` maps sentences to ids [n,L] with the vocabulary of the spec, `Data.tokenize` as a rule; a method that
    writes no sentences of its own needs none. `devices` are those of the mesh, by default all. Raises ConfigError for
    fields that are out of their range or do not fit together.
    """
    module = find("jax_mmreid.methods", config.method)
    model = read_fields(module.Config, config.model.to_dict(), "model")  # first: RANGES knows no other fields
    augment.check(config.data.modalities, config.aug.to_dict())
    ranges = RANGES | {rf"model\.{field}": interval for field, interval in module.RANGES.items()}
    check_ranges(numeric_fields(config), ranges)
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sizes = {
        "data.identities * data.instances": spec.batch_size,
        "data.eval_batch_size": config.data.eval_batch_size,
    }
    for key, rows in sizes.items():
        if rows % mesh.shape["data"]:
            raise ConfigError(f"{key} = {rows} does not divide over {mesh.shape['data']} devices of axis 'data'")
    method = module.create(spec, model, tokenize)
    phases = _phases(config, spec, method)

    def init(rng: Array) -> TrainState:
        variables = method.init(rng, one_row(spec, spec.modalities))
        params, frozen = optim.split_frozen(variables.pop("params"), config.optim.rules)
        opt_state = phases[0].tx.init(params)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step=step, params=params, frozen=frozen, opt_state=opt_state, rng=rng, **variables)

    shapes = jax.eval_shape(init, jax.random.PRNGKey(0))
    shardings = sharding.state_sharding(mesh, shapes, config.sharding, fsdp=config.fsdp)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    create = jax.jit(init, out_shardings=shardings)
    gather = functools.partial(sharding.gathered, mesh=mesh, rules=config.sharding) if config.fsdp else lambda x: x
    return Experiment(spec, mesh, phases, create, abstract, gather)


def model_spec(config: ConfigDict, data: Data) -> DataSpec:
    """The spec of the data, with the normalisation of the config: what the model is built from."""
    return dataclasses.replace(data.spec, mean=config.aug.mean, std=config.aug.std)


def _phases(config: ConfigDict, spec: DataSpec, method: Method) -> tuple[Phase, ...]:
    starts = [start for start, _, _ in config.phases]
    if starts[:1] != [0] or sorted(set(starts)) != starts:
        raise ConfigError(f"config.phases start at epochs {starts}; they must begin with 0 and ascend")
    options = config.optim.to_dict()
    rules, lr, common = (options.pop(name) for name in ("rules", "lr", "schedule"))
    schedules = optim.make_schedules(lr, epochs=config.epochs, steps_per_epoch=spec.steps_per_epoch, **common)
    phases = []
    for (start, changes, groups), stop in zip(config.phases, [*starts[1:], config.epochs]):
        tx = optim.make_optimizer(schedules, rules, active=frozenset(groups), **options)
        first, last = (min(epoch, config.epochs) * spec.steps_per_epoch for epoch in (start, stop))
        rates = {group: schedules[group] for group in groups}
        phases.append(Phase(first, last, method.with_options(changes, "config.phases"), tx, rates))
    return tuple(phases)
