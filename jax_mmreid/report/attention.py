"""Where in each picture the structure queries of Miss-ReID look (Eq. 6 of the paper)."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax import Array

from jax_mmreid.batch import Batch
from jax_mmreid.evaluators.programs import Level
from jax_mmreid.methods import Method
from jax_mmreid.ops import augment
from jax_mmreid.report import charts, frames, rows, sides
from jax_mmreid.report.page import Picture, Section
from jax_mmreid.report.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNT = 3  # of queries that are shown if none are chosen
INCHES = 0.75  # a picture is so wide
CAPTION = (
    "Attention of {words}. Each line is a modality: the picture, the mean over all structure queries, and a panel for "
    "each query, always the mean over heads. The stronger the colour, the more a query looks there: a cell with 2 on "
    "the scale gets twice the attention that it would get if the query looked everywhere alike. {missing}"
)
TEXT = (
    "Structure queries read one vector from the patch tokens of each picture by attention. The attention of a query "
    "and head sums to 1 over the cells of a picture. Queries that show the same map read the same; a map without "
    "contrast means that a query takes the mean of the picture."
)


def section(subject: Subject, chosen: Sequence[int] = ()) -> Section | None:
    """The attention in chosen rows of the query split, else in random ones; None for a method without attention."""
    name = sides.widest(subject.rows)
    if not name:
        return None
    split = sides.names(subject.rows[name])[0].split
    present = subject.data.present(split)
    there = np.stack([present[m] for m in subject.data.spec.modalities])
    chosen = [row for row in chosen or _some(there, subject.seed) if there[:, row].any()]
    batch = rows.batch_of(subject, split, chosen)
    found = measure(subject, batch) if chosen else None
    if found is None:
        return None
    pictures = []
    for place, row in enumerate(chosen):
        images = {
            m: batch["images"][m][place] if m in batch["images"] and batch["present"][m][place] else None
            for m in subject.data.spec.modalities
        }
        pictures.append(_picture(images, found[place].mean(axis=2), row, rows.words(subject, split, row)))
    return Section("Attention of the structure queries", TEXT, pictures)


def measure(subject: Subject, batch: Batch) -> np.ndarray | None:
    """`Method.attention` of a batch of uint8 pictures: [B,M,queries,heads,h,w], None if the method has none."""
    found = _attention(subject.variables, _read(batch), method=subject.method, mean=subject.mean, std=subject.std)
    return None if found is None else jax.device_get(found)


def _some(there: np.ndarray, seed: int) -> list[int]:
    """Random rows of a split with pictures `there` [M,n]; the last one lacks a picture, if any row does."""
    rng = np.random.default_rng(seed)
    whole, part = np.flatnonzero(there.all(axis=0)), np.flatnonzero(there.any(axis=0) & ~there.all(axis=0))
    last = rng.choice(part, min(1, len(part)), replace=False)
    whole = whole if len(whole) else np.setdiff1d(part, last)
    rest = rng.choice(whole, min(COUNT - len(last), len(whole)), replace=False)
    return [*np.sort(rest).tolist(), *last.tolist()]


def _read(batch: Batch) -> Batch:
    """What a method reads of a batch."""
    return {key: batch[key] for key in ("images", "present", "camid", "index")}


@functools.partial(jax.jit, static_argnames=("method", "mean", "std"))
def _attention(variables: dict, batch: Batch, *, method: Method, mean: Level, std: Level) -> Array | None:
    images = {m: augment.normalise(x, mean, std) for m, x in batch["images"].items()}
    return method.attention(variables, batch | {"images": images})


def _picture(images: Mapping[str, np.ndarray | None], maps: np.ndarray, row: int, words: str) -> Picture:
    """The maps [M,queries,h,w] of the pictures of a row."""
    M, queries, h, w = maps.shape
    there = np.array([x is not None for x in images.values()])
    relative = np.concatenate([maps.mean(axis=1, keepdims=True), maps], axis=1) * (h * w)
    top = float(relative[there].max())
    H, W, _ = next(x for x in images.values() if x is not None).shape
    titles = ["mean", *(f"query {i}" for i in range(1, queries + 1))]

    def paint(figure: "Figure") -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        scale = dict(cmap=charts.HEAT, vmin=0, vmax=top)
        grid = figure.subplots(M, 2 + queries, squeeze=False)
        for line, (m, picture), own in zip(grid, images.items(), relative):
            frames.show(line[0], picture)
            line[0].set_ylabel(m)
            for axes, values in zip(line[1:], own):
                frames.show(axes, picture, grey=True)
                if picture is not None:  # where there is little attention, the picture shows through
                    axes.imshow(
                        values, alpha=0.85 * (values / top) ** 0.5, extent=(-0.5, W - 0.5, H - 0.5, -0.5), **scale
                    )
        for axes, title in zip(grid[0, 1:], titles):
            axes.set_title(title, fontsize=8)
        bar = ScalarMappable(Normalize(scale["vmin"], scale["vmax"]), scale["cmap"])
        figure.colorbar(bar, ax=grid, shrink=0.6, label="attention / uniform attention")

    missing = [m for m, x in images.items() if x is None]
    caption = CAPTION.format(words=words, missing=f"Missing: {', '.join(missing)}." if missing else "")
    size = dict(width=(INCHES + 0.09) * (2 + queries) + 1.3, height=(INCHES * H / W + 0.1) * M + 0.3)
    return Picture(f"attention_{row}", charts.draw(paint, **size), caption.strip())
