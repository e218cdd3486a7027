"""A column over block, module, depth or steps, by matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, cycle
from math import log10
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from weightscope.drawings.charts import Distribution, HeatMap, Line, Panel, Panels, Scale
from weightscope.drawings.ticks import linear_ticks, log_ticks
from weightscope.sinks.figure_page import (
    BLUE,
    GREY,
    HEADING,
    SERIES,
    VERMILION,
    linear_axis,
    padded,
    page,
    value_axis,
)
from weightscope.spectrum import FloatArray
from weightscope.text import printable, short

MOST_LABELLED = 26
"""Blocks up to which every cell says its number."""
MOST_LINES, MOST_PANELS = 400, 60
"""A page of more modules than this is squeezed, or holds the first of them."""
_COLUMNS = 4
_MARK = (0, (4, 3))
_LETTER = 0.066
"""Inches that a letter of a label takes."""


def on_scale(value: float, scale: Scale) -> float:
    """Where a value is drawn."""
    return log10(value) if scale == "log" else value


def _placed(marks: tuple[tuple[float, str], ...], scale: Scale) -> list[tuple[float, float]]:
    """Marked values that the scale has, and where they are."""
    return [(v, on_scale(v, scale)) for v, _ in marks if scale != "log" or v > 0]


def _label(text: str, length: int = 34) -> str:
    """A module's name, cut in front, where it tells least."""
    shown = printable(text)
    return shown if len(shown) <= length else "…" + shown[1 - length :]


def _tall(count: int) -> float:
    """Inches of so many lines, within what a picture can hold."""
    return 0.27 * min(count, MOST_LINES)


def heat_map(drawing: Figure, chart: HeatMap) -> None:
    """Modules down, blocks across; what has no value is left grey."""
    labels = [_label(label) for label in chart.grid.labels]
    left = 0.25 + _LETTER * max(map(len, labels))
    across, down = len(chart.grid.blocks), len(labels)
    cell = min(0.46, max(0.12, 9.0 / across))
    size = (left + max(1.6, cell * across) + 0.75, HEADING + max(0.9, _tall(down)) + 0.5)
    ((axes,),) = page(drawing, size, (left, 0.75, 0.5), {})
    points = np.array(
        [[np.nan if v is None else on_scale(v, chart.scale) for v in line] for line in chart.values]
    )
    norm = _norm(points, chart.scale)
    colours = mpl.colormaps["PuOr" if chart.scale == "diverging" else "viridis"]
    axes.set_facecolor("#ececec")
    image = axes.pcolormesh(points, cmap=colours, norm=norm, edgecolors="white", linewidth=0.6)
    image.set_gid("cells")
    axes.invert_yaxis()
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
    step = -(-down // MOST_LINES)
    axes.set_yticks(np.arange(down)[::step] + 0.5, labels[::step])
    blocks = ["—" if block is None else str(block) for block in chart.grid.blocks]
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if across <= 32 * step)
    shown = [i for i in range(across) if i % step == 0 or chart.grid.blocks[i] is None]
    axes.set_xticks([i + 0.5 for i in shown], [blocks[i] for i in shown])
    axes.set_xlabel("block (— outside the blocks)" if "—" in blocks else "block")
    if across <= MOST_LABELLED and cell >= 0.34:
        _numbers(axes, chart, colours(norm(points)))
    _colour_bar(drawing, size, image, chart)


def _numbers(axes: Axes, chart: HeatMap, colours: FloatArray) -> None:
    """The values in their cells, dark on light and light on dark."""
    shades = colours @ np.array([0.299, 0.587, 0.114, 0])
    for i, line in enumerate(chart.values):
        for j, value in enumerate(line):
            if value is not None:
                ink = "black" if shades[i, j] > 0.5 else "white"
                axes.text(
                    j + 0.5, i + 0.5, short(value, 2), ha="center", va="center", fontsize=6.5,
                    color=ink,
                )  # fmt: skip


def _norm(points: FloatArray, scale: Scale) -> Normalize:
    values = points[np.isfinite(points)]
    if not len(values):
        return Normalize(0, 1)
    low, high = float(values.min()), float(values.max())
    if scale == "diverging":
        high = max(-low, high)
        low = -high
    return Normalize(low, high) if high > low else Normalize(low - 0.5, low + 0.5)


def _colour_bar(
    drawing: Figure, size: tuple[float, float], image: mpl.cm.ScalarMappable, chart: HeatMap
) -> None:
    width, height = size
    box = (1 - 0.62 / width, 0.5 / height, 0.13 / width, 1 - (HEADING + 0.5) / height)
    axes = drawing.add_axes(box)
    bar = drawing.colorbar(image, cax=axes)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set(rasterized=False, edgecolor="face")
    ticks = (log_ticks if chart.scale == "log" else linear_ticks)(*image.get_clim(), 5)
    bar.set_ticks([position for position, _ in ticks], labels=[label for _, label in ticks])
    axes.tick_params(labelsize=7, length=2)


def distribution(drawing: Figure, chart: Distribution) -> None:
    """One line per module: every matrix a point, quartiles as a box, the median as a bar."""
    labels = [f"{_label(group.label)} ({len(group.values)})" for group in chart.groups]
    left = 0.3 + _LETTER * max(map(len, labels), default=1)
    count = max(1, len(chart.groups))
    size = (left + 4.2, HEADING + _tall(count) + 0.62)
    ((axes,),) = page(drawing, size, (left, 0.2, 0.52), {})
    axes.grid(axis="y", visible=False)
    ends: list[float] = []
    for row, group in enumerate(chart.groups):
        points = [on_scale(value, chart.scale) for value in group.values]
        _, lower, middle, upper, _ = (on_scale(q, chart.scale) for q in group.quartiles)
        if len(points) > 1:
            axes.barh(row, upper - lower, 0.62, lower, color="#cfe3f0", zorder=1)
            axes.plot([middle, middle], [row - 0.36, row + 0.36], color=VERMILION, zorder=3)
        # spread by rank, so that the same figures give the same picture
        spread = [row + 0.22 * ((k * 0.618034 + 0.5) % 1 - 0.5) * 2 for k in range(len(points))]
        axes.plot(
            points, spread, "o", color=BLUE, markersize=3, alpha=0.75, markeredgewidth=0, zorder=2,
            gid=f"group-{row}",
        )  # fmt: skip
        ends += points
    low, high = padded(min(ends, default=0), max(ends, default=1))
    value_axis(axes, "x", chart.scale, (low, high))
    for value, place in _placed(chart.marks, chart.scale):
        if low < place < high:
            axes.axvline(place, color=GREY, linewidth=0.8, linestyle=_MARK, gid=f"mark-{value:g}")
    axes.set_ylim(count - 0.4, -0.6)
    step = -(-count // MOST_LINES)
    axes.set_yticks(range(len(labels))[::step], labels[::step])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(chart.column.name)


def panels(drawing: Figure, chart: Panels) -> None:
    """Small multiples on common axes, a panel per module."""
    count = max(1, min(len(chart.panels), MOST_PANELS))
    cols = min(_COLUMNS, count)
    rows = -(-count // cols)
    legend = 0.3
    size = (0.65 + cols * 1.85, HEADING + rows * 1.5 + 0.45 + legend)
    grid = {"nrows": rows, "ncols": cols, "wspace": 0.16, "hspace": 0.34}
    axes = page(drawing, size, (0.62, 0.12, 0.5 + legend), {**grid, "sharex": True, "sharey": True})
    places = list(chain.from_iterable(axes))
    limits, span = _limits(chart)
    for place, panel in zip(places, chart.panels, strict=False):
        _panel(place, panel, chart)
        place.set_title(_label(panel.label, 28), fontsize=8, loc="left", pad=3)
    # the axes are shared, so that one speaks for all
    value_axis(places[0], "y", chart.scale, limits)
    linear_axis(places[0], "x", span, 3 if chart.axis == "step" else 5)
    for place in places[count:]:
        place.set_visible(False)
    for k, place in enumerate(places[:count]):
        place.tick_params(labelleft=k % cols == 0, labelbottom=k + cols >= count)
        if k + cols >= count:
            place.set_xlabel(chart.axis)
        if k % cols == 0:
            place.set_ylabel(chart.column.name, fontsize=8)
    entries = {label: handle for place in places for handle, label in _entries(place)}
    length = sum(len(label) + 7 for label in entries)
    ncols = len(entries) if length * _LETTER < size[0] else 3
    title = f"{count} of {len(chart.panels)} modules" if len(chart.panels) > count else None
    drawing.legend(
        [*entries.values()], [*entries], loc="lower center", ncols=max(1, ncols), title=title
    )


def _entries(axes: Axes) -> Iterator[tuple[Artist, str]]:
    return zip(*axes.get_legend_handles_labels(), strict=True)


def _panel(axes: Axes, panel: Panel, chart: Panels) -> None:
    if panel.noise is not None:
        low, high = (_drawn(ends, chart.scale) for ends in (panel.noise.low, panel.noise.high))
        if np.array_equal(low, high, equal_nan=True):
            axes.plot(panel.noise.x, low, color=GREY, linestyle=":", linewidth=1, label="noise")
        else:
            axes.fill_between(
                panel.noise.x, low, high, color="#d9d9d9", linewidth=0, label="noise, 95 %"
            )
    meanings = dict(chart.marks)
    for value, place in _placed(chart.marks, chart.scale):
        label = f"{short(value)}: {meanings[value]}"
        axes.axhline(place, color=GREY, linewidth=0.8, linestyle=_MARK, label=label)
    for k, (line, style) in enumerate(zip(panel.lines, _styles(chart, panel), strict=True)):
        axes.plot(line.x, _drawn(line.y, chart.scale), gid=f"line-{k}", **style)


def _styles(chart: Panels, panel: Panel) -> list[dict[str, Any]]:
    """How each line looks: series by name, the matrices of a module from dark to light."""
    count = len(panel.lines)
    if chart.axis == "block":
        named = zip(panel.lines, cycle(SERIES), strict=False)
        dot = 2.6 if max(len(line.x) for line in panel.lines) < 40 else 1.3
        return [
            {"color": colour, "linestyle": dashes, "marker": marker, "markersize": dot,
             "linewidth": 1.2, "label": _label(line.label, 28)}
            for line, (colour, dashes, marker) in named
        ]  # fmt: skip
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, max(2, count)))
    styles = [
        {"color": shade, "linewidth": 1.1, "marker": "o", "markersize": 2}
        for shade in shades[:count]
    ]
    if count > 1:
        styles[0]["label"], styles[-1]["label"] = "first block", "last block"
    return styles


def _drawn(values: tuple[float | None, ...], scale: Scale) -> FloatArray:
    return np.array([np.nan if value is None else on_scale(value, scale) for value in values])


def _limits(chart: Panels) -> tuple[tuple[float, float], tuple[float, float]]:
    """Common limits of values and of blocks or steps; noise beyond them is cut."""
    lines: list[Line] = [line for panel in chart.panels for line in panel.lines]
    values = [on_scale(y, chart.scale) for line in lines for y in line.y if y is not None]
    values += [place for _, place in _placed(chart.marks, chart.scale)]
    noise = [p.noise for p in chart.panels if p.noise is not None]
    ends = [on_scale(y, chart.scale) for n in noise for y in (*n.low, *n.high) if y is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = high - low or 1.0
    low = min([low, *(max(end, low - room) for end in ends)])
    high = max([high, *(min(end, high + room) for end in ends)])
    places = [x for line in lines for x in line.x]
    return padded(low, high, 0.06), padded(min(places, default=0), max(places, default=1), 0.05)
