"""The Hugging Face Trainer.

trainer = Trainer(model, args, train_dataset=...)
WeightscopeCallback(every=100).attach(trainer)
trainer.train()
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from weightscope.errors import OptionError
from weightscope.integrations.observe import Options
from weightscope.integrations.watch import Watch


class WeightscopeCallback(TrainerCallback):  # type: ignore[misc]
    """Analyses the model in training and logs through the Trainer's own loggers.

    A Trainer tells its callbacks about everything but itself, and its loggers come before them, so
    that only ``trainer.log`` reaches all of them: call ``attach``. A callback that is merely passed
    to the Trainer adds to ``state.log_history`` alone.

    Attributes:
        observer: ``history``, ``missed``, ``seconds``, ``share``, ``write_csv``: see ``Watch``.
    """

    def __init__(self, every: int = 0, *, at_save: bool = True, **options: Any) -> None:
        """Follow the model of a Trainer.

        Args:
            every: Optimizer steps between analyses; 0 for none but those at saves.
            at_save: Analyse whenever a checkpoint is saved.
            **options: Fields of ``Options`` (``background``, ``max_copy_bytes``, ``columns``,
                ``out``, ``overwrite``) and of ``weightscope.settings.Settings`` (``metrics``,
                ``include``, ``exclude``, ``device``, ``threads``, ...).

        Raises:
            OptionError: An option makes no sense, or nothing would ever be analysed.
        """
        if not every and not at_save:
            raise OptionError("nothing would ever be analysed: give every, or at_save=True")
        self.observer = Watch(Options.of(every, options), self._log)
        self._at_save = at_save
        self._trainer: weakref.ref[Any] | None = None
        self._state: Any = None
        self._epochs: dict[int, float | None] = {}

    def attach(self, trainer: Any) -> WeightscopeCallback:
        """Join a Trainer as a callback, if not yet one, and log through it; returns itself."""
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self._trainer = weakref.ref(trainer)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Start the clock."""
        self._state = state
        self.observer.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Analyse every so many optimizer steps."""
        self.observer.poll()
        if self.observer.due(state.global_step):
            self._look(state, control, kwargs["model"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Analyse what was saved."""
        if self._at_save:
            self._look(state, control, kwargs["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Log the rest while the loggers are open: they close before it is this callback's turn."""
        if control.should_training_stop:
            self.observer.wait()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Say what it cost."""
        self.observer.finish()

    def _look(self, state: Any, control: Any, model: Any) -> None:
        self._state = state
        if not state.is_world_process_zero:
            return
        last = control.should_training_stop
        if last:
            self.observer.wait()  # the final weights are not to be left out
        self._epochs[state.global_step] = state.epoch
        self.observer.look(model, state.global_step)
        if last:
            self.observer.wait()

    def _log(self, figures: dict[str, float], step: int) -> None:
        epoch = self._epochs.pop(step, None)
        trainer = self._trainer() if self._trainer is not None else None
        if trainer is None:
            self.observer.say(
                "attach",
                "the Trainer's loggers get nothing: call attach(trainer) on the callback",
            )
            self._state.log_history.append({**figures, "epoch": epoch, "step": step})
            return
        with _as_of(trainer, step, epoch):
            trainer.log(figures)


@contextmanager
def _as_of(trainer: Any, step: int, epoch: float | None) -> Iterator[None]:
    """Let a Trainer log as of an earlier step; what it is about to log is still logged."""
    state, control = trainer.state, trainer.control
    now = state.global_step, state.epoch, control.should_log
    state.global_step, state.epoch = step, epoch
    try:
        yield
    finally:
        state.global_step, state.epoch, control.should_log = now
