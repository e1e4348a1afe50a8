"""A dataset packed by `tfds_builder`: pictures in ArrayRecord files, everything else in one small file per split.

    data_dir/<dataset>/<version>/   what TFDS writes, and columns_<split>.npz: paths, identities, cameras, captions

The columns are those of the files that were packed, so masks, batches and checkpoints of a run fit both forms.
data_dir may be in a gs:// bucket, from which ArrayRecord reads by itself.
"""

import io
import zipfile
from collections.abc import Sequence

import numpy as np
from etils import epath

from input_pipeline.records import Records
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.paths import place

VERSION = "1.0.0"
FIXED = ("pid", "camid", "view")


def folder(data_dir: epath.PathLike, name: str) -> epath.Path:
    """The folder of dataset `name` below `data_dir`; raises ConfigError for a bucket that cannot be used."""
    return place(data_dir) / name / VERSION


def write_columns(target: epath.Path, split: str, records: Records) -> None:
    """Writes everything but the pictures of a split."""
    columns = {key: getattr(records, key) for key in FIXED}
    for field in ("paths", "parts", "captions"):
        columns |= {f"{field}/{key}": column for key, column in getattr(records, field).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **columns)
    (target / f"columns_{split}.npz").write_bytes(buffer.getvalue())


def load(data_dir: str, *, name: str, modalities: Sequence[str]) -> dict[str, Records]:
    """The splits of a packed dataset: the rows with a picture of `modalities`; pictures are read on demand.

    Raises DataError if there is no such dataset, ConfigError for a modality that was not packed.
    """
    import tensorflow_datasets as tfds

    root = folder(data_dir, name)
    found = sorted(file.name for file in root.glob("columns_*.npz")) if root.exists() else []
    if not found:
        raise DataError(
            f"packed: no dataset {name!r} under {data_dir}; make one with "
            f"python -m input_pipeline.tfds_builder --dataset={name} --data_dir=FILES --output={data_dir}"
        )
    builder = tfds.builder_from_directory(root)
    splits = [file.removeprefix("columns_").removesuffix(".npz") for file in found]
    return {
        split: _records(root, _read_columns(root / file), modalities, builder.as_data_source(split=split))
        for split, file in zip(splits, found)
    }


def _records(root: epath.Path, columns: dict[str, np.ndarray], modalities: Sequence[str], packed: Sequence) -> Records:
    paths, parts, captions = (
        {key.partition("/")[2]: column for key, column in columns.items() if key.startswith(f"{field}/")}
        for field in ("paths", "parts", "captions")
    )
    lacking = sorted(set(modalities) - paths.keys())
    if lacking:
        raise ConfigError(f"config.data.modalities={tuple(modalities)}: {root} was packed without {', '.join(lacking)}")
    whole = Records(
        root=str(root),
        paths={name: paths[name] for name in modalities},
        parts={name: parts[name] for name in modalities if name in parts},
        captions=captions,
        **{key: columns[key] for key in FIXED},
        packed=packed,
        rows=np.arange(len(columns["pid"])),
    )
    return whole.take(np.flatnonzero(whole.has_file().any(axis=1)))


def _read_columns(file: epath.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as columns:
            return dict(columns)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"packed: cannot read {file} ({error}); pack the dataset again") from error
