"""The language side of L-dMMC: pseudo-words, modality prompts and the sentence that carries them (Miss-ReID, 3.4)."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array


class Template(NamedTuple):
    """A sentence as CLIP ids with gaps; the places of the pseudo-word, the first prompt token and <EOT>."""

    ids: tuple[int, ...]
    word: int
    prompt: int
    end: int


_START, _END, _PERIOD, _GAP = 49406, 49407, 269, 343  # _GAP is the word "x"
_SENTENCES = {
    # "An image of a [X] person, who shows the [X..X] attributes."
    "person": ((550, 2867, 539, 320), (2533, 267, 822, 2665, 518), (40763,)),
    # "An image of a [X] vehicle, which shows the [X..X] attributes."
    "vehicle": ((550, 2867, 539, 320), (5299, 267, 1448, 2665, 518), (40763,)),
}


TEMPLATES = tuple(_SENTENCES)


def template(kind: str, *, prompts: int, period: bool = True, length: int = 0) -> Template:
    """The sentence of the paper's Section 3.4 as OpenAI BPE ids, padded with 0 to `length` if that is longer.

    Attention is causal and <EOT> is read, so padding costs time and changes nothing. `kind` is one of TEMPLATES.
    """
    head, middle, tail = _SENTENCES[kind]
    ids = (_START, *head, _GAP, *middle, *(_GAP,) * prompts, *tail, *(_PERIOD,) * period, _END)
    word = 1 + len(head)
    padding = (0,) * (length - len(ids))
    return Template(ids + padding, word=word, prompt=word + 1 + len(middle), end=len(ids) - 1)


def inject(embedded: Array, words: Array, prompts: Array, where: Template) -> Array:
    """Fills the gaps of an embedded sentence.

    embedded [L,D], words [B,D] one pseudo-word per row, prompts [P,D] -> [B,L,D].
    """
    rows, dim = words.shape
    sentence = embedded.at[where.prompt : where.prompt + len(prompts)].set(prompts)
    return jnp.broadcast_to(sentence, (rows, *sentence.shape)).at[:, where.word].set(words)


class Inversion(nn.Module):
    """Two-layer GELU MLP from a structure vector to a pseudo-word: [B,D] -> [B,dim].

    The last layer starts at the scale of CLIP's token embeddings.
    """

    hidden: int
    dim: int
    drop: float = 0.1

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = nn.gelu(nn.Dense(self.hidden, name="fc_1")(x), approximate=False)
        x = nn.Dropout(self.drop, deterministic=not train)(x)
        x = nn.Dense(self.dim, kernel_init=nn.initializers.normal(0.02), name="fc_2")(x)
        return nn.Dropout(self.drop, deterministic=not train)(x)
