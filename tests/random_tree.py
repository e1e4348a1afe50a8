"""A random dataset in the layout of RGBNT201, opened with few rows, for tests of the loader."""

import shutil

import numpy as np
import pytest
from conftest import open_fields
from PIL import Image

from input_pipeline.reading import loader
from input_pipeline.records import Records

ALL = ("rgb", "nir", "tir")
FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
COUNTS = {31: 7, 2: 2, 17: 5, 40: 4, 9: 3, 25: 1}  # training pictures of each identity
PIDS = tuple(sorted(COUNTS))
H, W = 11, 7
MASKS = dict(eta=(0.2, 0.5, 0.3), seed=4, mode="bernoulli", all_missing="repair", mask_file="")
NO_MASKS = MASKS | {"eta": (0.0, 0.0, 0.0)}


def write_tree(root):
    """Writes the dataset below `root`; pictures are H x W pixels of noise."""
    root = root / "RGBNT201"
    rng = np.random.default_rng(0)
    train = [f"{pid:06d}_cam{1 + i % 3}_0_{i:02d}.jpg" for pid, count in COUNTS.items() for i in range(count)]
    test = [f"{pid:06d}_cam{cam}_0_{i:02d}.jpg" for pid in (50, 51) for cam in (1, 2) for i in range(4)][:13]
    for folder, names in (("train_171", train), ("test", test)):
        for spectrum in FOLDERS.values():
            (root / folder / spectrum).mkdir(parents=True)
            for name in names:
                pixels = rng.integers(1, 256, (H, W, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / folder / spectrum / name, quality=95)
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data"))


@pytest.fixture
def copy(tree, tmp_path):
    return shutil.copytree(tree, tmp_path / "RGBNT201")


def opened(root, **changes):
    arguments = dict(
        name="rgbnt201",
        data_dir=str(root),
        modalities=ALL,
        image_size=(H, W),
        identities=3,
        instances=2,
        eval_batch_size=10,
        threads=2,
        allow_missing_files=False,
        missing=MASKS,
        seed=1,
    )
    return open_fields(**arguments | changes)


def same(a, b):
    assert a.keys() == b.keys()
    for key, x in a.items():
        if isinstance(x, dict):
            same(x, b[key])
        else:
            assert x.dtype == b[key].dtype
            np.testing.assert_array_equal(x, b[key])


def join(blocks):
    return {
        key: join([block[key] for block in blocks]) if isinstance(x, dict) else np.concatenate([b[key] for b in blocks])
        for key, x in blocks[0].items()
    }


def table(root, columns, parts=None):
    """A split without labels, of one identity."""
    rows = len(next(iter(columns.values())))
    numbers = np.zeros(rows, np.int32)
    records = Records(
        root=str(root),
        paths={name: np.array(column) for name, column in columns.items()},
        pid=numbers,
        camid=numbers,
        view=numbers,
        parts={name: np.array(column, np.int32) for name, column in (parts or {}).items()},
    )
    return loader.Split(records, records.has_file(), None)
