"""The layers after the towers against PyTorch, and the laws of masks and sentences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from parity import close, init, jitted, load, normal, randomized, shapes, stds

from jax_mmreid.models.heads import GeM, Head
from jax_mmreid.models.language import Inversion, inject, template
from jax_mmreid.models.structure import StructureQueries

B, WIDTH = 3, 14


# Pooling.


@jax.jit
def gem(x, p=3.0):
    return GeM().apply({"params": {"p": jnp.array([p])}}, x)


GOLDEN = np.cos(0.7 * np.arange(48)).astype(np.float32).reshape(2, 3, 4, 2).transpose(0, 2, 3, 1)


def test_pooling_gives_the_numbers_of_the_official_code():
    expected = [
        [0.5670705437660217, 0.6190837025642395, 0.6197916269302368],
        [0.6197970509529114, 0.6198040246963501, 0.6198120713233948],
    ]
    close(gem(GOLDEN), expected, 1e-5)
    assert jax.jit(jax.grad(lambda p: gem(GOLDEN, p).sum()))(3.0) == pytest.approx(0.44431009888648987, abs=1e-5)


def test_pooling_is_between_the_mean_and_the_maximum():
    x = np.abs(normal(0, 2, 3, 4, 5)) + 0.1
    close(gem(x, 1.0), x.mean((1, 2)), 1e-5)
    close(gem(x, 500.0), x.max((1, 2)), 0.03)
    pooled = np.asarray(gem(x))
    assert (pooled > x.mean((1, 2))).all()
    assert (pooled < x.max((1, 2))).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_empty_map_pools_to_the_floor_with_finite_gradients(dtype):
    x = np.zeros((2, 3, 4, 5), jnp.dtype(dtype))
    gradients = jax.jit(jax.grad(lambda p, x: gem(x, p).sum(), argnums=(0, 1)))
    for p in (3.0, 30.0):
        pooled = gem(x, p)
        assert pooled.dtype == jnp.float32
        np.testing.assert_allclose(pooled, np.full((2, 5), 1e-6), rtol=1e-4)
        assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in gradients(p, x))


def test_pooling_has_one_exponent_for_all_channels():
    params = init(GeM(), GOLDEN)
    assert params.keys() == {"p"}
    np.testing.assert_array_equal(params["p"], [3.0])


# The training head.

ROWS = np.array([True, False, True, True, False, True, False])


def fresh_stats(dim):
    return {"mean": jnp.zeros(dim), "var": jnp.ones(dim)}


def test_values_of_masked_rows_reach_neither_statistics_nor_gradients():
    head, stats = Head(11), {"neck": fresh_stats(5)}
    params = randomized(shapes(head, jnp.zeros((1, 5)), jnp.ones(1, bool), train=False))
    clean = normal(0, 7, 5) * ROWS[:, None]

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def grads(params, x):
        variables = {"params": params, "batch_stats": stats}
        logits, updated = head.apply(variables, x, ROWS, train=True, mutable=["batch_stats"])
        return jnp.square(jnp.where(ROWS[:, None], logits, 0)).sum(), updated["batch_stats"]

    expected = grads(params, clean)
    for filler in (np.nan, np.inf, 1e4):
        found = grads(params, np.where(ROWS[:, None], clean, np.float32(filler)))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("bias", [False, True], ids=["scale", "bias"])
def test_the_neck_has_a_bias_only_on_request(bias):
    x = normal(0, 7, 5)
    init_with_output = jax.jit(functools.partial(Head(11, neck_bias=bias).init_with_output, train=False))
    logits, variables = init_with_output(jax.random.PRNGKey(0), x, ROWS)
    found = {"/".join(path): leaf.shape for path, leaf in traverse_util.flatten_dict(variables["params"]).items()}
    expected = {"neck/scale": (5,), "classifier/kernel": (5, 11)}
    assert found == expected | ({"neck/bias": (5,)} if bias else {})
    assert logits.shape == (7, 11)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_the_logits_are_linear_in_the_neck(train):
    head, x = Head(11, neck_bias=True), normal(0, 7, 5)
    params = randomized(shapes(head, x, train=False))
    stats = {"neck": {"mean": normal(1, 5), "var": 1 + np.abs(normal(2, 5))}}
    variables = {"params": params, "batch_stats": stats}
    apply = functools.partial(head.apply, train=train, mutable=["batch_stats"])
    neck, after = jax.jit(functools.partial(apply, method="bn_features"))(variables, x)
    logits, expected = jax.jit(apply)(variables, x, np.ones(7, bool))
    close(np.asarray(neck) @ np.asarray(params["classifier"]["kernel"]), logits, 1e-5)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), after, expected)
    if not train:
        params = jax.device_get(params)
        y = (x - stats["neck"]["mean"]) / np.sqrt(stats["neck"]["var"] + 1e-5)
        close(neck, y * params["neck"]["scale"] + params["neck"]["bias"], 1e-5)


# The structure queries.

STRUCTURE = dict(queries=5, width=14, heads=2)


def structure(**changes):
    """(module, random parameters, tokens [B,17,11])."""
    module, tokens = StructureQueries(**STRUCTURE | changes), normal(0, B, 17, 11)
    return module, randomized(shapes(module, tokens)), tokens


@pytest.mark.reference
def test_structure_queries_equal_pytorch_attention_with_an_identity_output(torch):
    module, params, tokens = structure()
    reference = torch.nn.MultiheadAttention(14, 2, bias=False, kdim=11, vdim=11, batch_first=True).double()
    weights = {
        f"{x[0]}_proj_weight": np.asarray(params[f"{x}_projection"]["kernel"]) for x in ("query", "key", "value")
    }
    weights = {name: torch.tensor(x.reshape(len(x), -1).T) for name, x in weights.items()}
    reference.load_state_dict(weights | {"out_proj.weight": torch.eye(14)})

    def layer_norm(x, name):
        scale, bias = (torch.tensor(params[name]["norm"][leaf]).double() for leaf in ("scale", "bias"))
        return torch.nn.functional.layer_norm(torch.tensor(x).double(), x.shape[-1:], scale, bias)

    query = layer_norm(params["query"], "ln_query").expand(B, -1, -1)
    keys = layer_norm(tokens, "ln_tokens")
    with torch.no_grad():
        out, attention = reference(query, keys, keys, average_attn_weights=False)
    found, found_attention = jitted(module)(params, tokens)
    close(found, out.mean(dim=1), 1e-5)
    close(found_attention, attention.transpose(1, 2), 1e-5)


def test_the_attention_of_every_query_sums_to_one():
    module, params, tokens = structure()
    _, attention = jax.device_get(jitted(module)(params, tokens))
    assert attention.shape == (B, 5, 2, 17)
    close(attention.sum(-1), np.ones((B, 5, 2)), 1e-6)
    assert np.abs(attention - 1 / 17).max() > 1e-2


def test_the_output_projection_is_one_dense_layer_on_the_mean():
    _, params, _ = structure()
    module, projected, tokens = structure(out_proj=True)
    assert projected.keys() - params.keys() == {"out_projection"}
    added = projected["out_projection"]
    assert {name: x.shape for name, x in added.items()} == {"kernel": (14, 14), "bias": (14,)}
    mean, _ = jitted(StructureQueries(**STRUCTURE))({name: projected[name] for name in params}, tokens)
    found, _ = jitted(module)(projected, tokens)
    close(found, np.asarray(mean) @ np.asarray(added["kernel"]) + np.asarray(added["bias"]), 1e-5)


# The language side.

SENTENCES = {
    "person": (49406, 550, 2867, 539, 320, 343, 2533, 267, 822, 2665, 518, 343, 343, 343, 343, 40763, 269, 49407),
    "vehicle": (49406, 550, 2867, 539, 320, 343, 5299, 267, 1448, 2665, 518, 343, 343, 343, 343, 40763, 269, 49407),
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_the_sentence_is_the_published_one(kind):
    assert template(kind, prompts=4) == (SENTENCES[kind], 5, 11, 17)


def test_without_its_period_the_sentence_ends_one_token_earlier():
    found = template("person", prompts=4, period=False)
    assert found.ids == tuple(token for token in SENTENCES["person"] if token != 269)
    assert found.end == 16


def test_padding_keeps_the_end():
    found = template("vehicle", prompts=4, length=77)
    assert found == (SENTENCES["vehicle"] + (0,) * 59, 5, 11, 17)


def test_another_vocabulary_encodes_the_same_sentence():
    """Words of several tokens move what comes after them; start and end are the vocabulary's own."""
    words = {"image": [3, 4], "x": [9], ".": [5]}

    def tokenize(sentences):
        ids = np.zeros((len(sentences), 20), np.int32)
        for row, text in zip(ids, sentences):
            found = [98, *(token for word in text.split() for token in words.get(word, [7])), 99]
            row[: len(found)] = found
        return ids

    found = template("person", prompts=2, tokenize=tokenize)
    assert found.ids == (98, 7, 3, 4, 7, 7, 9, 7, 7, 7, 7, 7, 9, 9, 7, 5, 99)
    assert (found.word, found.prompt, found.end) == (6, 12, 16)


@pytest.mark.parametrize("prompts", [1, 7])
def test_the_number_of_prompts_moves_the_end(prompts):
    found = template("person", prompts=prompts)
    assert found.prompt == 11
    assert found.ids[11 : 11 + prompts] == (343,) * prompts
    assert found.ids[11 + prompts :] == (40763, 269, 49407)
    assert found.end == 13 + prompts


def test_injection_fills_exactly_the_gaps():
    sentence = template("person", prompts=2, length=19)
    embedded, words, prompts = normal(0, 19, 5), normal(1, 3, 5), normal(2, 2, 5)
    expected = np.stack([embedded] * 3)
    expected[:, 5] = words
    expected[:, 11:13] = prompts
    found = jax.jit(inject, static_argnums=3)(embedded, words, prompts, sentence)
    np.testing.assert_array_equal(found, expected)


def inversion(**changes):
    """(module, random parameters, inputs [B,7])."""
    module, x = Inversion(**dict(hidden=13, dim=5) | changes), normal(0, B, 7)
    return module, randomized(shapes(module, x, train=False)), x


@pytest.mark.reference
def test_inversion_without_dropout_equals_a_pytorch_mlp(torch):
    module, params, x = inversion()
    reference = torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.GELU(), torch.nn.Linear(13, 5))
    load(torch, reference, {"0": params["fc_1"], "2": params["fc_2"]})
    expected = reference(torch.tensor(x).double()).detach()
    found = jax.jit(functools.partial(module.apply, train=False))({"params": params}, x)
    close(found, expected, 1e-6)


def test_inversion_drops_hidden_units_and_outputs_in_training_only():
    module, params, x = inversion(dim=501)
    apply, rngs = functools.partial(module.apply, {"params": params}, x), {"dropout": jax.random.PRNGKey(1)}
    still, moving = jax.device_get(jax.jit(lambda rngs: (apply(train=False), apply(train=True, rngs=rngs)))(rngs))
    assert still.shape == moving.shape == (B, 501)
    assert (still != 0).all()
    assert 0.06 < (moving == 0).mean() < 0.14
    kept = moving != 0
    assert not np.allclose(moving[kept], still[kept] / 0.9, atol=1e-3)  # hidden units are dropped too


def test_the_new_parts_are_initialised_at_their_published_scales():
    queries = StructureQueries(queries=16, width=128, heads=4)
    found = stds(init(queries, jnp.zeros((1, 5, 96))))
    assert found["query"] == pytest.approx(128**-0.5, rel=0.05)
    xavier = (2 / (96 + 128)) ** 0.5
    assert found["key_projection/kernel"] == pytest.approx(xavier, rel=0.05)
    assert found["value_projection/kernel"] == pytest.approx(xavier, rel=0.05)
    assert found["query_projection/kernel"] == pytest.approx(128**-0.5, rel=0.05)
    found = stds(init(Inversion(hidden=64, dim=128), jnp.zeros((1, 32)), train=False))
    assert found["fc_2/kernel"] == pytest.approx(0.02, rel=0.05)
    found = stds(init(Head(97), jnp.zeros((1, 64)), jnp.ones(1, bool), train=False))
    assert found["classifier/kernel"] == pytest.approx(0.001, rel=0.05)
