"""Rows become charts: heat maps, distributions and lines over depth or training steps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median, quantiles
from typing import TYPE_CHECKING, Literal

from weightscope.columns import Column
from weightscope.drawings.charts import (
    Distribution,
    Grid,
    Group,
    HeatMap,
    Line,
    Noise,
    Panel,
    Panels,
    scale_of,
)
from weightscope.drawings.esd import Esd, esd_of
from weightscope.evaluate import all_columns
from weightscope.layouts.roles import ROLES
from weightscope.outcome import Value
from weightscope.settings import THRESHOLDS

if TYPE_CHECKING:
    from weightscope.run import Run

Cells = Mapping[str, Value]
"""A row of a run or of a comparison."""

NOISE = {
    "alpha": ("alpha_null_lo", "alpha_null_hi"),
    "alpha_farms": ("alpha_farms_null", "alpha_farms_null"),
    "erg_n_tail": ("erg_null", "erg_null"),
    "entropy": ("entropy_null", "entropy_null"),
    "stable_rank": ("stable_rank_null", "stable_rank_null"),
    "condition_number": ("condition_number_null", "condition_number_null"),
}
"""Columns that have a null beside them, and the columns that hold its ends."""
MARKS = {
    "alpha": (
        (THRESHOLDS["alpha_over"], "very heavy below"),
        (THRESHOLDS["alpha_under"], "weak above"),
    ),
    "erg_gap": ((0.0, "SETOL's ideal"),),
    "welore_rank_ratio": ((0.5, "LRC below"),),
}
"""Values that a chart of a column marks with a line."""


def column_named(name: str) -> Column:
    """A column of the result table.

    Raises:
        KeyError: There is none of that name.
    """
    return {column.name: column for column in all_columns()}[name]


def figure(row: Cells, name: str) -> float | None:
    """A numeric cell; None where it is empty, a word, or not there."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else None


def numeric_columns(columns: Iterable[Column], rows: Sequence[Cells]) -> list[Column]:
    """Columns that hold a number in at least one row."""
    return [
        column
        for column in columns
        if column.kind != "text" and any(figure(row, column.name) is not None for row in rows)
    ]


def grid_of(rows: Sequence[Cells]) -> Grid:
    """Where each row lies, by block and module."""
    places: dict[tuple[str, int | None], list[int]] = {}
    order: dict[str, tuple[int, str]] = {}
    for index, row in enumerate(rows):
        module, role, block = str(row["module"]), str(row["role"]), row["block"]
        order.setdefault(module, (ROLES.index(role) if role in ROLES else len(ROLES), module))
        places.setdefault((module, int(block) if isinstance(block, int) else None), []).append(
            index
        )
    modules = sorted(order, key=order.__getitem__)
    found = {block for _, block in places}
    blocks: list[int | None] = [*sorted(block for block in found if block is not None)]
    blocks += [None] if None in found else []
    cells = tuple(tuple(tuple(places.get((m, b), ())) for b in blocks) for m in modules)
    return Grid(tuple(blocks), tuple(modules), _labels(modules), cells)


def _labels(modules: Sequence[str]) -> tuple[str, ...]:
    """Modules without what leads to their block, where that leaves them apart."""
    short = [module.partition("#.")[2] or module for module in modules]
    shared = {label for label in short if short.count(label) > 1}
    return tuple(
        module if label in shared else label for module, label in zip(modules, short, strict=True)
    )


def heat_map(rows: Sequence[Cells], column: Column, grid: Grid | None = None) -> HeatMap:
    """One column over block and module; experts of one place are their median.

    Args:
        rows: Of a run or a comparison.
        column: A numeric column of theirs.
        grid: Where the rows lie, if that is known already.
    """
    grid = grid or grid_of(rows)
    values = tuple(
        tuple(_middle([rows[i] for i in cell], column.name) for cell in line) for line in grid.cells
    )
    return HeatMap(column, grid, values, scale_of(v for line in values for v in line))


def distribution(rows: Sequence[Cells], column: Column, grid: Grid | None = None) -> Distribution:
    """One column, module by module.

    Args:
        rows: Of a run or a comparison.
        column: A numeric column of theirs.
        grid: Where the rows lie, if that is known already.
    """
    grid = grid or grid_of(rows)
    groups = []
    for module, label, line in zip(grid.modules, grid.labels, grid.cells, strict=True):
        members = [rows[i] for i in sorted(i for cell in line for i in cell)]
        found = [
            (str(row["name"]), v) for row in members if (v := figure(row, column.name)) is not None
        ]
        if found:
            names, values = zip(*found, strict=True)
            groups.append(Group(module, label, names, values, _quartiles(values)))
    scale = scale_of(v for g in groups for v in g.values)
    return Distribution(column, tuple(groups), scale, MARKS.get(column.name, ()))


def over_depth(series: Mapping[str, Sequence[Cells]], column: Column) -> Panels:
    """One column over block, a panel per module and a line per series.

    Experts of one place are their median; what lies outside the blocks is left out.

    Args:
        series: Rows by the label of their line: one entry for a run, two for a comparison.
        column: A numeric column of theirs.

    Returns:
        The panels, each with the noise of the first series that knows it.
    """
    everything = [row for rows in series.values() for row in rows if row["block"] is not None]
    grid = grid_of(everything)
    panels = []
    for module, label in zip(grid.modules, grid.labels, strict=True):
        members = {
            name: _by_block([row for row in rows if str(row["module"]) == module])
            for name, rows in series.items()
        }
        lines = tuple(
            Line(name, tuple(blocks), tuple(_middle(rows, column.name) for rows in blocks.values()))
            for name, blocks in members.items()
        )
        noise = (_noise(column, rows) for rows in members.values())
        panels.append(Panel(module, label, lines, next(filter(None, noise), None)))
    return _panels(column, "block", panels)


def over_steps(steps: Sequence[int], rows: Sequence[Mapping[str, Cells]], column: Column) -> Panels:
    """One column over training steps, a panel per module and a line per matrix.

    Args:
        steps: Ascending.
        rows: For each step the row of each matrix by name.
        column: A numeric column of theirs.
    """
    known = {name: row for by_name in rows for name, row in by_name.items()}
    grid = grid_of(list(known.values()))
    panels = []
    for module, label in zip(grid.modules, grid.labels, strict=True):
        names = [name for name, row in known.items() if str(row["module"]) == module]
        lines = tuple(
            Line(name, tuple(steps), tuple(figure(r.get(name, {}), column.name) for r in rows))
            for name in names
        )
        members = {
            step: [by_name[name] for name in names if name in by_name]
            for step, by_name in zip(steps, rows, strict=True)
        }
        panels.append(Panel(module, label, lines, _noise(column, members)))
    return _panels(column, "step", panels)


def esd(run: Run, name: str) -> Esd | None:
    """The spectral density of one matrix of a run; None where it is zero or a single point.

    Raises:
        UnknownMatrixError: No such matrix, or it has no spectrum; also a KeyError.
    """
    row = run.row(name)
    shuffled = run.details.get(str(row["name"]), {}).get("shuffled")
    return esd_of(run.spectrum(name), row, shuffled)


def esds(run: Run, names: Collection[str] | None = None) -> dict[str, Esd]:
    """The spectral densities of a run, of every matrix that has one.

    Args:
        run: A finished run.
        names: Matrices to draw; None draws all.
    """
    spectra = run.spectra()
    wanted = spectra.keys() if names is None else spectra.keys() & set(names)
    rows = {str(row["name"]): row for row in run.rows if row["name"] in wanted}
    found = {
        name: esd_of(spectra[name], row, run.details.get(name, {}).get("shuffled"))
        for name, row in rows.items()
    }
    return {name: density for name, density in found.items() if density is not None}


def _panels(column: Column, axis: Literal["block", "step"], panels: Iterable[Panel]) -> Panels:
    """Panels that have a value, on a scale that shows values and noise."""
    shown = tuple(p for p in panels if any(y is not None for line in p.lines for y in line.y))
    drawn = [y for panel in shown for line in panel.lines for y in line.y]
    drawn += [y for p in shown if p.noise is not None for y in (*p.noise.low, *p.noise.high)]
    return Panels(column, axis, shown, scale_of(drawn), MARKS.get(column.name, ()))


def _by_block(rows: Sequence[Cells]) -> dict[int, list[Cells]]:
    """Rows of each block, ascending."""
    blocks = sorted({int(block) for row in rows if isinstance(block := row["block"], int)})
    return {block: [row for row in rows if row["block"] == block] for block in blocks}


def _noise(column: Column, members: Mapping[int, Sequence[Cells]]) -> Noise | None:
    """What noise gives at each block or step, where the rows know it."""
    if column.name not in NOISE:
        return None
    low, high = (
        tuple(_middle(rows, name) for rows in members.values()) for name in NOISE[column.name]
    )
    known = any(v is not None for v in (*low, *high))
    return Noise(tuple(members), low, high) if known else None


def _middle(rows: Sequence[Cells], name: str) -> float | None:
    """Median of the rows that have a value."""
    found = [value for row in rows if (value := figure(row, name)) is not None]
    return median(found) if found else None


def _quartiles(values: Sequence[float]) -> tuple[float, float, float, float, float]:
    if len(values) == 1:
        return (values[0],) * 5
    lower, middle, upper = quantiles(values, n=4, method="inclusive")
    return min(values), lower, middle, upper, max(values)
