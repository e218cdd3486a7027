"""The spectrum of one matrix, and the search for its tail, by matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from weightscope.drawings.esd import Esd, Law
from weightscope.drawings.ks_curve import KsCurve, Minimum
from weightscope.drawings.pictures import Overlay
from weightscope.sinks.figure_page import (
    BARS,
    BLUE,
    BULK,
    DOTS,
    ERG,
    GREEN,
    GREY,
    SERIES,
    SHUFFLED,
    TAIL,
    VERMILION,
    linear_axis,
    log_axis,
    padded,
    page,
)
from weightscope.spectrum import FloatArray
from weightscope.text import printable, short

_EVAL = "eigenvalue of WᵀW"
_BELOW = 0.7
"""Decades below the lowest point of the spectrum down to which laws are drawn."""


def esd(drawing: Figure, chart: Esd) -> None:
    """Density and survival function side by side, on the same axis of eigenvalues."""
    size, margins = (7.2, 3.3), (0.68, 0.12, 0.76)
    ((left, right),) = page(drawing, size, margins, {"ncols": 2, "wspace": 0.72})
    seen = np.isfinite(chart.density)
    low = float(chart.density[seen].min()) - _BELOW
    high = float(chart.density[seen].max()) + 0.25
    left.stairs(
        np.where(seen, chart.density, low - 1), chart.edges, baseline=low - 1, fill=True,
        color=BARS, linewidth=0, label="spectrum", gid="density",
    )  # fmt: skip
    right.plot(
        chart.survival.x, chart.survival.y, color=DOTS, marker="o", markersize=2.2, linewidth=0.7,
        gid="survival",
    )  # fmt: skip
    for name, law, style in _laws(chart):
        for axes, curve in ((left, law.density), (right, law.survival)):
            axes.plot(curve.x, curve.y, label=name, gid=name.replace(" ", "-"), **style)
    for axes in (left, right):
        _cuts(axes, chart)
        log_axis(axes, "x", _span(chart), 6)
        axes.set_xlabel(_EVAL)
    log_axis(left, "y", (low, _highest(chart, high)), 6)
    log_axis(right, "y", padded(float(chart.survival.y.min()), 0.0, 0.05), 6)
    left.set_ylabel("density")
    right.set_ylabel("share of eigenvalues ≥ x")
    handles, labels = left.get_legend_handles_labels()
    drawing.legend(
        handles, labels, loc="lower center", ncols=6, columnspacing=1.4, handlelength=1.9
    )


def _span(chart: Esd) -> tuple[float, float]:
    """Eigenvalues from the smallest to the largest of the spectrum and of its shuffled entries."""
    ends = [float(chart.edges[0]), float(chart.edges[-1])]
    if chart.shuffled is not None:
        ends.append(float(chart.shuffled.survival.x[-1]))
    return padded(min(ends), max(ends))


def _highest(chart: Esd, high: float) -> float:
    """Room for the laws, as far as a law without end lets it."""
    tops = [float(law.density.y.max()) for _, law, _ in _laws(chart)]
    return max([high, *(min(top + 0.15, high + 1.0) for top in tops)])


def _laws(chart: Esd) -> list[tuple[str, Law, dict[str, Any]]]:
    """What is drawn beside the spectrum, back to front."""
    styles: list[tuple[str, Law | None, dict[str, Any]]] = [
        ("Marchenko-Pastur", chart.bulk, {"color": BULK}),
        ("shuffled", chart.shuffled, {"color": SHUFFLED, "linestyle": (0, (3, 1.5))}),
        ("power law", chart.tail, {"color": TAIL}),
    ]
    return [(name, law, {"linewidth": 1.5} | style) for name, law, style in styles if law]


def _cuts(axes: Axes, chart: Esd) -> None:
    """Where the tail starts, and where the ERG cut is."""
    cuts = (("xmin", chart.xmin, TAIL, (1.4, 2.1)), ("ERG cut", chart.erg_cut, ERG, (4.9, 2.1)))
    for name, place, colour, dashes in cuts:
        if place is not None:
            axes.axvline(
                place, color=colour, linewidth=1.2, linestyle=(0, dashes), label=name,
                gid=name.lower().replace(" ", "-"),
            )  # fmt: skip


def overlay(drawing: Figure, chart: Overlay) -> None:
    """Densities and survival functions of several runs, each with its power law."""
    size, margins = (7.2, 3.3), (0.68, 0.12, 0.76)
    ((left, right),) = page(drawing, size, margins, {"ncols": 2, "wspace": 0.72})
    seen = [esd.density[np.isfinite(esd.density)] for _, esd in chart.spectra]
    low = min(float(density.min()) for density in seen) - _BELOW
    for k, (name, esd) in enumerate(chart.spectra):
        colour, dashes, _ = SERIES[k % len(SERIES)]
        left.stairs(
            np.where(np.isfinite(esd.density), esd.density, low - 1), esd.edges, baseline=low - 1,
            color=colour, linestyle=dashes, linewidth=1.2, label=printable(name),
            gid=f"density-{k}",
        )  # fmt: skip
        right.plot(
            esd.survival.x, esd.survival.y, color=colour, linestyle=dashes, linewidth=1.2,
            gid=f"survival-{k}",
        )  # fmt: skip
        if esd.tail is not None:
            for axes, curve in ((left, esd.tail.density), (right, esd.tail.survival)):
                axes.plot(curve.x, curve.y, color=colour, linewidth=0.7, gid=f"power-law-{k}")
    spans = [_span(esd) for _, esd in chart.spectra]
    for axes in (left, right):
        log_axis(axes, "x", (min(a for a, _ in spans), max(b for _, b in spans)), 6)
        axes.set_xlabel(_EVAL)
    log_axis(left, "y", (low, max(float(density.max()) for density in seen) + 0.25), 6)
    bottom = min(float(esd.survival.y.min()) for _, esd in chart.spectra)
    log_axis(right, "y", padded(bottom, 0.0, 0.05), 6)
    left.set_ylabel("density")
    right.set_ylabel("share of eigenvalues ≥ x")
    handles, labels = left.get_legend_handles_labels()
    if any(esd.tail is not None for _, esd in chart.spectra):
        handles.append(Line2D([], [], color=GREY, linewidth=0.7))
        labels.append("power laws")
    drawing.legend(handles, labels, loc="lower center", ncols=5, columnspacing=1.4)


def ks_curve(drawing: Figure, chart: KsCurve) -> None:
    """Distance above, exponent below, on one axis of xmin."""
    grid = {"nrows": 2, "hspace": 0.16, "sharex": True}
    (above,), (below,) = page(drawing, (5.4, 4.3), (0.68, 0.14, 0.72), grid)
    for axes, values, color in ((above, chart.ks, BLUE), (below, chart.alpha, BLUE)):
        axes.plot(
            chart.x,
            values,
            color=color,
            linewidth=1.0,
            gid="distance" if axes is above else "exponent",
        )
        log_axis(axes, "x", padded(chart.start, float(chart.x[-1])), 7)
    marks: list[tuple[str, Minimum | None, str, str, float]] = [
        ("chosen", chart.chosen, VERMILION, "o", 4.5),
        ("second minimum", chart.second, GREEN, "D", 7.0),
    ]
    for name, minimum, color, marker, size in marks:
        if minimum is None:
            continue
        label = f"{name}: alpha {short(minimum.alpha)}, distance {short(minimum.ks)}"
        for axes, value in ((above, minimum.ks), (below, minimum.alpha)):
            axes.axvline(minimum.x, color=color, linewidth=0.8, linestyle="--" if size < 5 else ":")
            axes.plot(
                [minimum.x], [value], marker, label=label, color=color, markersize=size,
                markerfacecolor=color if marker == "o" else "none", markeredgewidth=1.3,
                zorder=7 - size / 2, gid=name.replace(" ", "-"),
            )  # fmt: skip
    shown = [m for m in (chart.chosen, chart.second) if m is not None]
    top = max(_typical(chart, chart.ks), *(1.3 * m.ks for m in shown))
    linear_axis(above, "y", (0.0, 1.06 * top), 5)
    top = max(_typical(chart, chart.alpha), *(1.3 * m.alpha for m in shown))
    linear_axis(below, "y", (1.0, 1.03 * top), 5)
    above.tick_params(labelbottom=False)
    above.set_ylabel("KS distance")
    below.set_ylabel("alpha")
    below.set_xlabel(f"xmin, {_EVAL}")
    handles, labels = above.get_legend_handles_labels()
    drawing.legend(
        handles, labels, loc="lower center", ncols=2, columnspacing=1.2, handlelength=1.2
    )


def _typical(chart: KsCurve, values: FloatArray) -> float:
    """The top of an axis: the last few candidates start tails of a handful, and run away."""
    shown = values[chart.x >= chart.start]
    return float(shown[: max(1, len(shown) - 10)].max())
