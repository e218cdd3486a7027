"""Which of the tensors in a training dictionary are the weights, and what they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from weightscope.text import shortened

WRAPPINGS = ("state_dict", "model_state_dict", "model", "module", "ema", "params", "net")
"""Keys under which training scripts keep the weights, the most telling first."""
TRAINING_STATE = frozenset({
    "optim", "optimizer", "optimizers", "optimizer_state", "optimizer_states",
    "optimizer_state_dict", "scheduler", "lr_scheduler", "lr_schedulers", "scheduler_state_dict",
    "scaler", "grad_scaler", "loss_scaler", "amp", "rng", "rng_state", "random_states",
    "callbacks", "loops",
})  # fmt: skip
"""Keys under which they keep something else."""
LONGEST_NAME = 10_000
_DEEPEST = 16

IsTensor = Callable[[Any], bool]


@dataclass(frozen=True)
class Weights:
    """The weights of a training dictionary.

    Attributes:
        tensors: By name: keys joined by dots, below the wrapping.
        notes: Remarks on what was unwrapped and what was left out.
    """

    tensors: dict[str, Any]
    notes: tuple[str, ...] = ()


def weights_in(loaded: Mapping[Any, Any], is_tensor: IsTensor) -> Weights:
    """Find the weights: below the wrappings of training scripts, without an optimiser's state.

    Args:
        loaded: Nested dictionaries; a hostile one may hold itself.
        is_tensor: Tells their leaves that are tensors; these have a ``shape``.

    Raises:
        ValueError: Two tensors get one name, or a name is too long or not valid Unicode.
    """
    inside, path, left = loaded, wrappings(loaded, is_tensor), list[str]()
    for key in path:
        left += [str(k) for k, v in inside.items() if k != key and _is_other(k, v, is_tensor)]
        inside = inside[key]
    left += [str(k) for k, v in inside.items() if is_training_state(k, v)]
    tensors: dict[str, Any] = {}
    for name, value in _flat(inside, is_tensor):
        if name in tensors:
            raise ValueError(f"two of its tensors are called {shortened(name)}")
        tensors[_checked(name)] = value
    return Weights(tensors, tuple(_notes(".".join(path), left)))


def wrappings(loaded: Mapping[Any, Any], is_tensor: IsTensor) -> list[str]:
    """The keys that lead to the weights of a training dictionary; none where it holds them."""
    path: list[str] = []
    while len(path) < _DEEPEST and (key := _wrapping(loaded, is_tensor)):
        loaded, path = loaded[key], [*path, key]
    return path


def is_training_state(key: Any, value: Any) -> bool:
    """Whether an entry of a training dictionary is the state of an optimiser or the like."""
    if not isinstance(value, Mapping):
        return False
    return str(key).lower() in TRAINING_STATE or is_optimizer(value)


def is_optimizer(found: Mapping[Any, Any]) -> bool:
    """Whether a dictionary is the state of an optimiser, as PyTorch's give it."""
    return "state" in found and "param_groups" in found


def _is_other(key: Any, value: Any, is_tensor: IsTensor) -> bool:
    return is_training_state(key, value) or _holds(value, is_tensor)


def _notes(path: str, left: list[str]) -> Iterator[str]:
    others = ", ".join(shortened(key, 40) for key in left[:5])
    if path:
        yield f"the weights are what it holds under {path!r}" + (
            f"; not read: {others}" if left else ""
        )
    elif left:
        yield f"not read, since it is training state: {others}"


def _wrapping(found: Mapping[Any, Any], is_tensor: IsTensor) -> str:
    """The key under which a dictionary keeps the weights; empty where it holds them itself."""
    if any(is_tensor(value) and len(value.shape) > 1 for value in found.values()):
        return ""
    return next((key for key in WRAPPINGS if _holds(found.get(key), is_tensor)), "")


def _holds(value: Any, is_tensor: IsTensor) -> bool:
    return isinstance(value, Mapping) and any(True for _ in _flat(value, is_tensor))


def _flat(found: Mapping[Any, Any], is_tensor: IsTensor) -> Iterator[tuple[str, Any]]:
    """Tensors of nested dictionaries, each dictionary once, names joined by dots."""
    seen: set[int] = set()

    def visit(inside: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
        if id(inside) in seen or depth > _DEEPEST or is_optimizer(inside):
            return
        seen.add(id(inside))
        for key, value in inside.items():
            is_leaf = is_tensor(value)
            if not isinstance(key, str | int) or not (is_leaf or isinstance(value, Mapping)):
                continue
            name = f"{prefix}{key}"
            if len(name) > LONGEST_NAME:
                raise ValueError(f"the name {shortened(name)} is too long for a tensor")
            if is_leaf:
                yield name, value
            elif not is_training_state(key, value):
                yield from visit(value, f"{name}.", depth + 1)

    return visit(found, "", 0)


def _checked(name: str) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"the tensor name {shortened(name)} is not valid Unicode") from None
    return name
