"""Finding the folder of a dataset; raises DataError with the way out if there is none."""

import os
from collections.abc import Sequence

from jax_mmreid.errors import DataError


def find(dataset: str, candidates: Sequence[str], marker: str) -> str:
    """The first candidate with a folder `marker`; without one, the first candidate if it exists."""
    marked = (folder for folder in candidates if os.path.isdir(os.path.join(folder, marker)))
    return next(marked, None) or require(dataset, candidates[0])


def require(dataset: str, folder: str) -> str:
    """The folder if it exists."""
    if not os.path.isdir(folder):
        raise DataError(
            f"{dataset}: no data folder {folder!r}; set data.data_dir, or make a synthetic one with "
            f"python -m input_pipeline.synthesize --layout={dataset} --output={folder or 'DIR'}"
        )
    return folder
