"""What is shown, as data: blocks of tables and sentences that any sink can render."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Style = Literal["", "good", "warn", "bad", "extreme", "dim", "strong"]


@dataclass(frozen=True)
class Cell:
    """A piece of text and what it means, not how it looks."""

    text: str
    style: Style = ""


@dataclass(frozen=True)
class Table:
    """A titled table.

    Attributes:
        title: May be empty.
        headers: Column names.
        rows: Cells, as many in each row as there are headers.
        numeric: Which columns are set flush right.
        droppable: Columns that a narrow page does without, the first to go first.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: tuple[bool, ...]
    droppable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: str
    style: Style = ""


Block = Table | Paragraph


@dataclass(frozen=True)
class Report:
    """Everything that is shown of a run, in order."""

    title: str
    blocks: tuple[Block, ...]
