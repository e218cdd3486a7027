"""One table to standard output and files, in the formats asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightscope.cli.explained import say
from weightscope.cli.options import Format
from weightscope.columns import Column
from weightscope.errors import OptionError, OutputError
from weightscope.evaluate import Row, all_columns
from weightscope.folders.storage import is_run
from weightscope.outputs import STDOUT, check_folder, check_target, write_binary, write_output
from weightscope.present.provenance import provenance_lines
from weightscope.present.run import run_report
from weightscope.report import Paragraph, Report
from weightscope.run import Run
from weightscope.sinks import csv, json, markdown, weightwatcher
from weightscope.text import count_of

if TYPE_CHECKING:
    from weightscope.drawings.page import Page
    from weightscope.drawings.pictures import Picture


@dataclass(frozen=True)
class Output:
    """What to emit.

    Attributes:
        format: For standard output; None chooses by where it goes.
        csv: CSV file, ``-`` for standard output.
        json: JSON file, ``-`` for standard output.
        excel: Excel workbook, ``-`` for standard output.
        sort: Column that orders the table.
        top: Most rows of the table.
        bom: Begin CSV with a byte-order mark.
        force: Replace existing files.
        png: Folder of PNG files.
        svg: Folder of SVG files.
        html: HTML file, ``-`` for standard output.
        quiet: Say nothing of what was written.
    """

    format: Format | None = None
    csv: str | None = None
    json: str | None = None
    sort: str | None = None
    top: int | None = None
    bom: bool = False
    force: bool = False
    excel: str | None = None
    png: str | None = None
    svg: str | None = None
    html: str | None = None
    quiet: bool = False

    @property
    def targets(self) -> dict[str, str]:
        """Files by the option that names them."""
        files = {"--csv": self.csv, "--json": self.json, "--excel": self.excel}
        files["--html"] = self.html
        return {option: target for option, target in files.items() if target is not None}

    def check(self, columns: Collection[str]) -> None:
        """Refuse, before any work, what could not be written after it.

        Raises:
            OutputError: A file exists or cannot be created.
            OptionError: Options that contradict each other, or no such column.
        """
        self._check_apart()
        if self.sort is not None and self.sort.removeprefix("-") not in columns:
            column = self.sort.removeprefix("-")
            close = [name for name in columns if column in name][:3]
            hint = (
                f"did you mean {', '.join(close)}?" if close else "weightscope explain lists them"
            )
            raise OptionError(f"--sort {column!r}: no such column; {hint}")
        for target in self.targets.values():
            check_target(target, self.force)
        if self.csv is not None and self.csv != STDOUT:
            check_target(self.csv + ".run.json", self.force)
        for target in self.folders.values():
            _keep_runs(target)
            check_folder(target, self.force)
        self._check_installed()

    @property
    def folders(self) -> dict[str, str]:
        """Folders of pictures by the format of their files."""
        wanted = {"png": self.png, "svg": self.svg}
        return {format: target for format, target in wanted.items() if target is not None}

    def wrote(self, target: str, what: str = "") -> None:
        """Say on standard error what was written; the table on standard output is seen."""
        if not self.quiet and target != STDOUT:
            say(f"Wrote {what}{target}")

    def _check_installed(self) -> None:
        """The optional packages are there, before anything else is done."""
        if self.excel is not None:
            from weightscope.sinks import excel

            excel.check_installed()
        if self.folders:
            from weightscope.sinks import folder

            folder.check_installed()

    def _check_apart(self) -> None:
        """Two outputs, two places."""
        targets = self.targets | {f"--{format}": to for format, to in self.folders.items()}
        for (one, place), (other, same) in combinations(targets.items(), 2):
            if place == same:
                raise OptionError(f"{one} and {other} cannot both write {place}")


@dataclass(frozen=True)
class Emission:
    """A table in every form that it can be emitted in.

    Attributes:
        columns: Column names of CSV.
        rows: Rows of CSV and JSON.
        facts: Provenance and summary, for JSON and beside a CSV file.
        report: Builds what people read.
        origin: What produced it, in lines.
        glossary: Columns that the names stand for, for Excel.
        pictures: Every picture as data; those of the page where None.
        page: Builds what people explore; None for a table that has no page.
    """

    columns: Sequence[str]
    rows: Sequence[Row]
    facts: Mapping[str, Any]
    report: Callable[[], Report]
    origin: Sequence[str]
    glossary: Sequence[Column] = ()
    pictures: Callable[[], Iterable[Picture]] | None = None
    page: Callable[[], Page] | None = None


def emit(emission: Emission, output: Output) -> None:
    """Write everything that was asked for; standard output last."""
    if output.csv is not None:
        text = csv.render(emission.columns, emission.rows)
        write_output(output.csv, text, output.bom)
        if output.csv != STDOUT:
            write_output(output.csv + ".run.json", json.dumps(emission.facts))
        output.wrote(output.csv)
    if output.json is not None:
        write_output(output.json, _json(emission))
        output.wrote(output.json)
    if output.excel is not None:
        _write_excel(emission, output.excel)
        output.wrote(output.excel)
    if output.folders:
        _draw(emission, output)
    if output.html is not None and emission.page is not None:
        from weightscope.sinks import html

        write_output(output.html, html.render(emission.page()))
        output.wrote(output.html)
    if STDOUT not in output.targets.values():
        _emit_to_stdout(emission, output)


def _write_excel(emission: Emission, target: str) -> None:
    from weightscope.present.sheets import workbook
    from weightscope.sinks import excel

    sheets = workbook(emission.columns, emission.rows, emission.facts, emission.glossary)
    write_binary(target, excel.render(sheets))


def _draw(emission: Emission, output: Output) -> None:
    from weightscope.sinks import folder

    facts = {key: value for key, value in emission.facts.items() if key != "details"}
    pictures = tuple(_pictures(emission))
    for format, target in output.folders.items():
        _keep_runs(target)
        count = folder.write(pictures, target, format, facts, output.force)
        output.wrote(target, f"{count_of(count, 'picture')} into ")


def _keep_runs(target: str) -> None:
    """A run folder holds nothing but its run, not even where ``--force`` is given."""
    if is_run(Path(target)):
        raise OutputError(f"{target}: is a run folder; choose another one for pictures")


def _pictures(emission: Emission) -> Iterable[Picture]:
    from weightscope.gallery import page_pictures

    if emission.pictures is not None:
        return emission.pictures()
    return page_pictures(emission.page()) if emission.page is not None else ()


def _emit_to_stdout(emission: Emission, output: Output) -> None:
    kind = output.format or (Format.table if sys.stdout.isatty() else Format.csv)
    if kind in {Format.csv, Format.json} and (output.sort is not None or output.top is not None):
        say(f"--sort and --top order the table; {kind.value} has every row, in order of names")
    if kind is Format.csv:
        write_output(STDOUT, csv.render(emission.columns, emission.rows), output.bom)
    elif kind is Format.json:
        write_output(STDOUT, _json(emission))
    elif kind is Format.markdown:
        write_output(STDOUT, markdown.render(emission.report(), "\n".join(emission.origin)))
    else:
        from weightscope.sinks import terminal

        report = emission.report()
        lines = tuple(Paragraph(line, "dim") for line in emission.origin)
        terminal.write(Report(report.title, (*report.blocks, *lines)))


def _json(emission: Emission) -> str:
    return json.dumps({**emission.facts, "rows": list(emission.rows)})


def run_emission(run: Run, output: Output, ww_names: bool = False) -> Emission:
    """A run, with our columns or WeightWatcher's."""
    columns: Sequence[str] = [column.name for column in all_columns()]
    rows: Sequence[Row] = run.rows
    glossary: Sequence[Column] = all_columns()
    if ww_names:
        columns, rows = (
            weightwatcher.NAMES,
            weightwatcher.rows(run.rows, run.provenance["settings"].get("compat")),
        )
        glossary = weightwatcher.glossary()
    facts = {"provenance": run.provenance, "summary": run.summary, "details": run.details}
    return Emission(
        columns,
        rows,
        facts,
        lambda: run_report(run, output.sort, output.top),
        provenance_lines(run.provenance),
        glossary,
        lambda: _pictures_of(run),
        lambda: _page_of(run),
    )


def _pictures_of(run: Run) -> Iterable[Picture]:
    from weightscope.gallery import pictures

    return pictures(run)


def _page_of(run: Run) -> Page:
    from weightscope.present.page import run_page

    return run_page(run)
