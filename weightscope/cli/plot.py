"""``weightscope plot``: one picture of a saved run, on the terminal or in a file."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Optional

import typer

from weightscope.cli import options as o
from weightscope.cli.explained import explained, say


class Kind(StrEnum):
    """What is drawn."""

    esd = "esd"
    ks = "ks"
    heatmap = "heatmap"
    distribution = "distribution"
    depth = "depth"


NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A matrix (its name, or an end that only it has); for heatmap, distribution and "
        "depth, a column.",
        show_default=False,
    ),
]
KindOption = Annotated[
    Kind,
    typer.Option(
        "--kind",
        help="Of a matrix: its spectrum with the laws beside it (esd), or the search for the start "
        "of its tail (ks). Of a column: over block and module (heatmap), per module "
        "(distribution), or along the blocks (depth).",
    ),
]
FileOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--out",
        metavar="FILE",
        help="Write FILE.png, .svg or .pdf (needs weightscope\\[plots]) instead of drawing on the "
        "terminal.",
        show_default=False,
    ),
]


def plot(
    run: o.RunArgument,
    name: NameArgument,
    kind: KindOption = Kind.esd,
    out: FileOption = None,
    force: o.ForceOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Draw one picture of a saved run. Needs neither the weights nor torch.

    [bold]Examples[/]

      weightscope plot my-model.weightscope layers.0.mlp.up_proj

      weightscope plot my-model.weightscope layers.0.mlp.up_proj --kind ks

      weightscope plot my-model.weightscope layers.0.mlp.up_proj --out up_proj.pdf

      weightscope plot my-model.weightscope alpha --kind heatmap --out alpha.svg
    """
    with explained(debug):
        from weightscope import gallery
        from weightscope.errors import OptionError
        from weightscope.folders.storage import load_run
        from weightscope.outcome import Failure
        from weightscope.outputs import check_target, write_binary
        from weightscope.sinks import folder

        if out is not None:
            format = folder.format_of(out)
            check_target(out, force)
            folder.check_installed()
        elif kind.value in gallery.KINDS:
            raise OptionError(f"--kind {kind.value} is drawn to files only: give --out FILE.png")
        found = load_run(run)
        if kind.value in gallery.KINDS:
            picture = gallery.column_picture(found, name, kind.value)
        else:
            row = found.row(name)
            drawn = gallery.matrix_picture(found, row, kind.value)
            if isinstance(drawn, Failure):
                raise OptionError(f"{row['name']}: cannot be drawn: {drawn}")
            picture = drawn
        if out is not None:
            write_binary(out, folder.rendered(picture, format, [found.provenance]))
            say(f"Wrote {out}")
        else:
            from weightscope.sinks import terminal_chart

            terminal_chart.write(picture)
