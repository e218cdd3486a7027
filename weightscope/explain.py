"""What the columns mean, as a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weightscope.columns import Column
from weightscope.report import Block, Cell, Paragraph, Report, Table

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


def columns_report(families: Iterable[tuple[str, Sequence[Column]]]) -> Report:
    """One line per column, grouped by family."""
    blocks: list[Block] = []
    for family, columns in families:
        rows = tuple((Cell(c.name, "strong"), Cell(c.meaning)) for c in columns)
        blocks.append(Table(family, ("column", "meaning"), rows, (False, False)))
    blocks.append(Paragraph("weightscope explain COLUMN tells more.", "dim"))
    return Report("Columns of the result table", tuple(blocks))


def code_report(code: str, sentence: str) -> Report:
    """A status or a warning."""
    return Report(code, (Paragraph(sentence),))


def word_report(word: str, column: Column) -> Report:
    """A word that a column of text holds."""
    told = Paragraph(f"weightscope explain {column.name} tells more.", "dim")
    return Report(word, (Paragraph(f"{column.name}: {column.words[word]}."), told))


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
