"""What a method is. A method is one file in this package with `create(data, **config.model) -> Method`."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from jax import Array

from jax_mmreid.batch import Batch
from jax_mmreid.state import TrainState

Features = Any  # a pytree of arrays whose first axis is the batch


class LossOut(NamedTuple):
    """What one evaluation of the loss gives: named terms, new state fields, and values to watch."""

    terms: dict[str, Array]  # scalars; the train step weighs and adds them
    updates: dict[str, Any]  # new `batch_stats` and `memory`
    scalars: dict[str, Array]


class Method(Protocol):
    """A frozen dataclass of linen modules and plain numbers; every function is pure.

    Images arrive augmented and normalised as float32 [B,H,W,3]. `variables` is {"params", "batch_stats", "memory"}
    with trained and frozen parameters merged.
    """

    def init(self, rng: Array, batch: Batch) -> dict:
        """Initial {"params", "batch_stats", "memory"} for batches shaped like this one."""

    def begin(self, state: TrainState, batches: Iterable[Batch]) -> TrainState:
        """Runs once before step 0 on unaugmented training batches, e.g. to fill a memory."""

    def loss(self, params: Any, state: TrainState, batch: Batch, rngs: dict[str, Array]) -> LossOut:
        """The loss terms of a training batch; `params` are merged, `state` gives everything else."""

    def encode(self, variables: dict, batch: Batch) -> Features:
        """Runs every tower once on what the batch has."""

    def imputer(self, use: tuple[str, ...]) -> "Method | None":
        """The method whose `complete` makes what stands in for missing pictures in `embed` of `use`; None for none.

        Equal ones make the same, so that it is made once.
        """

    def impute(self, variables: dict, features: Features, used: Array) -> Features:
        """The features of `encode` and, by a tower, what stands in for pictures that are missing or not used.

        `used` [M] bool tells which of the data's modalities are in `use`; it is no static argument, so that a tower is
        compiled once for all of them.
        """

    def embed(self, variables: dict, features: Features, use: tuple[str, ...]) -> Array:
        """Unit retrieval vectors [B,D] from the modalities in `use` (static) that each sample has.

        "text" is everything that is said, "text/rgb" what is said of the RGB picture. Features are those of `encode`,
        or of `complete` for the same `use`. Raises ValueError for a `use` without a vector.
        """

    def published_cost(self, image_size: tuple[int, int]) -> dict[str, int]:
        """What the publication's complexity figures count: {path in the parameter tree: multiply-adds}.

        For one complete sample of pictures (H, W), counted in the publication's own way; parameters that are counted
        and do no work at test stand with 0. {} where it printed no figure.
        """
