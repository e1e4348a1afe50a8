"""How far the scores of matching pairs are from those of others, and where a threshold between them lies."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import mannwhitneyu

from jax_mmreid.errors import DataError
from jax_mmreid.evaluators.encoder import Encoder
from jax_mmreid.metrics import device_ranking
from jax_mmreid.metrics.similarity import NO_SCORE
from jax_mmreid.report import charts, sides
from jax_mmreid.report.page import Picture, Section
from jax_mmreid.report.sides import Sides
from jax_mmreid.report.subject import Subject
from jax_mmreid.search import pairs, thresholds
from jax_mmreid.search.pairs import Pairs
from jax_mmreid.search.thresholds import Threshold

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FMR = 1e-2  # of the threshold that is shown
BLOCK = 1024  # queries whose scores are in memory at once
BINS, COLUMNS = 40, 4
HEAD = [
    "setting",
    "compared by",
    "matching pairs",
    "other pairs",
    "AUC",
    f"threshold at {FMR:g}",
    "matches above it",
]
TEXT = (
    "Pairs of a query and a gallery row, without junk. AUC is the probability that a matching pair scores higher than "
    "another one: 1 is perfect, 0.5 is chance. Of the other pairs, the share {fmr:g} scores above the threshold (the "
    "false-match rate, FMR); its 95 % interval in brackets comes from a bootstrap over identities. These thresholds "
    "are for the vectors of a row; those of tools.calibrate are for pairs that are compared by what both have. Where "
    "rows lack different pictures, scores fall into groups by what both have, and one threshold for all means little."
)
CAPTION = (
    "Scores of matching pairs (green, solid) and of other pairs (orange, hatched){group}, each scaled to an area of 1. "
    "The less they overlap, the better. The axis is even in the angle between two vectors, whose cosine is the score. "
    "The dashed line is the threshold at a false-match rate of {fmr:g}, the grey band its 95 % interval; a panel "
    "without them has too few pairs or identities to state one."
)


class Scored(NamedTuple):
    """The pairs of a row, and what follows from their scores."""

    pairs: Pairs
    auc: float
    threshold: Threshold  # at FMR
    reason: str  # why there is none; "" if there is


def section(subject: Subject) -> Section | None:
    """Histograms and a table of all rows, a picture for each group; None where no row has pairs of both kinds."""
    lines, pictures, reasons = [HEAD], [], []
    for group, rows in sides.grouped(subject.rows, "junk", "gallery").items():
        found = {}
        for label, row in rows.items():
            try:
                found[label] = one = measure(row, subject.encoder, seed=subject.seed)
            except DataError as error:
                reasons.append(f"{_title(group, label)}: {error}")
                continue
            lines.append([_title(group, label), sides.used(row), *_cells(one)])
            if one.reason:
                reasons.append(f"{_title(group, label)}: {one.reason}")
        if found:
            pictures.append(_picture(group, {label: (rows[label], one) for label, one in found.items()}))
    if not pictures:
        return None
    text = TEXT.format(fmr=FMR) + ("\n\nNo threshold can be stated:\n" + "\n".join(reasons) if reasons else "")
    return Section("Scores of pairs", text, pictures, [("", lines)])


def measure(row: Mapping, encoder: Encoder, *, limit: int = pairs.LIMIT, seed: int = 0) -> Scored:
    """The pairs of a row, or where there are many about `limit` of each kind, drawn with a seed.

    Raises DataError where there are none of a kind.
    """
    both = sides.read(row, encoder)
    found = _score(both, _drawn(both, row, encoder, limit, seed), encoder)
    kinds = [found.scores[found.same], found.scores[~found.same]]
    if not min(map(len, kinds)):
        raise DataError("there are no pairs of the same identity, or none of different ones")
    auc = mannwhitneyu(*kinds, method="asymptotic").statistic / (len(kinds[0]) * len(kinds[1]))
    others = found.take(~found.same)
    different = len(np.unique(others.rows, axis=0))
    threshold, reason = thresholds.find(others, different=different, seed=seed)[FMR]
    return Scored(found, float(auc), threshold, reason)


def _drawn(both: Sides, row: Mapping, encoder: Encoder, limit: int, seed: int) -> Pairs:
    """Pairs of a query and a gallery row without scores; `rows` are their places, not yet those of splits."""
    pids = [encoder.data.columns(side.split)["pid"][own] for side, own in zip(both.names, both.rows)]
    Q, joined = len(pids[0]), np.concatenate(pids)
    # A camera is unknown to `draw`: which pairs are junk is for the rule of the row to say.
    found, weights = pairs.draw(joined, np.full(len(joined), -1), limit=limit, seed=seed)
    found = np.sort(found, axis=1)
    junk = both.relevance.gallery_junk
    across = (found[:, 0] < Q) & (found[:, 1] >= Q)
    kept = across & (both.relevance.query_junk[np.minimum(found[:, 0], Q - 1)] != junk[np.maximum(found[:, 1] - Q, 0)])
    found, weights = found[kept], weights[kept]
    return Pairs(np.zeros(len(found)), np.zeros((len(found), 0), bool), found - (0, Q), joined[found], weights)


def _score(both: Sides, found: Pairs, encoder: Encoder) -> Pairs:
    """The pairs with scores, without those that have none; a pair of rows has the same `rows` either way round."""
    query, gallery = found.rows.T
    scores = np.empty(len(found.rows))
    for start in range(0, len(both.rows[0]), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(both.rows[0])))
        own = np.flatnonzero((query >= start) & (query < start + BLOCK))
        if len(own):
            part = device_ranking.scores(*both.vectors, both.relevance, encoder.mesh, block)
            scores[own] = part[query[own] - start, gallery[own]]
    rows = np.stack([own[place] for own, place in zip(both.rows, (query, gallery))], axis=1)
    if both.names[0].split == both.names[1].split:
        rows = np.sort(rows, axis=1)
    return found._replace(scores=scores, rows=rows).take(scores > NO_SCORE)


def _cells(one: Scored) -> list[str]:
    same = one.pairs.same
    counts = [len(np.unique(one.pairs.rows[kind], axis=0)) for kind in (same, ~same)]
    if one.reason:
        return [*map(str, counts), f"{one.auc:.4f}", "cannot say", ""]
    value, low, high = one.threshold
    above = np.mean(one.pairs.scores[same] > value)
    return [*map(str, counts), f"{one.auc:.4f}", f"{value:.5f} [{low:.5f}, {high:.5f}]", f"{100 * above:.1f} %"]


def _title(group: str, label: str) -> str:
    return f"{group}/{label}" if group else label


def _picture(group: str, found: Mapping[str, tuple[Mapping, Scored]]) -> Picture:
    """The histograms of the rows of a group, with one axis of scores."""
    angles = _angle(np.concatenate([one.pairs.scores for _, one in found.values()]))
    bins = np.linspace(angles.min(), angles.max(), BINS + 1)
    columns = min(COLUMNS, len(found))
    lines = -(-len(found) // columns)

    def paint(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        grid = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
        grid[0].invert_xaxis()  # the right is more alike
        grid[0].xaxis.set(
            major_locator=MaxNLocator(4), major_formatter=lambda x, _: f"{np.cos(np.radians(x)).round(4):g}"
        )
        for axes, (label, (row, one)) in zip(grid, found.items()):
            _histogram(axes, one, bins)
            axes.set_title(f"{label}: {sides.used(row)}\nAUC {one.auc:.4f}", fontsize=8)
        for axes in grid[len(found) :]:
            axes.set_axis_off()
        for axes in grid[: len(found)][-columns:]:  # the lowest panel of each column
            axes.tick_params(labelbottom=True)
        figure.supxlabel("score", fontsize="medium")

    png = charts.draw(paint, width=2.6 * columns + 0.4, height=2.1 * lines + 0.3)
    caption = CAPTION.format(group=f" in group {group}" if group else "", fmr=FMR)
    return Picture(f"pair_scores_{group.replace('/', '_') or 'all'}", png, caption)


def _histogram(axes: "Axes", one: Scored, bins: np.ndarray) -> None:
    """Draws the scores as angles, in these bins."""
    same, angles = one.pairs.same, _angle(one.pairs.scores)
    common = dict(bins=bins, density=True, alpha=0.55)
    axes.hist(angles[~same], color=charts.WRONG, hatch="///", edgecolor="white", linewidth=0, **common)
    axes.hist(angles[same], color=charts.RIGHT, **common)
    axes.set_yticks([])
    if one.reason:
        axes.text(0.02, 0.97, "no threshold", transform=axes.transAxes, va="top", fontsize=7)
        return
    value, low, high = _angle(np.array(one.threshold))
    axes.axvspan(high, low, color="#000000", alpha=0.15, linewidth=0)
    axes.axvline(value, color="#000000", linestyle="--", linewidth=1)


def _angle(scores: np.ndarray) -> np.ndarray:
    """Degrees between unit vectors with these scores: even steps, where scores crowd below 1."""
    return np.degrees(np.arccos(np.clip(scores, -1, 1)))
