"""The spectrum of a matrix, and the search for its tail, on a terminal."""

from __future__ import annotations

import os
import sys
from typing import IO

import numpy as np
from rich.console import Console
from rich.text import Text

from weightscope.drawings.esd import Esd
from weightscope.drawings.ks_curve import KsCurve
from weightscope.drawings.pictures import Picture
from weightscope.drawings.ticks import linear_ticks, log_ticks
from weightscope.outputs import writing_stdout
from weightscope.sinks.terminal_canvas import GUTTER, Canvas
from weightscope.text import printable, short

_SKY, _ORANGE, _GREEN = "#56B4E9", "#E69F00", "#009E73"
_VERMILION, _PURPLE = "#D55E00", "#CC79A7"
_SOLID, _DASHED, _DOTTED = (1, 0), (4, 3), (1, 2)
NARROWEST, WIDEST, PLAIN_WIDTH = 40, 110, 90
_TALL, _LOW = 18, 9
Legend = list[tuple[str, str, str]]
"""A sample of what is drawn, its style, and its name."""


def write(picture: Picture, stream: IO[str] | None = None) -> None:
    """Draw a picture of kind ``esd`` or ``ks`` on standard output or a stream."""
    stream = stream or sys.stdout
    console = Console(file=stream, highlight=False)
    width = console.width
    if not console.is_terminal:
        width = int(os.environ.get("COLUMNS", "0") or 0) or PLAIN_WIDTH
    width = max(NARROWEST, min(WIDEST, width - 1))
    console = Console(file=stream, highlight=False, width=width + 1)
    chart = picture.chart
    assert isinstance(chart, Esd | KsCurve)
    columns = width - GUTTER - 2
    drawn = esd(chart, columns) if isinstance(chart, Esd) else ks_curve(chart, columns)
    with writing_stdout():
        console.print(Text(printable(picture.subject), style="bold"), overflow="fold")
        console.print(Text(printable(picture.caption), style="dim"))
        console.print()
        console.print(drawn, no_wrap=True, overflow="crop")
        stream.flush()


def esd(chart: Esd, columns: int) -> Text:
    """The density with its laws, both axes logarithmic."""
    seen = chart.density[np.isfinite(chart.density)]
    ends = [float(chart.edges[0]), float(chart.edges[-1])]
    if chart.shuffled is not None:
        ends += [float(chart.shuffled.density.x[k]) for k in (0, -1)]
    x = _padded(min(ends), max(ends))
    y = (float(seen.min()) - 0.7, float(seen.max()) + 0.4)
    canvas = Canvas((columns, _TALL), x, y)
    canvas.bars(chart.edges, chart.density, _SKY)
    legend: Legend = [("█", _SKY, "spectrum")]
    cuts = (
        (chart.xmin, "│", "bold", "xmin"),
        (chart.erg_cut, "┊", _ORANGE, "ERG cut"),
    )
    for place, character, style, name in cuts:
        if place is not None:
            canvas.rule(place, character, style)
            legend.append((character, style, name))
    curves = (
        (chart.shuffled, _PURPLE, _DOTTED, "shuffled", "⠁⠈⠁"),
        (chart.bulk, _GREEN, _DASHED, "Marchenko-Pastur", "⠒⠂⠒"),
        (chart.tail, _VERMILION, _SOLID, "power law", "⠒⠒⠒"),
    )
    for law, style, dashes, name, sample in curves:
        if law is not None:
            canvas.curve(law.density.x, law.density.y, style, dashes)
            legend.append((sample, style, name))
    text = Text()
    text.append(_headed("density"))
    text.append(canvas.rendered(log_ticks(*x, 7), log_ticks(*y, 6)))
    return _footed(text, "eigenvalue of WᵀW", legend, columns)


def ks_curve(chart: KsCurve, columns: int) -> Text:
    """Distance over xmin, and below it the exponent."""
    x = _padded(chart.start, float(chart.x[-1]))
    marks = [(chart.chosen, "●", _VERMILION, "chosen")]
    if chart.second is not None:
        marks.append((chart.second, "◆", _GREEN, "second minimum"))
    legend: Legend = [
        (character, style, f"{name}: alpha {short(m.alpha)}, distance {short(m.ks)}")
        for m, character, style, name in marks
    ]
    parts = (("KS distance", chart.ks, 0.0, _TALL - 4), ("alpha", chart.alpha, 1.0, _LOW))
    text = Text()
    for name, values, bottom, lines in parts:
        points = [m.ks if name == "KS distance" else m.alpha for m, *_ in marks]
        shown = values[chart.x >= chart.start]
        shown = shown[: max(1, len(shown) - 10)]
        y = (bottom, 1.06 * max(float(shown.max()), *(1.3 * point for point in points)))
        canvas = Canvas((columns, lines), x, y)
        canvas.curve(chart.x, values, "", _SOLID)
        for (m, character, style, _), point in zip(marks, points, strict=True):
            canvas.mark(m.x, point, character, style)
        text.append(_headed(name))
        text.append(canvas.rendered(log_ticks(*x, 7), linear_ticks(*y, 5), name == "alpha"))
    return _footed(text, "xmin, eigenvalue of WᵀW", legend, columns)


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.02 * (high - low) or 0.5
    return low - room, high + room


def _headed(name: str) -> Text:
    return Text(f"{name:>{GUTTER + 1}}\n" if len(name) <= GUTTER else f"{name}\n", style="dim")


def _footed(text: Text, axis: str, legend: Legend, columns: int) -> Text:
    """The name of the lower axis, and what is what, in as many lines as it takes."""
    text.append(f"{axis:>{GUTTER + 1 + columns}}\n\n", "dim")
    used = 0
    for sample, style, name in legend:
        length = len(sample) + len(name) + 1
        if used and used + 3 + length > columns + GUTTER:
            text.append("\n")
            used = 0
        text.append("   " if used else "")
        text.append(sample, style)
        text.append(f" {name}")
        used += length + 3
    return text
