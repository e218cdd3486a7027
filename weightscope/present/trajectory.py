"""Trajectories for people: sparklines and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightscope.evaluate import Row
from weightscope.outcome import Value
from weightscope.present.comparison import not_shown
from weightscope.present.run import sorted_rows
from weightscope.report import Block, Cell, Paragraph, Report, Table
from weightscope.text import short
from weightscope.trajectory import Trajectory, change_rows, sentences_of

_LEVELS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None]) -> str:
    """Values as a row of bars between their own minimum and maximum; a gap where one is missing."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    return "".join(
        " " if value is None else _LEVELS[int((value - low) / span * (len(_LEVELS) - 1) + 0.5)]
        for value in values
    )


def trajectory_report(
    found: Trajectory, summary: Any, metric: str, sort: str | None = None, top: int | None = None
) -> Report:
    """One line per matrix, then what happened.

    Args:
        found: The runs.
        summary: Of ``summarise``.
        metric: What the lines show.
        sort: One of ``CHANGE_COLUMNS``, as ``sorted_rows`` takes it; None for the runs' order.
        top: Show at most so many lines.
    """
    known = [row for row in change_rows(found, metric) if row["first"] is not None]
    shown = sorted_rows(known, sort)[:top]
    blocks: list[Block] = [
        Paragraph(f"Step {step} is {run.share.label} of {run.name}.", "warn")
        for step, run in zip(found.steps, found.runs, strict=True)
        if run.share
    ]
    blocks += [_lines(found, shown, metric), *not_shown(len(shown), len(known))]
    blocks += trajectory_summary(found, summary)
    title = f"{metric} over {len(found.steps)} steps: {', '.join(map(str, found.steps))}"
    return Report(title, tuple(blocks))


def trajectory_summary(found: Trajectory, summary: Any) -> list[Block]:
    """What happened as a whole: medians over time, what moved first, what left its band."""
    return [_medians(found, summary), *map(Paragraph, sentences_of(summary))]


def _lines(found: Trajectory, rows: Sequence[Row], metric: str) -> Table:
    lines = tuple(
        (
            Cell(str(row["name"]).removesuffix(".weight")),
            Cell(sparkline(found.values(str(row["name"]), metric))),
            Cell(short(row["first"])),
            Cell(short(row["last"])),
            Cell(_signed(row["change"])),
        )
        for row in rows
    )
    headers = ("name", metric, "first", "last", "change")
    return Table("", headers, lines, (False, False, True, True, True))


def _signed(change: Value) -> str:
    return ("+" if isinstance(change, float) and change > 0 else "") + short(change)


def _medians(found: Trajectory, summary: Any) -> Table:
    rows = tuple(
        (Cell(role), Cell(sparkline(values)), *(Cell(short(value)) for value in values))
        for role, values in summary["alpha_median"].items()
    )
    headers = ("role", "", *map(str, found.steps))
    numeric = (False, False, *(True,) * len(found.steps))
    return Table(
        "Median alpha per role", headers, rows, numeric, tuple(map(str, found.steps[1:-1]))
    )
