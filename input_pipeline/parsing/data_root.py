"""The folder of a dataset among those that may hold it; raises DataError with the way out where there is none."""

import os
from collections.abc import Sequence

from jax_mmreid.errors import DataError


def find(dataset: str, candidates: Sequence[str], marker: str) -> str:
    """The first of the candidates that has a folder `marker`, or the first of all if it is there."""
    marked = (folder for folder in candidates if os.path.isdir(os.path.join(folder, marker)))
    return next(marked, None) or require(dataset, candidates[0])


def require(dataset: str, folder: str) -> str:
    """The folder, which is there."""
    if not os.path.isdir(folder):
        raise DataError(
            f"{dataset}: no data folder {folder!r}; set data.data_dir, or make a synthetic one with "
            f"python -m input_pipeline.synthesize --layout={dataset} --output={folder or 'DIR'}"
        )
    return folder
