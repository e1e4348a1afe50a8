"""How training went: losses, accuracy, learning rates and evaluations by step, from metrics.jsonl of a workdir."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from etils.epath import PathLike

from jax_mmreid.paths import place
from jax_mmreid.report import charts
from jax_mmreid.report.page import Picture, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATE, MAP = "lr/", "/mAP"  # how the names of learning rates begin, and those of an evaluation's mAP end
EVALUATIONS = 8  # rows whose mAP is drawn at most, for more cannot be told apart


class Log(NamedTuple):
    """What a run wrote while it trained."""

    name: str
    lines: list[dict]  # {"step": s, metric: value}, steps ascending
    terms: tuple[str, ...]  # names of loss terms
    phases: tuple[int, ...]  # the first step of each phase but the first


def read(workdir: PathLike, name: str) -> Log:
    """The log of a workdir; a run in progress may be writing the last line, which is left out then."""
    workdir = place(workdir)
    config, spec = (json.loads((workdir / file).read_text()) for file in ("config.json", "data_spec.json"))
    path = workdir / "metrics.jsonl"
    written = path.read_text().splitlines(keepends=True) if path.exists() else []
    lines = [json.loads(line) for line in written if line.endswith("\n")]
    phases = (start * spec["steps_per_epoch"] for start, *_ in config["phases"][1:])
    return Log(name, lines, tuple(config["weights"]), tuple(phases))


def section(logs: Sequence[Log]) -> Section | None:
    """Curves of the first run, and of several runs their losses and accuracies together; None if nothing was logged."""
    logs = [log for log in logs if log.lines]
    if not logs:
        return None
    first, pictures = logs[0], [_losses(logs[0]), _progress(logs[0])]
    measured = _evaluations(first)
    if measured:
        text = "mAP in percent of the evaluations during training. "
        text += f"The first {EVALUATIONS} rows of {len(measured)}." if len(measured) > EVALUATIONS else ""
        rows = {name: name.removesuffix(MAP) for name in measured[:EVALUATIONS]}
        png = charts.draw(lambda figure: _lines(figure.subplots(), first, rows, "mAP", 100))
        pictures.append(Picture("curves_evaluations", png, text.strip()))
    if len(logs) > 1:
        text = "Loss and accuracy of all runs. Losses of different methods sum other terms, so they are not comparable."
        pictures.append(Picture("curves_runs", charts.draw(lambda figure: _runs(figure, logs), height=4), text))
    text = f"From metrics.jsonl of {first.name}. Grey vertical lines mark where a phase of the recipe begins."
    return Section("Training", text if first.phases else text.split(". ")[0] + ".", pictures)


def _losses(log: Log) -> Picture:
    terms = [name for name in log.terms if any(name in line for line in log.lines)]

    def paint(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2)
        _lines(left, log, {"loss": "loss"}, "total loss, weighted")
        _lines(right, log, {name: name for name in terms}, "loss terms, not weighted")
        values = [line[name] for line in log.lines for name in terms if name in line]
        if values and min(values) > 0:
            charts.log_scale(right)

    text = "Left the loss that is minimised, the weighted sum of the terms on the right; of single batches. A phase "
    text += "that adds a term raises the sum."
    return Picture("curves_losses", charts.draw(paint, width=10, height=4), text)


def _progress(log: Log) -> Picture:
    rates: dict[tuple, list[str]] = {}
    for name in sorted({name for line in log.lines for name in line if name.startswith(RATE)}):
        rates.setdefault(tuple(map(tuple, _points(log.lines, name))), []).append(name)
    labels = {same[0]: ", ".join(name.removeprefix(RATE) for name in same) for same in rates.values()}

    def paint(figure: "Figure") -> None:
        panels = figure.subplots(1, 3)
        _lines(panels[0], log, {"accuracy": "accuracy"}, "accuracy on the batch")
        panels[0].set_ylim(-0.02, 1.02)
        _lines(panels[1], log, labels, "learning rate" if len(labels) > 1 else "learning rate of all groups")
        _lines(panels[2], log, {"grad_norm": "gradient"}, "norm of the gradient")

    text = "Accuracy: the share of a training batch that the identity classifier recognises. Learning rates are by "
    text += "group of parameters."
    return Picture("curves_progress", charts.draw(paint, width=12, height=3.6), text)


def _evaluations(log: Log) -> list[str]:
    """The mAP that were measured more than once, rows of pairs left out."""
    counts: dict[str, int] = {}
    for line in log.lines:
        for name in line:
            if name.endswith(MAP) and ">" not in name:
                counts[name] = counts.get(name, 0) + 1
    return [name for name, count in counts.items() if count > 1]


def _lines(axes: "Axes", log: Log, names: Mapping[str, str], title: str, scale: float = 1) -> None:
    """The metrics of `names`, with what each is called, times `scale`."""
    for number, (name, shown) in enumerate(names.items()):
        marker = "o" if name.endswith(MAP) else ""
        steps, values = _points(log.lines, name)
        values = [scale * x for x in values]
        axes.plot(steps, values, **charts.line(number), marker=marker, markersize=4, label=shown)
    for step in log.phases:
        axes.axvline(step, color=charts.MISSING, linewidth=0.8, zorder=0)
    _finish(axes, title, legend=len(names) > 1)


def _runs(figure: "Figure", logs: Sequence[Log]) -> None:
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for number, log in enumerate(logs):
            axes.plot(*_points(log.lines, name), **charts.line(number), label=log.name)
        _finish(axes, name, legend=name == "accuracy")


def _finish(axes: "Axes", title: str, *, legend: bool) -> None:
    axes.set(title=title, xlabel="step")
    axes.grid(True)
    if legend:
        crowded = len(axes.lines) > 4
        axes.legend(fontsize="small", **dict(loc="upper left", bbox_to_anchor=(1, 1)) if crowded else {})


def _points(lines: Iterable[Mapping], name: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in found], [value for _, value in found]
