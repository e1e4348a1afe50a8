"""What the sections of a report look at: a model with data, and the rows of an evaluation on them."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from jax.sharding import Mesh

from jax_mmreid.batch import Data
from jax_mmreid.evaluators.encoder import Encoder
from jax_mmreid.evaluators.programs import Level
from jax_mmreid.methods import Method
from jax_mmreid.models.shared_tower import SharedTower


class Subject(NamedTuple):
    """A model, data that fit it, whether or not it was trained on them, and retrieval rows that these data allow.

    `rows` are the rows of kind "retrieval" that are measured themselves, neither means nor pairs of others nor
    re-ranked, by name.
    The encoder has their `uses`. All that a section draws at random follows from `seed`.
    """

    method: Method
    variables: dict
    data: Data
    mesh: Mesh
    mean: Level  # of pixels, with which the model was trained
    std: Level
    rows: Mapping[str, dict]
    encoder: Encoder
    seed: int = 0


def without_cameras(method: Method) -> Method:
    """The method without an embedding of the cameras that it was trained with; variables stay as they are.

    For data of other cameras, whose numbers may be those of training and mean nothing to the model.
    """
    tower = getattr(method, "tower", None)
    if not isinstance(tower, SharedTower):
        return method
    return dataclasses.replace(method, tower=dataclasses.replace(tower, cameras=()))
