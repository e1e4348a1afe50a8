"""What a method is: a published system, as one module of this package.

Beside its class, a module has three public names, which `experiment.build` reads:

    Config                           a frozen dataclass whose fields are the keys of `config.model`, dicts as
                                     dataclasses; `read_fields` makes it
    RANGES                           {regex of a dotted field below `config.model`: interval} for every numeric field,
                                     as `ranges.check_ranges` reads it
    create(spec, config, tokenize)   the `Method` for data with this spec; `tokenize` is `Data.tokenize`, or None.
                                     Raises ConfigError for fields that do not go together or do not fit the spec
"""

import abc
import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import flax.linen as nn
from jax import Array

from jax_mmreid.batch import Batch
from jax_mmreid.errors import ConfigError
from jax_mmreid.ranges import check_types
from jax_mmreid.state import TrainState

Features = Any  # a pytree of arrays whose first axis is the batch


class LossOut(NamedTuple):
    """The result of `Method.loss`."""

    terms: dict[str, Array]  # scalars; the train step multiplies each by its weight and adds them
    updates: dict[str, Any]  # new `batch_stats` and `memory`
    scalars: dict[str, Array]  # further values for the log


class PublishedPart(NamedTuple):
    """What a publication's complexity figures count of one entry of the parameter tree, for one complete sample."""

    module: nn.Module | None = None  # None: parameters that are counted and do no work at test
    repeats: int = 1  # how often the module runs
    # Of one input, without the batch axis: an image (H, W), tokens (N, D), a vector (D,), a sentence (L,).
    shape: tuple[int, ...] = ()


class Method(abc.ABC):
    """Base class of methods: frozen dataclasses of linen modules and plain values, hashable, whose functions are pure.

    Images arrive augmented and normalised as float32 [B,H,W,3]. `variables` is {"params", "batch_stats", "memory"}
    with trained and frozen parameters merged. `init`, `loss`, `encode` and `embed` are required; the rest has defaults.
    """

    streams: ClassVar[tuple[str, ...]] = ("dropout",)  # the random streams that `loss` is given, as keys of `rngs`
    # {field: its values}: the fields that phases and evaluation rows may change; see `with_options`.
    options: ClassVar[Mapping[str, tuple]] = {}

    @abc.abstractmethod
    def init(self, rng: Array, batch: Batch) -> dict:
        """Initial {"params", "batch_stats", "memory"} for batches shaped like this one."""

    @abc.abstractmethod
    def loss(self, params: Any, state: TrainState, batch: Batch, rngs: dict[str, Array]) -> LossOut:
        """The loss terms of a training batch; `params` are merged, everything else is read from `state`."""

    @abc.abstractmethod
    def encode(self, variables: dict, batch: Batch) -> Features:
        """Runs every tower once on the images and captions of the batch.

        Raises ConfigError for a batch without anything that the method reads.
        """

    @abc.abstractmethod
    def embed(self, variables: dict, features: Features, use: tuple[str, ...]) -> Array:
        """Unit retrieval vectors [B,D] from the modalities in `use` (static) that are present in each sample.

        In `use`, "text" stands for all captions of a sample and "text/rgb" for the caption of its RGB picture.
        Features are those of `encode`, or of `impute` for the same `use`. Raises ConfigError for a `use` that the
        method has no vector of.
        """

    def parts(self, variables: dict, features: Features, use: tuple[str, ...]) -> tuple[Array, Array]:
        """Retrieval features by modality [B,M,D], and which of them are in `use` and present [B,M] bool.

        The M modalities are those of the attribute `modalities`, whatever `use` names, so that any two rows can be
        compared by what both have (`metrics.similarity`); absent parts may hold any number. Raises ConfigError for a
        `use` that the method does not know.
        """
        raise ConfigError(f"{type(self).__name__} has no features by modality, so similarity='common' does not apply")

    def embed_available(self, variables: dict, features: Features, use: tuple[str, ...]) -> Array:
        """Unit vectors [B,D] of what each row has of `use`, where rows may differ in that: by default `embed`."""
        return self.embed(variables, features, use)

    def terms(self, variables: dict, features: Features, use: tuple[str, ...]) -> dict[str, Array]:
        """What the vectors of `embed` are made of: {name: [B,D]}, which add up to them, so that shares of a score do.

        By default one term, the whole, called as `use`. Takes and raises what `embed` does.
        """
        return {"+".join(use): self.embed(variables, features, use)}

    def attention(self, variables: dict, batch: Batch) -> Array | None:
        """Where in each picture the method looks, float32 [B,M,queries,heads,h,w]; None, the default, if it does not.

        The M modalities are those of the attribute `modalities`. Sums over h and w are 1 for every query and head;
        what is said of an absent picture means nothing.
        """
        return None

    def begin(self, state: TrainState, batches: Iterable[Batch]) -> TrainState:
        """The state to start training from, made in one pass over unaugmented training batches if it needs one.

        Called once, before step 0, to fill a memory for instance. By default the state as it is.
        """
        return state

    def imputer(self, use: tuple[str, ...]) -> "Method | None":
        """The method whose `impute` `embed` needs for this `use`; None, the default, if it needs none.

        Imputers that are equal give equal results, so the caller may impute once for all of them.
        """
        return None

    def impute(self, variables: dict, features: Features, used: Array) -> Features:
        """The features of `encode` with imputed features of pictures that are missing or not used.

        `used` [M] bool marks the modalities of the spec that are in `use`. It is an array and not static, so that one
        compiled program serves every subset. Called only on what `imputer` returned.
        """
        raise NotImplementedError(f"{type(self).__name__} imputes nothing")

    def published_parts(self, image_size: tuple[int, int]) -> dict[str, PublishedPart]:
        """What the publication's complexity figures count, by path in the parameter tree, for images (H, W).

        {}, the default, for a publication without such figures. `jax_mmreid.cost.published` does the counting.
        """
        return {}

    def with_options(self, options: Mapping[str, Any], where: str) -> Self:
        """The method with these of its `options` changed; raises ConfigError, starting with `where`, for any other."""
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise ConfigError(f"{where}: the method has no option {name!r}; there are: {known}")
            if value not in self.options[name]:
                expected = ", ".join(map(repr, self.options[name]))
                raise ConfigError(f"{where}: {name}={value!r}: expected one of {expected}")
        return dataclasses.replace(self, **options)


def read_fields(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """The dataclass `kind`, whose fields may be dataclasses too, from a dict of the config.

    `where` is the dotted path of the dict in the config. Raises ConfigError for a key that is missing or unknown, and
    for a value of another type than its field.
    """
    types = typing.get_type_hints(kind)
    for what, names in (("has", values.keys() - types.keys()), ("lacks", types.keys() - values.keys())):
        if names:
            raise ConfigError(
                f"config.{where} {what} {', '.join(sorted(names))}; its fields are {', '.join(sorted(types))}"
            )
    nested = {key for key, hint in types.items() if dataclasses.is_dataclass(hint)}
    kinds = {f"{where}.{key}": dict if key in nested else hint for key, hint in types.items()}
    check_types({f"{where}.{key}": x for key, x in values.items()}, kinds)

    def read(key: str, value: Any) -> Any:
        if key in nested:
            return read_fields(types[key], value, f"{where}.{key}")
        return tuple(value) if isinstance(value, list) else value

    return kind(**{key: read(key, value) for key, value in values.items()})
