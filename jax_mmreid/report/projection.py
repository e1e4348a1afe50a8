"""The vectors of ten identities in a plane, by t-SNE (van der Maaten and Hinton, 2008), and how well they separate.

Distances are those of ranking: one less the similarity that a row compares by, which for vectors is the cosine.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from jax_mmreid.batch import Data
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators.encoder import Encoder, Side, shown_pictures
from jax_mmreid.evaluators.programs import EMBED
from jax_mmreid.evaluators.retrieval import Retrieval, complete
from jax_mmreid.metrics.similarity import similarities
from jax_mmreid.report import charts, sides
from jax_mmreid.report.page import Picture, Section
from jax_mmreid.report.subject import Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IDENTITIES = 10
ROWS = 30  # of an identity on a side, at most
FEWEST = 4  # points of a panel
PERPLEXITY = 30.0
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
COLUMNS = 4
TEXT = (
    "Vectors of {count} random identities, projected to a plane in which near neighbours stay near (t-SNE); distances "
    "between far groups, sizes of groups and the axes mean nothing. The silhouette score is measured on the cosine "
    "distances of the vectors themselves, not in the plane: 1 if every identity is compact and far from others, 0 if "
    "they overlap, negative if vectors are nearer to another identity than to their own."
)
CAPTION = (
    "Each point is a row of the data, its colour is the identity and its shape what the row has of what the setting "
    "uses. A panel shows a setting{group}; in a good one every colour is a group of its own, whatever the shapes. In "
    "brackets the silhouette score by identity."
)
SHARED = (
    "The settings of one modality each, {uses}, in one space: every row appears once for each modality that it has, as "
    "if it had nothing else. Colour is the identity, shape the modality. Where modalities are comparable, the shapes "
    "of one colour mix: the silhouette by identity is high, and that by modality is near 0. Here they are "
    "{identity:.2f} and {modality:.2f}."
)


class Points(NamedTuple):
    """N rows of some identities."""

    distances: np.ndarray  # [N,N]
    pids: np.ndarray  # [N]
    uses: np.ndarray  # [N] of str, what the rows have of what is used


def section(subject: Subject) -> Section | None:
    """A picture for each group of settings, and one of the settings of one modality; None without two identities."""
    pictures, encoder, seed = [], subject.encoder, subject.seed
    pids = identities(subject)
    if len(pids) < 2:
        return None
    for group, rows in sides.grouped(subject.rows).items():
        found = {}
        for label, row in rows.items():
            how = dict(options=row.get("options", {}), form=Retrieval(row).form)
            points = measure(encoder, sides.names(row), pids, seed=seed, **how)
            if len(points.pids) >= FEWEST:
                found[f"{label}: {sides.used(row)}"] = points
        if not found:
            continue
        name = f"projection_{group.replace('/', '_') or 'all'}"
        text = CAPTION.format(group=f" of group {group}" if group else "")
        pictures.append(Picture(name, _draw(found, subject.seed), text))
    alone = single(subject.rows)
    points = measure(encoder, alone, pids, seed=seed) if alone else None
    if points is not None and len(points.pids) >= FEWEST:
        uses = [*dict.fromkeys(points.uses.tolist())]
        numbers = dict(identity=silhouette(points.distances, points.pids))
        numbers |= dict(modality=silhouette(points.distances, points.uses))
        png = _draw({f"one space of {', '.join(uses)}": points}, subject.seed, inches=5.0)
        pictures.append(Picture("projection_shared", png, SHARED.format(uses=", ".join(uses), **numbers)))
    return Section("Identities in a plane", TEXT.format(count=len(pids)), pictures) if pictures else None


def single(rows: Mapping[str, dict]) -> list[Side]:
    """The sides of rows that use one modality or one kind of captions, without options, one of each."""
    plain = [row for row in rows.values() if not row.get("options") and Retrieval(row).form == EMBED]
    found = [side for row in plain for side in sides.names(row) if len(side.use) == 1 and side.mixed is None]
    return list(dict.fromkeys(found)) if len({side.use for side in found}) > 1 else []


def identities(subject: Subject) -> np.ndarray:
    """IDENTITIES random identities with at least two points in every setting, ascending; where none has, in any."""
    everywhere, anywhere = None, np.zeros(0, np.int64)
    for row in subject.rows.values():
        found = [subject.data.columns(side.split)["pid"][_some(side, subject.data)] for side in set(sides.names(row))]
        pids, counts = np.unique(np.concatenate(found), return_counts=True)
        own = pids[counts > 1]
        everywhere = own if everywhere is None else np.intersect1d(everywhere, own)
        anywhere = np.union1d(anywhere, own)
    pids = everywhere if everywhere is not None and len(everywhere) > 1 else anywhere
    rng = np.random.default_rng(subject.seed)
    return np.sort(rng.choice(pids, min(IDENTITIES, len(pids)), replace=False))


def measure(
    encoder: Encoder,
    chosen: Sequence[Side],
    pids: np.ndarray,
    *,
    options: dict | None = None,
    form: str = EMBED,
    seed: int = 0,
) -> Points:
    """The points of these identities, of sides whose vectors are comparable; a side that occurs twice is one.

    Of many rows of an identity, ROWS are drawn.
    """
    rng, parts = np.random.default_rng(seed), []
    for side in dict.fromkeys(chosen):
        found = encoder.vectors(side.split, side.use, options or {}, mixed=side.mixed, form=form)
        some, own = _some(side, encoder.data), encoder.data.columns(side.split)["pid"]
        there = (np.flatnonzero(some & (own == pid)) for pid in pids)
        rows = np.concatenate([np.sort(rng.permutation(x)[:ROWS]) for x in there])
        parts.append((encoder.fetch(found[rows]), own[rows], _has(side, encoder.data)[rows]))
    whole, own, uses = map(np.concatenate, zip(*parts))
    similar = jax.device_get(similarities(whole, whole, found.packing)).astype(np.float64)
    distances = np.maximum(1 - (similar + similar.T) / 2, 0)
    np.fill_diagonal(distances, 0)
    return Points(distances, own, uses)


def _some(side: Side, data: Data) -> np.ndarray:
    """Which rows of a split have what a side uses, [n] bool."""
    return complete(side.use, data.present(side.split))


def _has(side: Side, data: Data) -> np.ndarray:
    """What the rows of a split show of what a side uses, [n] of str."""
    shown = shown_pictures(side, data)
    rest = [name for name in side.use if name not in shown]
    return np.array(
        ["+".join([*(m for m, x in shown.items() if x[i]), *rest]) for i in range(data.num_rows(side.split))]
    )


def silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """The mean silhouette score (Rousseeuw, 1987) of N rows with distances [N,N] and labels [N]; nan if it has none."""
    if not 1 < len(np.unique(labels)) < len(labels):
        return float("nan")
    _, silhouette_score, _ = _scikit_learn()
    return float(silhouette_score(distances, labels, metric="precomputed"))


def plane(distances: np.ndarray, seed: int) -> np.ndarray:
    """The places [N,2] that t-SNE gives to N rows with cosine distances [N,N]."""
    tsne, _, limits = _scikit_learn()
    perplexity = min(PERPLEXITY, (len(distances) - 1) / 3)
    fit = tsne(metric="precomputed", init="random", perplexity=perplexity, random_state=seed)
    with limits(1):  # for so few points, threads cost more than they save
        return fit.fit_transform(np.sqrt(2 * distances))  # Euclidean distances of unit vectors


def _scikit_learn() -> tuple:
    """TSNE, silhouette_score, threadpool_limits; raises ConfigError if scikit-learn is not installed."""
    try:
        from sklearn.manifold import TSNE
        from sklearn.metrics import silhouette_score
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ConfigError("a report needs scikit-learn; pip install 'jax_mmreid[report]'") from error
    return TSNE, silhouette_score, threadpool_limits


def _draw(found: Mapping[str, Points], seed: int, *, inches: float = 2.6) -> bytes:
    """A panel with a title for each of these points."""
    columns = min(COLUMNS, len(found))
    lines = -(-len(found) // columns)
    uses = list(dict.fromkeys(use for points in found.values() for use in points.uses.tolist()))
    pids = np.unique(np.concatenate([points.pids for points in found.values()]))

    def paint(figure: "Figure") -> None:
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        handles = {}
        for axes, (title, points) in zip(grid, found.items()):
            _panel(axes, points, plane(points.distances, seed), pids, uses, handles)
            axes.set_title(f"{title}\n[{silhouette(points.distances, points.pids):.2f}]", fontsize=8)
        for axes in grid[len(found) :]:
            axes.set_axis_off()
        figure.legend(handles.values(), handles, loc="outside right upper", fontsize=8)

    return charts.draw(paint, width=inches * columns + 1.6, height=max(inches * lines, 3.2))


def _panel(
    axes: "Axes", points: Points, places: np.ndarray, pids: np.ndarray, uses: Sequence[str], handles: dict
) -> None:
    """Draws points at places [N,2]; adds an entry of the legend for each identity and each use to `handles`."""
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    colours = colormaps["tab10" if len(pids) <= 10 else "tab20"].colors
    for i, pid in enumerate(pids.tolist()):
        colour = colours[i % len(colours)]
        handles.setdefault(f"identity {pid}", Line2D([], [], color=colour, linewidth=4))
        for use, marker in zip(uses, MARKERS):
            own = (points.pids == pid) & (points.uses == use)
            axes.scatter(*places[own].T, color=[colour], marker=marker, s=22, linewidths=0.3, edgecolors="white")
    for use, marker in zip(uses, MARKERS):
        handles.setdefault(use, Line2D([], [], color="#555555", marker=marker, linestyle=""))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color="#AAAAAA")
