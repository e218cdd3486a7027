"""What the columns mean, as a report."""

from __future__ import annotations

import re
from collections.abc import Sequence

from weightscope.columns import CODES, IDENTITY, Column
from weightscope.errors import OptionError
from weightscope.evaluate import all_columns, columns_of
from weightscope.glossary import COMPARED, TRACKED
from weightscope.report import Block, Cell, Paragraph, Report, Table
from weightscope.settings import FAMILIES
from weightscope.text import did_you_mean

_FIELDS = (
    ("formula", "formula"),
    ("range", "range"),
    ("unit", "unit"),
    ("reading", "how to read it"),
    ("caution", "when not to believe it"),
    ("noise", "for pure noise"),
    ("published", "published values"),
    ("source", "source"),
)


_WHERE = re.compile(r"-float64-\w+$")
"""What a cell of the column solver says beside the routine: precision and device."""


def overview() -> Report:
    """One line per column of the result table, grouped by family."""
    families = [("identity", IDENTITY), *((name, columns_of([name])) for name in FAMILIES)]
    blocks: list[Block] = []
    for family, columns in families:
        rows = tuple((Cell(c.name, "strong"), Cell(c.meaning)) for c in columns)
        blocks.append(Table(family, ("column", "meaning"), rows, (False, False)))
    blocks.append(Paragraph("weightscope explain COLUMN tells more.", "dim"))
    return Report("Columns of the result table", tuple(blocks))


def explanation(asked: str) -> Report:
    """What is known of a column of any table, a family, a status, a warning or a word of a cell.

    Raises:
        OptionError: It is none of these.
    """
    columns = (*all_columns(), *COMPARED, *TRACKED)
    named = [column for column in columns if column.name == asked]
    word = _WHERE.sub("", asked)
    holding = [column for column in columns if word in column.words]
    if named:
        groups = (IDENTITY, *(columns_of([family]) for family in FAMILIES))
        family = next((group for group in groups if named[0] in group), ())
        return entries_report(named, family)
    if asked in FAMILIES:
        return entries_report(columns_of([asked]))
    if asked in CODES:
        return Report(asked, (Paragraph(CODES[asked]),))
    if holding:
        return _word_report(word, holding)
    words = [word for column in columns for word in column.words]
    names = [column.name for column in columns]
    hint = did_you_mean(asked, dict.fromkeys([*names, *FAMILIES, *CODES, *words]))
    raise OptionError(f"{asked!r} is no column, family, status, warning or word{hint}")


def _word_report(word: str, columns: Sequence[Column]) -> Report:
    """A word that columns of text hold."""
    told = [Paragraph(f"{column.name}: {column.words[word]}.") for column in columns]
    names = dict.fromkeys(column.name for column in columns)
    more = " and ".join(f"weightscope explain {name}" for name in names)
    tells = "tells" if len(names) == 1 else "tell"
    return Report(word, (*told, Paragraph(f"{more} {tells} more.", "dim")))


def entries_report(columns: Sequence[Column], family: Sequence[Column] = ()) -> Report:
    """Everything that is known about some columns, and the names of the others beside them."""
    blocks = [block for column in columns for block in _entry(column)]
    others = [column.name for column in family if column not in columns]
    if others:
        blocks.append(Paragraph(f"Of the same family: {', '.join(others)}.", "dim"))
    return Report(", ".join(column.name for column in columns), tuple(blocks))


def _entry(column: Column) -> list[Block]:
    rows = tuple(
        (Cell(title, "dim"), Cell(text))
        for field, title in _FIELDS
        if (text := str(getattr(column, field))) and not (field == "unit" and column.kind == "text")
    )
    heading = Paragraph(f"{column.name}: {column.meaning}", "strong")
    return [heading, Table("", ("", ""), rows, (False, False))]
