"""What all figures share: colours, margins in inches, axes without formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from weightscope.drawings.charts import Scale
from weightscope.drawings.ticks import linear_ticks, log_ticks

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#8c8c8c"
TAIL, ERG, BULK, SHUFFLED = "#d55e00", "#007f5f", "#0072b2", "#b3548a"
BARS, DOTS = "#c3cbd3", "#3f4852"
"""What the laws and the eigenvalues beside them look like: as on the page, on light paper."""
SERIES = (
    (BLUE, "-", "o"),
    (VERMILION, "--", "s"),
    (GREEN, "-.", "^"),
    (PURPLE, ":", "D"),
    (ORANGE, "-", "v"),
    (SKY, "--", "P"),
    (BLACK, "-.", "X"),
)
"""Colour, dashes and marker of each run that is overlaid."""
HEADING = 0.55
"""Inches above the axes that the heading takes."""


def page(
    drawing: Figure, size: tuple[float, float], margins: Sequence[float], grid: dict[str, Any]
) -> Any:
    """Axes on a page.

    Args:
        drawing: The figure.
        size: Width and height in inches.
        margins: Left, right, bottom in inches; the top is that of the heading.
        grid: What ``Figure.subplots`` takes; ``wspace`` and ``hspace`` in inches.
    """
    width, height = size
    left, right, bottom = margins
    drawing.set_size_inches(width, height)
    rows, cols = grid.get("nrows", 1), grid.get("ncols", 1)
    gaps = {"wspace": grid.pop("wspace", 0.0), "hspace": grid.pop("hspace", 0.0)}
    inner = (width - left - right, height - bottom - HEADING)
    # matplotlib counts gaps in widths of an average panel
    panel = [
        (inside - gap * (n - 1)) / n
        for inside, gap, n in zip(inner, gaps.values(), (cols, rows), strict=True)
    ]
    return drawing.subplots(
        squeeze=False,
        gridspec_kw={
            "left": left / width,
            "right": 1 - right / width,
            "bottom": bottom / height,
            "top": 1 - HEADING / height,
            "wspace": gaps["wspace"] / panel[0],
            "hspace": gaps["hspace"] / panel[1],
        },
        **grid,
    )


def log_axis(axes: Axes, which: str, limits: tuple[float, float], most: int = 7) -> None:
    """An axis whose coordinates are decimal logarithms, marked with the numbers themselves."""
    _marked(axes, which, limits, log_ticks(*limits, most))


def linear_axis(axes: Axes, which: str, limits: tuple[float, float], most: int = 6) -> None:
    """An ordinary axis."""
    _marked(axes, which, limits, linear_ticks(*limits, most))


def _marked(
    axes: Axes, which: str, limits: tuple[float, float], ticks: list[tuple[float, str]]
) -> None:
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}lim")(*limits)
    axis.set_ticks([position for position, _ in ticks], [label for _, label in ticks])


def padded(low: float, high: float, share: float = 0.04) -> tuple[float, float]:
    """A range with some room at both ends."""
    room = share * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def value_axis(axes: Axes, which: str, scale: Scale, limits: tuple[float, float]) -> None:
    """The axis of values that ``on_scale`` maps."""
    (log_axis if scale == "log" else linear_axis)(axes, which, limits, 5)
