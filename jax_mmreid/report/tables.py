"""The results of one evaluation as the tables of results.md, in the form of the published tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jax_mmreid.recipes import missing_settings
from jax_mmreid.recipes.missing_settings import FULL
from jax_mmreid.report import baselines, settings

MAIN = ("mAP", "rank1")  # in retrieval: metrics whose loss against the full setting is printed, and heat maps of pairs


class Kind(NamedTuple):
    """The results of one kind of evaluation."""

    name: str
    columns: Mapping[str, str]  # {heading: metric}
    not_fractions: Sequence[str]
    modalities: Sequence[str]
    evals: dict[str, dict]

    @property
    def main(self) -> dict[str, str]:
        """{heading: metric} of MAIN, {} in kinds that retrieve nothing."""
        return {title: key for title, key in self.columns.items() if key in MAIN and self._is_retrieval}

    @property
    def _is_retrieval(self) -> bool:
        return self.name in settings.KINDS


def markdown(results: dict) -> str:
    """The contents of results.json as tables, for each kind of evaluation in the order in which they come, and notes.

    In retrieval, settings of missing modalities are columns, a table for each group, and pairs of settings a heat map;
    results without learning are one table beside the learned ones; all other results are lines. In percent, but for
    metrics that are no fractions.
    """
    named = what(results)
    lines = [f"{named[0].upper()}{named[1:]}, config {results['config_hash']}."]
    for name in dict.fromkeys(result["kind"] for result in results["evals"].values()):
        evals = {key: result for key, result in results["evals"].items() if result["kind"] == name}
        kind = Kind(name, results["columns"][name], results["not_fractions"][name], results["modalities"], evals)
        for table in baselines.tables(results) if name == settings.UNLEARNED else _tables(kind):
            lines += ["", *table]
        for key, result in evals.items():
            if "note" in result and "pair" not in result:  # what a pair leaves out is noted where its settings are
                lines += ["", f"{settings.label(key, result, kind.modalities)} {result['note']}"]
    if "advice" in results:
        lines += ["", results["advice"]]
    if "forced" in results:
        lines += ["", f"Forced: the weights were trained with another config: {'; '.join(results['forced'])}."]
    return "\n".join(lines) + "\n"


def what(results: dict) -> str:
    """Which weights were evaluated, in words."""
    if results["which"] == "init":
        return f"weights of {results['init']}"
    return f"checkpoint at step {results['step']} ({results['which']})"


def _tables(kind: Kind) -> Iterator[list[str]]:
    forms = settings.forms(kind.evals, kind.modalities)
    labels = missing_settings.labels(kind.modalities)
    for group, names in forms.settings.items():
        head = [f"setting ({group})" if group else "setting", *(labels[setting] for setting in names)]
        yield settings.table(head, _columns(kind, {setting: kind.evals[name] for setting, name in names.items()}))
    for group, names in forms.pairs.items():
        for title, key in kind.main.items():
            values = {pair: kind.evals[name][key] for pair, name in names.items()}
            means = settings.pair_means(values, kind.modalities)
            yield settings.heat_map(f"{group}: {title}", values, kind.modalities) + (["", means] if means else [])
    if forms.lines:
        yield _lines(kind, forms.lines)


def _columns(kind: Kind, rows: dict[str, dict]) -> Iterator[list[str]]:
    """A line per metric over results by setting, and how much of the full setting's score each loses."""
    for title, key in kind.columns.items():
        yield [title, *(_cell(kind, row, key) for row in rows.values())]
        if key in kind.main.values() and FULL in rows and len(rows) > 1:
            yield [f"{title} drop", *(_drop(rows[FULL], row, key) for row in rows.values())]


def _lines(kind: Kind, names: list[str]) -> list[str]:
    """A line per result; in retrieval, how much of the score of its group's full setting each loses, if it has one."""
    full = {row.get("group", ""): row for row in kind.evals.values() if row.get("setting") == FULL}
    rows = {name: kind.evals[name] for name in names}
    fulls = {name: full.get(row.get("group", ""), row) for name, row in rows.items()}
    losses = kind.main if any(fulls[name] is not row for name, row in rows.items()) else {}
    lines = []
    for name, row in rows.items():
        cells = [_cell(kind, row, key) for key in kind.columns.values()]
        drops = [_drop(fulls[name], row, key) for key in losses.values()]
        lines.append([settings.label(name, row, kind.modalities), *cells, *drops])
    return settings.table(["setting", *kind.columns, *(f"{title} drop" for title in losses)], lines)


def _cell(kind: Kind, row: dict, key: str) -> str:
    return f"{row[key] if key in kind.not_fractions else 100 * row[key]:.1f}"


def _drop(full: dict, row: dict, key: str) -> str:
    """`25.0 %`; nothing of the full row itself."""
    if row is full:
        return ""
    return f"{100 * (full[key] - row[key]) / full[key] if full[key] else 0.0:.1f} %"
