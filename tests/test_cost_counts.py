"""Multiply-adds of programs and modules, against counts by hand; our own count against the papers' way of counting."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jax_mmreid.cost import published, traced
from jax_mmreid.methods import PublishedPart
from jax_mmreid.models.clip import ImageTower, TextTower
from jax_mmreid.models.language import Inversion
from jax_mmreid.models.structure import StructureQueries


def count(f, *shapes, choose=max):
    """Multiply-adds of f on float32 arrays of these shapes."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return traced.multiply_adds(jax.make_jaxpr(f)(*arrays).jaxpr, choose).total()


def test_matrix_products():
    assert count(jnp.matmul, (2, 3), (3, 5)) == 2 * 3 * 5
    assert count(lambda a, b: jnp.einsum("bhid,bhjd->bhij", a, b), (2, 3, 5, 7), (2, 3, 11, 7)) == 2 * 3 * 5 * 11 * 7
    assert count(lambda a: jnp.tanh(a) + a * a, (2, 3)) == 0


@pytest.mark.parametrize("stride, padding, size", [(1, "VALID", (9, 15)), (2, "VALID", (5, 8)), (2, "SAME", (6, 9))])
def test_convolutions(stride, padding, size):
    conv = nn.Conv(14, (3, 3), strides=stride, padding=padding, feature_group_count=2)
    x = jnp.zeros((5, 11, 17, 6))
    variables = conv.init(jax.random.PRNGKey(0), x)
    assert conv.apply(variables, x).shape == (5, *size, 14)
    assert count(lambda x: conv.apply(variables, x), x.shape) == 5 * size[0] * size[1] * 14 * 3 * 3 * (6 // 2)


def test_scan_counts_every_step():
    def f(x, ws):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

    assert count(f, (2, 3), (7, 3, 3)) == 7 * 2 * 3 * 3
    assert count(lambda xs, w: jax.lax.map(lambda x: x @ w, xs), (5, 2, 3), (3, 7)) == 5 * 2 * 3 * 7
    assert count(lambda x, w: jax.lax.fori_loop(0, 11, lambda _, x: x @ w, x), (2, 3), (3, 3)) == 11 * 2 * 3 * 3


def test_a_condition_counts_its_most_expensive_or_its_cheapest_branch():
    def f(x, w):
        return jax.lax.switch(jnp.int32(x[0, 0]), [lambda: x @ w, lambda: x, lambda: x @ w @ w])

    assert count(f, (2, 3), (3, 3)) == 2 * 18
    assert count(f, (2, 3), (3, 3), choose=min) == 0


def test_branches_are_compared_by_all_that_they_contain():
    def deep(x, w):
        return jax.lax.scan(lambda x, _: (jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: x), None), x, None, 5)[0]

    def f(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: deep(x, w), lambda: x @ w @ w)

    assert (count(f, (2, 3), (3, 3)), count(f, (2, 3), (3, 3), choose=min)) == (5 * 18, 0)


def test_programs_inside_are_followed():
    product = lambda x, w: x @ w  # noqa: E731
    own = jax.custom_vjp(product)
    own.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    rule = jax.custom_jvp(product)
    rule.defjvp(lambda primals, tangents: (product(*primals), product(*tangents)))
    for f in (jax.jit(product), jax.jit(jax.jit(product)), jax.checkpoint(product), own, rule):
        assert count(f, (2, 3), (3, 5)) == 30
    assert count(jax.vmap(product, (0, None)), (7, 2, 3), (3, 5)) == 7 * 30
    assert count(jax.grad(lambda x, w: jax.checkpoint(product)(x, w).sum()), (2, 3), (3, 5)) >= 30


def test_a_while_loop_is_counted_once_with_a_warning(monkeypatch):
    warnings = []
    monkeypatch.setattr(traced.log, "warning", lambda *args: warnings.append(args))
    assert count(lambda x, w: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x), (2, 3), (3, 3)) == 18
    assert len(warnings) == 1
    assert count(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: 2 * x, x), (2, 3)) == 0
    assert len(warnings) == 1


# The papers' way of counting against ours: the same products, apart from what that counter misses or repeats.


def products(module, *args, **options):
    variables = jax.eval_shape(lambda *args: module.init(jax.random.PRNGKey(0), *args, **options), *args)
    jaxpr = jax.make_jaxpr(lambda variables, *args: module.apply(variables, *args, **options))(variables, *args)
    return traced.multiply_adds(jaxpr.jaxpr).total()


def test_products_of_the_image_tower():
    tower = ImageTower(patch=4, width=10, layers=3, heads=2, dim=7)
    picture = jnp.zeros((1, 20, 12, 3))
    assert published.image_tower(tower, (20, 12)).products == products(tower, picture)


def test_products_of_the_text_tower_without_the_masked_one():
    tower = TextTower(vocab=23, context=17, width=10, layers=3, heads=2, dim=7)
    masked = 3 * 13**2 * 10
    assert published.text_tower(tower, 13).products + masked == products(tower, jnp.zeros((1, 13, 10)), 11)


@pytest.mark.parametrize("out_proj", [False, True])
def test_products_of_the_structure_queries(out_proj):
    module = StructureQueries(queries=5, width=14, heads=2, out_proj=out_proj)
    # We average over queries before the values and the last projection are read, not after.
    saved = (5 - 1) * (13 * 14 + (14 * 14 if out_proj else 0))
    ours = products(module, jnp.zeros((1, 13, 11)))
    assert published.structure_queries(module, 13, 11).products == ours + saved


def test_products_of_the_inversion_network():
    module = Inversion(hidden=13, dim=7)
    assert published.inversion(module, 11).products == products(module, jnp.zeros((1, 11)), train=False)


def test_passes_are_added_up_by_kind_of_module():
    module = Inversion(hidden=13, dim=7)
    assert published.multiply_adds(PublishedPart(module, 3, (11,))) == 3 * ((11 + 7) * 13 + 13)
    assert published.multiply_adds(PublishedPart()) == 0
    with pytest.raises(NotImplementedError, match="no published way to count Dense"):
        published.multiply_adds(PublishedPart(nn.Dense(3), 1, (2,)))
