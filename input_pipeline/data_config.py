"""The fields of `config.data` and `config.missing`: what they mean, their defaults, and the values that they may have.

The dataclasses check themselves: an impossible value raises ConfigError, which names the field.
"""

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from PIL import Image

from jax_mmreid.errors import ConfigError
from jax_mmreid.ranges import check_ranges, check_types

RANGES = {
    r"data\.image_size": "[1, 65535]",
    r"data\.(identities|instances|eval_batch_size)": "[1, inf)",
    r"data\.threads": "[0, inf)",
    r"data\.range16": "[0, 65535]",
    r"data\.text\.context": "[2, inf)",  # a caption has a start and an end
    r"data\.text\.vocab_size": "[514, inf)",  # all bytes, the same at the end of a word, start and end
    r"data\.text\.rephrased": "[0, 1]",
    r"missing\.eta": "[0, 1]",
    r"missing\.seed": "[0, inf)",
}
FILTERS = tuple(name.lower() for name in Image.Resampling.__members__)
MODES = ("bernoulli", "exact")
ALL_MISSING = ("repair", "reject", "drop_sample")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """`config.data.text`: how captions become token ids."""

    tokenizer: str = ""  # as `text.tokenizer.open_tokenizer` takes it, "" to go without captions
    context: int = 77  # ids of a caption, start and end included; longer captions are cut
    vocab_size: int = 4096  # of the tokenizer "train"
    rephrased: float = 0.0  # how often a training caption is replaced by its rephrased form

    def __post_init__(self):
        _check_fields(self, "data.text")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TextConfig":
        """Raises ConfigError for a field that does not exist."""
        return _from_dict(cls, "data.text", values)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """`config.data`: which dataset, and how it is read."""

    name: str  # a module of input_pipeline.datasets
    data_dir: str = ""
    source: str = "files"  # or "tfds": what input_pipeline.tfds_builder packed below data_dir, with the same batches
    modalities: tuple[str, ...] = ("rgb", "nir", "tir")
    image_size: tuple[int, int] = (256, 128)  # H, W
    identities: int = 8  # P of a training batch of P x K rows
    instances: int = 8  # K
    fit_batch: bool = False  # of fewer than P training identities a batch takes all, and as many times more instances
    pairs: bool = False  # True: a training row is a picture of each modality, drawn apart, of one identity
    eval_batch_size: int = 128
    threads: int = 2  # that read ahead; 0 reads in the caller
    cache: str = ""  # "memory" keeps decoded pictures, at most all of them in image_size
    on_bad_image: str = "error"  # "drop" trains without a few unreadable pictures; evaluation never does
    range16: tuple[int, int] = (0, 65535)  # what becomes black and white in 16-bit pictures, see `images.decode`
    resize: tuple[str, str] = ("bicubic", "bilinear")  # Pillow's filters, in training and in evaluation
    allow_missing_files: bool = False
    options: dict = dataclasses.field(default_factory=dict)  # further keyword arguments of the dataset's `load`
    text: TextConfig = dataclasses.field(default_factory=TextConfig)  # or a dict of its fields

    def __post_init__(self):
        if isinstance(self.text, Mapping):
            object.__setattr__(self, "text", TextConfig.from_dict(self.text))
        _check_fields(self, "data")
        if len(set(self.modalities)) < len(self.modalities):
            raise ConfigError(f"config.data.modalities={self.modalities}: a modality is named twice")
        if self.range16[0] >= self.range16[1]:
            raise ConfigError(f"config.data.range16={self.range16}: the second value must be larger than the first")
        for key, known in (
            ("source", ("files", "tfds")),
            ("cache", ("", "memory")),
            ("on_bad_image", ("error", "drop")),
            ("resize", FILTERS),
        ):
            check_choice(f"data.{key}", getattr(self, key), known)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataConfig":
        """Raises ConfigError for a field that does not exist."""
        return _from_dict(cls, "data", values)


@dataclasses.dataclass(frozen=True)
class MissingConfig:
    """`config.missing`: which training pictures are hidden, see `reading.masks`."""

    eta: tuple[float, ...] = (0.0, 0.0, 0.0)  # a rate for each of data.modalities, in their order
    seed: int = 0
    mode: str = "bernoulli"
    all_missing: str = "repair"  # what becomes of a row that loses all its pictures
    mask_file: str = ""  # an .npz file that `save_masks` wrote; "" draws the masks

    def __post_init__(self):
        _check_fields(self, "missing")
        check_choice("missing.mode", self.mode, MODES)
        check_choice("missing.all_missing", self.all_missing, ALL_MISSING)
        if self.all_missing == "reject" and self.mode != "bernoulli":
            raise ConfigError(
                "config.missing.all_missing='reject': draws single rows again, which needs missing.mode='bernoulli'"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MissingConfig":
        """Raises ConfigError for a field that does not exist."""
        return _from_dict(cls, "missing", values)


def check_choice(field: str, value: str | Sequence[str], known: Collection[str]) -> None:
    """Raises ConfigError unless the value, or every item of a tuple, is one of `known`."""
    for item in value if isinstance(value, tuple) else (value,):
        if item not in known:
            raise ConfigError(f"config.{field}={value!r}: expected one of {', '.join(map(repr, known))}")


def check_modalities(dataset: str, modalities: Sequence[str], known: Collection[str]) -> None:
    """Raises ConfigError unless the modalities are some of those that a dataset has."""
    if not modalities or not set(modalities) <= set(known):
        raise ConfigError(f"config.data.modalities={tuple(modalities)}: {dataset} has {', '.join(known)}")


def check_names(where: str, noun: str, given: Collection[str], known: Collection[str]) -> None:
    """Raises ConfigError for a name that is not known; `noun` is the kind of thing that it names."""
    for name in given:
        if name not in known:
            hint = difflib.get_close_matches(name, known, n=1)
            did_you_mean = f"; did you mean {hint[0]!r}?" if hint else ""
            raise ConfigError(f"{where}: no {noun} {name!r}; there are {', '.join(known) or 'none'}{did_you_mean}")


def _check_fields(config: Any, where: str) -> None:
    """Makes tuples of lists, and checks types and ranges."""
    kinds = {field.name: field.type for field in dataclasses.fields(config) if field.type is not TextConfig}
    for key in kinds:
        if isinstance(getattr(config, key), list):
            object.__setattr__(config, key, tuple(getattr(config, key)))
    values = {f"{where}.{key}": getattr(config, key) for key in kinds}
    check_types(values, {f"{where}.{key}": kind for key, kind in kinds.items()})
    check_ranges(values, RANGES)


def _from_dict(cls: type, where: str, values: Mapping[str, Any]) -> Any:
    check_names(f"config.{where}", "field", values, [field.name for field in dataclasses.fields(cls)])
    return cls(**values)
