"""The command ``weightscope`` and its verbs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from weightscope.cli.verbs import Verbs
from weightscope.version import __version__

app = typer.Typer(
    name="weightscope",
    cls=Verbs,
    help="What is inside this checkpoint? Spectral diagnostics of neural-network weights.\n\n"
    "Exit codes: 0 done (also with degenerate rows), 1 failed (also where no matrix could be "
    "analysed), 2 usage, 3 selftest failed, 4 a --fail-on rule hit, 5 runs not comparable, "
    "130 interrupted.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"weightscope {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def _reader_is_gone(console: Console) -> None:
    """A closed pipe is no failure: the reader has seen enough."""
    console.quiet = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def main() -> None:
    """Run the command line."""
    # a closed standard stream is None, which nothing that prints expects
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    # rich, which prints the help and the tables, would end with 1
    Console.on_broken_pipe = _reader_is_gone  # type: ignore[method-assign, assignment]
    app(prog_name="weightscope")
