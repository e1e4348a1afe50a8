"""Checks of numbers against stated intervals, for every part of a config. Imports errors only."""

import re
from collections.abc import Mapping

from jax_mmreid.errors import ConfigError


def check_ranges(values: Mapping[str, object], ranges: Mapping[str, str]) -> None:
    """Raises ConfigError for a number outside its range.

    `values` are dotted fields, whose tuples are checked number by number; `ranges` are {regex of the whole field:
    interval}, the first match counts: "[0, 1)", "(0, inf)". A number without a range is a defect: KeyError.
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
                raise ConfigError(f"config.{field}={value}: must lie in {interval}")
