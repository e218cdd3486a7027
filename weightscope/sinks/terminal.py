"""Tables for people, on a terminal or as plain text."""

from __future__ import annotations

import os
import sys
from typing import IO, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from weightscope.outputs import writing_stdout
from weightscope.report import Paragraph, Report, Style, Table
from weightscope.text import printable

_STYLES: dict[Style, str] = {
    "": "",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "extreme": "bold magenta",
    "dim": "dim",
    "strong": "bold",
}
PLAIN_WIDTH = 160


def write(report: Report, stream: IO[str] | None = None) -> None:
    """Render a report to standard output or a stream; names cannot steer the terminal."""
    stream = stream or sys.stdout
    console = Console(file=stream, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        width = int(os.environ.get("COLUMNS", "0") or 0) or PLAIN_WIDTH
        console = Console(file=stream, highlight=False, width=width)
    with writing_stdout():
        console.print(Text(printable(report.title), style="bold"))
        for block in report.blocks:
            console.print()
            console.print(_table(block, console) if isinstance(block, Table) else _text(block))
        stream.flush()


def _text(block: Paragraph) -> Text:
    return Text(printable(block.text), style=_STYLES[block.style])


def _table(table: Table, console: Console) -> RichTable:
    """The table, without as many of its droppable columns as the page is too narrow for."""
    widths = {name: _width(table, i) for i, name in enumerate(table.headers)}
    dropped: set[str] = set()
    for name in table.droppable:
        # a space before and one between the columns
        if sum(widths.values()) + len(widths) + 1 <= console.width:
            break
        if widths.pop(name, None) is not None:
            dropped.add(name)
    return _columns(table, dropped)


def _width(table: Table, column: int) -> int:
    """Cells that the widest line of a column takes."""
    lines = (line for row in table.rows for line in row[column].text.split("\n"))
    return max(cell_len(table.headers[column]), max((cell_len(t) for t in lines), default=0))


def _columns(table: Table, dropped: set[str]) -> RichTable:
    title = Text(table.title, style="bold") if table.title else None
    grid = RichTable(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    grid.show_header = any(table.headers)
    kept = [i for i, name in enumerate(table.headers) if name not in dropped]
    for i in kept:
        numeric = table.numeric[i]
        justify: Literal["left", "right"] = "right" if numeric else "left"
        grid.add_column(table.headers[i], justify=justify, no_wrap=numeric, overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(_lines(row[i].text), style=_STYLES[row[i].style]) for i in kept))
    return grid


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))
