"""What a spreadsheet shows, as data: sheets of typed columns, and which cells stand out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10

from weightscope.columns import Kind
from weightscope.outcome import Value
from weightscope.report import Style

GENERAL, COUNT, SCIENTIFIC = "General", "#,##0", "0.00E+00"
DIGITS = 4
"""Significant digits that a column of numbers shows of its median; the cells hold all of them."""


@dataclass(frozen=True)
class Field:
    """A column of a sheet.

    Attributes:
        name: Heading.
        kind: Type of its cells.
        format: How a spreadsheet shows its numbers.
        width: In characters; 0 hides the column.
    """

    name: str
    kind: Kind
    format: str = GENERAL
    width: int = 12


@dataclass(frozen=True)
class Words:
    """Cells of a column that say one of these words have the style that goes with it."""

    column: str
    styles: Mapping[str, Style]


@dataclass(frozen=True)
class Bands:
    """Numbers of a column have the style of the band that they lie in.

    Attributes:
        column: Its name.
        low: Numbers below it are in the first band.
        high: Numbers above it are in the last.
        styles: Of the three bands.
    """

    column: str
    low: float
    high: float
    styles: tuple[Style, Style, Style]


@dataclass(frozen=True)
class Shade:
    """The larger a number of the column, the darker its cell."""

    column: str


@dataclass(frozen=True)
class Bar:
    """Numbers of the column between 0 and 1 are drawn as bars."""

    column: str


Highlight = Words | Bands | Shade | Bar


@dataclass(frozen=True)
class Sheet:
    """One sheet.

    Attributes:
        title: Its name, at most 31 characters.
        fields: Columns.
        rows: Cells by column name.
        highlights: Which cells stand out.
    """

    title: str
    fields: tuple[Field, ...]
    rows: Sequence[Mapping[str, Value]]
    highlights: tuple[Highlight, ...] = ()


def field_of(name: str, kind: Kind, values: Iterable[Value]) -> Field:
    """A column that fits its cells; one without any is hidden."""
    filled = [value for value in values if value is not None]
    if not filled:
        return Field(name, kind, number_format(kind, ()), 0)
    if kind == "text":
        longest = max(len(str(value)) for value in filled)
        return Field(name, kind, GENERAL, min(60, max(10, longest, len(name)) + 2))
    return Field(name, kind, number_format(kind, filled), max(10, min(16, len(name) + 2)))


def kind_of(values: Iterable[Value]) -> Kind:
    """Type of a column by its cells: counts that became medians are numbers."""
    types = {type(value) for value in values if value is not None}
    if str in types:
        return "text"
    return "integer" if types == {int} else "number"


def number_format(kind: Kind, values: Iterable[Value]) -> str:
    """How numbers of one column are shown alike: decimals by their median, powers where they span.

    Returns:
        A format of Office Open XML.
    """
    if kind == "text":
        return GENERAL
    if kind == "integer":
        return COUNT
    sizes = sorted(abs(v) for v in values if isinstance(v, int | float) and v != 0)
    if not sizes:
        return "0.000"
    middle = sizes[len(sizes) // 2]
    if sizes[-1] >= 1e7 or middle < 1e-3 or sizes[-1] / middle > 1e5:
        return SCIENTIFIC
    decimals = max(0, min(6, DIGITS - 1 - floor(log10(middle))))
    return "#,##0" if decimals == 0 else "0." + "0" * decimals
