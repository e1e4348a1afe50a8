"""One module per layout, named like the dataset that reads it.

`write(root, plan)` draws a dataset with the folders of an official one; `rows(plan)` tells, without drawing, which rows
its reader will then find.
"""

import importlib
import pkgutil
from types import ModuleType

LAYOUTS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find(layout: str) -> ModuleType:
    """The module of a layout; raises ValueError listing those that there are."""
    if layout not in LAYOUTS:
        raise ValueError(f"synthesize: no layout {layout!r}; the layouts are: {', '.join(LAYOUTS)}")
    return importlib.import_module(f"{__name__}.{layout}")
