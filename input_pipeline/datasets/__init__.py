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


def names() -> list[str]:
    """The datasets that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str, function: str, options: dict, **given: object) -> Callable:
    """A function of dataset `name` with the arguments `given` and its own `options` bound to it.

    Raises ValueError for a dataset that does not exist and for options that it does not have.
    """
    if name not in names():
        raise ValueError(f"data.name: no dataset {name!r}; there are {', '.join(names())}")
    found = getattr(importlib.import_module(f"{__name__}.{name}"), function)
    try:
        inspect.signature(found).bind(**given, **options)
    except TypeError as error:
        raise ValueError(f"data.options of {name}: {error}") from None
    return functools.partial(found, **given, **options)
