"""Checks of config values, for every part of a config: their types and the intervals that they lie in."""

import re
import typing
from collections.abc import Mapping

from jax_mmreid.errors import ConfigError

NOUNS = {  # of one value and of several
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    bool: ("True or False", "booleans"),
    dict: ("a dict", "dicts"),
}


def check_types(values: Mapping[str, object], kinds: Mapping[str, type], *, prefix: str = "config.") -> None:
    """Raises ConfigError for a value that is not of the stated type.

    `values` are dotted fields, `kinds` their types: a key of NOUNS, or a tuple of one of them, as tuple[int, int] or
    tuple[str, ...]. A list may stand for a tuple, a whole number for a float. The message names the field after
    `prefix`.
    """
    for field, value in values.items():
        items = typing.get_args(kinds[field])
        if not items:
            ok, wanted = _is_a(value, kinds[field]), NOUNS[kinds[field]][0]
        else:
            count = "" if items[-1] is ... else f"{len(items)} "
            ok = isinstance(value, tuple | list) and (not count or len(value) == len(items))
            ok, wanted = ok and all(_is_a(x, items[0]) for x in value), f"a tuple of {count}{NOUNS[items[0]][1]}"
        if not ok:
            raise ConfigError(f"{prefix}{field}={value!r}: must be {wanted}")


def check_ranges(values: Mapping[str, object], ranges: Mapping[str, str], *, prefix: str = "config.") -> None:
    """Raises ConfigError for a number outside its range.

    `values` are dotted fields, whose tuples are checked number by number; `ranges` are {regex of the whole field:
    interval}, the first match counts: "[0, 1)", "(0, inf)". A number without a range is a defect: KeyError. The message
    names the field after `prefix`.
    """
    for field, value in values.items():
        numbers = [x for x in (value if isinstance(value, tuple | list) else [value]) if not isinstance(x, bool)]
        for x in [x for x in numbers if isinstance(x, int | float)]:
            interval = next((ranges[pattern] for pattern in ranges if re.fullmatch(pattern, field)), None)
            if interval is None:
                raise KeyError(f"no range is stated for the field {field}")
            low, high = (float(end) for end in interval[1:-1].split(","))
            above = x >= low if interval[0] == "[" else x > low
            below = x <= high if interval[-1] == "]" else x < high
            if not (above and below):  # NaN is in no range
                raise ConfigError(f"{prefix}{field}={value}: must lie in {interval}")


def _is_a(value: object, kind: type) -> bool:
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind)
