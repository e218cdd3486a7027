"""A comparison as a report and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightscope.comparing import Wide
from weightscope.comparison import AGGREGATED, Comparison
from weightscope.evaluate import Row
from weightscope.present.run import sorted_rows
from weightscope.report import Block, Cell, Paragraph, Report, Style, Table
from weightscope.text import short

_SHOWN = (
    ("reading", "reading"),
    ("alpha a", "alpha_a"),
    ("alpha b", "alpha_b"),
    ("moved", "alpha_moved"),
    ("w1", "spectrum_w1"),
    ("rel change", "rel_change"),
    ("cosine", "cosine"),
    ("rank 99", "delta_rank_99"),
    ("left", "subspace_left"),
    ("intruders", "intruders"),
    ("band", "band_change"),
    ("class", "class_change"),
)
_DROPPABLE = ("class", "intruders", "left", "band", "rank 99", "cosine", "w1", "moved")


def comparison_report(found: Comparison, sort: str | None, top: int | None) -> Report:
    """The rows that differ most in what people ask first, and the summary."""
    rows = sorted_rows(found.rows, sort)
    shown = rows if top is None else rows[:top]
    blocks = [_rows_table(shown), *not_shown(len(shown), len(rows)), *comparison_summary(found)]
    return Report(f"{found.names[0]} -> {found.names[1]}: {len(rows)} matrices", tuple(blocks))


def not_shown(shown: int, rows: int) -> list[Block]:
    """A remark below a table that was cut; nothing below one that was not."""
    text = f"{rows - shown} of {rows} rows not shown."
    return [Paragraph(text, "dim")] if shown < rows else []


def comparison_summary(found: Comparison) -> list[Block]:
    """What changed as a whole: counts, medians per module, the rows that moved most."""
    headline, *others = found.sentences
    medians = groups_table("Medians per module", "module", found.summary["modules"])
    return [Paragraph(headline, "strong"), medians, *map(Paragraph, others)]


def _rows_table(rows: Sequence[Row]) -> Table:
    # a column without a value for anyone is left out
    shown = [(title, key) for title, key in _SHOWN if any(_cell(row, key).text for row in rows)]
    lines = tuple(
        (Cell(str(row["name"]).removesuffix(".weight")), *(_cell(row, key) for _, key in shown))
        for row in rows
    )
    headers = ("name", *(title for title, _ in shown))
    words = {"name", "reading", "band", "class"}
    return Table("", headers, lines, tuple(name not in words for name in headers), _DROPPABLE)


def _cell(row: Row, key: str) -> Cell:
    if key == "reading":
        text = str(row["reading"] or ("" if row["change"] == "common" else row["change"]))
        return Cell(text, "dim" if text == "identical" else "strong")
    style: Style = "warn" if key == "alpha_moved" and row[key] == "yes" else ""
    return Cell(short(row[key]), style)


def groups_table(title: str, by: str, groups: Sequence[Mapping[str, Any]]) -> Table:
    """Medians per module or block."""
    used = [n for n in AGGREGATED if any(group[n] is not None for group in groups)]
    headers = (by, "matrices", "moved", *used)
    rows = tuple(
        (Cell(_inside(group[by])), *(Cell(short(group[name])) for name in headers[1:]))
        for group in groups
    )
    titles = tuple(name.replace("_", " ") for name in headers)
    return Table(title, titles, rows, (False, *(True,) * (len(headers) - 1)), _LEAST)


_LEAST = (
    "spectral norm delta",
    "stable rank delta",
    "subspace left",
    "delta rank 99",
    "cosine",
    "spectrum w1",
    "alpha delta",
)


def _inside(group: Any) -> str:
    """A block index, or a module without what leads to its block."""
    return str(group).partition("#.")[2] or str(group) if group is not None else "(none)"


def wide_report(found: Wide, sort: str | None, top: int | None, metric: str = "alpha") -> Report:
    """One metric of several runs side by side."""
    rows = sorted_rows(found.rows, sort)
    keys = [f"{metric}_{letter}" for letter in found.letters]
    keys += [f"{metric}_delta_{letter}" for letter in found.letters[1:]]
    lines = tuple(
        (Cell(str(row["name"]).removesuffix(".weight")), *(Cell(short(row[key])) for key in keys))
        for row in rows[:top]
    )
    names = [f"{x} = {name}" for x, name in zip(found.letters, found.names, strict=True)]
    table = Table("", ("name", *keys), lines, (False, *(True,) * len(keys)))
    blocks = (Paragraph(", ".join(names)), table, *not_shown(len(lines), len(rows)))
    return Report(f"{metric} of {len(found.names)} runs", blocks)
