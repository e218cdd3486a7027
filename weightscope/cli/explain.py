"""``weightscope explain``: what a figure means, and when not to believe it."""

from __future__ import annotations

import difflib

from weightscope.cli import options as o
from weightscope.cli.explained import explained


def explain(
    metric: o.MetricArgument = None,
    debug: o.DebugOption = False,
) -> None:
    """Explain a metric: formula, range, how to read it, when not to believe it, source.

    Takes a column, a family, a status or a warning code.

    [bold]Examples[/]

      weightscope explain

      weightscope explain alpha

      weightscope explain welore

      weightscope explain tail_small
    """  # fmt: skip
    with explained(debug):
        from weightscope.columns import CODES, IDENTITY
        from weightscope.errors import OptionError
        from weightscope.evaluate import all_columns, columns_of
        from weightscope.explain import code_report, columns_report, entries_report
        from weightscope.settings import FAMILIES
        from weightscope.sinks import terminal

        if metric is None:
            families = [("identity", IDENTITY), *((f, columns_of([f])) for f in FAMILIES)]
            terminal.write(columns_report(families))
            return
        known = {column.name: column for column in all_columns()}
        groups = [IDENTITY, *(columns_of([family]) for family in FAMILIES)]
        if metric in known:
            family = next(group for group in groups if known[metric] in group)
            report = entries_report([known[metric]], family)
        elif metric in FAMILIES:
            report = entries_report(columns_of([metric]))
        elif metric in CODES:
            report = code_report(metric, CODES[metric])
        else:
            names = dict.fromkeys([*known, *FAMILIES, *CODES])
            close = difflib.get_close_matches(metric, names, 3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise OptionError(f"{metric!r} is no column, family, status or warning{hint}")
        terminal.write(report)
