"""What plans have in common that map exponents to a figure per weight."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from weightscope.addresses import Weight, weights_of
from weightscope.choosing import left_out, of_several_rows
from weightscope.criteria import CRITERIA, Criterion, require
from weightscope.errors import OptionError
from weightscope.reasons import degree_of, rank_correlation
from weightscope.run import Run
from weightscope.spectrum import FloatArray

EXPONENTS = ("alpha", "farms")


@dataclass(frozen=True)
class Layer:
    """A weight and its exponent.

    Attributes:
        weight: The weight.
        alpha: Its exponent; of a weight of several rows their mean, weighted by entries.
        null: That of noise of the same shape; None where it is unknown.
    """

    weight: Weight
    alpha: float
    null: float | None


def exponent_named(by: str) -> Criterion:
    """The criterion whose column is an exponent.

    Raises:
        OptionError: It is none.
    """
    for criterion in CRITERIA:
        if criterion.name == by and by in EXPONENTS:
            return criterion
    raise OptionError(f"--by {by!r}: this plan maps exponents; choose {' or '.join(EXPONENTS)}")


def layers_of(
    run: Run, criterion: Criterion, prefix: str, embeddings: bool, fewest: int = 0
) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Every weight with an exponent, in natural order of names, and a sentence about the others.

    Args:
        run: A run.
        criterion: Which exponent.
        prefix: What the model in memory has before the names in the file.
        embeddings: Take embeddings and heads too.
        fewest: Eigenvalues below which a weight is left out.

    Raises:
        OptionError: The run has no exponents, or none is left.
    """
    require(run, criterion.column, criterion.family)
    found, why = [], Counter[str]()
    for weight in weights_of(run, prefix):
        reason = left_out(weight, embeddings)
        if not reason and _evals(weight) < fewest:
            reason = f"fewer than {fewest} eigenvalues"
        alpha = _mean(weight, [criterion.of(row) for row in weight.rows])
        if not reason and alpha is None:
            reason = f"no {criterion.column} (the column reason of the run says why)"
        if reason or alpha is None:
            why[reason] += 1
            continue
        null = _mean(weight, [criterion.null_of(row) for row in weight.rows])
        found.append(Layer(weight, alpha, null))
    remarks = tuple(f"Left out, {reason}: {n}." for reason, n in sorted(why.items()))
    if not found:
        raise OptionError(f"{run.name}: no weight has an exponent to map. {' '.join(remarks)}")
    several = [layer.weight for layer in found]
    told = of_several_rows(several, "mapped by the mean of its rows, weighted by entries")
    return tuple(found), (*remarks, *told)


def scaled_between(values: FloatArray, low: float, high: float) -> FloatArray:
    """Map values linearly so that the smallest becomes ``low`` and the largest ``high``.

    Equal values become 1: nothing tells them apart, so nothing changes.

    Args:
        values: Shape (n,).
        low: For the smallest.
        high: For the largest.
    """
    smallest, largest = float(values.min()), float(values.max())
    if smallest == largest:
        return np.ones_like(values)
    mapped: FloatArray = low + (values - smallest) / (largest - smallest) * (high - low)
    return mapped


def noise_sentence(given: FloatArray, noise: FloatArray | None, what: str) -> str:
    """What noise of the same shapes would be given, and whether the plan follows shape.

    Args:
        given: What the plan gives, shape (n,).
        noise: What it would give noise; None where that is unknown.
        what: Noun for it, plural.
    """
    if noise is None:
        return "Noise: no comparison, as the run has no exponents of noise for every weight."
    if given.min() == given.max():
        return f"Noise: no comparison, as the plan gives equal {what}."
    rho = rank_correlation(list(given), list(noise), [""] * len(given))
    if rho is None:
        return f"Noise of the same shapes would get equal {what}: the plan does not follow shapes."
    return (
        f"Noise of the same shapes would get {what} from {noise.min():.4f} to {noise.max():.4f}; "
        f"rank correlation {rho:.2f}: the plan {degree_of(rho)}follows shapes."
    )


def _mean(weight: Weight, values: list[float | None]) -> float | None:
    """Mean of the rows that have a value, weighted by entries."""
    pairs = [
        (value, int(row["params"] or 0))
        for value, row in zip(values, weight.rows, strict=True)
        if value is not None
    ]
    if len(pairs) == 1:
        return pairs[0][0]  # the cell itself, not a rounding of it
    total = sum(size for _, size in pairs)
    return sum(value * size for value, size in pairs) / total if total else None


def _evals(weight: Weight) -> int:
    """Fewest eigenvalues among its rows."""
    return min(int(row["M"] or 0) * int(row["slices"] or 1) for row in weight.rows)
