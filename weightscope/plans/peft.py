"""LoRA for peft: which modules, of which rank, scaled by what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weightscope.addresses import Weight, hidden_by, weights_of
from weightscope.choosing import Candidate, Choice, Chosen, choose
from weightscope.criteria import number, require
from weightscope.errors import OptionError
from weightscope.proposal import Proposal, json_text
from weightscope.reasons import (
    budget_sentence,
    criterion_sentence,
    noise_sentence,
    records_of,
    single_experts,
    unresolved,
)
from weightscope.run import Run

MEANING = "LoRA modules, ranks and alphas: JSON for peft's LoraConfig"
SOURCE = "KappaTune, arXiv 2506.16289, and its program's defaults"
PUBLISHED_MODULES = 50
PUBLISHED_RANK = 16
LONGEST_SIDE = 16384
"""Of what KappaTune's helper analyses."""
ALPHA_PER_RANK = 2
DROPOUT = 0.05
EFFECTIVE = "effective"


@dataclass(frozen=True)
class Options(Choice):
    """Options of ``--for peft``.

    Attributes:
        rank: Rank for all modules, or ``effective``: in proportion to ``effective_rank``.
    """

    rank: str = str(PUBLISHED_RANK)

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: Naming the option and what it takes.
        """
        super().__post_init__()
        if self.rank != EFFECTIVE and not (self.rank.isdecimal() and int(self.rank)):
            raise OptionError(f"--rank {self.rank!r}: give a number, or {EFFECTIVE}")

    @property
    def limited(self) -> Options:
        """With the published number of modules where nothing else limits the choice."""
        free = self.modules is None and self.top is None
        if free and (self.budget is None or self.rank == EFFECTIVE):
            return replace(self, modules=PUBLISHED_MODULES)
        return self


def propose(run: Run, options: Options) -> Proposal:
    """Modules for LoRA, best first.

    Raises:
        OptionError: The run lacks a column that decides, or the budget is too small.
    """
    how = options.limited
    effective = how.rank == EFFECTIVE
    uniform = PUBLISHED_RANK if effective else int(how.rank)
    if effective:
        require(run, "effective_rank", "rank")

    def cost(weight: Weight) -> int:
        return uniform * sum(weight.sides)

    limit = replace(how, budget=None) if effective else how
    chosen = choose(run, limit, cost, _misfit)
    if effective:
        budget = how.budget if how.budget is not None else chosen.cost
        ranks = effective_ranks(chosen.chosen, budget)
        spent = _rank_sentence(chosen, ranks, budget, how.budget is not None)
    else:
        ranks = [uniform] * chosen.count
        spent = budget_sentence(chosen, "adapter parameters, r (outputs + inputs) each")
    given = {c.weight.name: r for c, r in zip(chosen.chosen, ranks, strict=True)}
    return Proposal(
        json_text(_config(run, how, chosen, ranks)),
        records_of(chosen, lambda c: _given(c, given[c.weight.name], effective)),
        criterion_sentence(chosen),
        spent,
        noise_sentence(chosen),
        _deviations(how, chosen),
        (*chosen.remarks, *unresolved(chosen), *single_experts(chosen)),
        facts={
            "adapter_parameters": sum(
                r * sum(c.weight.sides) for c, r in zip(chosen.chosen, ranks, strict=True)
            )
        },
    )


def effective_ranks(chosen: Sequence[Candidate], budget: int) -> list[int]:
    """Ranks ``max(1, floor(c * effective_rank))`` with the largest c that the budget allows.

    No rank is above what the matrix can have. Of a fused weight the effective ranks add up.

    Args:
        chosen: Where adapters go.
        budget: Most adapter parameters: the sum of rank times (outputs + inputs).

    Raises:
        OptionError: Rank 1 for all costs more.
    """
    prices = np.array([sum(c.weight.sides) for c in chosen])
    if prices.sum() > budget:
        raise OptionError(
            f"--budget {budget}: rank 1 for the {len(chosen)} chosen modules costs "
            f"{int(prices.sum()):,}; choose fewer"
        )
    sizes = [effective_rank_of(c.weight) for c in chosen]
    caps = [min(c.weight.sides) for c in chosen]
    # c at which a module gains its next rank, from the second on
    steps = np.concatenate(
        [np.arange(2, cap + 1) / size for cap, size in zip(caps, sizes, strict=True)]
    )
    owner = np.repeat(np.arange(len(chosen)), np.array(caps) - 1)
    order = np.argsort(steps, kind="stable")
    total = prices.sum() + np.cumsum(prices[owner[order]])
    # modules that gain at the same c gain together or not at all
    last = np.searchsorted(steps[order], steps[order], side="right") - 1
    taken = order[total[last] <= budget]
    return [int(n) for n in 1 + np.bincount(owner[taken], minlength=len(chosen))]


def effective_rank_of(weight: Weight) -> float:
    """Effective rank of a weight; that of its parts together where it is fused."""
    return sum(number(row, "effective_rank") or 1.0 for row in weight.rows)


def _misfit(weight: Weight) -> str:
    if weight.is_stack:
        return "stacks of experts (peft takes them whole, as target_parameters)"
    if weight.module is None:
        return "parameters that are no module's weight"
    return ""


def _config(run: Run, how: Options, chosen: Chosen, ranks: Sequence[int]) -> dict[str, Any]:
    """What LoraConfig takes; patterns where ranks differ."""
    names = [str(c.weight.module) for c in chosen.chosen]
    # peft takes the first pattern that fits an ending: a name comes before what it ends in
    pairs = sorted(zip(names, ranks, strict=True), key=lambda pair: -pair[0].count("."))
    patterns = dict(pairs) if len(set(ranks)) > 1 else {}
    others = [w.module for w in weights_of(run, how.prefix) if w.module and w.module not in names]
    barred = sorted({there for name in names for there in hidden_by(name, others)})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "r": max(ranks),
        "lora_alpha": ALPHA_PER_RANK * max(ranks),
        "lora_dropout": DROPOUT,
        "target_modules": names,
        "rank_pattern": {re.escape(name): rank for name, rank in patterns.items()},
        "alpha_pattern": {re.escape(n): ALPHA_PER_RANK * r for n, r in patterns.items()},
    }
    return {**config, "exclude_modules": barred} if barred else config


def _given(candidate: Candidate, rank: int, effective: bool) -> dict[str, Any]:
    given: dict[str, Any] = {"rank": rank, "lora_alpha": ALPHA_PER_RANK * rank}
    return {"effective_rank": candidate.row["effective_rank"], **given} if effective else given


def _rank_sentence(chosen: Chosen, ranks: Sequence[int], budget: int, asked: bool) -> str:
    spent = sum(r * sum(c.weight.sides) for c, r in zip(chosen.chosen, ranks, strict=True))
    origin = "--budget" if asked else f"what rank {PUBLISHED_RANK} for all would cost"
    pairs = zip(chosen.chosen, ranks, strict=True)
    growing = [(r + 1) / effective_rank_of(c.weight) for c, r in pairs if r < min(c.weight.sides)]
    factor = f"just below {min(growing):.4g}" if growing else "all have full rank"
    return (
        f"Budget: {spent:,} of {budget:,} adapter parameters used ({origin}). Rank = max(1, "
        f"floor(c effective_rank)), no more than the matrix can have, with the largest c that the "
        f"budget allows ({factor}); cost = rank (outputs + inputs)."
    )


def _deviations(how: Options, chosen: Chosen) -> tuple[str, ...]:
    told = []
    if not how.across:
        told.append(
            "KappaTune compares all tensors with each other, which prefers the long shapes; here "
            "an even share of every module type is taken (--across does as published)."
        )
    if how.by != "kappa":
        told.append(f"{how.by} instead of kappa.")
    if how.rank == EFFECTIVE:
        told.append(f"ranks by effective_rank instead of {PUBLISHED_RANK} for all.")
    elif int(how.rank) != PUBLISHED_RANK:
        told.append(f"rank {how.rank} instead of {PUBLISHED_RANK}.")
    if how.modules != PUBLISHED_MODULES:
        told.append(f"another limit than its helper's {PUBLISHED_MODULES} modules.")
    if any(max(c.weight.sides) > LONGEST_SIDE for c in chosen.chosen):
        told.append(f"its helper leaves out tensors with a side above {LONGEST_SIDE:,}.")
    if chosen.criterion.deviation:
        told.append(chosen.criterion.deviation)
    return tuple(told)
