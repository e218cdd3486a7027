"""Why a choice is what it is, and what noise of the same shapes would have chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from weightscope.choosing import Candidate, Chosen, group_of
from weightscope.criteria import number
from weightscope.evaluate import Row
from weightscope.spectrum import FloatArray
from weightscope.text import count_of

FOLLOWS_SHAPE = 0.8
"""Rank correlation with noise of the same shapes from which a criterion is said to follow shape."""
PARTLY = 0.4


def criterion_sentence(chosen: Chosen) -> str:
    """What decided."""
    how, criterion = chosen.how, chosen.criterion
    scope = "across all module types" if how.across else "within each module type"
    return (
        f"{chosen.count} of {count_of(len(chosen.candidates), 'weight')} chosen by {how.by}: "
        f"{criterion.first} {criterion.formula} first, {scope}, ties by name; "
        f"{criterion.meaning} ({criterion.source})."
    )


def budget_sentence(chosen: Chosen, of: str) -> str:
    """What became of the budget.

    Args:
        chosen: The choice.
        of: What is counted, such as ``adapter parameters``.
    """
    how = chosen.how
    limit = ""
    if how.top is not None:
        limit = f"Limit: the top {how.top:g} % of {'all' if how.across else 'each type'}."
    elif how.modules is not None:
        limit = f"Limit: at most {count_of(how.modules, 'module')}."
    if how.budget is None:
        return f"{limit or 'No limit.'} The choice costs {chosen.cost:,} {of}."
    rest = f"Budget: {chosen.cost:,} of {how.budget:,} {of} used"
    if chosen.left is not None:
        rest += f"; the next one would cost {chosen.left:,}"
    return f"{rest}. {limit}".rstrip()


def noise_sentence(chosen: Chosen) -> str:
    """What noise of the same shapes would have chosen, and whether the criterion follows shape."""
    candidates, k = chosen.candidates, chosen.count
    if k == len(candidates):
        return f"Everything was chosen: {chosen.how.by} decided nothing; give a smaller limit."
    known = [c.noise for c in candidates]
    noise = [value for value in known if value is not None]
    if len(noise) < len(known):
        null = chosen.criterion.null or "frobenius_norm"
        return (
            f"Noise: no comparison, as the run has no {null} for "
            f"{count_of(len(known) - len(noise), 'weight')}."
        )
    signed = [chosen.criterion.sign * value for value in noise]
    groups = [group_of(c, chosen.how.across) for c in candidates]
    shared, chance = expected_overlap(signed, groups, k)
    rho = rank_correlation([chosen.criterion.sign * c.value for c in candidates], signed, groups)
    what = chosen.criterion.noise_keeps
    told = (
        f"Noise of the same {what} would share {shared:.1f} of the {k} choices (chance alone: "
        f"{chance:.1f})"
    )
    if rho is None:
        where = "all weights" if chosen.how.across else "the weights of a type"
        if rank_correlation(signed, signed, groups) is not None:
            return f"{told}: {where} have one value themselves, so their names decided."
        return f"{told}: it gives {where} one value, so the choice does not follow their {what}."
    same = k - shared < 0.5 and chance < k - 0.5
    degree = "" if same else degree_of(rho)
    return f"{told}; rank correlation with noise {rho:.2f}: the choice {degree}follows {what}."


def degree_of(correlation: float) -> str:
    """The adverb before ``follows shapes`` that a rank correlation with noise calls for."""
    return "" if correlation >= FOLLOWS_SHAPE else "partly " if correlation >= PARTLY else "hardly "


def expected_overlap(
    noise: Sequence[float], groups: Sequence[str], count: int
) -> tuple[float, float]:
    """How many of the first ``count`` noise would choose too, and chance alone.

    Noise takes as many of each group as were taken; among equal values it takes at random.

    Args:
        noise: Values of noise in the order of the choice; the smallest come first.
        groups: Group of each.
        count: How many are chosen.
    """
    shared = chance = 0.0
    for group in dict.fromkeys(groups):
        members = [i for i, g in enumerate(groups) if g == group]
        taken = [i for i in members if i < count]
        if not taken:
            continue
        edge = sorted(noise[i] for i in members)[len(taken) - 1]
        below = sum(noise[i] < edge for i in members)
        equal = sum(noise[i] == edge for i in members)
        share = (len(taken) - below) / equal
        shared += sum(1.0 if noise[i] < edge else share * (noise[i] == edge) for i in taken)
        chance += len(taken) ** 2 / len(members)
    return shared, chance


def rank_correlation(
    values: Sequence[float], noise: Sequence[float], groups: Sequence[str]
) -> float | None:
    """Spearman's correlation within groups, pooled; None where one side does not vary."""
    x, y = np.zeros(len(values)), np.zeros(len(values))
    labels = np.array(groups)
    for group in dict.fromkeys(groups):
        inside = np.flatnonzero(labels == group)
        x[inside] = _centred_ranks(np.array(values)[inside])
        y[inside] = _centred_ranks(np.array(noise)[inside])
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else None


def _centred_ranks(values: FloatArray) -> FloatArray:
    """Mean ranks of equal values, less their mean, over the size."""
    low = np.searchsorted(np.sort(values), values, side="left")
    high = np.searchsorted(np.sort(values), values, side="right")
    ranks: FloatArray = (low + high - len(values)) / (2 * len(values))
    return ranks


def records_of(chosen: Chosen, given: Callable[[Candidate], Row] = lambda _: {}) -> tuple[Row, ...]:
    """One record per candidate: what it is, whether it was chosen, and what decided.

    Args:
        chosen: The choice.
        given: What the plan gives a chosen one, by name.
    """
    column = chosen.criterion.column
    null = chosen.criterion.null or "noise"
    records = []
    for i, c in enumerate(chosen.candidates):
        record: Row = {
            "name": c.weight.name,
            "module": c.weight.kind,
            "chosen": "yes" if i < chosen.count else "no",
            "decided_by": c.row["name"],
            column: c.row[column],
            null: c.row[null] if chosen.criterion.null else c.noise,
        }
        records.append({**record, **(given(c) if i < chosen.count else {})})
    return tuple(records)


def unresolved(chosen: Chosen) -> tuple[str, ...]:
    """A sentence where the criterion measures rounding for some of the chosen."""
    if chosen.criterion.name != "kappa":
        return ()
    drowned = 0
    for c in chosen.chosen:
        bound = number(c.row, "condition_number_resolvable")
        drowned += bound is not None and c.value > bound
    if not drowned:
        return ()
    return (
        f"{drowned} of the chosen have a condition number above what their stored precision "
        "carries: their order is that of rounding.",
    )


def single_experts(chosen: Chosen) -> tuple[str, ...]:
    """A sentence where experts were chosen that a model in memory may not have one by one."""
    count = sum(c.row["expert"] is not None and not c.weight.is_stack for c in chosen.chosen)
    if not count:
        return ()
    return (
        f"{count} of the chosen are single experts: some versions of transformers stack experts "
        "when they load a model, and then have nothing of that name.",
    )
