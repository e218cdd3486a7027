"""``weightscope inspect``: headers only, instant at any size."""

from __future__ import annotations

import sys

from weightscope.cli import options as o
from weightscope.cli.explained import explained, say


def inspect(
    model: o.ModelArgument,
    include: o.IncludeOption = None,
    exclude: o.ExcludeOption = None,
    conv: o.ConvOption = "slices",
    format: o.FormatOption = None,
    quiet: o.QuietOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Show what a checkpoint holds and what analysing it would cost; reads headers only.

    [bold]Examples[/]

      weightscope inspect ./my-model

      weightscope inspect org/name --format json
    """
    with explained(debug):
        from weightscope.inspection import (
            inspect_checkpoint,
            inspection_record,
            inspection_report,
            patterns_table,
        )
        from weightscope.layouts.config import model_facts
        from weightscope.outputs import STDOUT, write_output
        from weightscope.plan import make_plan
        from weightscope.recipe import Farms
        from weightscope.resources import available_threads
        from weightscope.select import select
        from weightscope.settings import Settings
        from weightscope.sinks import csv, json, markdown, terminal
        from weightscope.sources import open_model
        from weightscope.version import __version__

        settings = Settings(tuple(include or ()), tuple(exclude or ()), conv=conv)  # type: ignore[arg-type]
        checkpoint = open_model(model)
        for text in () if quiet else checkpoint.notes:
            say(text)
        selection = select(checkpoint, settings.include, settings.exclude, settings.conv)
        plan = make_plan(selection.matrices, Farms(), available_threads())
        found = inspect_checkpoint(checkpoint, selection, plan, model_facts(checkpoint.config))
        kind = format or (o.Format.table if sys.stdout.isatty() else o.Format.csv)
        if kind is o.Format.json:
            write_output(STDOUT, json.dumps(inspection_record(found)))
        elif kind is o.Format.csv:
            write_output(STDOUT, csv.render(*patterns_table(found)))
        elif kind is o.Format.markdown:
            report = inspection_report(found)
            write_output(STDOUT, markdown.render(report, f"weightscope {__version__}"))
        else:
            terminal.write(inspection_report(found))
