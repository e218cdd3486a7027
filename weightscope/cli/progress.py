"""Progress on standard error: how far, how fast, how long."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from weightscope.cli.explained import say
from weightscope.plan import Plan
from weightscope.text import printable


class Talk:
    """Remarks, and a progress bar where standard error is a terminal; a context manager."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._said: set[str] = set()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._bar = not quiet and sys.stderr.isatty()

    def __enter__(self) -> Talk:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def note(self, text: str) -> None:
        """Say a remark, once where it is one about every model of several."""
        if not self._quiet and text not in self._said:
            self._said.add(text)
            say(text)

    def start(self, plan: Plan, done: float) -> None:
        """Begin the bar; it moves by operations, so that the remaining time can be believed."""
        self.begin(plan.flops, done)

    def begin(self, total: float, done: float = 0.0) -> None:
        """Begin the bar for a number of operations."""
        if not self._bar or not total:
            return
        self._progress = Progress(
            TextColumn("{task.percentage:>3.0f}%"),
            BarColumn(bar_width=None),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[name]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=total, name="")
        self._progress.update(self._task, completed=done)

    def advance(self, name: str, operations: float) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.update(self._task, advance=operations, name=printable(name)[-60:])
