"""Multiply-adds of the network parts, counted as the complexity figures of this literature are.

The rules are those of the fvcore counter as multi-modality re-identification uses it. A matrix product or convolution
costs 1 per multiply-add, LayerNorm 5 per element, softmax 2, QuickGELU 3, and every other addition, product or
activation 1 per element: residuals, positions, the scaling of queries. That counter misses the masked product of
queries and keys in a causal tower, and biases cost nothing. What our own program runs is in `jax_mmreid.cost.traced`.
"""

from typing import NamedTuple

from jax_mmreid.methods import PublishedPart
from jax_mmreid.models.clip import ImageTower, TextTower
from jax_mmreid.models.language import Inversion
from jax_mmreid.models.structure import StructureQueries

LAYER_NORM, SOFTMAX, QUICK_GELU = 5, 2, 3  # per element


class Cost(NamedTuple):
    """Multiply-adds of one pass; papers print their sum."""

    products: int  # matrix products and convolutions
    elementwise: int


def multiply_adds(part: PublishedPart) -> int:
    """All passes of a part; raises NotImplementedError for a kind of module that has no rule here."""
    match part.module:
        case None:
            return 0
        case ImageTower():
            cost = image_tower(part.module, part.shape)
        case TextTower():
            cost = text_tower(part.module, *part.shape)
        case StructureQueries():
            cost = structure_queries(part.module, *part.shape)
        case Inversion():
            cost = inversion(part.module, *part.shape)
        case _:
            raise NotImplementedError(
                f"no published way to count {type(part.module).__name__}; add it to cost.published"
            )
    return part.repeats * sum(cost)


def image_tower(tower: ImageTower, image_size: tuple[int, int]) -> Cost:
    """One image (H, W), with every token projected to `dim`, as the published counts have it."""
    grid = (image_size[0] // tower.patch) * (image_size[1] // tower.patch)
    tokens, width = 1 + grid, tower.width
    blocks = _blocks(tokens, width, tower.layers, tower.heads, causal=False)
    embedding = grid * 3 * tower.patch**2 * width
    ends = tokens * width * (1 + 2 * LAYER_NORM)  # positions, ln_pre, ln_post
    return Cost(embedding + blocks.products + tokens * width * tower.dim, blocks.elementwise + ends)


def text_tower(tower: TextTower, tokens: int) -> Cost:
    """One sentence of this many tokens, padding included; only the end token is projected."""
    blocks = _blocks(tokens, tower.width, tower.layers, tower.heads, causal=True)
    ends = tokens * tower.width * (1 + LAYER_NORM)  # positions, ln_final
    return Cost(blocks.products + tower.width * tower.dim, blocks.elementwise + ends)


def structure_queries(module: StructureQueries, tokens: int, dim: int) -> Cost:
    """The patch tokens [tokens,dim] of one image; the queries are projected again for each image."""
    queries, width = module.queries, module.width
    projections = 2 * tokens * dim * width + queries * width**2 * (2 if module.out_proj else 1)
    attention = 2 * queries * tokens * width
    elementwise = LAYER_NORM * (tokens * dim + queries * width) + queries * width
    return Cost(projections + attention, elementwise + SOFTMAX * module.heads * queries * tokens)


def inversion(module: Inversion, dim: int) -> Cost:
    """One structure vector [dim]."""
    return Cost((dim + module.dim) * module.hidden, module.hidden)


def _blocks(tokens: int, width: int, layers: int, heads: int, *, causal: bool) -> Cost:
    """The residual blocks of a tower: q, k, v, out and an MLP of four times the width in each."""
    cells = tokens * width
    attention = tokens * cells * (1 if causal else 2)
    elementwise = cells * (2 * LAYER_NORM + 4 * QUICK_GELU + 3)  # two residuals, the scaling of q
    return Cost(layers * (12 * cells * width + attention), layers * (elementwise + SOFTMAX * heads * tokens**2))
