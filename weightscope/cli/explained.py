"""The one table from exceptions to sentences and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from weightscope.errors import WeightscopeError
from weightscope.text import printable

INTERRUPTED = 130


def say(text: str) -> None:
    """One line on standard error, safe to print."""
    print(printable(text), file=sys.stderr)  # noqa: T201


@contextmanager
def explained(debug: bool = False, hint: str = "") -> Iterator[None]:
    """End the process with a sentence instead of a traceback.

    Args:
        debug: Print the traceback too.
        hint: What to do after an interruption.
    """
    try:
        yield
        sys.stdout.flush()
    except WeightscopeError as error:
        _trace(debug)
        say(f"Error: {error}")
        raise typer.Exit(error.exit_code) from None
    except BrokenPipeError:
        # the reader has seen enough; nothing more may be flushed into the closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        _trace(debug)
        say(f"Interrupted. {hint}".strip())
        sys.stderr.flush()
        # do not wait for eigen-solves that are still running in worker threads
        os._exit(INTERRUPTED)
    except MemoryError:
        _trace(debug)
        say("Error: out of memory; try fewer --threads")
        raise typer.Exit(1) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        _trace(debug)
        say(f"Error: unexpected {type(error).__name__}: {error} (--debug shows where)")
        raise typer.Exit(1) from None


def _trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()
