"""Packs a dataset into TFDS: a few large files, which are faster to read from a bucket than thousands of small ones.

python -m input_pipeline.tfds_builder --dataset=rgbnt201 --data_dir=data/RGBNT201 --output=PACKED
python -m jax_mmreid.main --config=configs/rgbnt201.py --config.data.source=tfds --config.data.data_dir=PACKED

Pictures are stored as the bytes of their files; one of several pictures in a file (a strip, an array) is stored as a
PNG with the same pixels. Rows keep their order. TensorFlow is not needed.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from input_pipeline.check import option
from input_pipeline.data_config import DataConfig
from input_pipeline.opened_data import load_records
from input_pipeline.reading import images, packed
from input_pipeline.records import Records
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.paths import written_on_disk


def build(
    dataset: str, data_dir: str, output: str, *, modalities: Sequence[str], allow_missing_files: bool = False, **options
) -> dict[str, int]:
    """Packs every split below `output` and returns their numbers of rows.

    `options` are keyword arguments of the dataset's `load`. Raises ConfigError for a dataset, modality or option that
    does not exist, DataError for data that cannot be read and for an output that exists.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    target = packed.folder(output, dataset)
    if target.exists():
        raise DataError(f"tfds_builder: {target} exists; choose another --output or remove it")
    splits = load_records(
        DataConfig(
            name=dataset,
            data_dir=data_dir,
            modalities=tuple(modalities),
            allow_missing_files=allow_missing_files,
            options=options,
        )
    )

    class Packed(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The dataset in the form that TFDS writes."""

        name = dataset
        VERSION = tfds.core.Version(packed.VERSION)

        def _info(self):
            pictures = {name: tfds.features.Scalar(np.bytes_) for name in modalities}
            columns = {key: tfds.features.Scalar(np.int32) for key in packed.FIXED}
            features = tfds.features.FeaturesDict(pictures | columns)
            # Rows are read by their number.
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(records) for name, records in splits.items()}

        def _generate_examples(self, records):
            for row in range(len(records)):
                pictures = {name: _picture(records, name, row) for name in records.paths}
                yield row, pictures | {key: getattr(records, key)[row] for key in packed.FIXED}

    with written_on_disk(output) as folder:  # ArrayRecord writes no others
        Packed(data_dir=str(folder), file_format="array_record").download_and_prepare()
        for name, records in splits.items():
            packed.write_columns(packed.folder(folder, dataset), name, records)
    return {name: len(records) for name, records in splits.items()}


def _picture(records: Records, modality: str, row: int) -> bytes:
    """The bytes of a file with this picture only; empty if there is no picture."""
    if not records.paths[modality][row]:
        return b""
    part = records.part(modality, row)
    path = records.path(modality, row)
    if part is not None:
        return images.as_png(path, part)
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"tfds_builder: cannot read {path} ({error}); add the file") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad arguments, 3 data that cannot be packed."""
    parser = argparse.ArgumentParser(prog="python -m input_pipeline.tfds_builder", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="a module of input_pipeline.datasets")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--output", required=True, help="a folder or bucket, in which the dataset gets a folder")
    parser.add_argument("--modalities", default="rgb/nir/tir", help="joined by '/'")
    parser.add_argument("--allow_missing_files", action="store_true")
    parser.add_argument(
        "--option", action="append", default=[], type=option, metavar="KEY=VALUE", help="of the dataset"
    )
    arguments = parser.parse_args(argv)
    try:
        sizes = build(
            arguments.dataset,
            arguments.data_dir,
            arguments.output,
            modalities=tuple(arguments.modalities.split("/")),
            allow_missing_files=arguments.allow_missing_files,
            **dict(arguments.option),
        )
    except ConfigError as error:
        print(f"tfds_builder: {error}", file=sys.stderr)
        return 2
    except DataError as error:
        print(error, file=sys.stderr)
        return 3
    print(f"{packed.folder(arguments.output, arguments.dataset)}: {', '.join(f'{n} {k}' for k, n in sizes.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
