"""``weightscope compress``: a checkpoint of low-rank factors."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from weightscope.cli import options as o
from weightscope.cli.explained import explained

LocalModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A .safetensors file, a folder with shards, or an index file, on this machine.",
        show_default=False,
    ),
]
PlanFileOption = Annotated[
    Path,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="What weightscope plan RUN --for welore --out FILE has written.",
        show_default=False,
    ),
]
FolderOption = Annotated[
    Path,
    typer.Option(
        "--out", metavar="DIR", help="Folder of the compressed checkpoint.", show_default=False
    ),
]
ForceFolderOption = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Replace existing output; a folder only where it is a compressed checkpoint.",
    ),
]


def compress(
    model: LocalModelArgument,
    plan: PlanFileOption,
    out: FolderOption,
    device: o.DeviceOption = "auto",
    threads: o.ThreadsOption = 0,
    format: o.FormatOption = None,
    csv: o.CsvOption = None,
    json: o.JsonOption = None,
    bom: o.BomOption = False,
    force: ForceFolderOption = False,
    quiet: o.QuietOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Write a checkpoint in which the matrices of a plan are two factors each.

    One matrix is in memory at a time. Everything else is copied as it is. The folder appears when
    all of it is written. The table says, per matrix, which error was planned, which one the
    truncation has and which one its factors have as stored. Load the result with
    [bold]weightscope.integrations.factorised.load_compressed(DIR)[/].

    [bold]Examples[/]

      weightscope analyze ./my-model

      weightscope plan my-model.weightscope --for welore --target 0.3 --out ranks.json

      weightscope compress ./my-model --plan ranks.json --out ./my-model-70
    """
    with explained(debug, f"{out} was not written."):
        from weightscope.compressed import compression_record, why_not_ours
        from weightscope.errors import CheckpointError
        from weightscope.outputs import check_whole_folder
        from weightscope.rank_plan import read_rank_plan

        found = read_rank_plan(plan)
        if not Path(model).expanduser().exists():
            raise CheckpointError(
                f"{model}: no such file or folder; compress reads a model on this machine, so "
                "download one from the hub first"
            )
        check_whole_folder(out, force, why_not_ours)
        from weightscope.cli.emit import Emission, Output, emit

        output = Output(format, csv, json, None, None, bom, force, quiet=quiet)
        output.check(())
        from weightscope import compress as act
        from weightscope.analysis import with_resources
        from weightscope.cli.progress import Talk
        from weightscope.present.compression import COLUMNS, compression_report, origin_lines
        from weightscope.settings import Settings
        from weightscope.sources import open_model

        checkpoint = open_model(model)
        with Talk(quiet) as talk:
            settings, _ = with_resources(Settings(device=device, threads=threads), talk.note)
            done = act.compress(checkpoint, found, out, settings, talk)
        record = compression_record(found, done)
        command = shlex.join(["weightscope", *sys.argv[1:]])
        facts = {"command": command, **{key: record[key] for key in record if key != "matrices"}}
        emission = Emission(
            COLUMNS,
            record["matrices"],
            facts,
            lambda: compression_report(found, done),
            origin_lines(found, command),
        )
        emit(emission, output)
