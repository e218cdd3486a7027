"""A model under training is analysed: one analysis at a time, in a thread of its own.

Nothing is computed in the training thread, so its random state, thread count, gradient mode and
default device stay what they are. What is logged is logged in the training thread.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from weightscope import analysis, outputs
from weightscope.folders.storage import load_run
from weightscope.integrations.observe import (
    LONG_FORM,
    Options,
    figures_of,
    long_form,
    refuse_sharded,
    snapshot,
    unwrapped,
)
from weightscope.run import Run
from weightscope.sinks import csv

Log = Callable[[dict[str, float], int], None]
_LOGGER = logging.getLogger("weightscope")


class _Job(threading.Thread):
    """One analysis, in a thread of its own."""

    def __init__(self, step: int, work: Callable[[], Run]) -> None:
        super().__init__(name=f"weightscope-step-{step}")
        self.at, self.seconds = step, 0.0
        self.result: Run | None = None
        self.error: Exception | None = None
        self._work = work

    def run(self) -> None:
        """Do the work; what goes wrong is kept, not raised."""
        started = perf_counter()
        try:
            self.result = self._work()
        except Exception as error:  # the training is not to suffer from whatever it is
            self.error = error
        finally:
            self.seconds = perf_counter() - started
            del self._work  # and with it the copy


@dataclass(eq=False)
class Watch:
    """Analyses a model again and again while it is trained.

    What goes wrong in an analysis is said once through the logger ``weightscope``, and never stops
    the training; what ``log`` raises is raised.

    Attributes:
        options: How.
        log: Called in the training thread with the figures and their step.
        history: Steps and their runs, as they finished. Spectra are loaded from the run's folder,
            or gone where it has none.
        missed: Steps that were not analysed, and why: a step that comes while the analysis before
            has not finished is left out, so nothing queues up.
        seconds: Time the training thread was held up, in seconds.
        analysis_seconds: Time the analyses took, in seconds, beside the training or not.
    """

    options: Options
    log: Log | None = None
    history: list[tuple[int, Run]] = field(default_factory=list, init=False)
    missed: dict[int, str] = field(default_factory=dict, init=False)
    seconds: float = field(default=0.0, init=False)
    analysis_seconds: float = field(default=0.0, init=False)
    _job: _Job | None = field(default=None, init=False)
    _last: int | None = field(default=None, init=False)
    _said: set[str] = field(default_factory=set, init=False)
    _began: float | None = field(default_factory=perf_counter, init=False)
    _elapsed: float = field(default=0.0, init=False)

    def begin(self) -> None:
        """Training begins, for the first time or again."""
        self._last, self._began = None, perf_counter()

    def due(self, step: int) -> bool:
        """Whether ``every`` asks for an analysis at a step."""
        return self.options.every > 0 and step % self.options.every == 0

    def look(self, model: Any, step: int) -> None:
        """Analyse a model as it is after ``step`` optimizer steps; a step is analysed once."""
        self.poll()
        if step == self._last:
            return
        self._last = step
        with self._held_up():
            if self._job is not None:
                self._miss(step, "busy", "the analysis before has not finished")
                return
            try:
                self._job = _Job(step, self._work(unwrapped(model), step))
                self._job.start()
            except Exception as error:
                self._job = None
                self._miss(step, type(error).__name__, _sentence(error))
        if not self.options.background:
            self.wait()

    def poll(self) -> None:
        """Log what has finished in the background."""
        if self._job is not None and not self._job.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the analysis under way, and log it."""
        if self._job is None:
            return
        with self._held_up():
            job = self._job
            job.join()
            self._job = None
            self.analysis_seconds += job.seconds
            if job.result is None:
                self._miss(job.at, type(job.error).__name__, _sentence(job.error))
                return
            self.history.append((job.at, _slim(job.result)))
            if self.log is not None:
                self.log(figures_of(job.result, self.options.columns), job.at)

    def finish(self) -> None:
        """Training is over: log the rest, and say on standard error what it cost."""
        self.wait()
        if self._began is not None:
            self._elapsed, self._began = self.elapsed, None
            if self.history or self.missed:
                sys.stderr.write(f"weightscope: {self.cost}\n")

    @property
    def elapsed(self) -> float:
        """Seconds that the training has taken."""
        return self._elapsed + (perf_counter() - self._began if self._began is not None else 0.0)

    @property
    def share(self) -> float:
        """Share of the training's time in which it was held up, 0 to 1."""
        elapsed = self.elapsed
        return self.seconds / elapsed if elapsed else 0.0

    @property
    def cost(self) -> str:
        """What the analyses cost, in one line."""
        count = len(self.history)
        text = f"{count} {'analysis' if count == 1 else 'analyses'}, "
        if self.options.background:
            text += f"{self.analysis_seconds:.2f} s in the background; "
        text += f"training waited {self.seconds:.2f} s, {self.share:.1%} of {self.elapsed:.1f} s"
        return text + (f"; {len(self.missed)} steps not analysed" if self.missed else "")

    def write_csv(self, path: str | Path, force: bool = False) -> None:
        """Write the logged columns of all matrices over all steps: ``step,name,metric,value``.

        Raises:
            OutputError: The file exists and ``force`` is not set, or cannot be written.
        """
        outputs.check_target(str(path), force)
        records = long_form(self.history, self.options.columns)
        outputs.write_output(str(path), csv.render(LONG_FORM, records))

    def _work(self, model: Any, step: int) -> Callable[[], Run]:
        """What the thread is to do; the copy is made here and now."""
        options = self.options
        refuse_sharded(model)
        saving = self._saving(step)
        if options.background:
            copied = snapshot(model, options.settings, options.max_copy_bytes)
            return lambda: analysis.analyze(copied, options.settings, saving)
        for device in {p.device for p in model.parameters() if p.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return lambda: analysis.analyze(model, options.settings, saving)

    def _saving(self, step: int) -> analysis.Saving:
        if self.options.out is None:
            return analysis.Saving()
        folder = self.options.out / f"step-{step}"
        if folder.exists() and not self.options.overwrite:
            self.say("saved", f"{folder} exists already and is kept; replace it with overwrite")
            return analysis.Saving()
        return analysis.Saving(save=True, out=folder, force=self.options.overwrite)

    @contextmanager
    def _held_up(self) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds += perf_counter() - started

    def _miss(self, step: int, kind: str, why: str) -> None:
        self.missed[step] = why
        self.say(kind, f"step {step} is not analysed: {why} (said once)")

    def say(self, kind: str, text: str) -> None:
        """Say something about one kind of trouble, the first time."""
        if kind not in self._said:
            self._said.add(kind)
            _LOGGER.warning("%s", text)


def _sentence(error: Exception | None) -> str:
    return str(error).strip() or type(error).__name__


def _slim(run: Run) -> Run:
    """The run without its spectra, which would add up over a training."""
    folder = run.folder
    if folder is None:
        return replace(run, load_spectra=dict)
    return replace(run, load_spectra=lambda: load_run(folder).spectra())
