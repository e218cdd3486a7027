"""``weightscope merge``: the parts of a model become one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightscope.cli import options as o
from weightscope.cli.explained import explained, say

PartsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...", help="Run folders of parts, made with --shard.", show_default=False
    ),
]
MergedOption = Annotated[
    Path,
    typer.Option("--out", metavar="RUN", help="Run folder to write.", show_default=False),
]
PartialOption = Annotated[
    bool,
    typer.Option("--partial", help="Join what is there; the result is a part of the model too."),
]
CopiesOption = Annotated[
    bool,
    typer.Option(
        "--copies",
        help="The parts read copies of the same files: let modification times differ.",
    ),
]


def merge(
    runs: PartsArgument,
    out: MergedOption,
    partial: PartialOption = False,
    copies: CopiesOption = False,
    force: o.ForceOption = False,
    quiet: o.QuietOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Join the parts that analyze --shard made to one run; needs neither the weights nor torch.

    The result is what one run of all matrices would have written. Parts of different runs are
    refused, naming what differs. Names of matrices that are missing go to standard output, one
    a line, and the exit code is 1.

    [bold]Examples[/]

      weightscope merge huge.shard-*-of-8.weightscope --out huge.weightscope
    """
    with explained(debug):
        from weightscope.cli.gating import check_analysed
        from weightscope.errors import MissingPartsError
        from weightscope.merging import Merging, merge
        from weightscope.outputs import STDOUT, write_output
        from weightscope.text import count_of, printable

        try:
            run, remarks = merge(runs, Merging(out, force, partial, copies))
        except MissingPartsError as error:
            write_output(STDOUT, "".join(f"{printable(name)}\n" for name in error.names))
            raise
        if not quiet:
            for text in remarks:
                say(text)
            say(
                f"{count_of(len(runs), 'part')} joined, {count_of(len(run.rows), 'row')}: "
                f"weightscope report {out}"
            )
        check_analysed(run, out)
