"""A run becomes a page: which columns, which charts, which spectra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from weightscope.charting import (
    Cells,
    column_named,
    esds,
    grid_of,
    over_depth,
)
from weightscope.columns import IDENTITY
from weightscope.drawings.charts import Grid, Panels
from weightscope.drawings.page import Drawn, Figures, Page
from weightscope.evaluate import columns_of
from weightscope.present.provenance import provenance_lines
from weightscope.present.run import summary_blocks
from weightscope.run import Run
from weightscope.settings import FAMILIES
from weightscope.text import count_of, short

MOST_SPECTRA = 1000
"""A page holds no more spectra than this: one of each module and block first, then the rest."""
MOST_OVERLAID = 4
"""Spectra of more runs or training steps than this are not overlaid."""
OVER_DEPTH = ("alpha", "erg_gap", "welore_rank_ratio", "condition_number")
_MAIN = (
    *("name", "block", "role", "rows", "cols", "reading", "alpha", "alpha_stderr", "alpha_ks"),
    *("alpha_n_tail", "alpha_farms", "erg_gap", "condition_number", "stable_rank"),
    *("effective_rank", "welore_rank_ratio", "welore_class", "mp_spikes", "mp_softrank"),
    *("traps", "warnings", "status"),
)
_FACTS = (
    *("reading", "rows", "cols", "dtype", "alpha", "alpha_stderr", "alpha_null_lo"),
    *("alpha_null_hi", "alpha_ks", "alpha_n_tail", "tail_best", "alpha_farms", "erg_gap"),
    *("condition_number", "stable_rank", "effective_rank", "welore_rank", "welore_class"),
    *("mp_spikes", "mp_softrank", "noise_p", "shuffled_w1", "traps", "trap_cause", "warnings"),
    "reason",
)


def run_page(run: Run) -> Page:
    """The page of one analysis."""
    grid = grid_of(run.rows)
    found = esds(run, _some(run.rows, grid))
    rows = {str(row["name"]): row for row in run.rows}
    spectra = tuple(
        (Drawn(0, found[name], caption(row)),) if name in found else ()
        for name, row in rows.items()
    )
    return Page(
        title=run.label,
        subtitle=_size(run),
        blocks=tuple(summary_blocks(run)),
        figures=tuple(_run_figures(run.rows)),
        first="alpha",
        main=_MAIN,
        facts=_FACTS,
        grid=grid,
        panels=depth_panels({run.name: run.rows}),
        series=(run.name,),
        spectra=spectra,
        origin=tuple(provenance_lines(run.provenance)),
    )


def _size(run: Run) -> str:
    params = int(run.summary["params_total"])
    text = f"{count_of(len(run.rows), 'matrix')}, {params:,} parameters"
    return text if len(run.rows) <= MOST_SPECTRA else f"{text}; spectra of {MOST_SPECTRA:,} of them"


def _run_figures(rows: Sequence[Cells]) -> Iterable[Figures]:
    """Every column that has a value, under the name of its family."""
    families = {column.name: family for family in FAMILIES for column in columns_of([family])}
    for column in (*IDENTITY, *columns_of(FAMILIES)):
        values = tuple(row[column.name] for row in rows)
        if any(value is not None for value in values):
            yield Figures(column, families.get(column.name, "matrix"), values)


def depth_panels(series: Mapping[str, Sequence[Cells]]) -> tuple[Panels, ...]:
    """The usual charts over depth, those that have a value.

    Args:
        series: Rows by the label of their line.
    """
    found = (over_depth(series, column_named(name)) for name in OVER_DEPTH)
    return tuple(panels for panels in found if panels.panels)


def _some(rows: Sequence[Cells], grid: Grid) -> list[str]:
    """As many matrices as a page has room for the spectra of, spread over the network."""
    first = [cell[0] for line in grid.cells for cell in line if cell]
    order = dict.fromkeys([*first, *range(len(rows))])
    return [str(rows[i]["name"]) for i in order][:MOST_SPECTRA]


def caption(row: Cells, suffix: str = "") -> str:
    """The fit of one matrix in a few words; empty without a fit.

    Args:
        row: Of a run or a comparison.
        suffix: What the columns of its side end in.
    """
    alpha, error, ks, n = (
        row.get(f"{name}{suffix}") for name in ("alpha", "alpha_stderr", "alpha_ks", "alpha_n_tail")
    )
    if alpha is None:
        return ""
    return f"alpha {short(alpha)} \u00b1{short(error, 2)}, ks {short(ks, 2)}, {n} in the tail"


def spread(count: int, most: int) -> list[int]:
    """At most so many indices below a count, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
