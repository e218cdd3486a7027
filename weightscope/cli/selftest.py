"""``weightscope selftest``: does this installation measure what is known?"""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from weightscope.cli import options as o
from weightscope.cli.explained import explained, say

FAILED = 3
OnlyOption = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation
    typer.Option(
        "--only",
        metavar="FAMILY",
        help="Families to test (repeatable or comma-separated): exponents spikes ranks kappas erg "
        "intervals. All by default.",
        show_default=False,
    ),
]
TableFormatOption = Annotated[
    o.Format,
    typer.Option("--format", help="What to print.", rich_help_panel="Output"),
]
SelftestSeedOption = Annotated[
    int, typer.Option("--seed", help="Seed of the planted matrices; the limits hold for any.")
]


def selftest(
    only: OnlyOption = None,
    device: o.DeviceOption = "auto",
    threads: o.ThreadsOption = 0,
    seed: SelftestSeedOption = 0,
    format: TableFormatOption = o.Format.table,
    quiet: o.QuietOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Measure matrices whose figures are known, on this device; exit with 3 where one is wrong.

    Takes about a minute. Bias is the mean error, spread its standard deviation.

    [bold]Examples[/]

      weightscope selftest

      weightscope selftest --device cuda --format json

      weightscope selftest --only exponents --only ranks
    """
    with explained(debug):
        from weightscope import selftest as planted_truth
        from weightscope.outputs import STDOUT, write_output
        from weightscope.present import selftest as present
        from weightscope.settings import Settings
        from weightscope.sinks import csv, json, markdown, terminal
        from weightscope.version import __version__

        settings = Settings(device=device, threads=threads, seed=seed)
        families = " ".join(only or ()).replace(",", " ").split()
        note = (lambda _: None) if quiet else say
        found = planted_truth.selftest(settings, families, note)
        rows = present.selftest_rows(found)
        if format is o.Format.json:
            facts = present.selftest_facts(found)
            write_output(STDOUT, json.dumps({**facts, "checks": rows}))
        elif format is o.Format.csv:
            write_output(STDOUT, csv.render(list(rows[0]), rows))
        elif format is o.Format.markdown:
            report = present.selftest_report(found)
            write_output(STDOUT, markdown.render(report, f"weightscope {__version__}"))
        else:
            terminal.write(present.selftest_report(found))
        if found.failed:
            raise typer.Exit(FAILED)
