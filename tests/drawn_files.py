"""A folder of drawn pedestrians, and the files of any such folder."""

import json

import pytest

from input_pipeline.synthesize import synthesize

SIZES = dict(num_train_ids=5, num_test_ids=3, cameras=2, images_per_camera=7, height=46)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthesize") / "world"
    synthesize(root, seed=11, **SIZES)
    return root


def tree(root):
    """The contents of all files, by their paths."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def load(root, kind, file):
    """A table of captions."""
    return json.loads((root / "Text" / f"Blip_{kind}" / f"{file}_Blip_{kind}.json").read_text())
