"""Schedules against published numbers, Adam against PyTorch's, and the law that nothing moves before its time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tvi_lfm_golden as golden
from conftest import build, open_tiny, tiny_config
from flax import traverse_util

from jax_mmreid.errors import ConfigError
from jax_mmreid.optim import (
    LR_NOISE,
    group_names,
    make_optimizer,
    make_schedules,
    split_frozen,
    warmup_cosine,
    warmup_multistep,
)
from jax_mmreid.recipes.miss_reid import MISS_REID_ROWS
from jax_mmreid.state import merge

EPOCHS, STEPS = 50, 7
BASES = {"head": 3.5e-4, "prompt": 5e-3, "tower": 5e-6}


def schedule(base, **changes):
    common = dict(epochs=EPOCHS, steps_per_epoch=STEPS, warmup=10, reference=3.5e-4)
    return warmup_cosine(base, **common | changes)


def by_epoch(rate):
    """The rate of epochs 1..50."""
    return np.array([rate(np.int32(STEPS * t)) for t in range(EPOCHS)])


# epoch: head, prompt, tower
PUBLISHED = {
    1: (6.65e-5, 5.315e-4, 3.2e-5),
    5: (1.925e-4, 2.517e-3, 2.0e-5),
    10: (3.166e-4, 4.523e-3, 4.556e-6),
    21: (2.187e-4, 3.122e-3, 3.253e-6),
    30: (1.212e-4, 1.728e-3, 1.957e-6),
    50: (3.5e-7, 3.5e-7, 3.5e-7),
}


@pytest.mark.parametrize("group", BASES)
def test_the_rates_are_the_published_ones(group):
    rates = by_epoch(schedule(BASES[group], warmup_from="shared"))
    for t, row in PUBLISHED.items():
        expected = row[list(BASES).index(group)]
        assert rates[t - 1] == pytest.approx(expected, rel=5e-4), t


@pytest.mark.parametrize("base", BASES.values())
def test_the_own_ramp_rises_from_a_tenth(base):
    rates = by_epoch(schedule(base))
    np.testing.assert_allclose(rates[:9], base * (0.1 + 0.09 * np.arange(1, 10)), rtol=1e-6)


def test_both_ramps_join_the_same_cosine():
    own, shared = (by_epoch(schedule(5e-6, warmup_from=way)) for way in ("own", "shared"))
    np.testing.assert_array_equal(own[9:], shared[9:])
    assert (own[:9] < shared[:9]).all()


def test_without_warm_up_the_rate_starts_at_its_base():
    assert schedule(3e-3, warmup=0, per_step=True)(0) == pytest.approx(3e-3)


def test_the_rate_changes_only_between_epochs():
    rate = schedule(3e-3)
    assert rate(0) == rate(STEPS - 1)
    assert rate(STEPS - 1) < rate(STEPS)


def test_after_the_last_epoch_the_rate_stays_lowest():
    rate = schedule(3e-3, noise=True)
    assert rate(STEPS * EPOCHS + 3) == rate(STEPS * EPOCHS - 1) == pytest.approx(3.5e-7)


def test_noise_multiplies_the_rate_of_every_epoch_but_the_last():
    ratio = by_epoch(schedule(3e-3, noise=True)) / by_epoch(schedule(3e-3)) - 1
    np.testing.assert_allclose(ratio, [*LR_NOISE, 0], atol=1e-6)
    assert ratio[0] == pytest.approx(-0.648401, abs=1e-6)
    assert ratio[48] == pytest.approx(0.065951, abs=1e-6)


@pytest.mark.reference
def test_the_noise_is_the_one_pytorch_draws(torch):
    for t, expected in enumerate(LR_NOISE, start=1):
        generator = torch.Generator().manual_seed(42 + t)
        draws = (torch.randn(1, generator=generator).item() for _ in itertools.count())
        assert next(x for x in draws if abs(x) < 0.67) == pytest.approx(expected, abs=1e-6), t


@pytest.mark.parametrize("changes", [dict(epochs=49), dict(epochs=51), dict(per_step=True)])
def test_noise_without_its_fifty_epochs_is_refused(changes):
    with pytest.raises(ConfigError, match="noise needs epochs=50 and per_step=False"):
        schedule(3e-3, noise=True, **changes)


def test_an_unknown_warm_up_is_refused():
    with pytest.raises(ConfigError, match="warmup_from='up': expected 'own' or 'shared'"):
        schedule(3e-3, warmup_from="up")


def test_rates_per_step_are_continuous_up_to_the_end_of_the_warm_up():
    rate, steps = schedule(3e-3, per_step=True), np.arange(EPOCHS * STEPS)
    change = np.abs(np.diff(rate(steps)))
    change[10 * STEPS - 1] = 0  # there the published schedule falls from its base to the cosine's 10th epoch
    assert 0 < change.max() < 3e-3 / 40


def test_rates_per_step_pass_through_those_per_epoch():
    every = np.arange(1, EPOCHS)
    per_step, per_epoch = schedule(3e-3, per_step=True)(every * STEPS), schedule(3e-3)((every - 1) * STEPS)
    np.testing.assert_allclose(per_step, per_epoch, rtol=1e-5)


# The milestones of TVI-LFM.


@pytest.mark.parametrize("within", [0, 1, STEPS - 1])
def test_the_milestones_give_the_factors_of_the_official_code(within):
    rate = jax.jit(warmup_multistep(3.5e-4, steps_per_epoch=STEPS))
    for epoch, factor in golden.GOLDENS["units"]["lr_factor"].items():
        assert rate(int(epoch) * STEPS + within) == pytest.approx(3.5e-4 * factor, rel=1e-6), epoch


def test_milestones_within_the_warm_up_lower_it():
    # 1 step an epoch: 0.2, 0.6, 1 of the warm-up, and a quarter for each of the milestones 1 and 3.
    rate = warmup_multistep(8.0, steps_per_epoch=1, warmup=2, warmup_factor=0.2, milestones=(1, 3), gamma=0.25)
    np.testing.assert_allclose(rate(np.arange(5)), [1.6, 1.2, 2.0, 0.5, 0.5], rtol=1e-6)


def test_without_warm_up_milestones_start_at_the_base():
    assert warmup_multistep(3e-3, steps_per_epoch=STEPS, warmup=0)(0) == pytest.approx(3e-3)


def test_schedules_are_of_their_kind():
    run = dict(epochs=EPOCHS, steps_per_epoch=STEPS)
    steps = np.arange(STEPS * EPOCHS)
    own = dict(warmup=3, milestones=(5, 7))
    stepped = make_schedules(BASES, kind="multistep", **own, **run)
    smooth = make_schedules(BASES, warmup=10, reference=3.5e-4, **run)
    assert stepped.keys() == smooth.keys() == BASES.keys()
    for group, base in BASES.items():
        np.testing.assert_array_equal(
            stepped[group](steps), warmup_multistep(base, steps_per_epoch=STEPS, **own)(steps)
        )
        np.testing.assert_array_equal(smooth[group](steps), schedule(base)(steps))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="kind='step': expected one of cosine, multistep"):
        make_schedules(BASES, kind="step", epochs=EPOCHS, steps_per_epoch=STEPS)


@pytest.mark.parametrize("kind, options", [("multistep", dict(noise=True)), ("cosine", dict(warmup=1))])
def test_options_of_another_kind_are_refused(kind, options):
    with pytest.raises(ConfigError, match=f"optim.schedule (has noise|lacks reference); kind '{kind}' takes "):
        make_schedules(BASES, kind=kind, epochs=EPOCHS, steps_per_epoch=STEPS, **options)


# The optimizer.

RULES = (("tower/frozen/.*", "frozen"), ("tower/.*", "tower"), (".*", "new"))
ADAM = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, decay={})


def toy(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.array(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return {"tower": {"kernel": draw(2, 3)}, "head": {"kernel": draw(5, 2), "bias": draw(7)}}


def toy_optimizer(*active, tower=lambda step: 3e-3, new=lambda step: 1e-2, **changes):
    return make_optimizer({"tower": tower, "new": new}, RULES, active=frozenset(active), **ADAM | changes)


def run(tx, params, state, seeds):
    """Parameters and state after one update by a random gradient per seed."""
    for seed in seeds:
        updates, state = tx.update(toy(seed), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def frames(state, group):
    """The Adam state (count, mu, nu) of a group."""
    return state[0].inner_states[group].inner_state[1]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.reference
def test_five_steps_equal_pytorchs_adam(torch):
    params = toy()
    flat = {path: torch.tensor(np.asarray(x)) for path, x in traverse_util.flatten_dict(params).items()}
    groups = [
        dict(params=[x for path, x in flat.items() if (path[0] == "tower") == tower], lr=rate)
        for tower, rate in ((True, 3e-3), (False, 1e-2))
    ]
    reference = torch.optim.Adam(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    for seed in range(1, 6):
        for path, gradient in traverse_util.flatten_dict(toy(seed)).items():
            flat[path].grad = torch.tensor(np.asarray(gradient))
        reference.step()
    tx = toy_optimizer("tower", "new")
    found, _ = run(tx, params, tx.init(params), range(1, 6))
    for path, x in traverse_util.flatten_dict(found).items():
        np.testing.assert_allclose(x, flat[path].numpy(), atol=1e-6, rtol=0)


@pytest.mark.reference
def test_a_decay_of_its_own_equals_pytorchs(torch):
    params, decays = toy(), {"tower": 0.5, "head": 0.1}
    flat = {path: torch.tensor(np.asarray(x)) for path, x in traverse_util.flatten_dict(params).items()}
    groups = [
        dict(params=[x for path, x in flat.items() if path[0] == part], weight_decay=decay)
        for part, decay in decays.items()
    ]
    reference = torch.optim.Adam(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    for seed in range(1, 4):
        for path, gradient in traverse_util.flatten_dict(toy(seed)).items():
            flat[path].grad = torch.tensor(np.asarray(gradient))
        reference.step()
    tx = toy_optimizer("tower", "new", tower=lambda step: 1e-2, decay={"tower": 0.5})
    found, _ = run(tx, params, tx.init(params), range(1, 4))
    for path, x in traverse_util.flatten_dict(found).items():
        np.testing.assert_allclose(x, flat[path].numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("own", [True, False], ids=["decay of the group", "decay of all"])
def test_what_has_no_gradient_decays_as_under_the_official_code(own):
    unit = golden.GOLDENS["units"]["adam_zero_grad_decay"]
    rates = dict(tower=lambda step: unit["lr"], new=lambda step: unit["lr"])
    decay = dict(decay={"new": unit["wd"]}, weight_decay=0.0) if own else dict(weight_decay=unit["wd"])
    tx = toy_optimizer("tower", "new", **rates, **decay)
    params = {"words": jnp.array(unit["init"], jnp.float32), "tower": {"kernel": jnp.ones(2)}}
    update = jax.jit(lambda params, state: tx.update(jax.tree.map(jnp.zeros_like, params), state, params))
    state = tx.init(params)
    for step in range(1, 101):
        updates, state = update(params, state)
        params = optax.apply_updates(params, updates)
        if str(step) in unit:
            np.testing.assert_allclose(params["words"], unit[str(step)], rtol=2e-4, atol=2e-8)
    # In the other group, without decay, nothing moves.
    assert bool((params["tower"]["kernel"] == 1).all()) == own


def test_a_held_group_keeps_its_parameters_and_moments():
    params, held = toy(), toy_optimizer("tower")
    start = held.init(params)
    after, state = run(held, params, start, range(1, 6))
    assert_same(after["head"], params["head"])
    assert_same(frames(state, "new"), frames(start, "new"))
    assert frames(state, "tower").count == 5
    assert (after["tower"]["kernel"] != params["tower"]["kernel"]).all()


def test_a_group_that_has_moved_is_held_as_it_was():
    params, both, held = toy(), toy_optimizer("tower", "new"), toy_optimizer("tower")
    before, state = run(both, params, both.init(params), range(1, 3))
    after, later = run(held, before, state, range(3, 6))
    assert_same(after["head"], before["head"])
    assert_same(frames(later, "new"), frames(state, "new"))
    assert frames(later, "new").count == 2


def test_a_group_starts_its_moments_with_its_phase_at_the_rate_of_the_run():
    rising = lambda step: 1e-3 * (1 + step)  # noqa: E731
    params, held, both = toy(), toy_optimizer("tower", new=rising), toy_optimizer("tower", "new", new=rising)
    before, state = run(held, params, held.init(params), range(1, 6))
    after, state = run(both, before, state, [6])
    assert frames(state, "new").count == 1
    assert frames(state, "tower").count == 6
    # With full bias correction the first step is the rate times the sign of gradient plus decay.
    gradient = jax.tree.map(lambda g, x: g + 0.1 * x, toy(6)["head"], before["head"])
    step = jax.tree.map(lambda new, old: new - old, after["head"], before["head"])
    jax.tree.map(lambda s, g: np.testing.assert_allclose(s, -6e-3 * np.sign(g), rtol=1e-3), step, gradient)


def test_phases_share_the_structure_of_their_state():
    held, both = (jax.tree.structure(toy_optimizer(*active).init(toy())) for active in (("tower",), ("tower", "new")))
    assert held == both


def test_a_group_without_a_rate_is_refused():
    with pytest.raises(ConfigError, match="phases train prompts, text, optim.lr has new, tower"):
        toy_optimizer("tower", "text", "prompts")


@pytest.mark.parametrize("group", ["heads", "frozen"])
def test_a_decay_of_a_group_that_is_not_trained_is_refused(group):
    with pytest.raises(ConfigError, match=f"optim.decay has {group}, optim.lr has new, tower"):
        toy_optimizer("tower", "new", decay={group: 0.1})


# Rules.


def test_rules_that_overlap_give_a_parameter_to_one_group_only():
    rules = (("head/bias", "tower"), ("head/.*", "new"), (".*kernel", "tower"), (".*", "new"))
    optimizer = make_optimizer(dict.fromkeys(("tower", "new"), lambda step: 1e-2), rules, active=frozenset(), **ADAM)
    held = {group: paths(frames(optimizer.init(toy()), group).mu) for group in ("tower", "new")}
    assert held == {"tower": {"head/bias", "tower/kernel"}, "new": {"head/kernel"}}


def test_the_first_matching_rule_wins():
    params = {"tower": {"frozen": {"kernel": 0}, "kernel": 0}, "head": {"tower": 0}}
    expected = {"tower": {"frozen": {"kernel": "frozen"}, "kernel": "tower"}, "head": {"tower": "new"}}
    assert group_names(params, RULES) == expected


def test_a_rule_matches_whole_paths():
    assert group_names({"head": {"kernel": 0}}, (("head", "start"), ("kernel", "end"), (".*", "all")))["head"] == {
        "kernel": "all"
    }


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(ConfigError, match="cover every parameter but head/kernel, head/bias; add a rule"):
        group_names(toy(), RULES[:2])


def test_frozen_parameters_get_neither_state_nor_decay():
    params = toy()
    params["tower"]["frozen"] = {"kernel": jnp.ones((11, 13))}
    trained, frozen = split_frozen(params, RULES)
    assert frozen == {"tower": {"frozen": params["tower"]["frozen"]}}
    tx = toy_optimizer("tower", "new")
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, trained), tx.init(trained), trained)
    assert not [x for x in jax.tree.leaves(state) if x.shape == (11, 13)]
    after = merge(optax.apply_updates(trained, updates), frozen)
    moved = {path: bool((x != y).all()) for (path, x), (_, y) in zip(leaves(after), leaves(params))}
    assert moved == {"head/bias": True, "head/kernel": True, "tower/frozen/kernel": False, "tower/kernel": True}


def leaves(params):
    return sorted(traverse_util.flatten_dict(params, sep="/").items())


def test_merge_undoes_split_frozen():
    params = toy()
    params["tower"]["frozen"] = {"kernel": jnp.ones((11, 13))}
    merged = merge(*split_frozen(params, RULES))
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert_same(merged, params)


# What a recipe builds.


def built(config):
    return build(config, open_tiny(config), devices=jax.devices()[:1])


def paths(tree):
    """Names of the parameters in a tree, which may be part of an optimizer's state."""
    return {"/".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def miss_reid_group(path):
    """The group that Section 4.2 and the recipe it builds on give a parameter of Miss-ReID."""
    language = path.startswith(("inversion/", "heads/text_"))
    if path == "prompts" or path.startswith("text/"):
        return "prompts" if path == "prompts" else "frozen"
    if path.startswith("image/"):
        return "new" if path == "image/camera_embedding" else "tower"
    return ("language" if language else "new") + ("_bias" if path.endswith("bias") else "")


@pytest.mark.parametrize("row", MISS_REID_ROWS)
def test_every_parameter_of_miss_reid_is_in_its_group_only(drawn, row):
    config = tiny_config(drawn, row=row)
    abstract = built(config).abstract
    names = paths(abstract.params)
    assert {path.split("/")[0] for path in paths(abstract.frozen)} == ({"text"} if row in "EF" else set())
    assert not [path for path in names if path.startswith("text/")]
    for group in config.optim.lr:
        expected = {path for path in names if miss_reid_group(path) == group}
        state = frames(abstract.opt_state, group)
        assert paths(state.mu) == paths(state.nu) == expected, group
    everything = group_names(merge(abstract.params, abstract.frozen), config.optim.rules)
    assert {path: miss_reid_group(path) for path, _ in leaves(everything)} == dict(leaves(everything))


def test_the_optimizer_state_holds_no_text_tower(drawn):
    abstract = built(tiny_config(drawn)).abstract
    frozen = {path for path, _ in leaves(abstract.frozen)}
    held = {"/".join(k.key for k in path if isinstance(k, jax.tree_util.DictKey)) for path, _ in
            jax.tree_util.tree_leaves_with_path(abstract.opt_state)}  # fmt: skip
    assert frozen
    assert not [name for name in held if any(name.endswith("/" + path) for path in frozen)]


def test_a_phase_that_trains_an_unknown_group_is_refused(drawn):
    with pytest.raises(ConfigError, match="phases train towers, optim.lr has"):
        built(tiny_config(drawn, row="A", phases=((0, {}, ("towers", "new")),)))


def test_the_decay_of_a_group_reaches_its_parameters_only(drawn):
    """Without a gradient a parameter moves by its decay alone."""
    exp = built(tiny_config(drawn, row="A", **{"optim.weight_decay": 0.0, "optim.decay.new": 0.1}))
    params = jax.tree.map(lambda x: jnp.ones(x.shape), exp.abstract.params)
    tx = exp.phases[0].tx
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    moved = {path for path, x in leaves(updates) if (x != 0).any()}
    assert moved == {path for path in paths(params) if miss_reid_group(path) == "new"} != set()


def test_a_schedule_of_another_kind_reaches_the_run(drawn):
    schedule = dict(kind="multistep", warmup=0, milestones=(1, 2), gamma=0.5)
    config = tiny_config(drawn, row="A")
    config.optim.unlock().schedule = schedule
    exp, steps = built(config), open_tiny(config).spec.steps_per_epoch
    params = {"classifier": jnp.zeros(1)}
    tx, gradient = exp.phases[0].tx, {"classifier": jnp.ones(1)}
    state, sizes = tx.init(params), []
    for _ in range(3 * steps):
        updates, state = tx.update(gradient, state, params)
        sizes.append(-updates["classifier"][0])
    # Under a constant gradient every step of Adam is as long as its rate.
    np.testing.assert_allclose(sizes, 1e-3 * np.repeat([1, 0.5, 0.25], steps), rtol=1e-4)


def test_a_schedule_of_no_kind_is_refused(drawn):
    with pytest.raises(ConfigError, match="kind='linear': expected one of cosine, multistep"):
        built(tiny_config(drawn, row="A", **{"optim.schedule.kind": "linear"}))


@pytest.mark.parametrize("starts", [(), (1,), (0, 2, 1), (0, 1, 1)])
def test_phases_that_do_not_ascend_from_0_are_refused(drawn, starts):
    phases = tuple((start, {}, ("new",)) for start in starts)
    with pytest.raises(ConfigError, match="they must begin with 0 and ascend"):
        built(tiny_config(drawn, row="A", phases=phases))


def test_phases_meet_at_the_first_step_of_their_epoch(drawn):
    config = tiny_config(drawn, phases=((0, {}, ("new",)), (2, {}, ("tower",))))
    exp = built(config)
    steps = open_tiny(config).spec.steps_per_epoch
    assert [(phase.start, phase.stop) for phase in exp.phases] == [(0, 2 * steps), (2 * steps, 3 * steps)]
    assert exp.phase(2 * steps - 1) is exp.phases[0]
    assert exp.phase(2 * steps) is exp.phase(3 * steps) is exp.phases[1]
