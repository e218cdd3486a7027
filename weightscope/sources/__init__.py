"""Where checkpoints come from: one file per kind of place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightscope.checkpoint import Access, Checkpoint
from weightscope.errors import CheckpointError, OptionError
from weightscope.text import shortened

if TYPE_CHECKING:
    from weightscope.sources.address import HubAddress


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


def accesses(models: Sequence[Any], access: Access) -> list[Access]:
    """How to reach each of several models.

    A revision is meant for the models on the hub that name none of their own.

    Raises:
        CheckpointError: One of them cannot be a path.
        OptionError: A revision that is meant for none.
    """
    if not access.revision:
        return [access] * len(models)
    addresses = [_address_of(m) if isinstance(m, str | Path) else None for m in models]
    meant = [address is not None and not address.revision for address in addresses]
    if not any(meant):
        raise OptionError(
            f"--revision {access.revision}: none of these is a model on the hub without a "
            "revision of its own"
        )
    return [access if one else replace(access, revision="") for one in meant]


def _open_named(model: str | Path, access: Access) -> Checkpoint:
    from weightscope.sources import hub, local

    address = _address_of(model)
    if address is not None:
        return hub.open_hub(address, access)
    if access.revision:
        raise OptionError(
            f"--revision {access.revision}: {shortened(str(model))} is a path; models on the hub "
            "have revisions, and hf://org/name means one even where a folder has that name"
        )
    path = Path(model).expanduser()
    return replace(local.open_local(path), mmap=access.mmap, place=str(path.absolute()))


def _address_of(model: str | Path) -> HubAddress | None:
    """Where on the hub a model is; None for a path."""
    from weightscope.sources.address import hub_address, is_address

    try:
        path = Path(model).expanduser()
        text = model if isinstance(model, str) else ""
        return hub_address(text) if is_address(text) or not path.exists() else None
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{shortened(str(model))}: cannot be a path ({why}); name a file, a folder or a hub id"
        ) from None
