"""Lightning, under its present name and the one before.

trainer = Trainer(callbacks=[LightningCallback(every=100)])
"""

from __future__ import annotations

from typing import Any

from weightscope.errors import OptionError
from weightscope.integrations.observe import Options
from weightscope.integrations.watch import Watch


def _base() -> Any:
    """Lightning's class of callbacks; any class where Lightning is not installed."""
    try:
        from lightning.pytorch.callbacks import (  # type: ignore[import-not-found, unused-ignore]
            Callback,
        )
    except ImportError:
        try:
            from pytorch_lightning.callbacks import (  # type: ignore[import-not-found, unused-ignore]
                Callback,
            )
        except ImportError:
            return object
    return Callback


_Base: Any = _base()


class LightningCallback(_Base):  # type: ignore[misc]
    """Analyses the module in training and logs to the Trainer's loggers, whatever their interval.

    Attributes:
        observer: ``history``, ``missed``, ``seconds``, ``share``, ``write_csv``: see ``Watch``.
    """

    def __init__(self, every: int = 0, *, at_save: bool = True, **options: Any) -> None:
        """Follow a LightningModule.

        Args:
            every: Optimizer steps between analyses; 0 for none but those at saves.
            at_save: Analyse whenever a checkpoint is saved.
            **options: Fields of ``Options`` (``background``, ``max_copy_bytes``, ``columns``,
                ``out``, ``overwrite``) and of ``weightscope.settings.Settings`` (``metrics``,
                ``include``, ``exclude``, ``device``, ``threads``, ...).

        Raises:
            OptionError: An option makes no sense, or nothing would ever be analysed.
        """
        super().__init__()
        if not every and not at_save:
            raise OptionError("nothing would ever be analysed: give every, or at_save=True")
        self.observer = Watch(Options.of(every, options), self._log)
        self._at_save = at_save
        self._trainer: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Start the clock."""
        self._trainer = trainer
        self.observer.begin()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:  # noqa: ARG002
        """Analyse every so many optimizer steps; batches that only accumulate do not count."""
        self.observer.poll()
        step = trainer.global_step
        if step and trainer.is_global_zero and self.observer.due(step):
            self.observer.look(pl_module, step)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:  # noqa: ARG002
        """Analyse what is saved."""
        if self._at_save and trainer.is_global_zero and self._trainer is not None:
            self.observer.look(pl_module, trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Log the rest; a last checkpoint may still follow."""
        self.observer.wait()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Log the rest."""
        self.observer.wait()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Say what it cost, before the loggers close."""
        if self._trainer is not None:
            self.observer.finish()
            self._trainer = None

    def _log(self, figures: dict[str, float], step: int) -> None:
        for logger in self._trainer.loggers:
            logger.log_metrics(figures, step=step)
