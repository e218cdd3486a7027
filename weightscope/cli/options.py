"""Options that several verbs share, with the help that teaches them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer


class Format(StrEnum):
    """What goes to standard output."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"


_OUTPUT = "Output"

FormatOption = Annotated[
    Optional[Format],  # noqa: UP045 - typer reads the annotation
    typer.Option(
        "--format",
        help="What to print: a table on a terminal and CSV into a pipe, unless said otherwise.",
        rich_help_panel=_OUTPUT,
        show_default=False,
    ),
]
CsvOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--csv",
        metavar="FILE",
        help="Write CSV to FILE ('-' is standard output), and the run's facts to FILE.run.json.",
        rich_help_panel=_OUTPUT,
    ),
]
JsonOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write JSON with provenance to FILE ('-' is standard output).",
        rich_help_panel=_OUTPUT,
    ),
]
SortOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--sort",
        metavar="COLUMN",
        help="Sort the table by a column, largest first; -COLUMN for smallest first "
        "(--sort=-alpha).",
        rich_help_panel=_OUTPUT,
    ),
]
TopOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--top",
        metavar="N",
        min=0,
        help="Show at most N rows in the table.",
        rich_help_panel=_OUTPUT,
    ),
]
WwOption = Annotated[
    bool,
    typer.Option(
        "--ww-names",
        help="Use WeightWatcher's column names, units and words in CSV and JSON.",
        rich_help_panel=_OUTPUT,
    ),
]
BomOption = Annotated[
    bool,
    typer.Option(
        "--bom",
        help="Begin CSV with a byte-order mark, for Excel with non-ASCII names.",
        rich_help_panel=_OUTPUT,
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Replace existing output.", rich_help_panel=_OUTPUT),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no remarks on standard error.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A .safetensors file, a folder with shards, an index file, or a hub id (org/name).",
        show_default=False,
    ),
]
RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run folder (NAME.weightscope).", show_default=False),
]
IncludeOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--include",
        metavar="GLOB",
        help="Analyse only tensors whose name matches (repeatable).",
    ),
]
ExcludeOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--exclude", metavar="GLOB", help="Leave out tensors (repeatable)."),
]
ConvOption = Annotated[
    str,
    typer.Option(
        "--conv",
        metavar="slices|flatten",
        help="A convolution kernel as one matrix per position, pooled, or as one flat matrix.",
    ),
]
