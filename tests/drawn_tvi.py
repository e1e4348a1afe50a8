"""Drawn trees of SYSU-MM01, RegDB and LLCM, for tests of how they are read."""

import importlib
import shutil

import pytest

from input_pipeline.synthesize import synthesize
from jax_mmreid.errors import DataError

NAMES = ("sysu_mm01", "regdb", "llcm")
BOTH = ("rgb", "ir")
SIZES = dict(seed=3, num_train_ids=5, num_test_ids=4, cameras=4, images_per_camera=2, height=32)
TRAIN, TEST = [1, 3, 5, 7, 9], [2, 4, 6, 8]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tvi")
    for name in NAMES:
        synthesize(folder / name, layout=name, **SIZES)
    return folder


@pytest.fixture
def copy(drawn, tmp_path):
    """A dataset of one's own to break."""

    def make(name):
        shutil.copytree(drawn / name, tmp_path / name)
        return tmp_path / name

    return make


def load(root, name=None, modalities=BOTH, allow_missing_files=False, **options):
    module = importlib.import_module(f"input_pipeline.datasets.{name or root.name}")
    return module.load(str(root), modalities=modalities, allow_missing_files=allow_missing_files, **options)


def refused(root, **options):
    with pytest.raises(DataError) as error:
        load(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def own_paths(records):
    """Of every row the one path that it has."""
    assert (records.has_file().sum(axis=1) == 1).all()
    return ["".join(pair) for pair in zip(*(column.tolist() for column in records.paths.values()))]
