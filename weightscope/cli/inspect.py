"""``weightscope inspect``: headers only, instant at any size."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from weightscope.cli import options as o
from weightscope.cli.explained import explained, say

if TYPE_CHECKING:
    from weightscope.checkpoint import Checkpoint
    from weightscope.settings import Settings

WhyOption = Annotated[
    bool,
    typer.Option(
        "--why",
        help="Print the rule that fired for every tensor (role, layout, exclusion), and what the "
        "model library says where it knows the family; takes seconds instead of none.",
    ),
]


def inspect(
    model: o.ModelArgument,
    include: o.IncludeOption = None,
    exclude: o.ExcludeOption = None,
    conv: o.ConvOption = "slices",
    fused: o.FusedOption = False,
    shard: o.ShardOption = None,
    why: WhyOption = False,
    format: o.FormatOption = None,
    quiet: o.QuietOption = False,
    revision: o.RevisionOption = "",
    token: o.TokenOption = None,
    debug: o.DebugOption = False,
) -> None:
    """Show what a checkpoint holds and what analysing it would cost; reads headers only.

    [bold]Examples[/]

      weightscope inspect ./my-model

      weightscope inspect org/name --format json

      weightscope inspect ./my-model --why

      weightscope inspect ./huge-model --shard 3/8    (what that part would cost)
    """
    with explained(debug):
        from weightscope.checkpoint import Access
        from weightscope.cli.shares import read_shard
        from weightscope.errors import OptionError
        from weightscope.settings import Settings
        from weightscope.sources import open_model

        if why and shard:
            raise OptionError("--why explains every tensor: leave --shard out")
        share = read_shard(shard, quiet) if shard else None
        settings = Settings(
            tuple(include or ()),
            tuple(exclude or ()),
            conv=conv,  # type: ignore[arg-type]
            fused=fused,
            shard=share,
        )
        checkpoint = open_model(model, Access(revision=revision, token=token))
        for text in () if quiet else checkpoint.notes:
            say(text)
        kind = format or (o.Format.table if sys.stdout.isatty() else o.Format.csv)
        (_trace if why else _inspect)(checkpoint, settings, kind)


def _inspect(checkpoint: Checkpoint, settings: Settings, kind: o.Format) -> None:
    from weightscope.folders.partition import portion
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
    from weightscope.select import select_for
    from weightscope.sinks import csv, json, markdown, terminal
    from weightscope.version import __version__

    selection = select_for(checkpoint, settings)
    if settings.shard:
        selection = portion(selection, settings.shard, Farms()).selection
        checkpoint = replace(checkpoint, name=f"{checkpoint.name}, {settings.shard.label}")
    plan = make_plan(selection.matrices, Farms(), available_threads())
    found = inspect_checkpoint(checkpoint, selection, plan, model_facts(checkpoint.config))
    if kind is o.Format.json:
        write_output(STDOUT, json.dumps(inspection_record(found)))
    elif kind is o.Format.csv:
        write_output(STDOUT, csv.render(*patterns_table(found)))
    elif kind is o.Format.markdown:
        report = inspection_report(found)
        write_output(STDOUT, markdown.render(report, f"weightscope {__version__}"))
    else:
        terminal.write(inspection_report(found))


def _trace(checkpoint: Checkpoint, settings: Settings, kind: o.Format) -> None:
    from weightscope.integrations.architecture import modules_of
    from weightscope.outputs import STDOUT, write_output
    from weightscope.select import findings_for
    from weightscope.sinks import csv, json, markdown, terminal
    from weightscope.tracing import traces, traces_record, traces_report, traces_table
    from weightscope.version import __version__

    modules, why_not = modules_of(checkpoint)
    found = traces(findings_for(checkpoint, settings), modules)
    if kind is o.Format.json:
        write_output(STDOUT, json.dumps(traces_record(found, why_not)))
    elif kind is o.Format.csv:
        write_output(STDOUT, csv.render(*traces_table(found)))
    elif kind is o.Format.markdown:
        report = traces_report(checkpoint.name, found, why_not)
        write_output(STDOUT, markdown.render(report, f"weightscope {__version__}"))
    else:
        terminal.write(traces_report(checkpoint.name, found, why_not))
