"""Reading data. `open_data` opens a dataset; what it returns follows `jax_mmreid.batch.Data`. `describe` returns the
spec of the same data from published counts, without reading a picture.

Everything here is numpy, Pillow and grain on the host: pictures leave as uint8, and the device augments them.
"""

from input_pipeline.data_config import DataConfig, MissingConfig, TextConfig
from input_pipeline.data_spec import DescribedData, describe
from input_pipeline.opened_data import OpenedData, load_records, open_data

__all__ = [
    "DataConfig",
    "DescribedData",
    "MissingConfig",
    "OpenedData",
    "TextConfig",
    "describe",
    "load_records",
    "open_data",
]
