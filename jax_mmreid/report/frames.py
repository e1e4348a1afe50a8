"""Pictures of rows in a figure: each in its frame, a missing one as an empty frame that says so."""

from typing import TYPE_CHECKING

import numpy as np

from jax_mmreid.report.charts import MISSING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def show(axes: "Axes", picture: np.ndarray | None, title: str = "", *, grey: bool = False) -> None:
    """Draws a picture [H,W,3] uint8, or where it is None a frame with the word "missing"; `grey` takes its colours."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=8)
    if picture is None:
        axes.set_facecolor("#f2f2f2")
        axes.text(0.5, 0.5, "missing", rotation=90, ha="center", va="center", color="#555555", transform=axes.transAxes)
        frame(axes, MISSING, dashed=True)
    elif grey:
        axes.imshow(picture.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    else:
        axes.imshow(picture)


def frame(axes: "Axes", colour: str, *, dashed: bool = False) -> None:
    """Draws all four sides of a frame."""
    for side in axes.spines.values():
        side.set(visible=True, color=colour, linewidth=1.5, linestyle="--" if dashed else "-")
