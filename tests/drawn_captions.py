"""Drawn visible-infrared pictures with captions, opened with few rows, for tests of captions in batches."""

import jax
import numpy as np
import pytest
from conftest import open_fields

from input_pipeline import datasets
from input_pipeline.text.tokenizer import open_tokenizer

BOTH = ("rgb", "ir")
OPTIONS = dict(layout="sysu_mm01", seed=2, num_train_ids=5, num_test_ids=2, images_per_camera=2, height=32)
MASKS = dict(eta=(0.0, 0.0), seed=4, mode="bernoulli", all_missing="repair", mask_file="")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "drawn"
    records(path)
    return path


def records(folder, **options):
    given = dict(data_dir=str(folder), modalities=BOTH, allow_missing_files=False)
    return datasets.find("synthetic", "load", OPTIONS | options, **given)()


def opened(folder, **changes):
    arguments = dict(
        name="synthetic",
        data_dir=str(folder),
        modalities=BOTH,
        image_size=(4, 2),
        identities=3,
        instances=4,
        eval_batch_size=10,
        threads=0,
        allow_missing_files=False,
        missing=MASKS,
        seed=1,
        options=OPTIONS,
        pairs=True,
        text=dict(tokenizer="train"),
    )
    return open_fields(**arguments | changes)


def rows(data, split):
    """A split as one batch, without padding."""
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *data.split(split))
    return jax.tree.map(lambda x: x[whole["valid"]], whole)


def vocabulary(folder, context=77, **options):
    """The tokenizer trained on the training captions, rephrased ones included."""
    columns = [column for column in records(folder, **options)["train"].captions.values()]
    return open_tokenizer("train", captions=np.concatenate(columns).tolist(), context=context)
