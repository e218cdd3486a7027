"""Where checkpoints come from: one file per kind of place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightscope.checkpoint import Access, Checkpoint
from weightscope.errors import CheckpointError, OptionError
from weightscope.text import shortened


def open_model(model: Any, access: Access | None = None) -> Checkpoint:
    """Index whatever a user calls a model; no weight is read.

    What looks like a path never goes to the network: only ``org/name`` that is no local path, an
    ``hf://`` address and a URL do.

    Args:
        model: A path, a name on the hub, a module, a state dict, or an indexed checkpoint.
        access: How to reach it; by the defaults where None.

    Raises:
        CheckpointError: It is not there or cannot be read.
        OptionError: A choice that makes no sense for this model.
    """
    from weightscope.sources import memory

    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, str | Path):
        return _open_named(model, access or Access())
    if isinstance(model, Mapping):
        return memory.open_state_dict(model, "state_dict", frozenset())
    if hasattr(model, "named_modules") and hasattr(model, "state_dict"):
        return memory.open_module(model)
    kind = type(model).__name__
    raise CheckpointError(f"an object of type {kind} is no path, no module and no state dict")


def _open_named(model: str | Path, access: Access) -> Checkpoint:
    from weightscope.sources import hub, local
    from weightscope.sources.address import hub_address, is_address

    try:
        path = Path(model).expanduser()
        text = model if isinstance(model, str) else ""
        address = hub_address(text) if is_address(text) or not path.exists() else None
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{shortened(str(model))}: cannot be a path ({why}); name a file, a folder or a hub id"
        ) from None
    if address is not None:
        return hub.open_hub(address, access)
    if access.revision:
        raise OptionError(
            f"--revision {access.revision}: {shortened(str(model))} is a path; models on the hub "
            "have revisions, and hf://org/name means one even where a folder has that name"
        )
    return replace(local.open_local(path), mmap=access.mmap, place=str(path.absolute()))
