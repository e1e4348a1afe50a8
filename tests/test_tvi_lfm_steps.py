"""Oracle: TVI-LFM at full size takes the official code's training steps, in each stage, and makes its vectors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tvi_lfm_golden as golden
from conftest import load_config
from flax import traverse_util

from jax_mmreid import experiment
from jax_mmreid.batch import DataSpec
from jax_mmreid.state import merge
from jax_mmreid.weights import init as weights_init
from jax_mmreid.weights import layouts

pytestmark = pytest.mark.slow

LABELS = np.array([0, 0, 7, 7, 101, 101, 394, 394], np.int32)
LENGTH = 17  # of the longest caption; the official code pads to 77, which changes nothing
STEPS = {
    "stage1_epoch10": ("base", "full"),
    "stage2_uni_sff_epoch10": ("lfm", "B+SFF+MJL"),
    "ablation_B_epoch10": ("lfm", "B"),
    "ablation_B_SFF_epoch10": ("lfm", "B+SFF"),
}
SPEC = DataSpec(
    name="sysu_mm01",
    fingerprint="",
    modalities=("rgb", "ir"),
    image_size=(96, 48),
    pids=tuple(range(golden.CLASSES)),
    cameras=(1, 2, 3, 4, 5, 6),
    batch_size=len(LABELS),
    steps_per_epoch=1,
    text=("rgb", "ir"),
    text_length=LENGTH,
    vocab=49408,
)


def batch(stage):
    captions = {"rgb": golden.tokens(1, 0)[:, :LENGTH], "ir": golden.tokens(3, 2)[:, :LENGTH]}
    present = dict.fromkeys(("rgb", "ir", "text", "text/rgb", "text/ir"), np.ones(len(LABELS), bool))
    pictures = {name: golden.images(i) for i, name in enumerate(("rgb", "rgb_strong", "ir"))}
    return {"images": pictures, "present": present, "label": LABELS} | ({"text": captions} if stage == "lfm" else {})


def take_step(stage, row):
    """Terms, gradients and state of one step, and the terms after it."""
    exp, state = build(stage, row)
    method, tx = exp.phases[0].method, exp.phases[0].tx
    inputs = batch(stage)

    def objective(params, state):
        out = method.loss(merge(params, state.frozen), state, inputs, {})
        return sum(out.terms.values()), out

    @jax.jit
    def step(state):
        (_, out), grads = jax.value_and_grad(objective, has_aux=True)(state.params, state)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return out.terms, grads, state.replace(params=params, opt_state=opt_state, **out.updates)

    terms, grads, after = step(state)
    again = jax.jit(lambda state: objective(state.params, state)[1].terms)(after)
    return state, terms, grads, after, again


def build(stage, row):
    """The experiment, and its state with the official recipe's weights."""
    config = load_config("sysu_mm01", f"stage={stage},row={row}")
    config.optim.schedule.warmup = 0  # learning rates as after it
    config.mesh.data = 1
    exp = experiment.build(config, SPEC, devices=jax.devices()[:1])
    weights = layouts.to_ours(golden.state_dict(second_stage=stage == "lfm"), "tvi_lfm", {})
    state = exp.create(jax.random.PRNGKey(0))
    return exp, weights_init.start_from(state, weights, SPEC.image_size, required=None)


@pytest.fixture(scope="module", params=STEPS)
def taken(request):
    return golden.GOLDENS[request.param], STEPS[request.param][0], take_step(*STEPS[request.param])


def official(params, frozen, stats):
    """Tensors by official name, in PyTorch's axis order."""
    tree = {"params": merge(params, frozen), "batch_stats": stats}
    return layouts.from_ours(traverse_util.flatten_dict(jax.device_get(tree), sep="/"), "tvi_lfm")


def test_the_losses(taken):
    expected, _, (_, terms, _, _, again) = taken
    for ours, theirs in (("identity", "id_loss"), ("triplet", "wrt_loss")):
        for got, block, rtol, atol in ((terms, "losses", 1e-4, 0), (again, "losses_second_forward", 0.02, 1e-5)):
            number = next(x for name, x in expected[block].items() if name.endswith(theirs))
            np.testing.assert_allclose(got[ours], number, rtol=rtol, atol=atol, err_msg=f"{block} {ours}")


def test_the_gradients(taken):
    expected, _, (state, _, grads, _, _) = taken
    zeros = jax.tree.map(jnp.zeros_like, state.frozen)
    tensors = official(grads, zeros, jax.tree.map(jnp.zeros_like, state.batch_stats))
    for name, norm in expected["grad_l2"].items():
        np.testing.assert_allclose(np.linalg.norm(tensors[name]), norm, rtol=5e-4, atol=1e-6, err_msg=name)


def test_the_parameters_and_statistics_after_it(taken):
    """A step of Adam is as long as the learning rate, 3.5e-4, so where a gradient is rounding its sign may differ."""
    expected, _, (_, _, _, after, _) = taken
    tensors = official(after.params, after.frozen, after.batch_stats)
    for name, summary in expected["after_step"].items():
        x = tensors[name].astype(np.float64)
        first = x.reshape(-1)[: len(summary["first5"])]
        np.testing.assert_allclose(first, summary["first5"], rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(x.sum(), summary["sum"], rtol=0, atol=5e-3, err_msg=name)
        np.testing.assert_allclose(np.linalg.norm(x), summary["l2"], rtol=1e-5, err_msg=name)


def test_what_is_frozen(taken):
    _, stage, (before, _, grads, after, _) = taken
    jax.tree.map(np.testing.assert_array_equal, before.frozen, after.frozen)
    if stage == "lfm":
        assert "image" not in grads and "image" not in after.params
        jax.tree.map(np.testing.assert_array_equal, before.batch_stats["base"], after.batch_stats["base"])
        statistics = zip(*(jax.tree.leaves(state.batch_stats["image"]) for state in (before, after)))
        assert all(np.any(a != b) for a, b in statistics)


def test_the_vectors_and_their_sum():
    """Infrared, text, fused and visible vectors of `encode` and `embed`, and the similarities of the ensemble."""
    expected = golden.GOLDENS["eval"]
    exp, state = build("lfm", "full")
    method = exp.phases[0].method
    inputs = batch("lfm")
    inputs["images"] = {name: inputs["images"][name] for name in ("rgb", "ir")}
    features = jax.jit(method.encode)(state.variables, inputs)

    def embed(use, **options):
        return dataclasses.replace(method, **options).embed(state.variables, features, use)

    uses = {"gallery_rgb": ("rgb",), "query_ir": ("ir",), "query_text": ("text",), "query_fusion": ("ir", "text")}
    for name, use in uses.items():
        golden.check(embed(use), expected[name], 1e-5)
    golden.check(embed(("ir",), neck="base"), expected["query_ir"], 1e-5)  # the golden weights of both necks are equal
    scores, sums = embed(("ir", "text"), ensemble=True)[0] @ embed(("rgb",)).T, np.array(expected["mer_score_row0"])
    np.testing.assert_allclose(scores / scores[0], sums / sums[0], rtol=1e-5)
