"""The forms of the posters: which rows are settings of missing modalities or pairs of them, and how both are printed.

Nothing here imports jax, so that `--compare` answers at once.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jax_mmreid.config import LETTERS

SHADES = " ░▒▓█"  # of a heat map, by fifths of 0..1


class Parts(NamedTuple):
    """Names of results by the form in which a poster prints them."""

    settings: dict[str, dict[str, str]]  # {prefix: {setting: name}} in the order of a poster; see `parts`
    pairs: dict[str, dict[tuple[str, str], str]]  # {row with `pairs_of`: {(query, gallery): name}}
    others: list[str]


def parts(names: Iterable[str]) -> Parts:
    """Sorts names of results.

    Settings are those that `config.missing_evals` names, with any prefix; none if there is no more than "full". Pairs
    are names ROW/QUERY>GALLERY, of which there is one for every two of the same two or more.
    """
    names, settings, pairs = list(names), {}, {}
    for name in names:
        prefix, _, last = name.rpartition("/")
        query, sign, gallery = last.partition(">")
        if last in ("full", "mean_missing") or re.fullmatch(f"no_[{''.join(LETTERS.values())}]+", last):
            settings.setdefault(prefix, {})[last] = name
        elif prefix and sign:
            pairs.setdefault(prefix, {})[query, gallery] = name
    if all(setting == "full" for found in settings.values() for setting in found):
        settings = {}
    settings = {prefix: {x: found[x] for x in sorted(found, key=place)} for prefix, found in settings.items()}
    pairs = {row: found for row, found in pairs.items() if _is_square(found)}
    printed = {name for found in (*settings.values(), *pairs.values()) for name in found.values()}
    return Parts(settings, pairs, [name for name in names if name not in printed])


def place(setting: str) -> tuple:
    """Sorts settings as `config.missing_evals` does."""
    letters = "".join(LETTERS.values())
    gone = [letters.find(letter) for letter in setting.removeprefix("no_")]
    return setting == "mean_missing", setting != "full", len(gone), gone


def label(setting: str, modalities: Sequence[str]) -> str:
    """How a poster writes a setting: RNT for all of three modalities, -R for one without RGB, Mean.

    Other names stay as they are, and so does "full" if no modalities are given.
    """
    if setting.startswith("no_"):
        return "-" + setting[3:].upper()
    letters = "".join(LETTERS[m].upper() for m in modalities)
    return {"full": letters or "full", "mean_missing": "Mean"}.get(setting, setting)


def table(head: Sequence[str], lines: Iterable[Sequence[str | None]]) -> list[str]:
    """Lines of a markdown table."""
    rows = ["| " + " | ".join(cell or "" for cell in cells) + " |" for cells in (head, *lines)]
    return [rows[0], "|---" * len(head) + "|", *rows[1:]]


def heat_map(title: str, values: Mapping[tuple[str, str], float], modalities: Sequence[str]) -> list[str]:
    """A title and a table of {(query, gallery): fraction} in percent, a picture where all letters are as wide."""
    return matrix(title, {pair: _shaded(x) for pair, x in values.items()}, modalities)


def matrix(title: str, cells: Mapping[tuple[str, str], str], modalities: Sequence[str]) -> list[str]:
    """A title and a table of {(query, gallery): text}."""
    names = list(dict.fromkeys(query for query, _ in cells))
    lines = [["", *(label(name, modalities) for name in names)]]
    for query in names:
        lines.append([label(query, modalities), *(cells[query, gallery] for gallery in names)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    head, *lines = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in lines]
    return [f"{title}, rows query, columns gallery", "", *table(head, lines)]


def _is_square(pairs: Iterable[tuple[str, str]]) -> bool:
    pairs = set(pairs)
    ends = {query for query, _ in pairs}
    return len(ends) > 1 and pairs == set(itertools.product(ends, repeat=2))


def _shaded(fraction: float) -> str:
    level = round(1000 * fraction) * len(SHADES) // 1000  # of what is printed
    return f"{SHADES[min(level, len(SHADES) - 1)]} {100 * fraction:4.1f}"
