"""Trajectories for people: sparklines and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightscope.present.comparison import not_shown
from weightscope.report import Block, Cell, Paragraph, Report, Table
from weightscope.text import short
from weightscope.trajectory import Trajectory, sentences_of

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


def trajectory_report(found: Trajectory, summary: Any, metric: str, top: int | None) -> Report:
    """One line per matrix, then what happened."""
    names = found.names[:top]
    blocks: list[Block] = [
        Paragraph(f"Step {step} is {run.share.label} of {run.name}.", "warn")
        for step, run in zip(found.steps, found.runs, strict=True)
        if run.share
    ]
    blocks += [_lines(found, names, metric), *not_shown(len(names), len(found.names))]
    blocks += trajectory_summary(found, summary)
    title = f"{metric} over {len(found.steps)} steps: {', '.join(map(str, found.steps))}"
    return Report(title, tuple(blocks))


def trajectory_summary(found: Trajectory, summary: Any) -> list[Block]:
    """What happened as a whole: medians over time, what moved first, what left its band."""
    return [_medians(found, summary), *map(Paragraph, sentences_of(summary))]


def _lines(found: Trajectory, names: Sequence[str], metric: str) -> Table:
    rows = []
    for name in names:
        values = found.values(name, metric)
        known = [value for value in values if value is not None]
        if known:
            change = known[-1] - known[0]
            rows.append(
                (
                    Cell(name.removesuffix(".weight")),
                    Cell(sparkline(values)),
                    Cell(short(known[0])),
                    Cell(short(known[-1])),
                    Cell(("+" if change > 0 else "") + short(change)),
                )
            )
    headers = ("name", metric, "first", "last", "change")
    return Table("", headers, tuple(rows), (False, False, True, True, True))


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
