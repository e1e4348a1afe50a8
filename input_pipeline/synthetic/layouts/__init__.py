"""One module per layout, named like the dataset that reads it.

`write(root, plan)` draws a dataset in the folders of an official one; `rows(plan)` yields, without drawing, the rows
that the dataset module reads from it.
"""

import importlib
import pkgutil
from types import ModuleType

from jax_mmreid.errors import ConfigError

LAYOUTS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find(layout: str) -> ModuleType:
    """The module of a layout; raises ConfigError listing those that exist."""
    if layout not in LAYOUTS:
        raise ConfigError(f"synthesize: no layout {layout!r}; the layouts are: {', '.join(LAYOUTS)}")
    return importlib.import_module(f"{__name__}.{layout}")
