"""A page to explore, as data: one table, its charts, and the spectrum of every matrix in it."""

from __future__ import annotations

from dataclasses import dataclass

from weightscope.columns import Column
from weightscope.drawings.charts import Grid, Panels
from weightscope.drawings.esd import Esd
from weightscope.outcome import Value
from weightscope.report import Block


@dataclass(frozen=True)
class Figures:
    """One column of the page's table.

    Attributes:
        column: What it is.
        group: Heading that it has in a list of columns.
        values: A cell for each row.
    """

    column: Column
    group: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Drawn:
    """One spectrum of a row.

    Attributes:
        series: Index of its label among the page's series.
        esd: What is drawn.
        caption: Its fit in a few words; empty without one.
    """

    series: int
    esd: Esd
    caption: str


@dataclass(frozen=True)
class Page:
    """Everything that a page shows.

    Attributes:
        title: Of what.
        subtitle: How much of it, in a few words.
        blocks: Sentences and small tables, in order.
        figures: The table, column by column; the first is the name of the row.
        first: Name of the column that the map shows first.
        main: Columns that the table shows before all are asked for, in their order.
        facts: Columns that are shown beside the spectrum of a single matrix, in their order.
        grid: Where the rows lie in the network.
        panels: Charts over depth or training steps.
        series: What is overlaid: one label for a run, two for a comparison, one for each step.
        spectra: For each row its spectra, in the order of the series; empty where it has none.
        origin: What produced it, in lines.
    """

    title: str
    subtitle: str
    blocks: tuple[Block, ...]
    figures: tuple[Figures, ...]
    first: str
    main: tuple[str, ...]
    facts: tuple[str, ...]
    grid: Grid
    panels: tuple[Panels, ...]
    series: tuple[str, ...]
    spectra: tuple[tuple[Drawn, ...], ...]
    origin: tuple[str, ...]
