"""Bit widths per weight from measured rounding errors, under a budget of bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from weightscope.addresses import Weight, weights_of
from weightscope.choosing import left_out, of_several_rows
from weightscope.criteria import number
from weightscope.errors import OptionError
from weightscope.proposal import Proposal, json_text
from weightscope.run import Run
from weightscope.text import count_of

MEANING = "bits per weight from measured rounding errors: JSON in the form of a layer_config"
SOURCE = "weightscope; marginal gains as in Fox, Operations Research 14 (1966)"
BITS = 4.0
GROUP_SIZE = 128
"""Of the rounding that analyze measures."""


@dataclass(frozen=True)
class Options:
    """Options of ``--for bits``.

    Attributes:
        bits: Most bits per entry on average, without the scales.
        include_embeddings: Take embeddings and heads too.
        prefix: What the model in memory has before the names in the file.
    """

    bits: float = BITS
    include_embeddings: bool = False
    prefix: str = ""


@dataclass(frozen=True)
class Tradeoff:
    """What a weight loses at each width.

    Attributes:
        size: Number of entries.
        errors: Width in bits to squared relative error.
    """

    size: int
    errors: Mapping[int, float]

    @property
    def steps(self) -> list[tuple[float, int, int]]:
        """Steps up the lower convex hull, as (gain per bit and entry, from, to), falling gains."""
        hull: list[int] = []
        for bits in sorted(self.errors):
            while len(hull) > 1 and self._gain(hull[-2], hull[-1]) <= self._gain(hull[-1], bits):
                hull.pop()
            hull.append(bits)
        steps = [(self._gain(low, high), low, high) for low, high in pairwise(hull)]
        return [step for step in steps if step[0] > 0]

    def _gain(self, low: int, high: int) -> float:
        return (self.errors[low] - self.errors[high]) / (high - low)


def propose(run: Run, options: Options) -> Proposal:
    """A width for every weight whose rounding was measured.

    Raises:
        OptionError: Fewer than two widths were measured, or the budget is below the lowest.
    """
    widths = _widths(run)
    weights, remarks = _measured(run, options, widths)
    tradeoffs = [Tradeoff(w.params, {b: _error(w, b) for b in widths}) for w in weights]
    total = sum(t.size for t in tradeoffs)
    if not options.bits >= min(widths):  # nor is nan
        raise OptionError(
            f"--bits {options.bits:g}: below the lowest measured width, {min(widths)}; analyze "
            "with a lower one in --quant-error"
        )
    given = widths_within(tradeoffs, options.bits * total)
    spent = sum(t.size * b for t, b in zip(tradeoffs, given, strict=True))
    error = _loss(tradeoffs, given)
    config = {
        str(w.module): {"bits": b, "group_size": GROUP_SIZE, "sym": True}
        for w, b in zip(weights, given, strict=True)
    }
    counts = ", ".join(f"{n} at {b}" for b, n in sorted(Counter(given).items()))
    equal = max((b for b in widths if b <= options.bits), default=min(widths))
    return Proposal(
        json_text({"format": "weightscope-bits", "version": 1, "layer_config": config}),
        tuple(_record(w, b, widths) for w, b in zip(weights, given, strict=True)),
        "Bits by measured rounding error of the weights, not by accuracy: the sum over entries of "
        "quant_error squared is lowered where a bit lowers it most, along the convex hull of each "
        f"weight's errors at {', '.join(map(str, widths))} bits ({SOURCE}).",
        f"Budget: {spent / total:.4f} of {options.bits:g} bits per entry used "
        f"({count_of(len(weights), 'weight')}: {counts}; scales of groups of {GROUP_SIZE} come on "
        f"top). Root-mean-square relative weight error {error**0.5:.4g}, against "
        f"{_loss(tradeoffs, [equal] * len(weights)) ** 0.5:.4g} with {equal} bits for all.",
        "Noise: Gaussian entries have one error at each width whatever the shape, so on noise only "
        "the order of names would decide.",
        ("no paper: the plan is weightscope's own.",),
        remarks,
        facts={"bits": spent / total, "weight_error": error**0.5},
    )


def widths_within(tradeoffs: Sequence[Tradeoff], budget: float) -> list[int]:
    """Widths that lower the total squared error greedily, within a budget.

    Each step up a weight's convex hull is taken in the order of gain per bit, the larger first,
    then in the order of weights; a step that does not fit any more ends its weight's climb. Until
    the first such step the result is the best possible for the bits it uses; after it the rest of
    the budget is filled.

    Args:
        tradeoffs: One per weight.
        budget: Most bits in all; at least those of the lowest widths.
    """
    given = [min(t.errors) for t in tradeoffs]
    left = budget - sum(t.size * b for t, b in zip(tradeoffs, given, strict=True))
    steps = sorted(
        (-gain, i, low, high) for i, t in enumerate(tradeoffs) for gain, low, high in t.steps
    )
    for _, i, low, high in steps:
        price = tradeoffs[i].size * (high - low)
        if given[i] == low and price <= left:
            given[i], left = high, left - price
    return given


def _loss(tradeoffs: Sequence[Tradeoff], given: Sequence[int]) -> float:
    """Mean over entries of the squared relative error of their weight."""
    total = sum(t.size for t in tradeoffs)
    return sum(t.size * t.errors[b] for t, b in zip(tradeoffs, given, strict=True)) / total


def _widths(run: Run) -> list[int]:
    measured = sorted(int(bits) for bits in run.provenance["settings"]["quant_error"])
    if len(measured) < 2:
        what = f"only {measured[0]} bits were" if measured else "no rounding errors were"
        raise OptionError(
            f"{run.name}: {what} measured; analyze again with --quant-error 8,6,4,3 or other widths"
        )
    return measured


def _measured(
    run: Run, options: Options, widths: Sequence[int]
) -> tuple[list[Weight], tuple[str, ...]]:
    found, why = [], Counter[str]()
    for weight in weights_of(run, options.prefix):
        reason = left_out(weight, options.include_embeddings)
        if not reason and weight.module is None:
            reason = "parameters that are no module's weight"
        if not reason and any(
            row[f"quant_error_{bits}"] is None for row in weight.rows for bits in widths
        ):
            reason = "no rounding error (the column reason of the run says why)"
        if reason:
            why[reason] += 1
        else:
            found.append(weight)
    remarks = tuple(f"Left out, {reason}: {n}." for reason, n in sorted(why.items()))
    if not found:
        raise OptionError(f"{run.name}: no weight has rounding errors. {' '.join(remarks)}".strip())
    told = of_several_rows(found, "judged by the mean squared error of its rows")
    return found, (*remarks, *told)


def _error(weight: Weight, bits: int) -> float:
    """Squared relative error; of a weight of several rows the mean over entries."""
    parts = [
        (number(row, f"quant_error_{bits}") or 0.0, int(row["params"] or 0)) for row in weight.rows
    ]
    return sum(error**2 * size for error, size in parts) / sum(size for _, size in parts)


def _record(
    weight: Weight, bits: int, widths: Sequence[int]
) -> dict[str, float | int | str | None]:
    errors = {f"quant_error_{b}": _error(weight, b) ** 0.5 for b in reversed(widths)}
    return {"name": weight.name, "module": weight.kind, "bits": bits, **errors}
