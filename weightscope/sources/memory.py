"""Models that are already in memory: a state dict or a torch module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weightscope.checkpoint import Checkpoint
from weightscope.errors import CheckpointError
from weightscope.formats.memory import refs_of
from weightscope.formats.nested import is_optimizer, wrappings


def open_state_dict(tensors: Mapping[str, Any], name: str, conv: frozenset[str]) -> Checkpoint:
    """Index a mapping of names to torch tensors; tensors sharing storage are listed once.

    Raises:
        CheckpointError: It is something else that a training saves, a value is not a tensor, or
            has a dtype that is not known.
    """
    _check_state_dict(tensors)
    refs = refs_of(tensors)
    if not refs:
        raise CheckpointError(f"{name}: holds no tensors")
    return Checkpoint(name, refs, format="memory", memory=dict(tensors), conv=conv)


def _check_state_dict(found: Mapping[Any, Any]) -> None:
    """Tell what a training saves beside a state dict, and where in it the weights are."""
    if is_optimizer(found):
        raise CheckpointError(
            "this is the state of an optimizer, which holds no weights; give model.state_dict()"
        )
    path = wrappings(found, lambda value: hasattr(value, "data_ptr") and hasattr(value, "shape"))
    if path:
        keys = "".join(f"[{key!r}]" for key in path)
        raise CheckpointError(
            f"this is a training dictionary and no state dict; the weights are what it holds under "
            f"{keys}: give that alone"
        )


def open_module(module: Any) -> Checkpoint:
    """Index a live ``torch.nn.Module``; its convolutions are known by type."""
    prefixes = tuple(
        f"{name}." if name else ""
        for name, child in module.named_modules()
        if type(child).__name__.startswith(("Conv", "LazyConv"))
        and type(child).__name__ != "Conv1D"
    )
    state = module.state_dict()
    # below, because weight_norm and other parametrisations put the kernel into a child
    conv = frozenset(key for key in state if prefixes and key.startswith(prefixes))
    found = open_state_dict(state, type(module).__name__, conv)
    return replace(found, config=_config_of(module))


def _config_of(module: Any) -> dict[str, Any]:
    """The configuration that a model of transformers carries; empty for others."""
    to_dict = getattr(getattr(module, "config", None), "to_dict", None)
    found = to_dict() if callable(to_dict) else {}
    return found if isinstance(found, dict) else {}
