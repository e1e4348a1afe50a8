"""How every picture of a report is drawn: in one style, on a canvas in memory, without global state."""

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from jax_mmreid.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
# Colours that most people with a colour vision deficiency can distinguish (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6F6F6F", "#8C6D1F")
RIGHT, WRONG, MISSING = "#009E73", "#D55E00", "#9E9E9E"  # of a match, of a false one, of a picture that is not there
HEAT = "viridis"  # the colour map of values from low to high
SIGNED = "RdBu_r"  # the colour map of values around zero
DASHES = ("-", "--", ":", "-.")  # of lines, when the colours are used up


def draw(paint: Callable[["Figure"], None], *, width: float = 8.0, height: float = 4.5) -> bytes:
    """The PNG file of what `paint` draws on an empty matplotlib figure of so many inches.

    `paint` uses the methods of the figure, such as `figure.subplots()`, and nothing of pyplot. Equal drawings give
    equal bytes. Raises ConfigError if matplotlib is not installed.
    """
    try:
        from matplotlib import cycler, rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a report needs matplotlib; pip install 'jax_mmreid[report]'") from error
    style = {
        "axes.grid": False,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": "medium",
        "font.family": "DejaVu Sans",  # comes with matplotlib, so that pictures do not depend on the machine
        "font.size": 9,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "text.parse_math": False,  # a name with "$" is no formula
    }
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it draws a box instead
        figure, out = Figure(figsize=(width, height), dpi=DPI, layout="constrained"), io.BytesIO()
        canvas = FigureCanvasAgg(figure)
        paint(figure)
        canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


def log_scale(axes: "Axes") -> None:
    """Makes the y axis logarithmic, with plain numbers: matplotlib's own are formulas, which the style turns off."""
    from matplotlib.ticker import LogFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())


def line(number: int) -> dict[str, str]:
    """How the line of this number is drawn, as keyword arguments of `Axes.plot`; 32 lines differ."""
    dashes = DASHES[number // len(COLOURS) % len(DASHES)]
    return dict(color=COLOURS[number % len(COLOURS)], linestyle=dashes)
