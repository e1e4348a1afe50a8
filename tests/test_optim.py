"""Adam against PyTorch's, the group of every parameter, and the law that nothing moves before its time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tvi_lfm_golden as golden
from conftest import build, open_tiny, tiny_config
from flax import traverse_util

from jax_mmreid.errors import ConfigError
from jax_mmreid.optim import group_names, make_optimizer, split_frozen
from jax_mmreid.recipes.miss_reid import MISS_REID_ROWS
from jax_mmreid.state import merge

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
