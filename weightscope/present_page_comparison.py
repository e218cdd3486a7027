"""Two runs become a page: what changed, and both spectra of every matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from weightscope.charting import Cells, esds, grid_of
from weightscope.columns import IDENTITY
from weightscope.comparison import Comparison, metric_columns
from weightscope.esd import Esd
from weightscope.glossary import COMPARED
from weightscope.page import Drawn, Figures, Page
from weightscope.present_comparison import comparison_summary
from weightscope.present_page import caption, depth_panels
from weightscope.present_provenance import provenance_of_all
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
        f"{a.name} \u2192 {b.name}",
        count_of(len(found.rows), "matrix"),
        tuple(comparison_summary(found)),
        figures,
        first,
        _MAIN_CHANGES,
        _CHANGE_FACTS,
        grid_of(found.rows),
        depth_panels({labels[0]: a.rows, labels[1]: b.rows}),
        labels,
        spectra,
        tuple(provenance_of_all(found.provenance)),
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
            column = replace(metric, name=f"{metric.name}_{ending}", meaning=word + metric.meaning)
            values = tuple(row[column.name] for row in rows)
            if any(value is not None for value in values):
                yield Figures(column, group, values)
