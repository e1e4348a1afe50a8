"""Single rows of a split: as a batch that a method reads, and in words."""

from collections.abc import Sequence

import numpy as np

from jax_mmreid.batch import Batch, has_caption
from jax_mmreid.evaluators import TEXT
from jax_mmreid.report.subject import Subject


def batch_of(subject: Subject, split: str, rows: Sequence[int]) -> Batch:
    """These rows of a split as `Data.split` yields them, in this order, with all their pictures and captions."""
    rows = np.asarray(rows, np.int32)
    there, images_present = subject.data.present(split), subject.data.pictures(split, rows)
    images, present = ({m: x for m, x in found.items() if there[m].any()} for found in images_present)
    columns = {name: x[rows] for name, x in subject.data.columns(split).items()}
    batch = {"images": images, "present": present, "index": rows, "valid": np.ones(len(rows), bool)} | columns
    described = [m for m in subject.data.spec.modalities if f"{TEXT}/{m}" in there]
    if described:
        batch["text"] = {m: subject.encoder.captions(split, m)[rows] for m in described}
        batch["present"] = present | {f"{TEXT}/{m}": has_caption(ids) for m, ids in batch["text"].items()}
        batch["present"][TEXT] = np.all([batch["present"][f"{TEXT}/{m}"] for m in described], axis=0)
    return batch


def words(subject: Subject, split: str, row: int) -> str:
    """A row as captions name it: "row 12 of test (identity 7, camera 2)"."""
    columns = subject.data.columns(split)
    return f"row {row} of {split} (identity {columns['pid'][row]}, camera {columns['camid'][row]})"
