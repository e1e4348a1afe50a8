"""Procedural multi-spectral data in the layout of a published dataset, drawn on first use: a run without a download."""

import inspect
import json
import os
from collections.abc import Sequence

from input_pipeline import datasets
from input_pipeline.records import Counts, Records
from input_pipeline.synthesize import synthesize
from input_pipeline.synthetic import layouts
from input_pipeline.synthetic.scenes import Plan
from jax_mmreid.errors import DataError

MADE = "synthesized.json"  # the arguments that the data were made with


def load(
    data_dir: str, *, modalities: Sequence[str], allow_missing_files: bool, layout: str = "rgbnt201", **options
) -> dict[str, Records]:
    """The splits of dataset `layout` from the data in `data_dir`, which `synthesize` draws if there are none.

    `options` are arguments of `input_pipeline.synthesize` (seed, num_train_ids, num_test_ids, cameras,
    images_per_camera, height) and those that `layout` has as a dataset, which reads what was drawn. Raises ValueError
    for any other, DataError when the folder holds something else, or data that were drawn with other options.
    """
    drawing, reading = _tell_apart(layout, options)
    given = dict(data_dir=data_dir, modalities=modalities, allow_missing_files=allow_missing_files)
    read = datasets.find(layout, "load", reading, **given)
    if not data_dir:
        raise DataError("synthetic: data.data_dir is empty; name a folder to write the pictures to")
    asked = {"layout": layout, **drawing}
    if not os.path.isdir(data_dir) or not os.listdir(data_dir):
        try:
            synthesize(data_dir, **asked)
        except (DataError, OSError):
            if not os.path.exists(os.path.join(data_dir, MADE)):  # else another process of this run was faster
                raise
    _check_same(data_dir, asked)
    return read()


def counts(data_dir: str, *, modalities: Sequence[str], layout: str = "rgbnt201", **options) -> dict[str, Counts]:
    """What `load` draws and reads with these options. Raises ValueError for an option or modality that there is not."""
    drawing, reading = _tell_apart(layout, options)
    published = datasets.find(layout, "counts", reading, data_dir=data_dir, modalities=modalities)()
    defaults = {key: inspect.signature(synthesize).parameters[key].default for key in Plan.__dataclass_fields__}
    rows = [row for row in layouts.find(layout).rows(Plan(**defaults | drawing)) if {*row.modalities} & {*modalities}]
    counted = {}
    for split in dict.fromkeys(row.split for row in rows):
        places = [(row.pid, row.camid) for row in rows if row.split == split]
        pids, cameras = map(set, zip(*places))
        cameras = {0} if published[split].cameras == (0,) else cameras  # a source that does not tell them
        counted[split] = Counts(len(pids), tuple(sorted(cameras)), len(places))
    return counted


def _tell_apart(layout: str, options: dict) -> tuple[dict, dict]:
    """The options that say what to draw, and those that say how to read it."""
    if layout not in layouts.LAYOUTS:
        raise ValueError(f"data.options.layout={layout!r}: synthetic draws {', '.join(layouts.LAYOUTS)}")
    drawing = [key for key in inspect.signature(synthesize).parameters if key not in ("output", "layout")]
    reading = datasets.options(layout)
    for key in options:
        if key not in drawing + reading:
            raise ValueError(
                f"data.options of synthetic: no option {key!r} for layout {layout!r}; "
                f"there are {', '.join(['layout', *drawing, *reading])}"
            )
    return tuple({key: value for key, value in options.items() if key in names} for names in (drawing, reading))


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
