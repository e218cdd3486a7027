"""Charts to PNG, SVG and PDF by matplotlib: one style, the same bytes for the same chart.

Colours are those of Okabe and Ito, of viridis and of PuOr, which people with any colour vision can
tell apart; lines differ in their dashes too. Names of tensors are text and nothing else: the
reading of ``$...$`` as formulas is switched off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from weightscope.drawings.charts import Distribution, HeatMap, Panels
from weightscope.drawings.esd import Esd
from weightscope.drawings.ks_curve import KsCurve
from weightscope.drawings.pictures import Overlay, Picture
from weightscope.sinks import figure_spectra, figure_tables
from weightscope.text import printable

DOTS = 200
"""Per inch of a PNG: sharp in print at half a page, readable on any screen."""
STYLE: dict[Any, Any] = {
    "text.usetex": False,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "path.simplify": False,
    "svg.hashsalt": "weightscope",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
_DRAW: Mapping[type, Callable[..., None]] = {
    HeatMap: figure_tables.heat_map,
    Distribution: figure_tables.distribution,
    Panels: figure_tables.panels,
    Esd: figure_spectra.esd,
    KsCurve: figure_spectra.ks_curve,
    Overlay: figure_spectra.overlay,
}


class Drawing(Figure):
    """A figure that a notebook shows, whether or not matplotlib was set up for it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The picture, and its size on the page: half as many pixels as it has."""
        width, height = (round(inches * DOTS / 2) for inches in self.get_size_inches())
        with styled():
            return _bytes(self, "png", {}), {"width": width, "height": height}


@contextmanager
def styled() -> Iterator[None]:
    """Our style and nothing of the user's, for as long as it lasts."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        # a script that the font lacks is drawn as boxes, which needs no comment
        warnings.filterwarnings("ignore", message=".*missing from.*font")
        yield


def figure(picture: Picture) -> Drawing:
    """Draw a picture."""
    with styled():
        drawing = Drawing()
        FigureCanvasAgg(drawing)
        _DRAW[type(picture.chart)](drawing, picture.chart)
        _head(drawing, picture)
        return drawing


def render(picture: Picture, format: str, facts: Mapping[str, str]) -> bytes:
    """The file of a picture.

    Args:
        picture: What to draw.
        format: ``png``, ``svg`` or ``pdf``.
        facts: ``command`` and ``tool`` that produced the figures, for the file's own record.
    """
    drawing = figure(picture)
    with styled():
        return _bytes(drawing, format, _record(picture, format, facts))


def _bytes(drawing: Figure, format: str, record: Mapping[str, Any]) -> bytes:
    stream = BytesIO()
    drawing.savefig(stream, format=format, dpi=DOTS, metadata=dict(record))
    return stream.getvalue()


def _head(drawing: Figure, picture: Picture) -> None:
    """What it is about, in bold, and what one has to know, each in one line of the page."""
    width, height = drawing.get_size_inches()
    name = _cut(printable(picture.subject), int((width - 0.2) / 0.083))
    facts = _ended(printable(picture.caption), int((width - 0.2) / 0.064))
    place = {"x": 0.1 / width, "ha": "left", "va": "top"}
    drawing.text(y=1 - 0.07 / height, s=name, fontsize=9.5, fontweight="bold", **place)
    drawing.text(y=1 - 0.25 / height, s=facts, fontsize=8, color="#555555", **place)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length // 2]}…{text[1 - length // 2 :]}"


def _ended(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _record(picture: Picture, format: str, facts: Mapping[str, str]) -> dict[str, Any]:
    """What the file says about itself; no times, so that the same chart gives the same bytes."""
    title = f"{picture.kind} of {printable(picture.subject)}"
    command, tool = printable(facts["command"]), facts["tool"]
    if format == "svg":
        return {"Title": title, "Creator": tool, "Source": command, "Date": None}
    if format == "pdf":
        return {"Title": title, "Creator": tool, "Subject": command, "CreationDate": None}
    return {"Title": title, "Software": tool, "Source": command}
