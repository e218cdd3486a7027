"""``weightscope explain``: what a figure means, and when not to believe it."""

from __future__ import annotations

from weightscope.cli import options as o
from weightscope.cli.explained import explained


def explain(
    metric: o.MetricArgument = None,
    debug: o.DebugOption = False,
) -> None:
    """Explain a metric: formula, range, how to read it, when not to believe it, source.

    Takes a column, a family, a status, a warning code, or a word that a cell holds.

    [bold]Examples[/]

      weightscope explain

      weightscope explain alpha

      weightscope explain welore

      weightscope explain tail_small

      weightscope explain random-like
    """  # fmt: skip
    with explained(debug):
        from weightscope.columns import CODES, IDENTITY
        from weightscope.errors import OptionError
        from weightscope.evaluate import all_columns, columns_of
        from weightscope.explain import code_report, columns_report, entries_report, word_report
        from weightscope.settings import FAMILIES
        from weightscope.sinks import terminal
        from weightscope.text import did_you_mean

        if metric is None:
            families = [("identity", IDENTITY), *((f, columns_of([f])) for f in FAMILIES)]
            terminal.write(columns_report(families))
            return
        known = {column.name: column for column in all_columns()}
        words = {word: column for column in known.values() for word in column.words}
        groups = [IDENTITY, *(columns_of([family]) for family in FAMILIES)]
        if metric in known:
            family = next(group for group in groups if known[metric] in group)
            report = entries_report([known[metric]], family)
        elif metric in FAMILIES:
            report = entries_report(columns_of([metric]))
        elif metric in CODES:
            report = code_report(metric, CODES[metric])
        elif metric in words:
            report = word_report(metric, words[metric])
        else:
            hint = did_you_mean(metric, dict.fromkeys([*known, *FAMILIES, *CODES, *words]))
            raise OptionError(f"{metric!r} is no column, family, status, warning or word{hint}")
        terminal.write(report)
