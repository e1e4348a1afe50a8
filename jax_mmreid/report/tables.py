"""The results of one evaluation as the tables of results.md, in the forms of the posters."""

from collections.abc import Iterator, Sequence
from types import ModuleType

from jax_mmreid import evaluators
from jax_mmreid.config import ConfigDict
from jax_mmreid.evaluators import Result, retrieval
from jax_mmreid.report import settings

MAIN = {"mAP": "mAP", "R-1": "rank1"}  # in retrieval: how much a setting loses of these, and heat maps of pairs


def markdown(config: ConfigDict, results: dict) -> str:
    """The results as tables for each kind of evaluation, in the order in which the kinds come, and what to note.

    In retrieval, settings of missing modalities are columns, a table for each prefix, and pairs of settings a heat map;
    all other rows are lines.
    """
    rows = dict.fromkeys(results["evals"], {}) | config.evals.to_dict()
    kinds = {}
    for name, result in results["evals"].items():
        kinds.setdefault(evaluators.evaluator(rows, name), {})[name] = result
    named = what(config, results)
    lines = [f"{named[0].upper()}{named[1:]}, config {results['config_hash']}."]
    for kind, evals in kinds.items():
        parts = settings.parts(evals) if kind is retrieval else settings.Parts({}, {}, list(evals))
        labels = {name: _label(config, name) for name in evals}
        for table in _tables(kind, parts, labels, evals, config.data.modalities):
            lines += ["", *table]
        paired = {name for pairs in parts.pairs.values() for name in pairs.values()}  # noted where their settings are
        notes = {name: kind.note(rows[name], result) for name, result in evals.items() if name not in paired}
        for name, note in notes.items():
            lines += ["", f"{labels[name]} {note}"] if note else []
    if "forced" in results:
        lines += ["", f"Forced: the weights were trained with another config: {'; '.join(results['forced'])}."]
    return "\n".join(lines) + "\n"


def what(config: ConfigDict, results: dict) -> str:
    """What was evaluated, in words."""
    if results["which"] == "init":
        return f"weights of {config.init}"
    return f"checkpoint at step {results['step']} ({results['which']})"


def _tables(
    kind: ModuleType, parts: settings.Parts, labels: dict[str, str], evals: dict[str, Result], modalities: Sequence[str]
) -> Iterator[list[str]]:
    for prefix, names in parts.settings.items():
        head = [f"setting ({prefix})" if prefix else "setting", *(settings.label(x, modalities) for x in names)]
        yield settings.table(head, _columns({setting: evals[name] for setting, name in names.items()}))
    for row, names in parts.pairs.items():
        for title, key in MAIN.items():
            values = {pair: evals[name][key] for pair, name in names.items()}
            yield settings.heat_map(f"{row}: {title}", values, modalities)
    if parts.others:
        yield _lines(kind, {name: labels[name] for name in parts.others}, evals)


def _columns(rows: dict[str, Result]) -> Iterator[list[str]]:
    """A line per metric over results by setting, in percent, and how much of the full setting's score each loses."""
    for title, key in retrieval.COLUMNS.items():
        yield [title, *(_cell(retrieval, row, key) for row in rows.values())]
        if key in MAIN.values() and "full" in rows and len(rows) > 1:
            yield [f"{title} drop", *(_drop(rows["full"], row, key) for row in rows.values())]


def _lines(kind: ModuleType, labels: dict[str, str], evals: dict[str, Result]) -> list[str]:
    """A line per row with a label, in percent; in retrieval, how much of its full row's score each loses, if any."""
    fulls = {name: evals.get(f"{name.rpartition('/')[0]}/full".lstrip("/"), evals[name]) for name in labels}
    compared = kind is retrieval and any(fulls[name] is not evals[name] for name in labels)
    losses = {f"{title} drop": key for title, key in MAIN.items()} if compared else {}
    lines = []
    for name, title in labels.items():
        cells = [_cell(kind, evals[name], key) for key in kind.COLUMNS.values()]
        lines.append([title, *cells, *(_drop(fulls[name], evals[name], key) for key in losses.values())])
    return settings.table(["setting", *kind.COLUMNS, *losses], lines)


def _cell(kind: ModuleType, row: Result, key: str) -> str:
    return f"{row[key] if key in kind.NOT_FRACTIONS else 100 * row[key]:.1f}"


def _drop(full: Result, row: Result, key: str) -> str:
    """`25.0 %`; nothing of the full row itself."""
    if row is full:
        return ""
    return f"{100 * (full[key] - row[key]) / full[key] if full[key] else 0.0:.1f} %"


def _label(config: ConfigDict, name: str) -> str:
    """A row's label, with its prefix behind it."""
    prefix, _, last = name.rpartition("/")
    label = settings.label(last, config.data.modalities)
    return f"{label} ({prefix})" if prefix else label
