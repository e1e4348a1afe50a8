"""Drawn multi-spectral pedestrians in the layout of a published dataset, written on first use: no download needed."""

import dataclasses
import json
import os
from collections.abc import Sequence

from input_pipeline import datasets
from input_pipeline.data_config import check_choice, check_names
from input_pipeline.records import Counts, Records
from input_pipeline.synthesize import synthesize
from input_pipeline.synthetic import layouts
from input_pipeline.synthetic.scenes import RANGES, Plan
from jax_mmreid.errors import ConfigError, DataError

ARGUMENTS = "synthesized.json"  # the file with the arguments that the data were drawn with


def load(
    data_dir: str, *, modalities: Sequence[str], allow_missing_files: bool, layout: str = "rgbnt201", **options
) -> dict[str, Records]:
    """The splits of dataset `layout` from the data in `data_dir`, which `synthesize` draws if there are none.

    `options` are arguments of `input_pipeline.synthesize` (seed, num_train_ids, num_test_ids, cameras,
    images_per_camera, height) and options of the dataset `layout`, which reads the drawn files. Raises ConfigError for
    any other option, DataError when the folder holds something else, or data that were drawn with other options.
    """
    drawing, reading = _split_options(layout, options)
    given = dict(data_dir=data_dir, modalities=modalities, allow_missing_files=allow_missing_files)
    read = datasets.find(layout, "load", reading, **given)
    if not data_dir:
        raise ConfigError("config.data.data_dir is empty; name a folder to write the drawn pictures to")
    arguments = {"layout": layout, **drawing}
    if not os.path.isdir(data_dir) or not os.listdir(data_dir):
        try:
            synthesize(data_dir, **arguments)
        except DataError:
            if not os.path.exists(os.path.join(data_dir, ARGUMENTS)):  # else another process of this run was faster
                raise
    _check_same(data_dir, arguments)
    return read()


def counts(data_dir: str, *, modalities: Sequence[str], layout: str = "rgbnt201", **options) -> dict[str, Counts]:
    """What `load` draws and reads with these options. Raises ConfigError for an impossible option or modality."""
    drawing, reading = _split_options(layout, options)
    published = datasets.find(layout, "counts", reading, data_dir=data_dir, modalities=modalities)()
    rows = [row for row in layouts.find(layout).rows(Plan(**drawing)) if {*row.modalities} & {*modalities}]
    counted = {}
    for split in dict.fromkeys(row.split for row in rows):
        own = [(row.pid, row.camid) for row in rows if row.split == split]
        pids, cameras = map(set, zip(*own))
        cameras = {0} if published[split].cameras == (0,) else cameras  # a source that does not hold cameras
        counted[split] = Counts(len(pids), tuple(sorted(cameras)), len(own))
    return counted


def _split_options(layout: str, options: dict) -> tuple[dict, dict]:
    """The options for drawing and those for reading."""
    check_choice("data.options.layout", layout, layouts.LAYOUTS)
    drawing = {field.name: field.default for field in dataclasses.fields(Plan)}
    reading = datasets.options_of(layout)
    known = ["layout", *drawing, *reading]
    check_names(f"config.data.options of synthetic with layout={layout}", "option", options, known)
    parts = tuple({key: value for key, value in options.items() if key in part} for part in (drawing, reading))
    datasets.check_options(parts[0], drawing, RANGES)
    return parts


def _check_same(data_dir: str, arguments: dict) -> None:
    try:
        with open(os.path.join(data_dir, ARGUMENTS), encoding="utf-8") as file:
            made = dict(json.load(file))
    except (OSError, ValueError, TypeError):
        raise DataError(
            f"synthetic: {data_dir} exists but holds no readable {ARGUMENTS}; delete it or choose another data.data_dir"
        ) from None
    differ = [f"{key}={made.get(key)} not {value}" for key, value in arguments.items() if made.get(key) != value]
    if differ:
        raise DataError(
            f"synthetic: {data_dir} was drawn with {', '.join(differ)}; delete it or choose another data.data_dir"
        )
