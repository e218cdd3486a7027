"""Workbooks for Excel and its kin: every number whole, no text ever a formula."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.util import find_spec
from io import BytesIO
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from weightscope.drawings.sheets import Bands, Bar, Field, Highlight, Shade, Sheet, Words
from weightscope.errors import OptionError
from weightscope.outcome import Value
from weightscope.report import Style
from weightscope.text import printable

MOST_ROWS, MOST_CHARACTERS = 1_048_575, 32_767
EXACT = 2**53
"""Whole numbers beyond it, such as times in nanoseconds, are no numbers to a spreadsheet."""
_FILLS: dict[Style, str] = {
    "good": "CDEBDF",
    "warn": "FBE3B0",
    "bad": "F6C6B0",
    "extreme": "EBCFE0",
    "dim": "E7E7E7",
    "strong": "CFE5F5",
}
"""Tints of Okabe and Ito's colours, dark text readable on each."""
_DARK, _LIGHT, _HEADER = "0072B2", "FFFFFF", "DCE6EF"
_WHEN = datetime(2000, 1, 1)
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")
_ESCAPED = re.compile(r"_(?=x[0-9A-Fa-f]{4}_)")


def check_installed() -> None:
    """Say so, before any work, where the package that writes workbooks is missing.

    Raises:
        OptionError: It is.
    """
    if find_spec("openpyxl") is None:
        raise OptionError("--excel needs openpyxl: pip install 'weightscope[excel]'")


def render(sheets: Sequence[Sheet]) -> bytes:
    """An Office Open XML workbook; the same sheets give the same bytes.

    Raises:
        OptionError: openpyxl is not installed, or a sheet has more rows than a spreadsheet holds.
    """
    check_installed()
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    book.properties.creator = "weightscope"
    book.properties.created = _WHEN
    for sheet in sheets:
        if len(sheet.rows) > MOST_ROWS:
            raise OptionError(
                f"{len(sheet.rows):,} rows are more than a spreadsheet holds ({MOST_ROWS:,}); "
                "ask for fewer metrics, or write CSV"
            )
        _add(book, sheet)
    stream = BytesIO()
    book.save(stream)
    return _timeless(stream.getvalue())


def _add(book: Any, sheet: Sheet) -> None:
    from openpyxl.utils import get_column_letter

    page = book.create_sheet(sheet.title)
    page.freeze_panes = "B2"
    for index, field in enumerate(sheet.fields, 1):
        dimension = page.column_dimensions[get_column_letter(index)]
        dimension.width = field.width or 10
        dimension.hidden = field.width == 0
    page.append([_heading(page, field) for field in sheet.fields])
    for row in sheet.rows:
        page.append([_cell(page, row[field.name], field) for field in sheet.fields])
    last = len(sheet.rows) + 1
    page.auto_filter.ref = f"A1:{get_column_letter(len(sheet.fields))}{last}"
    places = {field.name: get_column_letter(i) for i, field in enumerate(sheet.fields, 1)}
    if sheet.rows:
        for highlight in sheet.highlights:
            column = places[highlight.column]
            for rule in _rules(highlight, f"{column}2"):
                page.conditional_formatting.add(f"{column}2:{column}{last}", rule)


def _heading(page: Any, field: Field) -> Any:
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.styles import Alignment, Font, PatternFill

    cell = WriteOnlyCell(page, field.name)
    cell.font = Font(bold=True)
    cell.fill = PatternFill("solid", fgColor=_HEADER)
    cell.alignment = Alignment(wrap_text=True, vertical="top")
    return cell


def _cell(page: Any, value: Value, field: Field) -> Any:
    """A cell, or nothing; numbers keep every digit, which the library's own way would not."""
    from openpyxl.cell import WriteOnlyCell

    if value is None:
        return None
    if isinstance(value, str) or (isinstance(value, int) and abs(value) > EXACT):
        text = _text(str(value))
        cell = WriteOnlyCell(page, text)
        cell.data_type = "s"  # whatever it looks like
        # without it a cell that someone opens and closes again becomes the formula after all
        cell.quotePrefix = text.startswith(_FORMULA_STARTS)
        return cell
    cell = WriteOnlyCell(page, repr(value))
    cell.data_type = "n"
    cell.number_format = field.format
    return cell


def _text(value: str) -> str:
    """Text that XML can hold and that a spreadsheet shows as it is."""
    lines = "\n".join(printable(line) for line in value.split("\n"))
    text = _ESCAPED.sub("_x005F_", lines)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."


def _rules(highlight: Highlight, first: str) -> Iterable[Any]:
    """Conditional formats; empty cells, which count as 0 elsewhere, keep theirs."""
    from openpyxl.formatting.rule import ColorScaleRule, DataBarRule

    if isinstance(highlight, Words):
        for word, style in highlight.styles.items():
            yield _rule(f'EXACT({first},"{word}")', style)
    elif isinstance(highlight, Bands):
        below, inside, above = highlight.styles
        low, high = highlight.low, highlight.high
        yield _rule(f"AND(ISNUMBER({first}),{first}<{low:g})", below)
        yield _rule(f"AND(ISNUMBER({first}),{first}>{high:g})", above)
        yield _rule(f"ISNUMBER({first})", inside)
    elif isinstance(highlight, Shade):
        yield ColorScaleRule(
            start_type="min", start_color=_LIGHT, end_type="max", end_color="7FB8DA"
        )
    elif isinstance(highlight, Bar):
        yield DataBarRule(start_type="num", start_value=0, end_type="num", end_value=1, color=_DARK)


def _rule(formula: str, style: Style) -> Any:
    from openpyxl.formatting.rule import FormulaRule
    from openpyxl.styles import PatternFill

    return FormulaRule([formula], stopIfTrue=True, fill=PatternFill(bgColor=_FILLS[style]))


_MODIFIED = re.compile(rb"(<dcterms:modified[^>]*>)[^<]*")


def _timeless(data: bytes) -> bytes:
    """The same workbook without the time at which it was written."""
    stream = BytesIO()
    with ZipFile(BytesIO(data)) as source, ZipFile(stream, "w", ZIP_DEFLATED) as target:
        for item in source.infolist():
            content = source.read(item)
            if item.filename == "docProps/core.xml":
                content = _MODIFIED.sub(rb"\g<1>" + _WHEN.isoformat().encode() + b"Z", content)
            info = ZipInfo(item.filename, (2000, 1, 1, 0, 0, 0))
            info.compress_type = ZIP_DEFLATED
            target.writestr(info, content)
    return stream.getvalue()
