"""``weightscope farms``: what window and grid do to the FARMS exponent."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from weightscope.cli import options as o
from weightscope.cli.explained import explained

WindowsOption = Annotated[
    str,
    typer.Option(
        "--windows", metavar="ROWS,...", help="Window rows to try; clipped to each matrix."
    ),
]
GridsOption = Annotated[
    str, typer.Option("--grids", metavar="N,...", help="Most windows along one side to try.")
]
RatioOption = Annotated[
    float, typer.Option("--q", metavar="RATIO", help="Window columns over window rows.")
]
PooledFitOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation
    typer.Option(
        "--xmin",
        metavar="ks|mid|peak|peak-fixed",
        help="How the pooled eigenvalues are fitted: ks, or peak with --compat farms, unless said "
        "otherwise.",
        show_default=False,
    ),
]
PeerOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--compat",
        metavar="farms",
        help="Cut and fit as the authors' code does: its window starts, no floor.",
        show_default=False,
    ),
]


def farms(
    model: o.ModelArgument,
    windows: WindowsOption = "128,256,512,1024",
    grids: GridsOption = "1,4,6,15",
    q: RatioOption = 1.0,
    fit: PooledFitOption = None,
    compat: PeerOption = None,
    include: o.IncludeOption = None,
    exclude: o.ExcludeOption = None,
    farms_embeddings: o.FarmsEmbeddingsOption = False,
    device: o.DeviceOption = "auto",
    threads: o.ThreadsOption = 0,
    format: o.FormatOption = None,
    csv: o.CsvOption = None,
    json: o.JsonOption = None,
    top: o.TopOption = None,
    bom: o.BomOption = False,
    force: o.ForceOption = False,
    quiet: o.QuietOption = False,
    revision: o.RevisionOption = "",
    fetch: o.FetchOption = "auto",
    token: o.TokenOption = None,
    mmap: o.MmapOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Try FARMS over a grid of settings: how far does its exponent hang on window and grid?

    Every matrix is cut into windows of each size, at most so many along each side, and fitted. The
    first setting, which the others are compared with, has the windows of [bold]analyze[/]. CSV is
    tidy: one row per matrix and setting.

    [bold]Examples[/]

      weightscope farms ./my-model

      weightscope farms ./my-model --windows 64,128 --grids 1,6 --xmin mid

      weightscope farms ./my-model --include '*q_proj*' --csv settings.csv

      weightscope farms ./my-model --compat farms --windows 1000,2000 --grids 10,15
    """
    with explained(debug):
        from weightscope import farms_settings as f
        from weightscope.analysis import with_resources
        from weightscope.checkpoint import Access
        from weightscope.cli.emit import Emission, Output, emit
        from weightscope.cli.progress import Talk
        from weightscope.present.provenance import provenance_lines
        from weightscope.provenance import provenance_of
        from weightscope.settings import Settings
        from weightscope.sources import open_model

        output = Output(format, csv, json, None, top, bom, force, quiet=quiet)
        output.check(())
        sizes, counts = f.parse_numbers("--windows", windows), f.parse_numbers("--grids", grids)
        grid = f.settings_grid(sizes, counts, q, fit, compat)  # type: ignore[arg-type]
        wanted = Settings(
            tuple(include or ()),
            tuple(exclude or ()),
            metrics=("farms",),
            farms_embeddings=farms_embeddings,
            compat=compat,
            device=device,
            threads=threads,
        )
        access = Access(fetch, revision, token, mmap)  # type: ignore[arg-type]
        with Talk(quiet) as talk:
            settings, device_name = with_resources(wanted, talk.note)
            checkpoint = open_model(model, access)
            for text in checkpoint.notes:
                talk.note(text)
            found = f.study(checkpoint, grid, settings, talk)
        provenance = provenance_of(settings, checkpoint, device_name)
        emission = Emission(
            f.COLUMNS,
            f.tidy_rows(found),
            {"provenance": provenance, "summary": f.summarise(found)},
            lambda: f.farms_report(found, top),
            provenance_lines(provenance),
        )
        emit(emission, output)
