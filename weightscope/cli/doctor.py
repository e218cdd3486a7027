"""``weightscope doctor``: what this installation stands on."""

from __future__ import annotations

from weightscope.cli import options as o
from weightscope.cli.explained import explained
from weightscope.cli.selftest import TableFormatOption


def doctor(
    format: TableFormatOption = o.Format.table,
    debug: o.DebugOption = False,
) -> None:
    """Show versions, linear algebra, threads, memory, devices, caches, and what to mend.

    Nothing is changed, fetched or sent, and no token is shown.

    [bold]Examples[/]

      weightscope doctor

      weightscope doctor --format json > machine.json
    """
    with explained(debug):
        from weightscope import doctor as examination
        from weightscope.outputs import STDOUT, write_output
        from weightscope.sinks import csv, json, markdown, terminal
        from weightscope.version import __version__

        found = examination.examine()
        if format is o.Format.json:
            write_output(STDOUT, json.dumps(found.as_record()))
        elif format is o.Format.csv:
            write_output(
                STDOUT, csv.render(("topic", "name", "value"), examination.fact_rows(found))
            )
        elif format is o.Format.markdown:
            report = examination.diagnosis_report(found)
            write_output(STDOUT, markdown.render(report, f"weightscope {__version__}"))
        else:
            terminal.write(examination.diagnosis_report(found))
