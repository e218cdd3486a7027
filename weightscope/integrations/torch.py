"""A training loop of one's own.

with Observer(model, every=100, log=wandb.log) as observer:
    for step, batch in enumerate(batches, start=1):
        ...
        optimizer.step()
        observer.step(step)
observer.write_csv("alpha_over_steps.csv")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weightscope.integrations.observe import Options
from weightscope.integrations.watch import Log, Watch

if TYPE_CHECKING:
    import torch


class Observer(Watch):
    """Follows one model; see ``Watch`` for what it keeps.

    Use as a context manager, or call ``close`` after training.
    """

    def __init__(
        self, model: torch.nn.Module, every: int = 0, log: Log | None = None, **options: Any
    ) -> None:
        """Follow a model.

        Args:
            model: What is trained.
            every: Steps between analyses; 0 for those alone that ``observe`` asks for.
            log: Called in the training thread as ``log(figures, step)``; with ``background`` the
                step is one that has passed.
            **options: Fields of ``Options`` (``background``, ``max_copy_bytes``, ``columns``,
                ``out``, ``overwrite``) and of ``weightscope.settings.Settings`` (``metrics``,
                ``include``, ``exclude``, ``device``, ``threads``, ...).

        Raises:
            OptionError: An option makes no sense.
        """
        super().__init__(Options.of(every, options), log)
        self.model = model

    def step(self, step: int) -> None:
        """Say that ``step`` optimizer steps are done; analyses every ``every`` of them."""
        self.poll()
        if self.due(step):
            self.observe(step)

    def observe(self, step: int) -> None:
        """Analyse now."""
        self.look(self.model, step)

    def close(self) -> None:
        """Wait for the analysis under way, and say what all of them cost."""
        self.finish()

    def __enter__(self) -> Observer:
        self.begin()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
