"""One module per dataset: `load(data_dir, *, modalities, allow_missing_files)` returns {split name: Records}.

The module's name is what `config.data.name` says. A module may take further keyword arguments (`data.options`).
The split "train" is trained on; the others, at least one, are for evaluation. `counts(data_dir, *, modalities)` takes
the same options and tells how much a whole copy holds, {split name: Counts}, without opening a picture; a published
dataset says it without a look at the disk.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType

GIVEN = ("data_dir", "modalities", "allow_missing_files")  # what every `load` takes


def names() -> list[str]:
    """The datasets that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str, function: str, options: dict, **given: object) -> Callable:
    """A function of dataset `name` with the arguments `given` and its own `options` bound to it.

    Raises ValueError for a dataset that does not exist and for options that it does not have.
    """
    found = getattr(_module(name), function)
    try:
        inspect.signature(found).bind(**given, **options)
    except TypeError as error:
        raise ValueError(f"data.options of {name}: {error}") from None
    return functools.partial(found, **given, **options)


def options(name: str) -> list[str]:
    """The keyword arguments that dataset `name` has beside those that all have; raises as `find`."""
    return [key for key in inspect.signature(_module(name).load).parameters if key not in GIVEN]


def _module(name: str) -> ModuleType:
    if name not in names():
        raise ValueError(f"data.name: no dataset {name!r}; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
