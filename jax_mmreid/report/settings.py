"""Which results are printed as settings of missing modalities, as pairs of settings, or line by line; and tables.

Results are distinguished by their fields "kind", "group", "setting" and "pair", never by their names. Nothing here
imports jax, so that `jax_mmreid.tools.compare` answers at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jax_mmreid.recipes import missing_settings
from jax_mmreid.recipes.missing_settings import FULL

KIND = "retrieval"  # the kind of evaluation whose rows may be settings of missing modalities, or pairs of settings
UNLEARNED = "pixels"  # the kind that has the same rows without learning
KINDS = (KIND, UNLEARNED)
SHADES = " ░▒▓█"  # of a heat map, by fifths of 0..1


class Forms(NamedTuple):
    """Names of results by the form in which they are printed."""

    settings: dict[str, dict[str, str]]  # {group: {setting: name}} in the order of the published tables
    pairs: dict[str, dict[tuple[str, str], str]]  # {group: {(query's setting, gallery's setting): name}}
    lines: list[str]


def forms(results: Mapping[str, Mapping], modalities: Sequence[str]) -> Forms:
    """Sorts results of data with these modalities; a group of the setting "full" alone is printed as a line."""
    order = list(missing_settings.labels(modalities))
    settings, pairs, lines = {}, {}, []
    for name, result in results.items():
        group, setting = result.get("group", ""), result.get("setting")
        if result["kind"] in KINDS and "pair" in result:
            pairs.setdefault(group, {})[tuple(result["pair"])] = name
        elif result["kind"] in KINDS and setting in order:
            settings.setdefault(group, {})[setting] = name
        else:
            lines.append(name)
    lines += [found[FULL] for found in settings.values() if set(found) == {FULL}]
    settings = {
        group: {setting: found[setting] for setting in order if setting in found}
        for group, found in settings.items()
        if set(found) != {FULL}
    }
    return Forms(settings, pairs, sorted(lines, key=list(results).index))


def label(name: str, result: Mapping, modalities: Sequence[str]) -> str:
    """How a result is called in a line: its setting with its group behind it, or its name if it has no setting."""
    if "setting" not in result:
        return name
    known = missing_settings.labels(modalities) if result["kind"] in KINDS else {}
    setting, group = known.get(result["setting"], result["setting"]), result.get("group", "")
    return f"{setting} ({group})" if group else setting


def table(head: Sequence[str], lines: Iterable[Sequence[str | None]]) -> list[str]:
    """Lines of a markdown table."""
    rows = ["| " + " | ".join(cell or "" for cell in cells) + " |" for cells in (head, *lines)]
    return [rows[0], "|---" * len(head) + "|", *rows[1:]]


def heat_map(title: str, values: Mapping[tuple[str, str], float], modalities: Sequence[str]) -> list[str]:
    """A title and a table of {(query, gallery): fraction} in percent, a picture where all letters are as wide."""
    return matrix(title, {pair: _shaded(x) for pair, x in values.items()}, modalities)


def pair_means(values: Mapping[tuple[str, str], float], modalities: Sequence[str]) -> str:
    """The means of {(query, gallery): fraction} in a sentence, by what the two settings share; "" of other pairs."""
    uses = {name: set(use) for name, use in missing_settings.settings(modalities).items()}
    if not {name for pair in values for name in pair} <= uses.keys():
        return ""
    groups = {"of all pairs": list(values.values()), "that differ and share a modality": [], "that share none": []}
    for (query, gallery), x in values.items():
        if query != gallery:
            shared = uses[query] & uses[gallery]
            groups["that differ and share a modality" if shared else "that share none"].append(x)
    means = (f"{100 * sum(x) / len(x):.1f} {what} ({len(x)})" for what, x in groups.items() if x)
    return f"Mean: {', '.join(means)}."


def matrix(title: str, cells: Mapping[tuple[str, str], str], modalities: Sequence[str]) -> list[str]:
    """A title and a table of {(query, gallery): text}."""
    labels = missing_settings.labels(modalities)
    names = list(dict.fromkeys(query for query, _ in cells))
    lines = [["", *(labels.get(name, name) for name in names)]]
    for query in names:
        lines.append([labels.get(query, query), *(cells[query, gallery] for gallery in names)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    head, *lines = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in lines]
    return [f"{title}, rows query, columns gallery", "", *table(head, lines)]


def _shaded(fraction: float) -> str:
    level = round(1000 * fraction) * len(SHADES) // 1000  # of the number as it is printed
    return f"{SHADES[min(level, len(SHADES) - 1)]} {100 * fraction:4.1f}"
