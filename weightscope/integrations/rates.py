"""A plan of learning-rate multipliers as parameter groups of any torch optimizer.

    groups = parameter_groups(model, "rates.json", lr=3e-4)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)

Schedulers of torch and transformers scale the rate of every group from where it starts, so the
ratios stay as planned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightscope.errors import OptionError
from weightscope.layouts.wrappers import unwrapped

if TYPE_CHECKING:
    from torch import nn

FORMAT = "weightscope-lr"


def read_multipliers(path: str | Path) -> dict[str, float]:
    """Multipliers of ``weightscope plan --for lr``, by parameter name.

    Raises:
        OptionError: The file is missing or no such plan.
    """
    try:
        plan = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read as a plan ({error})") from None
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        raise OptionError(f"{path}: is no plan of weightscope plan --for lr")
    try:
        return {str(name): float(multiplier) for name, multiplier in plan["multipliers"].items()}
    except (KeyError, AttributeError, TypeError, ValueError):
        raise OptionError(f"{path}: its multipliers are no table of numbers; plan again") from None


def parameter_groups(
    model: nn.Module, plan: str | Path | Mapping[str, float], lr: float, **options: Any
) -> list[dict[str, Any]]:
    """The trainable parameters of a model, one group for each learning rate.

    The bias of a module goes with its weight; parameters that the plan does not name keep ``lr``.
    A name of the plan fits the parameter of that name, or the only one that ends in it, as models
    put a prefix before what their checkpoints hold. A shared parameter is in one group.

    Args:
        model: What is to be trained, in whatever training wrapper.
        plan: The file of the plan, or multipliers by parameter name.
        lr: Learning rate that is multiplied.
        options: Further entries of every group, such as ``weight_decay``.

    Returns:
        Groups with ``params``, ``lr``, ``lr_multiplier`` and ``names``, largest rate first.

    Raises:
        OptionError: The plan cannot be read, or names what the model does not have.
    """
    multipliers = plan if isinstance(plan, Mapping) else read_multipliers(plan)
    parameters = {unwrapped(name): p for name, p in model.named_parameters()}
    given = dict.fromkeys(parameters, 1.0)
    for name, multiplier in multipliers.items():
        found = _parameter(name, parameters)
        given[found] = multiplier
        bias = found.removesuffix(".weight") + ".bias"
        if bias in given and bias not in multipliers:
            given[bias] = multiplier
    groups: dict[float, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            group = groups.setdefault(
                given[name],
                {
                    **options,
                    "params": [],
                    "lr": lr * given[name],
                    "lr_multiplier": given[name],
                    "names": [],
                },
            )
            group["params"].append(parameter)
            group["names"].append(name)
    return [groups[multiplier] for multiplier in sorted(groups, reverse=True)]


def _parameter(name: str, parameters: Mapping[str, nn.Parameter]) -> str:
    """The parameter that a name of the plan means.

    Raises:
        OptionError: There is none, or more than one.
    """
    if name in parameters:
        return name
    found = [full for full in parameters if full.endswith(f".{name}")]
    if len(found) != 1:
        many = f"{len(found)} parameters end in it" if found else "the model has no such parameter"
        raise OptionError(
            f"the plan names {name!r}, but {many}; plan again with --prefix, or from a run of this "
            "model"
        )
    return found[0]
