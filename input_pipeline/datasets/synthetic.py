"""Procedural multi-spectral data in the layout of RGBNT201, made on first use: a run that needs no download."""

import inspect
import json
import os
from collections.abc import Sequence

from input_pipeline.datasets import rgbnt201
from input_pipeline.records import Counts, Records
from input_pipeline.synthesize import synthesize
from jax_mmreid.batch import DataError

LAYOUT = "rgbnt201"
MADE = "synthesized.json"  # the arguments that the data were made with


def load(data_dir: str, *, modalities: Sequence[str], allow_missing_files: bool, **options) -> dict[str, Records]:
    """Splits "train" and "test" of the data in `data_dir`, which `input_pipeline.synthesize` writes if there is none.

    `options` are arguments of `synthesize`: seed, num_train_ids, num_test_ids, cameras, images_per_camera, height.
    Raises DataError when the folder holds something else, or data that was made with other options.
    """
    if not data_dir:
        raise DataError("synthetic: data.data_dir is empty; name a folder to write the pictures to")
    asked = {"layout": LAYOUT, **options}
    _bind(asked)
    if not os.path.isdir(data_dir) or not os.listdir(data_dir):
        try:
            synthesize(data_dir, **asked)
        except (DataError, OSError):
            if not os.path.exists(os.path.join(data_dir, MADE)):  # else another process of this run was faster
                raise
    _check_same(data_dir, asked)
    return rgbnt201.load(data_dir, modalities=modalities, allow_missing_files=allow_missing_files)


def counts(data_dir: str, *, modalities: Sequence[str], **options) -> dict[str, Counts]:
    """What `synthesize` draws with these options. Raises ValueError for an option or modality that it lacks."""
    rgbnt201.counts(data_dir, modalities=modalities)
    asked = _bind({"layout": LAYOUT, **options})
    cameras = tuple(range(1, asked["cameras"] + 1))
    identities = {"train": asked["num_train_ids"], "test": asked["num_test_ids"]}
    return {split: Counts(n, cameras, n * len(cameras) * asked["images_per_camera"]) for split, n in identities.items()}


def _bind(asked: dict) -> dict:
    """All arguments of `synthesize`, the defaults included; ValueError for one that it does not have."""
    try:
        bound = inspect.signature(synthesize).bind("", **asked)
    except TypeError as error:
        raise ValueError(f"data.options of synthetic: {error}") from None
    bound.apply_defaults()
    return bound.arguments


def _check_same(data_dir: str, asked: dict) -> None:
    try:
        with open(os.path.join(data_dir, MADE), encoding="utf-8") as file:
            made = json.load(file)
    except (OSError, ValueError):
        raise DataError(
            f"synthetic: {data_dir} exists but holds no readable {MADE}; delete it or choose another data.data_dir"
        ) from None
    differ = [f"{key}={made.get(key)} not {value}" for key, value in asked.items() if made.get(key) != value]
    if differ:
        raise DataError(
            f"synthetic: {data_dir} was made with {', '.join(differ)}; delete it or choose another data.data_dir"
        )
