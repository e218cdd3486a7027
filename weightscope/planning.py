"""From a run, the name of a target and options as plain values to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from weightscope import plugins
from weightscope.errors import OptionError, PlanError
from weightscope.plans import TARGETS
from weightscope.proposal import Proposal
from weightscope.run import Run


def options_for(target: str, given: Mapping[str, Any]) -> Any:
    """The options of a target; what is not given has the published default.

    Raises:
        OptionError: No such target, an option is not for it, or makes no sense.
    """
    module = _module(target)
    known = [field.name for field in fields(module.Options)]
    for name in given:
        if name not in known:
            takes = ", ".join(_as_typed(option) for option in known)
            raise OptionError(
                f"{_as_typed(name)}: means nothing for --for {target}, which takes {takes}"
            )
    return module.Options(**given)


def propose(run: Run, target: str, options: Any) -> Proposal:
    """The plan of a run for a target.

    Args:
        run: A run.
        target: One of ``weightscope.plans.TARGETS``.
        options: Of ``options_for``.

    Raises:
        PlanError: The run is of a part of a model.
        OptionError: The run lacks what the plan needs, or nothing can be planned.
    """
    if run.share:
        raise PlanError(
            f"{run.folder or run.name}: is {run.share.label} of {run.name}; a plan is of a whole "
            "model, so join the parts first: weightscope merge"
        )
    proposal: Proposal = _module(target).propose(run, options)
    return proposal


def _module(target: str) -> Any:
    if target not in TARGETS:
        raise OptionError(f"--for {target!r}: choose from {', '.join(TARGETS)}")
    return plugins.load("plans", target)


def _as_typed(option: str) -> str:
    return f"--{option.replace('_', '-')}"
