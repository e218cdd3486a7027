"""One run to standard output and files, in the formats asked for."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from weightscope.cli.options import Format
from weightscope.errors import OptionError
from weightscope.evaluate import Row, all_columns
from weightscope.outputs import STDOUT, check_target, write_output
from weightscope.present import run_report
from weightscope.run import Run
from weightscope.sinks import csv, json, markdown, weightwatcher


@dataclass(frozen=True)
class Output:
    """What to emit of a run.

    Attributes:
        format: For standard output; None chooses by where it goes.
        csv: CSV file, ``-`` for standard output.
        json: JSON file, ``-`` for standard output.
        sort: Column that orders the table.
        top: Most rows of the table.
        ww_names: Use WeightWatcher's columns.
        bom: Begin CSV with a byte-order mark.
        force: Replace existing files.
    """

    format: Format | None = None
    csv: str | None = None
    json: str | None = None
    sort: str | None = None
    top: int | None = None
    ww_names: bool = False
    bom: bool = False
    force: bool = False

    def check(self) -> None:
        """Refuse, before any work, what could not be written after it.

        Raises:
            OutputError: A file exists or cannot be created.
            OptionError: Options that contradict each other.
        """
        if self.csv == STDOUT and self.json == STDOUT:
            raise OptionError("--csv - and --json - cannot both have standard output")
        if self.sort is not None:
            column = self.sort.removeprefix("-")
            if column not in {c.name for c in all_columns()}:
                raise OptionError(
                    f"--sort {column!r}: no such column; weightscope explain lists them"
                )
        for target in filter(None, (self.csv, self.json)):
            check_target(target, self.force)
        if self.csv and self.csv != STDOUT:
            check_target(self.csv + ".run.json", self.force)


def emit(run: Run, output: Output) -> None:
    """Write everything that was asked for; standard output last."""
    if self_written := output.csv:
        write_output(self_written, _csv(run, output), output.bom)
        if self_written != STDOUT:
            write_output(self_written + ".run.json", json.facts(run))
    if output.json:
        write_output(output.json, _json(run, output))
    if STDOUT in {output.csv, output.json}:
        return
    kind = output.format or (Format.table if sys.stdout.isatty() else Format.csv)
    if kind is Format.csv:
        write_output(STDOUT, _csv(run, output), output.bom)
    elif kind is Format.json:
        write_output(STDOUT, _json(run, output))
    else:
        report = run_report(run, output.sort, output.top)
        if kind is Format.markdown:
            write_output(STDOUT, markdown.render(report, provenance_line(run)))
        else:
            from weightscope.sinks import terminal

            terminal.write(report)


def provenance_line(run: Run) -> str:
    """What produced a run, in one line."""
    p = run.provenance
    environment, settings = p["environment"], p["settings"]
    revision = f", {p['source']['revision']}" if p["source"]["revision"] else ""
    return (
        f"weightscope {p['weightscope']}, schema {p['schema']}{revision}, "
        f"{environment['device_name']} {environment['compute_dtype']}, "
        f"{settings['threads']} threads, seed {settings['seed']}"
    )


def _csv(run: Run, output: Output) -> str:
    if output.ww_names:
        return csv.render(weightwatcher.NAMES, weightwatcher.rows(run.rows))
    return csv.render([column.name for column in all_columns()], run.rows)


def _json(run: Run, output: Output) -> str:
    rows: list[Row] = weightwatcher.rows(run.rows) if output.ww_names else list(run.rows)
    return json.render(run, rows)
