"""A chart with what goes around it: what it is about, and what a reader has to know."""

from __future__ import annotations

from dataclasses import dataclass

from weightscope.drawings.charts import Distribution, HeatMap, Panels
from weightscope.drawings.esd import Esd
from weightscope.drawings.ks_curve import KsCurve


@dataclass(frozen=True, eq=False)
class Overlay:
    """Spectra of one matrix in several runs, each with the name of its run."""

    spectra: tuple[tuple[str, Esd], ...]


Chart = HeatMap | Distribution | Panels | Esd | KsCurve | Overlay


@dataclass(frozen=True, eq=False)
class Picture:
    """One chart, ready to be drawn on paper, a screen or a terminal.

    Attributes:
        kind: ``heatmap``, ``distribution``, ``depth``, ``steps``, ``esd`` or ``ks``.
        subject: Name of the matrix, or of the column.
        caption: A line of facts.
        chart: What is drawn.
    """

    kind: str
    subject: str
    caption: str
    chart: Chart
