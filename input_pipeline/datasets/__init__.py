"""One module per dataset: `load(data_dir, *, modalities, allow_missing_files)` returns {split name: Records}.

`config.data.name` is the name of a module. A module may take further keyword arguments, each with a default
(`config.data.options`), and states the range of each number among them in `RANGES`, {option: interval}. The split
"train" is trained on; the others, at least one, are for evaluation. `counts(data_dir, *, modalities)` takes the same
options and returns the size of a complete copy, {split name: Counts}, without opening a picture; for a published
dataset it does not read the disk at all.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType

from input_pipeline.data_config import check_names
from jax_mmreid.errors import ConfigError
from jax_mmreid.ranges import check_ranges, check_types

GIVEN = ("data_dir", "modalities", "allow_missing_files")  # what every `load` takes


def names() -> list[str]:
    """The datasets that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str, function: str, options: Mapping[str, object], **given: object) -> Callable:
    """A function of dataset `name` with the arguments `given` and the dataset's own `options` bound to it.

    Raises ConfigError for a dataset that does not exist, and for options that it does not have or that cannot be.
    """
    module, known = _module(name), options_of(name)
    if not _takes_any(module):
        check_names(f"config.data.options of {name}", "option", options, known)
    check_options({key: x for key, x in options.items() if key in known}, known, getattr(module, "RANGES", {}))
    return functools.partial(getattr(module, function), **given, **options)


def options_of(name: str) -> dict[str, object]:
    """The options of dataset `name` and their defaults; raises ConfigError for a dataset that does not exist."""
    parameters = inspect.signature(_module(name).load).parameters.values()
    return {x.name: x.default for x in parameters if x.name not in GIVEN and x.kind is not x.VAR_KEYWORD}


def check_options(options: Mapping[str, object], defaults: Mapping[str, object], ranges: Mapping[str, str]) -> None:
    """Raises ConfigError for an option of another type than its default, or outside its range."""
    values = {f"data.options.{key}": value for key, value in options.items()}
    check_types(values, {f"data.options.{key}": type(default) for key, default in defaults.items()})
    check_ranges(values, {rf"data\.options\.{key}": interval for key, interval in ranges.items()})


def _takes_any(module: ModuleType) -> bool:
    """Whether a dataset checks the names of its options itself."""
    return any(x.kind is x.VAR_KEYWORD for x in inspect.signature(module.load).parameters.values())


def _module(name: str) -> ModuleType:
    if name not in names():
        raise ConfigError(f"config.data.name: no dataset {name!r}; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
