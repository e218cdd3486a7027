"""What the script of a page reads: the page as JSON that is safe inside a script element.

Figures are rounded to six digits and points of curves to a thousandth of a decade, which no screen
shows; CSV and JSON of the same run hold every digit.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from weightscope.columns import Column
from weightscope.drawings.charts import Line, Panel, Panels
from weightscope.drawings.esd import Curve, Esd, Law
from weightscope.drawings.page import Drawn, Figures, Page
from weightscope.outcome import Value
from weightscope.spectrum import FloatArray
from weightscope.text import printable

_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


def page_json(page: Page) -> str:
    """The data of a page; ASCII only, and no character that could end or open an element."""
    record = {
        "columns": [_column(figures) for figures in page.figures],
        "cells": [[_cell(value) for value in figures.values] for figures in page.figures],
        "grid": {
            "blocks": page.grid.blocks,
            "modules": [printable(module) for module in page.grid.modules],
            "labels": [printable(label) for label in page.grid.labels],
            "cells": page.grid.cells,
        },
        "first": page.first,
        "main": page.main,
        "facts": page.facts,
        "panels": [_panels(panels) for panels in page.panels],
        "marks": {panels.column.name: panels.marks for panels in page.panels},
        "series": [printable(label) for label in page.series],
        "spectra": [[_drawn(drawn) for drawn in spectra] for spectra in page.spectra],
    }
    text = json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE)


def _column(figures: Figures) -> dict[str, Any]:
    column = figures.column
    return {
        "name": column.name,
        "kind": column.kind,
        "group": figures.group,
        "tip": _tip(column),
    }


def _tip(column: Column) -> str:
    """What a column is, how to read it and when not to believe it."""
    return "\n".join(filter(None, (_sentence(column.meaning), column.reading, column.caution)))


def _sentence(clause: str) -> str:
    """A clause with a capital and a full stop; the name of a column keeps its small letters."""
    first = clause[:1] if "_" in clause.partition(" ")[0] else clause[:1].upper()
    return f"{first}{clause[1:]}."


def _cell(value: Value) -> Value:
    if isinstance(value, str):
        return printable(value)
    return _rounded(value) if isinstance(value, float) else value


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _panels(panels: Panels) -> dict[str, Any]:
    return {
        "name": panels.column.name,
        "meaning": _sentence(panels.column.meaning),
        "tip": _tip(panels.column),
        "axis": panels.axis,
        "scale": panels.scale,
        "marks": panels.marks,
        "panels": [_panel(panel) for panel in panels.panels],
    }


def _panel(panel: Panel) -> dict[str, Any]:
    noise = panel.noise
    return {
        "module": printable(panel.module),
        "label": printable(panel.label),
        "lines": [_line(line) for line in panel.lines],
        "noise": noise
        and {
            "x": noise.x,
            "low": [_rounded(value) for value in noise.low],
            "high": [_rounded(value) for value in noise.high],
        },
    }


def _line(line: Line) -> dict[str, Any]:
    return {"label": printable(line.label), "x": line.x, "y": [_rounded(y) for y in line.y]}


def _drawn(drawn: Drawn) -> dict[str, Any]:
    esd = drawn.esd
    return {
        "series": drawn.series,
        "caption": drawn.caption,
        "n": esd.n,
        "hidden": esd.hidden,
        "edges": _edges(esd),
        "density": _thousandths(esd.density),
        "survival": _curve(esd.survival),
        "tail": _law(esd.tail),
        "xmin": _thousandth(esd.xmin),
        "erg": _thousandth(esd.erg_cut),
        "bulk": _law(esd.bulk),
        "shuffled": _law(esd.shuffled),
    }


def _edges(esd: Esd) -> list[float]:
    """Where the first bin begins, and how wide each is."""
    width = float(esd.edges[-1] - esd.edges[0]) / len(esd.density)
    return [round(1000 * float(esd.edges[0]), 2), round(1000 * width, 3)]


def _law(law: Law | None) -> dict[str, Any] | None:
    if law is None:
        return None
    return {"density": _curve(law.density), "survival": _curve(law.survival)}


def _curve(curve: Curve) -> list[list[int | None]]:
    return [_thousandths(curve.x), _thousandths(curve.y)]


def _thousandths(values: FloatArray) -> list[int | None]:
    return [int(v) if np.isfinite(v) else None for v in np.round(1000 * values)]


def _thousandth(value: float | None) -> int | None:
    return None if value is None else round(1000 * value)
