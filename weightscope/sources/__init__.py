"""Where checkpoints come from: one file per kind of place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightscope.checkpoint import Checkpoint
from weightscope.errors import CheckpointError
from weightscope.text import shortened


def open_model(model: Any) -> Checkpoint:
    """Index whatever a user calls a model; no weight is read.

    What looks like a path never goes to the network: only ``org/name`` that is no local path does.

    Raises:
        CheckpointError: It is not there or cannot be read.
    """
    from weightscope.sources import hub, local, memory

    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, str | Path):
        try:
            path = Path(model).expanduser()
            remote = isinstance(model, str) and not path.exists() and hub.is_hub_id(model)
        except (OSError, RuntimeError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise CheckpointError(f"{shortened(str(model))}: cannot be a path ({why})") from None
        return hub.open_hub(str(model)) if remote else local.open_local(path)
    if isinstance(model, Mapping):
        return memory.open_state_dict(model, "state_dict", frozenset())
    if hasattr(model, "named_modules") and hasattr(model, "state_dict"):
        return memory.open_module(model)
    kind = type(model).__name__
    raise CheckpointError(f"an object of type {kind} is no path, no module and no state dict")
