"""Experiments of full size without their arrays, for tests of configs."""

import math

import jax
import numpy as np

from jax_mmreid import experiment
from jax_mmreid.batch import DataSpec


def build(config):
    """The experiment on data of RGBNT201's size: 171 identities, 4 cameras. Shapes only, no array is made."""
    spec = DataSpec(
        name="rgbnt201",
        fingerprint="0",
        modalities=tuple(config.data.modalities),
        image_size=tuple(config.data.image_size),
        pids=tuple(range(171)),
        cameras=(1, 2, 3, 4),
        batch_size=64,
        steps_per_epoch=54,
        text=tuple(config.data.modalities) if config.data.text.tokenizer else (),
        text_length=40,
        vocab=500 if config.data.text.tokenizer else 0,
    )
    return experiment.build(config, spec, tokenize, devices=jax.devices()[:1])


def tokenize(sentences):
    """Ids of some vocabulary of 500."""
    return np.tile(np.array([498, 7, 499, 0], np.int32), (len(sentences), 1))


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
