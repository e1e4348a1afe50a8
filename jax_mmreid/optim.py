"""Schedules, and the optimizer as ordered rules: every parameter belongs to the group of the first rule it matches.

Adam with coupled L2 decay (added to the gradient before the moments, as in torch.optim.Adam), a base learning rate
per group, and a decay of its own where a group needs one. A group that a phase does not train keeps its moments and
its Adam count untouched: nothing decays and nothing moves before its time. The group "frozen" is never trained and
never reaches the optimizer.
"""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax import Array

from jax_mmreid.errors import ConfigError

# The multiplicative noise n_t of epochs 1..49 that the public code behind the paper's recipe draws (seed 42+t).
LR_NOISE = (
    -.648401, .058945, .031176, -.131824, .575679, .51856, .058264, .462491, .31075, -.145543, -.173819, -.479985,
    -.513682, -.038887, .144601, -.032867, .403241, .386561, -.086071, .25503, .216623, .643069, .189241, -.219772,
    -.119732, .634609, -.525891, .201137, .599645, -.355963, .05913, .666428, .165358, -.392683, -.356838, -.623824,
    .521204, -.658706, .27877, -.293001, .468439, -.200494, -.1447, .482745, .258689, .573382, -.413777, .662266,
    .065951,
)  # fmt: skip


def warmup_cosine(
    base: float,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup: int,
    reference: float,
    floor: float = 1e-3,
    per_step: bool = False,
    warmup_from: str = "own",
    noise: bool = False,
) -> Callable[[Array], Array]:
    """The learning rate of step s: linear warm-up for `warmup` epochs, then the cosine of the whole run.

    Set once per epoch, at t = 1 + s // steps_per_epoch, or with `per_step` at t = s / steps_per_epoch:
    t < warmup: from 0.1 base ("own") or 0.1 reference ("shared": a group with a lower base then warms *down*);
    t < epochs: lr_min + (base - lr_min) (1 + cos(pi t / epochs)) / 2 with lr_min = floor * reference; then lr_min.
    `noise` multiplies epoch t by 1 + n_t of LR_NOISE; it needs 50 epochs, set once per epoch.
    """
    if warmup_from not in ("own", "shared"):
        raise ConfigError(f"optim.schedule.warmup_from={warmup_from!r}: expected 'own' or 'shared'")
    if noise and (per_step or epochs != len(LR_NOISE) + 1):
        raise ConfigError(f"optim.schedule.noise needs epochs={len(LR_NOISE) + 1} and per_step=False")
    start = 0.1 * (base if warmup_from == "own" else reference)
    lowest = floor * reference
    factors = jnp.asarray(np.array([0.0, *LR_NOISE, 0.0]) + 1.0, jnp.float32) if noise else None

    def schedule(step: Array) -> Array:
        t = step / steps_per_epoch if per_step else 1 + step // steps_per_epoch
        ramp = start + t * (base - start) / max(warmup, 1)
        cosine = lowest + 0.5 * (base - lowest) * (1 + jnp.cos(jnp.pi * t / epochs))
        rate = jnp.where(t < warmup, ramp, jnp.where(t < epochs, cosine, lowest))
        return rate if factors is None else rate * factors[jnp.minimum(t, epochs)]

    return schedule


def warmup_multistep(
    base: float,
    *,
    steps_per_epoch: int,
    warmup: int = 10,
    warmup_factor: float = 0.01,
    milestones: Sequence[int] = (40, 60, 100),
    gamma: float = 0.1,
) -> Callable[[Array], Array]:
    """The learning rate of step s in epoch e = s // steps_per_epoch, as the official TVI-LFM code sets it.

    `base` times `gamma` for every milestone that e has reached; in the first `warmup` epochs times what rises linearly
    from `warmup_factor` at e = 0 to 1 at e = `warmup`. The length of the run does not enter.
    """
    falls = np.asarray(milestones, np.int32)

    def schedule(step: Array) -> Array:
        epoch = jnp.asarray(step // steps_per_epoch)
        done = jnp.minimum(epoch / warmup, 1.0) if warmup else 1.0
        passed = (epoch[..., None] >= falls).sum(-1)
        return base * (warmup_factor * (1 - done) + done) * gamma**passed

    return schedule


def make_schedules(
    lr: dict[str, float], *, epochs: int, steps_per_epoch: int, kind: str = "cosine", **options: Any
) -> dict[str, Callable[[Array], Array]]:
    """The schedule of every group from its base rate; `options` are keyword arguments of the function of this kind.

    Raises ConfigError for a kind that does not exist or options that are not its own.
    """
    kinds = {"cosine": functools.partial(warmup_cosine, epochs=epochs), "multistep": warmup_multistep}
    if kind not in kinds:
        raise ConfigError(f"optim.schedule.kind={kind!r}: expected one of {', '.join(kinds)}")
    parameters = inspect.signature(kinds[kind]).parameters.values()
    takes = {p.name: p.default for p in parameters if p.name not in ("base", "epochs", "steps_per_epoch")}
    lacks = [name for name, default in takes.items() if default is inspect.Parameter.empty and name not in options]
    for what, names in (("has", sorted(options.keys() - takes.keys())), ("lacks", lacks)):
        if names:
            raise ConfigError(
                f"optim.schedule {what} {', '.join(names)}; kind {kind!r} takes {', '.join(sorted(takes))}"
            )
    return {group: kinds[kind](base, steps_per_epoch=steps_per_epoch, **options) for group, base in lr.items()}


def group_names(params: Any, rules: tuple[tuple[str, str], ...]) -> Any:
    """The group of every parameter, as a tree like `params`; raises ConfigError if a rule set leaves one out."""
    flat = traverse_util.flatten_dict(params, sep="/")
    names = {}
    for path in flat:
        names[path] = next((group for pattern, group in rules if re.fullmatch(pattern, path)), None)
    uncovered = [path for path, group in names.items() if group is None]
    if uncovered:
        raise ConfigError(f"optim.rules cover every parameter but {', '.join(uncovered[:5])}; add a rule")
    return traverse_util.unflatten_dict(names, sep="/")


def split_frozen(params: Any, rules: tuple[tuple[str, str], ...]) -> tuple[dict, dict]:
    """`params` as (trained, frozen); `state.merge` puts them together again."""
    names = traverse_util.flatten_dict(group_names(params, rules))
    flat = traverse_util.flatten_dict(params)
    trained = {path: x for path, x in flat.items() if names[path] != "frozen"}
    frozen = {path: x for path, x in flat.items() if names[path] == "frozen"}
    return traverse_util.unflatten_dict(trained), traverse_util.unflatten_dict(frozen)


def make_optimizer(
    schedules: dict[str, Callable],
    rules: tuple[tuple[str, str], ...],
    *,
    active: frozenset[str],
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    decay: dict[str, float],
) -> optax.GradientTransformation:
    """Adam over the groups in `schedules`, of which only `active` move; raises ConfigError for another group.

    `decay` holds the weight decay of the groups where it is not `weight_decay`. The state has the same structure
    whatever is active, so phases share it.
    """
    named = {name for _, name in rules} - {"frozen"}
    for source, groups in (("phases train", active), ("optim.rules name", named), ("optim.decay has", decay.keys())):
        unknown = sorted(groups - schedules.keys())
        if unknown:
            raise ConfigError(f"{source} {', '.join(unknown)}, optim.lr has {', '.join(sorted(schedules))}")
    labels = lambda params: group_names(params, rules)  # noqa: E731
    moments = {}
    for group in schedules:
        decayed = optax.add_decayed_weights(decay.get(group, weight_decay))
        adam = optax.chain(decayed, optax.scale_by_adam(b1, b2, eps))
        moments[group] = adam if group in active else _hold(adam)
    rates = {group: optax.scale_by_learning_rate(schedule) for group, schedule in schedules.items()}
    # Rates count every step of the run, moments only the steps of their own phase.
    return optax.chain(optax.partition(moments, labels), optax.partition(rates, labels))


def _hold(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps the state of `inner` and moves nothing."""
    return optax.GradientTransformation(
        inner.init, lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), state)
    )
