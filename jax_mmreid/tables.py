"""The results of one evaluation as the tables of results.md, in the forms of the posters."""

from types import ModuleType

from jax_mmreid import evaluators
from jax_mmreid.config import LETTERS, ConfigDict
from jax_mmreid.evaluators import retrieval


def markdown(config: ConfigDict, results: dict) -> str:
    """The results as a table for each kind of evaluation, in the order in which the kinds come, and what to note."""
    rows = dict.fromkeys(results["evals"], {}) | config.evals.to_dict()
    kinds = {}
    for name, result in results["evals"].items():
        kinds.setdefault(evaluators.evaluator(rows, name), {})[name] = result
    named = what(config, results)
    lines = [f"{named[0].upper()}{named[1:]}, config {results['config_hash']}."]
    for kind, evals in kinds.items():
        labels = {name: _label(config, name) for name in evals}
        lines += ["", *_table(kind, labels, evals)]
        notes = {name: kind.note(rows[name], result) for name, result in evals.items()}
        for name, note in notes.items():
            lines += ["", f"{labels[name]} {note}"] if note else []
    if "forced" in results:
        lines += ["", f"Forced: the weights were trained with another config: {'; '.join(results['forced'])}."]
    return "\n".join(lines) + "\n"


def _table(kind: ModuleType, labels: dict[str, str], evals: dict[str, dict]) -> list[str]:
    """A row per setting, fractions in percent; in retrieval, how much of its full row's score each loses, if any."""
    fulls = {name: evals.get(f"{name.rpartition('/')[0]}/full".lstrip("/"), row) for name, row in evals.items()}
    compared = kind is retrieval and any(fulls[name] is not evals[name] for name in evals)
    losses = {"mAP drop": "mAP", "R-1 drop": "rank1"} if compared else {}
    head = ["setting", *kind.COLUMNS, *losses]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in evals.items():
        full = fulls[name]
        drops = [(full[key] - row[key]) / full[key] if full[key] else 0.0 for key in losses.values()]
        cells = [f"{row[key] if key in kind.PLAIN else 100 * row[key]:.1f}" for key in kind.COLUMNS.values()]
        cells += ["" if full is row else f"{100 * drop:.1f} %" for drop in drops]
        lines.append(f"| {labels[name]} | " + " | ".join(cells) + " |")
    return lines


def what(config: ConfigDict, results: dict) -> str:
    """What was evaluated, in words."""
    if results["which"] == "init":
        return f"weights of {config.init}"
    return f"checkpoint at step {results['step']} ({results['which']})"


def _label(config: ConfigDict, name: str) -> str:
    """How a poster writes a row: RNT for all modalities, -R for one without RGB, Mean; other names as they are."""
    prefix, _, last = name.rpartition("/")
    letters = "".join(LETTERS[m].upper() for m in config.data.modalities)
    label = {"full": letters, "mean_missing": "Mean"}.get(last, "-" + last[3:].upper() if last[:3] == "no_" else last)
    return f"{label} ({prefix})" if prefix else label
