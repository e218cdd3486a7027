"""A run, a comparison or a training becomes a page: which columns, which charts, which spectra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from weightscope.charting import (
    Cells,
    column_named,
    esds,
    grid_of,
    over_depth,
    over_steps,
)
from weightscope.charts import Grid, Panels
from weightscope.columns import IDENTITY, Column
from weightscope.comparison import Comparison, metric_columns
from weightscope.esd import Esd
from weightscope.evaluate import columns_of
from weightscope.page import Drawn, Figures, Page
from weightscope.present import short, summary_blocks
from weightscope.present_comparison import comparison_summary
from weightscope.present_provenance import provenance_lines, provenance_of_all
from weightscope.present_trajectory import trajectory_summary
from weightscope.run import Run
from weightscope.settings import FAMILIES
from weightscope.text import count_of
from weightscope.trajectory import Trajectory, summarise

MOST_SPECTRA = 1000
"""A page holds no more spectra than this: one of each module and block first, then the rest."""
MOST_STEPS = 4
"""Spectra of more training steps than this are not overlaid."""
OVER_DEPTH = ("alpha", "erg_gap", "welore_rank_ratio", "condition_number")
OVER_STEPS = ("alpha", "alpha_ks", "spectral_norm", "stable_rank", "welore_rank_ratio")
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
    found = _some(esds(run), grid, [str(row["name"]) for row in run.rows])
    rows = {str(row["name"]): row for row in run.rows}
    spectra = tuple(
        (Drawn(0, found[name], _caption(row)),) if name in found else ()
        for name, row in rows.items()
    )
    return Page(
        run.name,
        _size(run),
        tuple(summary_blocks(run)),
        tuple(_run_figures(run.rows)),
        "alpha",
        _MAIN,
        _FACTS,
        grid,
        _panels({run.name: run.rows}),
        (run.name,),
        spectra,
        tuple(provenance_lines(run.provenance)),
    )


def _size(run: Run) -> str:
    params = int(run.summary["params_total"])
    return f"{count_of(len(run.rows), 'matrix')}, {params:,} parameters"


def _run_figures(rows: Sequence[Cells]) -> Iterable[Figures]:
    """Every column that has a value, under the name of its family."""
    families = {column.name: family for family in FAMILIES for column in columns_of([family])}
    for column in (*IDENTITY, *columns_of(FAMILIES)):
        values = tuple(row[column.name] for row in rows)
        if any(value is not None for value in values):
            yield Figures(column, families.get(column.name, "matrix"), values)


def _panels(series: Mapping[str, Sequence[Cells]]) -> tuple[Panels, ...]:
    found = (over_depth(series, column_named(name)) for name in OVER_DEPTH)
    return tuple(panels for panels in found if panels.panels)


def _some(found: Mapping[str, Esd], grid: Grid, names: Sequence[str]) -> Mapping[str, Esd]:
    """As many spectra as a page holds, spread over the network."""
    if len(found) <= MOST_SPECTRA:
        return found
    first = [cell[0] for line in grid.cells for cell in line if cell]
    order = dict.fromkeys([*first, *range(len(names))])
    kept = [names[i] for i in order if names[i] in found][:MOST_SPECTRA]
    return {name: found[name] for name in kept}


def _caption(row: Cells, suffix: str = "") -> str:
    """The fit of one matrix in a few words."""
    alpha, error, ks, n = (
        row.get(f"{name}{suffix}") for name in ("alpha", "alpha_stderr", "alpha_ks", "alpha_n_tail")
    )
    if alpha is None:
        return ""
    return f"alpha {short(alpha)} \u00b1{short(error, 2)}, ks {short(ks, 2)}, {n} in the tail"


_RELATIONS = (
    Column("name", "text", "tensor name in the first run, else in the second"),
    Column("name_b", "text", "its name in the second run, where that is another"),
    Column("block", "integer", "first numeric component of the name (the layer index)"),
    Column("module", "text", "name without .weight, # for the block and expert index"),
    Column("role", "text", "what the matrix does, such as attn_q, mlp_up, embedding, conv"),
    Column("change", "text", "common, added, removed or resized"),
    Column("reading", "text", "what happened to the weights, in a word"),
    Column("alpha_moved", "text", "whether alpha changed by more than its uncertainty"),
    Column("band_change", "text", "HTSR's band before and after, where it changed"),
    Column("class_change", "text", "WeLore's class before and after, where it changed"),
    Column("spectrum_w1", "number", "Wasserstein-1 distance of the log eigenvalues"),
    Column("rel_change", "number", "|B - A| / |A|, Frobenius norms"),
    Column("cosine", "number", "<A, B> / (|A| |B|), Frobenius"),
    Column("delta_stable_rank", "number", "stable rank of the difference"),
    Column("delta_rank_90", "integer", "directions that hold 90 % of the difference's energy"),
    Column("delta_rank_95", "integer", "directions that hold 95 % of the difference's energy"),
    Column("delta_rank_99", "integer", "directions that hold 99 % of the difference's energy"),
    Column("delta_alpha", "number", "power-law exponent of the difference's spectrum"),
    Column("delta_top_share", "number", "energy of the difference in its first direction"),
    Column("subspace_left", "number", "mean squared cosine of the leading left directions"),
    Column("subspace_right", "number", "mean squared cosine of the leading right directions"),
    Column("intruders", "integer", "leading directions of B that lie outside A's leading space"),
)
_MAIN_CHANGES = (
    *("name", "block", "role", "change", "reading", "alpha_a", "alpha_b", "alpha_delta"),
    *("alpha_moved", "spectrum_w1", "rel_change", "cosine", "delta_rank_99", "delta_stable_rank"),
    *("subspace_left", "intruders", "band_change", "class_change"),
)
_COMPARED = ("alpha", "alpha_ks", "erg_gap", "stable_rank", "effective_rank", "welore_rank_ratio")
_CHANGE_FACTS = (
    *(column.name for column in _RELATIONS if column.name not in {"name", "block", "module"}),
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
        _panels({labels[0]: a.rows, labels[1]: b.rows}),
        labels,
        spectra,
        tuple(provenance_of_all(found.provenance)),
    )


def _pair(row: Cells, drawn: tuple[Mapping[str, Esd], Mapping[str, Esd]]) -> tuple[Drawn, ...]:
    """Spectra of one row in the runs that have it."""
    names = (row["name"], row["name_b"] or row["name"])
    absent = {"added": 0, "removed": 1}.get(str(row["change"]))
    return tuple(
        Drawn(side, found[str(name)], _caption(row, ("_a", "_b")[side]))
        for side, (name, found) in enumerate(zip(names, drawn, strict=True))
        if side != absent and name in found
    )


def _changes(rows: Sequence[Cells]) -> Iterable[Figures]:
    """What relates the two runs, then every metric of both and its change."""
    for column in _RELATIONS:
        values = tuple(row[column.name] for row in rows)
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


_TRACKED = (
    *("alpha", "alpha_ks", "alpha_n_tail", "alpha_farms", "erg_gap", "condition_number"),
    *("stable_rank", "effective_rank", "welore_rank_ratio", "mp_spikes", "mp_softrank"),
    *("spectral_norm", "frobenius_norm", "noise_p"),
)
MOST_COLUMNS = 12
"""The table shows a metric at no more steps than this; the charts show it at all of them."""


def trajectory_page(found: Trajectory, wanted: Sequence[str]) -> Page:
    """The page of a training: every metric over its steps, and spectra of some of them.

    Args:
        found: The training.
        wanted: Metrics to show, the one to begin with first; usual ones are added.
    """
    metrics = tuple(dict.fromkeys([*wanted[: len(_TRACKED)], *_TRACKED]))
    charted = dict.fromkeys([*wanted[:1], *OVER_STEPS])
    panels = (over_steps(found.steps, found.rows, column_named(name)) for name in charted)
    shown = _spread(len(found.steps), MOST_STEPS)
    drawn = [esds(found.runs[i]) for i in shown]
    rows = [_last_row(found, name) for name in found.names]
    summary, figures = summarise(found), [_steps_of(found, name) for name in metrics]
    ends = (found.steps[0], found.steps[-1], "change")
    told = [f"{name}_{end}" for name in dict.fromkeys([metrics[0], *_COMPARED]) for end in ends]
    return Page(
        f"{found.runs[0].name} \u2192 {found.runs[-1].name}",
        f"{count_of(len(found.names), 'matrix')} over {count_of(len(found.steps), 'step')}",
        tuple(trajectory_summary(found, summary)),
        (*_identity(rows), *chain.from_iterable(figures)),
        f"{metrics[0]}_change",
        ("name", "block", "role", *told),
        ("rows", "cols", "dtype", *told),
        grid_of(rows),
        tuple(found for found in panels if found.panels),
        tuple(f"step {found.steps[i]}" for i in shown),
        tuple(_steps_drawn(found, name, shown, drawn) for name in found.names),
        tuple(provenance_of_all([run.provenance for run in found.runs])),
    )


def _spread(count: int, most: int) -> list[int]:
    """At most so many indices below a count, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _last_row(found: Trajectory, name: str) -> Cells:
    return {**next(rows[name] for rows in reversed(found.rows) if name in rows), "name": name}


def _identity(rows: Sequence[Cells]) -> list[Figures]:
    wanted = ("name", "block", "module", "role", "rows", "cols", "dtype")
    return [
        Figures(column, "matrix", tuple(row[column.name] for row in rows))
        for column in IDENTITY
        if column.name in wanted
    ]


def _steps_of(found: Trajectory, metric: str) -> Iterable[Figures]:
    """One metric at some steps, and its change from the first to the last."""
    column = column_named(metric)
    values = [found.values(name, metric) for name in found.names]
    if not any(value is not None for line in values for value in line):
        return
    change = tuple(None if v[0] is None or v[-1] is None else v[-1] - v[0] for v in values)
    meaning = f"last step minus first: {column.meaning}"
    changed = replace(column, name=f"{metric}_change", kind="number", meaning=meaning)
    yield Figures(changed, metric, change)
    for i in _spread(len(found.steps), MOST_COLUMNS):
        at = replace(column, name=f"{metric}_{found.steps[i]}")
        at = replace(at, meaning=f"at step {found.steps[i]}: {column.meaning}")
        yield Figures(at, metric, tuple(v[i] for v in values))


def _steps_drawn(
    found: Trajectory, name: str, shown: Sequence[int], drawn: Sequence[Mapping[str, Esd]]
) -> tuple[Drawn, ...]:
    """Spectra of one matrix at some steps, without the laws that would hide each other."""
    lines = []
    for series, i in enumerate(shown):
        row = found.rows[i].get(name)
        esd = drawn[series].get(str(row["name"])) if row else None
        if row and esd is not None:
            esd = replace(esd, bulk=None, shuffled=None, erg_cut=None)
            lines.append(Drawn(series, esd, _caption(row)))
    return tuple(lines)
