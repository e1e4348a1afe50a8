"""Which queries fail: errors by camera, by what a query shows, and by identity."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import binomtest

from jax_mmreid.evaluators.encoder import shown_pictures
from jax_mmreid.metrics import device_ranking, ranking
from jax_mmreid.report import charts, lists, sides
from jax_mmreid.report.page import Picture, Section
from jax_mmreid.report.sides import Sides
from jax_mmreid.report.subject import Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORST = 10  # identities that are shown
BARS = 25  # of a panel, at most; those of the greatest errors
ABOUT = (
    "A query fails if its best match is not of its identity; the error is the share of such queries, 1 - R-1. The 95 % "
    "interval is Wilson's, as if queries were independent; those of one identity are not, so it is rather too narrow. "
    "All but the table by modalities is about {label} ({used})."
)
CAPTION = (
    "Errors in percent of queries, with their 95 % intervals; the numbers at the bars are wrong queries of all. By the "
    "camera of the query, by the setting and the modalities that queries show in it, and of the identities with the "
    "most errors."
)


class Outcomes(NamedTuple):
    """How the Q queries of a row with a match did."""

    places: np.ndarray  # [Q] among the queries of the row
    rows: np.ndarray  # [Q] of their split
    wrong: np.ndarray  # [Q] bool, whether the best match is of another identity
    precisions: np.ndarray  # [Q] AP


class Share(NamedTuple):
    """The errors of some queries."""

    name: str
    queries: int
    wrong: int
    mean_precision: float

    @property
    def error(self) -> float:
        return self.wrong / self.queries

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the error."""
        found = binomtest(self.wrong, self.queries).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)


def section(subject: Subject) -> Section | None:
    """Tables and a picture of errors in the row whose queries use the most; None without any row."""
    name = sides.widest(subject.rows)
    if not name:
        return None
    row = subject.rows[name]
    both = sides.read(row, subject.encoder)
    found = outcomes(row, both, subject)
    columns = subject.data.columns(both.names[0].split)
    cameras = by(found, columns["camid"][found.rows])
    settings = by_modalities(subject, row.get("group", ""))
    identities = sorted(by(found, columns["pid"][found.rows]), key=lambda x: (-x.error, x.mean_precision))
    worst = [x for x in identities if x.wrong][:WORST]
    panels = {"camera": cameras, "modalities": settings} | ({"identity": worst} if worst else {})
    tables = [
        ("Errors by camera of the query", _table("camera", cameras)),
        ("Errors by what queries show", _table("setting: modalities", settings)),
    ]
    if worst:
        confused = taken_for(both, found, subject, [int(x.name) for x in worst])
        head, *lines = _table("identity", worst)
        lines = [[*line, words] for line, words in zip(lines, confused)]
        tables.append(("Identities with the most errors", [[*head, "taken for (times)"], *lines]))
    panels = {title: _greatest(shares) for title, shares in panels.items()}
    lines = max(map(len, panels.values()))
    png = charts.draw(lambda figure: _paint(figure, panels), width=8.5, height=0.8 + 0.22 * lines)
    text = ABOUT.format(label=row.get("setting", name), used=sides.used(row))
    text += " Galleries are drawn; this is about the first draw." if "draw" in row["gallery"] else ""
    return Section("Failures", text, [Picture("failures", png, CAPTION)], tables)


def outcomes(row: Mapping, both: Sides, subject: Subject) -> Outcomes:
    """How the queries of a row did; those without a match are left out, as in every metric."""
    found = lists.ranks(row, both, subject.encoder)
    places = np.flatnonzero(found.first > 0)
    precisions = ranking.average_precisions(found)[places]
    return Outcomes(places, both.rows[0][places], found.first[places] > 1, precisions)


def by(found: Outcomes, keys: np.ndarray) -> list[Share]:
    """The errors of queries with equal keys [Q], in the order of the keys."""
    return [_share(str(key), found, keys == key) for key in np.unique(keys)]


def by_modalities(subject: Subject, group: str) -> list[Share]:
    """The errors of queries that show the same, for every row of a group of evaluation rows."""
    shares = []
    for name, row in subject.rows.items():
        if row.get("group", "") != group:
            continue
        both = sides.read(row, subject.encoder)
        found, side = outcomes(row, both, subject), both.names[0]
        present = subject.data.present(side.split) | shown_pictures(side, subject.data)
        shown = np.stack([present[part][found.rows] for part in side.use], axis=1)
        for kind in np.unique(shown, axis=0)[::-1]:
            words = "+".join(part for part, there in zip(side.use, kind) if there)
            shares.append(_share(f"{row.get('setting', name)}: {words}", found, (shown == kind).all(axis=1)))
    return shares


def taken_for(both: Sides, found: Outcomes, subject: Subject, pids: Sequence[int]) -> list[str]:
    """The identities that wrong queries of each of these identities found first, the most frequent first, in words."""
    (query, gallery) = (subject.data.columns(side.split)["pid"][own] for side, own in zip(both.names, both.rows))
    words = []
    for pid in pids:
        places = found.places[found.wrong & (query[found.places] == pid)]
        scores = device_ranking.scores(*both.vectors, both.relevance, subject.mesh, places)
        best = [gallery[ranking.order(-own, both.relevance, place)[0]] for place, own in zip(places, scores)]
        others, times = np.unique(best, return_counts=True)
        order = np.argsort(-times, kind="stable")
        words.append(", ".join(f"{others[i]} ({times[i]})" for i in order))
    return words


def _greatest(shares: Sequence[Share]) -> Sequence[Share]:
    """As many as a panel has bars, in their order."""
    kept = sorted(shares, key=lambda x: -x.error)[:BARS]
    return [x for x in shares if x in kept]


def _share(name: str, found: Outcomes, chosen: np.ndarray) -> Share:
    return Share(name, int(chosen.sum()), int(found.wrong[chosen].sum()), float(found.precisions[chosen].mean()))


def _table(head: str, shares: Sequence[Share]) -> list[list[str]]:
    rows = [[head, "queries", "wrong", "error (1 - R-1)", "95 % interval", "mAP"]]
    for x in shares:
        low, high = x.interval
        error, ap = f"{100 * x.error:.1f} %", f"{100 * x.mean_precision:.1f} %"
        rows.append([x.name, str(x.queries), str(x.wrong), error, f"{100 * low:.1f} to {100 * high:.1f} %", ap])
    return rows


def _paint(figure: "Figure", panels: Mapping[str, Sequence[Share]]) -> None:
    """A panel of bars for each way to group queries, on one scale; all bars are equally wide."""
    grid = figure.subplots(1, len(panels))
    for axes, (title, shares) in zip(grid, panels.items()):
        _bars(axes, shares)
        axes.set(title=f"by {title}", ylim=(max(map(len, panels.values())) - 0.5, -0.5))
    figure.supxlabel("error (1 - R-1) in percent", fontsize=9)


def _bars(axes: "Axes", shares: Sequence[Share]) -> None:
    errors = 100 * np.array([x.error for x in shares])
    low, high = 100 * np.array([x.interval for x in shares]).T
    places, spread = np.arange(len(shares)), np.maximum([errors - low, high - errors], 0)
    axes.barh(places, errors, color=charts.COLOURS[0], alpha=0.6)
    axes.errorbar(errors, places, xerr=spread, fmt="none", ecolor="#000000", elinewidth=0.8, capsize=2)
    for x, place, end in zip(shares, places, high):
        where = dict(textcoords="offset points", va="center", fontsize=6)
        axes.annotate(f"{x.wrong}/{x.queries}", (end, place), (3, 0), **where)
    axes.set(xlim=(0, 125), xticks=range(0, 101, 25), yticks=places, yticklabels=[x.name for x in shares])
    axes.tick_params(axis="y", labelsize=7)
