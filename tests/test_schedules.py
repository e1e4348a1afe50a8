"""Schedules of the learning rate against the numbers published for Miss-ReID and TVI-LFM."""

import itertools

import jax
import numpy as np
import pytest
import tvi_lfm_golden as golden

from jax_mmreid.errors import ConfigError
from jax_mmreid.optim import LR_NOISE, make_schedules, warmup_cosine, warmup_multistep

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
