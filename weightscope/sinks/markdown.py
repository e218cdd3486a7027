"""Markdown for issues, pull requests and model cards."""

from __future__ import annotations

from collections.abc import Sequence

from weightscope.report import Cell, Report, Table
from weightscope.text import printable


def render(report: Report, provenance: str) -> str:
    """The report as Markdown, with what produced it in its last lines."""
    parts = [f"# {_escape(report.title)}"]
    for block in report.blocks:
        parts.append(_table(block) if isinstance(block, Table) else _escape(block.text))
    parts += [f"_{_escape(line)}_" for line in provenance.split("\n")]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    rule = [" ---: " if numeric else " --- " for numeric in table.numeric]
    lines = [_line([Cell(name) for name in table.headers]), "|" + "|".join(rule) + "|"]
    lines += [_line(row) for row in table.rows]
    title = f"## {_escape(table.title)}\n\n" if table.title else ""
    return title + "\n".join(lines)


def _line(cells: Sequence[Cell]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(cell: Cell) -> str:
    text = "<br>".join(_escape(line) for line in cell.text.split("\n"))
    return f"**{text.strip()}**" if cell.style == "strong" and text.strip() else text


def _escape(text: str) -> str:
    """Names are hostile: no HTML, no links, no table breaks."""
    text = printable(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "|`*[]#!":
        text = text.replace(mark, "\\" + mark)
    return text
