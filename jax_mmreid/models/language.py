"""The language side of L-dMMC (Miss-ReID, Section 3.4): from a structure vector to f~, a text feature per modality.

An inversion network maps the structure vector to a pseudo-word (Eq. 8). A sentence with this word and the prompts of a
modality goes through the frozen text tower, whose output is the text feature of that modality (Eq. 9).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_mmreid.batch import DataSpec
from jax_mmreid.models.clip import TextTower
from jax_mmreid.models.towers import check_reader


class Template(NamedTuple):
    """A sentence as token ids with gaps, and the positions of the pseudo-word, the first prompt token and <EOT>."""

    ids: tuple[int, ...]
    word: int
    prompt: int
    end: int


SENTENCES = {  # before the pseudo-word, between it and the prompts, after these; the period
    "person": ("an image of a", "person , who shows the", "attributes", "."),
    "vehicle": ("an image of a", "vehicle , which shows the", "attributes", "."),
}
TEMPLATES = tuple(SENTENCES)
CLIP_IDS = {
    "an": 550, "image": 2867, "of": 539, "a": 320, "person": 2533, "vehicle": 5299, ",": 267, "who": 822, "which": 1448,
    "shows": 2665, "the": 518, "attributes": 40763, ".": 269, "x": 343, "<start>": 49406, "<end>": 49407,
}  # fmt: skip


def template(
    kind: str,
    *,
    prompts: int,
    period: bool = True,
    length: int = 0,
    tokenize: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> Template:
    """The sentence of the paper's Section 3.4, "An image of a [X] person, who shows the [X..X] attributes.", as ids.

    `kind` is one of TEMPLATES; `tokenize` is that of the text tower's vocabulary (`Data.tokenize`), by default CLIP's.
    Padded with 0 to `length` if that is longer: attention is causal and the feature is that of <EOT>, so padding
    changes nothing but the time it takes.
    """
    pieces = (*SENTENCES[kind], "x")
    if tokenize is None:
        rows = [[CLIP_IDS[word] for word in ("<start>", *piece.split(), "<end>")] for piece in pieces]
    else:
        rows = [row[: row.argmax() + 1].tolist() for row in tokenize(pieces)]
    start, end = rows[0][0], rows[0][-1]
    head, middle, tail, dot, gap = (row[1:-1] for row in rows)
    gap = gap[:1]  # any id will do, since `inject` replaces its embedding
    ids = (start, *head, *gap, *middle, *gap * prompts, *tail, *dot * period, end)
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


@dataclasses.dataclass(frozen=True)
class InversionFields:
    """`config.model.inversion`; see `Inversion`."""

    hidden: int
    drop: float


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


@dataclasses.dataclass(frozen=True)
class Language:
    """Inversion network, prompts and text tower as one function of the structure vector.

    Parameters are {"inversion", "prompts" [M,P,width], "text"}; D is the text tower's `dim`.
    """

    modalities: int
    prompts: int
    inversion: Inversion
    text: TextTower
    template: Template

    def init(self, rng: Array, s: Array) -> dict:
        """Initial parameters for structure vectors s [B,S]."""
        inversion, prompts, text = jax.random.split(rng, 3)
        sentence = jnp.zeros((1, len(self.template.ids), self.text.width))
        return {
            "inversion": self.inversion.init(inversion, s, train=False)["params"],
            "prompts": 0.02 * jax.random.normal(prompts, (self.modalities, self.prompts, self.text.width)),
            "text": self.text.init(text, sentence, 0)["params"],
        }

    def forward_text(self, params: Any, s: Array, dropout: Array) -> Array:
        """f~ of every modality in one pass, in training: s [B,S], dropout a key -> [B,M,D]."""
        rngs = {"dropout": dropout}
        words = self.inversion.apply({"params": params["inversion"]}, s, train=True, rngs=rngs)
        sentence = self._sentence(params)
        tokens = jnp.stack([inject(sentence, words, prompts, self.template) for prompts in params["prompts"]], axis=1)
        return self._read(params, tokens.reshape(-1, *tokens.shape[2:])).reshape(*tokens.shape[:2], -1)

    def impute(self, params: Any, s: Array, needed: Array) -> Array:
        """f~ at test, a pass only for each modality in `needed` [M] bool, zeros for the others: s [B,S] -> [B,M,D]."""
        words = self.inversion.apply({"params": params["inversion"]}, s, train=False)
        sentence = self._sentence(params)

        def one(args: tuple[Array, Array]) -> Array:
            prompts, wanted = args
            return jax.lax.cond(
                wanted,
                lambda: self._read(params, inject(sentence, words, prompts, self.template)),
                lambda: jnp.zeros((len(words), self.text.dim)),
            )

        return jax.lax.map(one, (params["prompts"], needed)).swapaxes(0, 1)

    def _sentence(self, params: Any) -> Array:
        return self.text.apply({"params": params["text"]}, jnp.array(self.template.ids), method="embed")

    def _read(self, params: Any, tokens: Array) -> Array:
        return self.text.apply({"params": params["text"]}, tokens, self.template.end)


def create_language(
    spec: DataSpec,
    config: Any,
    text: TextTower,
    tokenize: Callable[[Sequence[str]], np.ndarray] | None,
) -> Language:
    """The language side of a method with the fields template_kind, prompts, period, text_len, inversion and text.

    Raises ConfigError for a text tower that is too small for the sentence.
    """
    if spec.vocab and tokenize is None:
        raise ValueError("the data have a vocabulary: `tokenize` is needed to write the sentence with it")
    sentence = template(
        config.template_kind,
        prompts=config.prompts,
        period=config.period,
        length=config.text_len,
        tokenize=tokenize if spec.vocab else None,  # None: CLIP's own ids
    )
    needed = dict(vocab=max(sentence.ids) + 1, context=len(sentence.ids))
    check_reader(config.text, "the sentence of the text features", **needed)
    inversion = Inversion(**dataclasses.asdict(config.inversion), dim=text.width)
    return Language(len(spec.modalities), config.prompts, inversion, text, sentence)
