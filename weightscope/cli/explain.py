"""``weightscope explain``: what a figure means, and when not to believe it."""

from __future__ import annotations

from weightscope.cli import options as o
from weightscope.cli.explained import explained


def explain(
    metric: o.MetricArgument = None,
    debug: o.DebugOption = False,
) -> None:
    """Explain a metric: formula, range, how to read it, when not to believe it, source.

    Takes a column of any table, a family, a status, a warning code, or a word that a cell holds.

    [bold]Examples[/]

      weightscope explain

      weightscope explain alpha

      weightscope explain welore

      weightscope explain tail_small

      weightscope explain random-like

      weightscope explain full-rank-update
    """  # fmt: skip
    with explained(debug):
        from weightscope.explain import explanation, overview
        from weightscope.sinks import terminal

        terminal.write(overview() if metric is None else explanation(metric))
