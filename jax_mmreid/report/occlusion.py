"""Which region of a query moved its score with a gallery row: the score falls where a grey square hides it.

The method is that of Zeiler and Fergus (2014): a square slides over each picture of the query, and what counts is the
score without it less the score with it. Nothing but the score is asked of the method.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from jax_mmreid.batch import Batch
from jax_mmreid.evaluators.encoder import Side
from jax_mmreid.evaluators.retrieval import Retrieval
from jax_mmreid.metrics import device_ranking, ranking
from jax_mmreid.metrics.similarity import similarities
from jax_mmreid.metrics.vectors import Vectors
from jax_mmreid.report import charts, frames, rows, sides
from jax_mmreid.report.page import Picture, Section
from jax_mmreid.report.sides import Sides
from jax_mmreid.report.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNT = 2  # of queries that are shown if none are chosen
CHUNK = 64  # pictures that go through the towers at once, so that one program serves all
INCHES = 1.0  # a picture is so wide
TEXT = (
    "A grey square slides over each picture of a query, and the score is measured again each time. Red marks where the "
    "score falls when the region is hidden, so what is there speaks for the match; blue marks where it rises, so what "
    "is there speaks against it. White regions do not matter. A pixel shows the mean over all squares that cover it."
)
CAPTION = (
    "What moved the scores of {words}, by {use}. The first line shows the query. Each line below is a gallery row: its "
    "pictures are on the right, and on the left is by how much each region of the query raised the score with it, for "
    "squares of {side} x {side} pixels. The first two are the first and the last true match of the ranking, if there "
    "are two; the last is the highest-ranked row of another identity. Each line has a scale of its own."
)


class Squares(NamedTuple):
    """The squares that slide over a picture."""

    side: int
    tops: np.ndarray  # [h] of the lines of squares
    lefts: np.ndarray  # [w] of the squares in a line


class Pair(NamedTuple):
    """A gallery row that a query is compared with."""

    row: int  # of its split
    place: int  # in the gallery that is ranked
    rank: int  # from 1, of the gallery without junk
    match: bool
    score: float


def squares(size: tuple[int, int]) -> Squares:
    """Squares over pictures of this size (H, W): a third of the shorter side, half overlapping, up to the edges."""
    side = max(1, min(size) // 3)
    step = max(1, side // 2)
    tops, lefts = (np.unique([*range(0, length - side, step), length - side]) for length in size)
    return Squares(side, tops, lefts)


def hide(batch: Batch, modality: str, grid: Squares, grey: np.ndarray) -> Batch:
    """A batch of one row, once for every square over its picture of a modality, line by line: B = h*w rows."""
    count = len(grid.tops) * len(grid.lefts)
    copies = jax.tree.map(lambda x: np.repeat(x, count, axis=0), batch)
    picture = copies["images"][modality]
    for copy, (top, left) in zip(picture, [(top, left) for top in grid.tops for left in grid.lefts]):
        copy[top : top + grid.side, left : left + grid.side] = grey
    return copies


def per_pixel(drops: np.ndarray, grid: Squares, size: tuple[int, int]) -> np.ndarray:
    """The mean [H,W] of drops [h,w] over all squares that cover a pixel."""
    total, count = np.zeros(size), np.zeros(size)
    for top, line in zip(grid.tops, drops):
        for left, drop in zip(grid.lefts, line):
            place = slice(top, top + grid.side), slice(left, left + grid.side)
            total[place] += drop
            count[place] += 1
    return total / np.maximum(count, 1)


def measure(subject: Subject, row: dict, query: int, gallery: Vectors) -> dict[str, np.ndarray]:
    """By how much each region of a query raises its scores with gallery rows [g]: {modality: drops [g,h,w]}.

    `query` is a row of the query split of `row`; modalities are those that the row uses and the query has.
    """
    (side, _), form = sides.names(row), Retrieval(row).form
    batch = rows.batch_of(subject, side.split, [query])
    grid, modalities = squares(subject.data.spec.image_size), subject.data.spec.modalities
    grey = np.round(255 * np.broadcast_to(subject.mean, 3)).astype(np.uint8)
    there = [m for m in modalities if m in side.use and m in batch["images"] and batch["present"][m][0]]
    parts = [batch, *(hide(batch, m, grid, grey) for m in there)]
    whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    scores = []
    for start in range(0, len(whole["index"]), CHUNK):
        chunk = jax.tree.map(functools.partial(_chunk, start=start), whole)
        found = subject.encoder.of_batch(chunk, side.use, row.get("options", {}), form=form)
        compared = (x.local(subject.mesh) for x in (found, gallery))
        scores.append(jax.device_get(similarities(*compared, gallery.packing)))
    scores = np.concatenate(scores)[: len(whole["index"])].astype(np.float64)
    drops = (scores[:1] - scores[1:]).T.reshape(len(gallery), len(there), len(grid.tops), len(grid.lefts))
    return {m: drops[:, i] for i, m in enumerate(there)}


def section(subject: Subject, chosen: Sequence[int] = ()) -> Section | None:
    """Maps of chosen rows of the query split, else of random queries; None where no row ranks pictures."""
    modalities = {*subject.data.spec.modalities}
    name = sides.widest({name: row for name, row in subject.rows.items() if modalities & {*row["query"]["use"]}})
    if not name:
        return None
    row = subject.rows[name]
    both = sides.read(row, subject.encoder)
    places = _places(both, chosen, subject.seed)
    pictures = [_picture(subject, row, both, place) for place in places]
    return Section("What moved a match", TEXT, pictures) if pictures else None


def pairs(both: Sides, place: int, scores: np.ndarray) -> list[Pair]:
    """The first and the last match in the ranking of a query by its scores [G], and the first row that is none.

    Equal scores rank by their order in the gallery; junk is left out.
    """
    relevance = both.relevance
    order = ranking.order(-scores, relevance, place)
    right = relevance.gallery_pid[order] == relevance.query_pid[place]
    matches, others = np.flatnonzero(right), np.flatnonzero(~right)
    found = dict.fromkeys([*matches[:1].tolist(), *matches[-1:].tolist(), *others[:1].tolist()])
    return [
        Pair(int(both.rows[1][order[i]]), int(order[i]), i + 1, bool(right[i]), float(scores[order[i]])) for i in found
    ]


def _places(both: Sides, chosen: Sequence[int], seed: int) -> list[int]:
    """The places of the chosen rows among the queries; without a choice, random ones that have a match."""
    if chosen:
        return np.flatnonzero(np.isin(both.rows[0], chosen)).tolist()
    _, count = ranking.positives(both.relevance)
    some = np.flatnonzero(count)
    return np.sort(np.random.default_rng(seed).choice(some, min(COUNT, len(some)), replace=False)).tolist()


def _chunk(x: np.ndarray, start: int) -> np.ndarray:
    """CHUNK rows from `start` on; at the end the last one is repeated."""
    rows = x[start : start + CHUNK]
    return np.pad(rows, [(0, CHUNK - len(rows))] + [(0, 0)] * (x.ndim - 1), mode="edge")


def _picture(subject: Subject, row: dict, both: Sides, place: int) -> Picture:
    """The maps of one query, with its pictures and those of the gallery rows."""
    (query_side, gallery_side), query = both.names, int(both.rows[0][place])
    scores = device_ranking.scores(*both.vectors, both.relevance, subject.mesh, np.array([place]))
    shown = pairs(both, place, scores[0])
    drops = measure(subject, row, query, both.vectors[1][np.array([x.place for x in shown])])
    size = subject.data.spec.image_size
    grid = squares(size)
    own, others = _pictures(subject, query_side, [query]), _pictures(subject, gallery_side, [x.row for x in shown])
    maps = {m: [per_pixel(x, grid, size) for x in found] for m, found in drops.items()}
    tops = [max(float(np.abs(found[i]).max()) for found in maps.values()) for i in range(len(shown))]

    def paint(figure: "Figure") -> None:
        axes = figure.subplots(1 + len(shown), len(own) + len(others), squeeze=False)
        for m, (pictures, cell) in zip(own, zip(own.values(), axes[0])):
            frames.show(cell, pictures[0], m)
        for cell in axes[0, len(own) :]:
            cell.set_axis_off()
        axes[0, 0].set_ylabel("query")
        for i, (pair, line) in enumerate(zip(shown, axes[1:])):
            for m, cell in zip(own, line):
                frames.show(cell, own[m][0], grey=True)
                if m in maps:
                    scale = dict(cmap=charts.SIGNED, vmin=-tops[i], vmax=tops[i])
                    heat = cell.imshow(maps[m][i], alpha=0.65, **scale)
            for m, cell in zip(others, line[len(own) :]):
                frames.show(cell, others[m][i], f"{m} of gallery" if i == 0 else "")
                frames.frame(cell, charts.RIGHT if pair.match else charts.WRONG)
            kind = "✓ match" if pair.match else "✗ no match"
            line[0].set_ylabel(f"{kind}\nrank {pair.rank}, {pair.score:.3f}")
            figure.colorbar(heat, ax=line.tolist(), shrink=0.9, label="fall of the score")

    words = dict(words=rows.words(subject, query_side.split, query), use="+".join(query_side.use), side=grid.side)
    wide = (INCHES + 0.1) * (len(own) + len(others)) + 1.7
    high = (INCHES * size[0] / size[1] + 0.12) * (1 + len(shown)) + 0.3
    return Picture(f"occlusion_{query}", charts.draw(paint, width=wide, height=high), CAPTION.format(**words))


def _pictures(subject: Subject, side: Side, chosen: Sequence[int]) -> dict[str, list[np.ndarray | None]]:
    """The pictures of rows that a side uses, {modality: one for each row, None where it is missing}."""
    images, present = subject.data.pictures(side.split, np.asarray(chosen))
    return {m: [x if has else None for x, has in zip(images[m], present[m])] for m in images if m in side.use}
