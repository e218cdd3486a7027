"""Runs become a page: what changed from one to the next, and their spectra overlaid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from weightscope.alignment import by_plain_name, plain_name
from weightscope.charting import Cells, esds, grid_of
from weightscope.columns import IDENTITY, Column
from weightscope.comparing import Wide
from weightscope.comparison import Comparison, metric_columns
from weightscope.drawings.esd import Esd
from weightscope.drawings.page import Drawn, Figures, Page
from weightscope.glossary import COMPARED
from weightscope.outcome import Value
from weightscope.present.comparison import comparison_summary
from weightscope.present.page import MOST_OVERLAID, caption, depth_panels, spread
from weightscope.present.provenance import provenance_of_all
from weightscope.report import Paragraph
from weightscope.text import count_of

_MATRIX = ("name", "block", "module", "role")
_MAIN_CHANGES = (
    *("name", "block", "role", "change", "reading", "alpha_a", "alpha_b", "alpha_delta"),
    *("alpha_moved", "spectrum_w1", "rel_change", "cosine", "delta_rank_99", "delta_stable_rank"),
    *("subspace_left", "intruders", "band_change", "class_change"),
)
_COMPARED = ("alpha", "alpha_ks", "erg_gap", "stable_rank", "effective_rank", "welore_rank_ratio")
_CHANGE_FACTS = (
    *("role", *(column.name for column in COMPARED)),
    *(f"{name}_{ending}" for name in _COMPARED for ending in ("a", "b")),
)


def comparison_page(found: Comparison) -> Page:
    """The page of two runs: what changed, and both spectra of every matrix."""
    a, b = found.runs
    labels = (f"A: {a.name}", f"B: {b.name}")
    drawn = esds(a), esds(b)
    spectra = tuple(_pair(row, drawn) for row in found.rows)
    figures = tuple(_changes(found.rows))
    first = next((f.column.name for f in figures if f.column.name == "rel_change"), "spectrum_w1")
    return Page(
        title=f"{a.name} \u2192 {b.name}",
        subtitle=count_of(len(found.rows), "matrix"),
        blocks=tuple(comparison_summary(found)),
        figures=figures,
        first=first,
        main=_MAIN_CHANGES,
        facts=_CHANGE_FACTS,
        grid=grid_of(found.rows),
        panels=depth_panels({labels[0]: a.rows, labels[1]: b.rows}),
        series=labels,
        spectra=spectra,
        origin=tuple(provenance_of_all(found.provenance)),
    )


def _pair(row: Cells, drawn: tuple[Mapping[str, Esd], Mapping[str, Esd]]) -> tuple[Drawn, ...]:
    """Spectra of one row in the runs that have it."""
    names = (row["name"], row["name_b"] or row["name"])
    absent = {"added": 0, "removed": 1}.get(str(row["change"]))
    return tuple(
        Drawn(side, found[str(name)], caption(row, ("_a", "_b")[side]))
        for side, (name, found) in enumerate(zip(names, drawn, strict=True))
        if side != absent and name in found
    )


def _changes(rows: Sequence[Cells]) -> Iterable[Figures]:
    """What relates the two runs, then every metric of both and its change."""
    for column in (*(c for c in IDENTITY if c.name in _MATRIX), *COMPARED):
        values = tuple(row.get(column.name) for row in rows)
        if any(value is not None for value in values):
            yield Figures(column, "from A to B", values)
    for ending, group, word in (
        ("delta", "change of a metric", "B minus A: "),
        ("a", "metrics of A", "A: "),
        ("b", "metrics of B", "B: "),
    ):
        for metric in metric_columns():
            name, meaning = f"{metric.name}_{ending}", word + metric.meaning
            column = replace(metric, name=name, meaning=meaning)
            if ending == "delta":  # whose values are read in another way
                column = Column(name, metric.kind, meaning)
            values = tuple(row[column.name] for row in rows)
            if any(value is not None for value in values):
                yield Figures(column, group, values)


def wide_page(found: Wide) -> Page:
    """The page of several runs beside the first."""
    labels = [f"{x.upper()}: {name}" for x, name in zip(found.letters, found.names, strict=True)]
    shown = spread(len(found.runs), MOST_OVERLAID)
    drawn = [_by_row(found, i) for i in shown]
    spectra = tuple(
        tuple(Drawn(k, *one) for k, by_row in enumerate(drawn) if (one := by_row.get(row["name"])))
        for row in found.rows
    )
    last = found.letters[-1]
    told = tuple(f"{name}_{x}" for name in _COMPARED for x in found.letters)
    return Page(
        title=f"{found.names[0]} and {len(found.names) - 1} more",
        subtitle=count_of(len(found.rows), "matrix"),
        blocks=(Paragraph(", ".join(labels)),),
        figures=tuple(_wide_figures(found)),
        first=f"alpha_delta_{last}",
        main=("name", "block", "role", "present", *told),
        facts=("role", "present", *told),
        grid=grid_of(found.rows),
        panels=depth_panels(
            {label: run.rows for label, run in zip(labels, found.runs, strict=True)}
        ),
        series=tuple(labels[i] for i in shown),
        spectra=spectra,
        origin=tuple(provenance_of_all(found.provenance)),
    )


def _by_row(found: Wide, i: int) -> dict[Value, tuple[Esd, str]]:
    """Spectrum and fit of one run for each row that it has, by the name of the row."""
    run = found.runs[i]
    drawn, rows = esds(run), by_plain_name(run.rows, found.maps)
    of_row: dict[Value, tuple[Esd, str]] = {}
    for row in found.rows:
        name = str(row["name"])
        own = rows.get(plain_name(name, found.maps)) or rows.get(name)
        if own is not None and own["name"] in drawn:
            of_row[name] = drawn[str(own["name"])], caption(own)
    return of_row


def _wide_figures(found: Wide) -> Iterable[Figures]:
    """What names the rows, then every metric of each run, and its change against the first."""
    known = {column.name: column for column in (*IDENTITY, *COMPARED)}
    columns = [(known[name], "matrix") for name in (*_MATRIX, "present")]
    for metric in metric_columns():
        for x in found.letters:
            meaning = f"{x.upper()}: {metric.meaning}"
            column = replace(metric, name=f"{metric.name}_{x}", meaning=meaning)
            columns.append((column, f"metrics of {x.upper()}"))
        for x in found.letters[1:]:
            meaning = f"{x.upper()} minus A: {metric.meaning}"
            column = Column(f"{metric.name}_delta_{x}", metric.kind, meaning)
            columns.append((column, f"change from A to {x.upper()}"))
    for column, group in columns:
        values = tuple(row[column.name] for row in found.rows)
        if any(value is not None for value in values):
            yield Figures(column, group, values)
