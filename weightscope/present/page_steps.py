"""A training becomes a page: every metric over its steps, and some of its spectra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from weightscope.charting import Cells, column_named, esds, grid_of, over_steps
from weightscope.columns import IDENTITY, Column
from weightscope.drawings.esd import Esd
from weightscope.drawings.page import Drawn, Figures, Page
from weightscope.present.page import MOST_OVERLAID, caption, spread
from weightscope.present.provenance import provenance_of_all
from weightscope.present.trajectory import trajectory_summary
from weightscope.report import Block, Paragraph
from weightscope.text import count_of
from weightscope.trajectory import Trajectory, summarise

OVER_STEPS = ("alpha", "alpha_ks", "spectral_norm", "stable_rank", "welore_rank_ratio")
_TOLD = ("alpha", "alpha_ks", "erg_gap", "stable_rank", "effective_rank", "welore_rank_ratio")
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
    shown = spread(len(found.steps), MOST_OVERLAID)
    drawn = [esds(found.runs[i]) for i in shown]
    rows = [_last_row(found, name) for name in found.names]
    summary, figures = summarise(found), [_steps_of(found, name) for name in metrics]
    ends = (found.steps[0], found.steps[-1], "change")
    told = [f"{name}_{end}" for name in dict.fromkeys([metrics[0], *_TOLD]) for end in ends]
    return Page(
        title=f"{found.runs[0].name} \u2192 {found.runs[-1].name}",
        subtitle=" over ".join(
            (count_of(len(found.names), "matrix"), count_of(len(found.steps), "step"))
        ),
        blocks=tuple(_words(found, summary)),
        figures=(*_identity(rows), *chain.from_iterable(figures)),
        first=f"{metrics[0]}_change",
        main=("name", "block", "role", *told),
        facts=("rows", "cols", "dtype", *told),
        grid=grid_of(rows),
        panels=tuple(chart for chart in panels if chart.panels),
        series=tuple(f"step {found.steps[i]}" for i in shown),
        spectra=tuple(_steps_drawn(found, name, shown, drawn) for name in found.names),
        origin=tuple(provenance_of_all([run.provenance for run in found.runs])),
    )


def _words(found: Trajectory, summary: Mapping[str, Any]) -> Iterable[Block]:
    """What happened, first of all what moved first; then the medians over time."""
    medians, first, *others = trajectory_summary(found, summary)
    yield replace(first, style="strong") if isinstance(first, Paragraph) else first
    yield from (*others, medians)


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
    changed = Column(f"{metric}_change", "number", f"last step minus first: {column.meaning}")
    yield Figures(changed, metric, change)
    for i in spread(len(found.steps), MOST_COLUMNS):
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
            lines.append(Drawn(series, esd, caption(row)))
    return tuple(lines)
