"""The results of an evaluation: the tables of results.md, pairs of settings and damaged pictures as pictures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from jax_mmreid.recipes import missing_settings
from jax_mmreid.report import charts, markdown, settings, tables
from jax_mmreid.report.page import Picture, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROBUSTNESS = "robustness"  # the kind of rows with damaged pictures
COLUMNS = 2  # panels beside each other


def section(results: Mapping) -> Section:
    """The tables of results without pairs of settings, which `pairs` draws."""
    evals = {name: row for name, row in results["evals"].items() if "pair" not in row}
    plain = {name: {key: x for key, x in row.items() if key != "note"} for name, row in evals.items()}
    text, found = markdown.captioned(tables.markdown({**results, "evals": plain}))
    return Section("Results", text, tables=[*found, *_left_out(evals, results["modalities"])])


def pairs(results: Mapping) -> Section | None:
    """A heat map for every group of pairs of settings; None without pairs."""
    modalities, pictures = results["modalities"], []
    for group, names in settings.forms(results["evals"], modalities).pairs.items():
        rows = {pair: results["evals"][name] for pair, name in names.items()}
        values = {pair: row["mAP"] for pair, row in rows.items()}
        png = charts.draw(lambda figure, values=values: _heat_map(figure, values, modalities), width=6.2, height=5)
        how = next((row["feature"] for (query, gallery), row in rows.items() if query != gallery), "")
        text = f"Group {group}: mAP in percent of queries of a setting (rows) against a gallery of another (columns). "
        text += _compared(how) + settings.pair_means(values, modalities)
        pictures.append(Picture(f"pairs_{_file_name(group)}", png, text))
    if not pictures:
        return None
    text = "The sensors of a query and of a gallery need not be the same. A setting is named by what it uses (RNT: "
    text += "all) or by what is missing (-R: no RGB)."
    return Section("Pairs of settings", text, pictures)


def robustness(results: Mapping) -> Section | None:
    """mAP by the severity of each damage, a panel for each damaged modality; None if no damage was measured."""
    groups: dict[str, dict[str, Mapping]] = {}
    for row in results["evals"].values():
        if row["kind"] == ROBUSTNESS and "group" in row:
            groups.setdefault(row["group"], {})[row["setting"]] = row
    if not groups:
        return None
    lines = -(-len(groups) // COLUMNS)
    columns = min(len(groups), COLUMNS)

    def paint(figure: "Figure") -> None:
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axes in panels[len(groups) :]:
            axes.set_axis_off()
        for axes, (group, rows) in zip(panels, groups.items()):
            _severities(axes, group, rows)

    text = "mAP when the queries' pictures are damaged and the gallery's are not, by severity; 0 is undamaged. "
    text += "The dashed line is the mAP of queries that lack the modality altogether: where a curve is below it, it is "
    text += "better to declare the damaged modality missing. In a swap each pair of modalities has its own."
    picture = Picture("robustness", charts.draw(paint, width=4.2 * columns, height=4.2 * lines), text)
    return Section("Damaged pictures", pictures=[picture])


def _left_out(evals: Mapping[str, Mapping], modalities: list[str]) -> list[tuple[str, list[list[str]]]]:
    """A table of how many rows of a split have nothing that a setting uses, if any have; groups of settings alike."""
    labels, lines = missing_settings.labels(modalities), {}
    for name, row in evals.items():
        if any(row.get("skipped", {}).values()):
            counts = [str(row["skipped"][side]) for side in ("query", "gallery")]
            lines[(labels.get(row.get("setting"), name), *counts)] = None
    head = ["setting", "query", "gallery"]
    return (
        [("Rows that are left out, for they have no picture or caption that is used", [head, *lines])] if lines else []
    )


def _compared(feature: str) -> str:
    if "similarity=common" not in feature:
        return "Compared by whole vectors. "
    return "Compared by the modalities that both have. "


def _heat_map(figure: "Figure", values: Mapping[tuple[str, str], float], modalities: list[str]) -> None:
    labels = missing_settings.labels(modalities)
    names = list(dict.fromkeys(query for query, _ in values))
    percent = np.array([[100 * values[query, gallery] for gallery in names] for query in names])
    axes = figure.subplots()
    image = axes.imshow(percent, cmap=charts.HEAT, vmin=0, vmax=100)
    for (i, j), x in np.ndenumerate(percent):
        axes.text(j, i, f"{x:.1f}", ha="center", va="center", color="black" if x > 55 else "white")
    ticks = range(len(names)), [labels.get(name, name) for name in names]
    axes.set_xticks(*ticks)
    axes.set_yticks(*ticks)
    axes.set(xlabel="gallery", ylabel="query")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="mAP (%)")


def _severities(axes: "Axes", group: str, rows: Mapping[str, Mapping]) -> None:
    """The rows {damage: result} of a group; its mean, if there is one, is the black line."""
    swap = len({row["missing"] for name, row in rows.items() if name != "mean"}) > 1
    for number, (name, row) in enumerate(rows.items()):
        keys = ["clean", *(key for key in row if key.startswith("severity"))]
        is_mean, own = name == "mean", charts.line(number)
        style = dict(color="black", linewidth=2.5) if is_mean else own | dict(marker="o", markersize=3)
        axes.plot(range(len(keys)), [100 * row[key] for key in keys], label=name, **style)
        if is_mean != swap:
            axes.axhline(100 * row["missing"], color=style["color"], linestyle="--", linewidth=1)
    axes.set(title=group, xlabel="severity", ylabel="mAP (%)", ylim=(0, 100))
    axes.tick_params(labelleft=True)
    axes.grid(True)
    axes.legend(fontsize="x-small", ncols=2)


def _file_name(group: str) -> str:
    """A group as a part of a file's name."""
    return "".join(c if c.isalnum() else "_" for c in group)
