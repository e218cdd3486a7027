"""Tables for people, on a terminal or as plain text."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import IO, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from weightscope.outputs import writing_stdout
from weightscope.report import Block, Cell, Paragraph, Report, Style, Table
from weightscope.text import cut, fitted, printable

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
        before: Block | None = None
        for block in report.blocks:
            if not (_is_small_print(before) and _is_small_print(block)):
                console.print()
            before = block
            if isinstance(block, Table):
                _print_table(block, console)
            else:
                console.print(_text(block))
        stream.flush()


def _is_small_print(block: Block | None) -> bool:
    return isinstance(block, Paragraph) and block.style == "dim"


def _text(block: Paragraph) -> Text:
    return Text(printable(block.text), style=_STYLES[block.style])


def _print_table(table: Table, console: Console) -> None:
    """The table, without as many of its droppable columns as the page is too narrow for."""
    widths, remark = _kept(table, console.width), ""
    if any("\n" in row[i].text for row in table.rows for i in widths):
        console.print(_wrapping(table, list(widths)))
        return
    if _total(widths) > console.width:
        table, remark = _compact(table, console.width)
        widths = _kept(_without_headings(table), console.width)
    if _total(widths) > console.width:
        console.print(_wrapping(table, list(widths)))
    else:
        # by hand: laying out thousands of cells takes rich seconds
        console.print(_aligned(table, widths), no_wrap=True, soft_wrap=True)
    if remark:
        console.print(Text(printable(remark), style="dim"))


def _kept(table: Table, page: int) -> dict[int, int]:
    """Columns that are shown, and their widths: those that can be dropped go first."""
    widths = {i: _width(table, i) for i in range(len(table.headers))}
    for name in table.droppable:
        if _total(widths) <= page:
            break
        if name in table.headers:
            widths.pop(table.headers.index(name), None)
    return widths


def _is_heading(row: tuple[Cell, ...]) -> bool:
    """Whether a line has nothing beside its first cell, which may then be as wide as the page."""
    return len(row) > 1 and not any(cell.text for cell in row[1:])


def _without_headings(table: Table) -> Table:
    return replace(table, rows=tuple(row for row in table.rows if not _is_heading(row)))


def _compact(table: Table, page: int) -> tuple[Table, str]:
    """The table with shorter names in its first column, as far as it has names, and a remark."""
    lines = _without_headings(table)
    widths = _kept(lines, page)
    room = page - (_total(widths) - widths.get(0, 0))
    whole = [printable(row[0].text) for row in table.rows]
    names, shared = [printable(row[0].text) for row in lines.rows], ""
    if not any(" " in name for name in names) and max(map(cell_len, names), default=0) > room:
        names, shared = fitted(names, room)
    left = iter(names)
    short = [
        cut(name, page - 1) if _is_heading(row) else next(left)
        for name, row in zip(whole, table.rows, strict=True)
    ]
    remark = f"… at the beginning of a name stands for {shared} " if shared else ""
    if short != whole:
        remark += "Names are shortened to fit the page; CSV and JSON have them whole."
    rows = [
        (replace(row[0], text=name), *row[1:]) for name, row in zip(short, table.rows, strict=True)
    ]
    return replace(table, rows=tuple(rows)), remark


def _total(widths: dict[int, int]) -> int:
    """Cells of a line: one before the first column, two between columns."""
    return sum(widths.values()) + 2 * len(widths) - 1


def _aligned(table: Table, widths: dict[int, int]) -> Text:
    """Lines of equal columns, which fit the page."""
    text = Text("\n")
    if table.title:
        text = Text.assemble((table.title, "bold"), "\n\n")
    if any(table.headers):
        for i, width in widths.items():
            text.append(
                _gap(i, widths) + _padded(table.headers[i], width, table.numeric[i]), "bold"
            )
        text.append("\n " + "\u2500" * (_total(widths) - 1) + "\n")
    for row in table.rows:
        if _is_heading(row) and cell_len(row[0].text) > widths[0]:
            text.append(f" {printable(row[0].text)}\n", _STYLES[row[0].style])
            continue
        for i, width in widths.items():
            cell = _padded(printable(row[i].text), width, table.numeric[i])
            text.append(_gap(i, widths) + cell, _STYLES[row[i].style])
        text.append("\n")
    return text


def _gap(column: int, widths: dict[int, int]) -> str:
    return " " if column == next(iter(widths)) else "  "


def _padded(text: str, width: int, numeric: bool) -> str:
    space = " " * (width - cell_len(text))
    return space + text if numeric else text + space


def _width(table: Table, column: int) -> int:
    """Cells that the widest line of a column takes."""
    lines = (printable(line) for row in table.rows for line in row[column].text.split("\n"))
    return max(cell_len(table.headers[column]), max((cell_len(t) for t in lines), default=0))


def _wrapping(table: Table, kept: list[int]) -> RichTable:
    """A table whose cells take several lines, or do not fit."""
    title = Text(table.title, style="bold") if table.title else None
    grid = RichTable(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    grid.show_header = any(table.headers)
    for i in kept:
        justify: Literal["left", "right"] = "right" if table.numeric[i] else "left"
        grid.add_column(
            table.headers[i], justify=justify, no_wrap=table.numeric[i], overflow="fold"
        )
    for row in table.rows:
        grid.add_row(*(Text(_lines(row[i].text), style=_STYLES[row[i].style]) for i in kept))
    return grid


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))
