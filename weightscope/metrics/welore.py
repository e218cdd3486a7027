"""WeLore: which matrices are low-rank, by one threshold for the whole model (arXiv 2407.11239).

The singular values of each matrix are mapped to [0, 1] by ``d = (s - s_min)/(s_max - s_min)``, and
every matrix keeps the ranks with ``d >= k``. The paper searches k on a grid and its code looks it
up in a table; here it is found exactly, from the sorted d of all matrices together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightscope.columns import Column
from weightscope.compat import conventions
from weightscope.outcome import Value
from weightscope.settings import Settings
from weightscope.spectrum import FloatArray, Spectrum

LOW_RANK = 0.5
"""A matrix that keeps less than this share of its numerical rank is LRC."""
NEEDS = ("rank",)
_SOURCE = "Jaiswal et al., WeLore, arXiv 2407.11239"
COLUMNS = (
    Column(
        "welore_rank",
        "integer",
        "ranks that WeLore would keep at the target reduction",
        formula="#{(s_i - s_min)/(s_max - s_min) >= k}, one k for the model",
        range="1 .. n",
        reading="Factorising saves parameters only below N M / (N + M).",
        caution="The scale is set by the largest singular value alone: one outlier turns any "
        "matrix into an LRC. Changes with the set of matrices analysed.",
        source=_SOURCE,
        noise="0.47 n for square noise beside rectangular noise at target 0.5: square noise reads "
        "as LRC",
    ),
    Column(
        "welore_rank_ratio", "number", "welore_rank over the number of singular values",
        range="(0, 1]", source=_SOURCE,
        formula='welore_rank / n',
        reading='Low: the matrix gives up most of its ranks before the others do.',
        caution='As welore_rank.',
        noise='0.47 (Q = 1), 0.53 (Q = 4) in one model at target 0.5',
    ),
    Column(
        "welore_class",
        "text",
        "LRC (low-rank: compress and fine-tune) or N-LRC (keep and freeze)",
        formula="LRC where welore_rank < rank / 2",
        reading="LRC: low-rank component; WeLore compresses it and fine-tunes its factors\n"
        "N-LRC: no low-rank component; WeLore keeps it and freezes it",
        source=_SOURCE,
    ),
    Column(
        "welore_relative_error",
        "number",
        "relative Frobenius error of keeping welore_rank directions",
        formula="sqrt(sum of dropped l / sum l)",
        range="[0, 1)",
        reading="The price of the truncation, in weights and not in accuracy.",
        source="Eckart & Young 1936",
        caution='Weights, not loss: directions of little energy can matter.',
        noise='0.35 (Q = 1), 0.52 (Q = 4) at target 0.5',
    ),
)  # fmt: skip


@dataclass(frozen=True)
class WeloreFit:
    """The threshold for a model.

    Attributes:
        k: Threshold on the normalised singular values.
        target: Share of ranks that was to be removed.
        attempted: Share that the threshold removes, before the class rule.
        pruned: A matrix is LRC where more than this share of its singular values is removed; None
            where it keeps fewer than half of its numerical rank.
    """

    k: float
    target: float
    attempted: float
    pruned: float | None = None

    def is_low_rank(self, kept: int, n: int, rank: int) -> bool:
        """Whether a matrix is LRC that keeps so many of n singular values.

        Args:
            kept: Singular values that the threshold keeps.
            n: All of them.
            rank: Numerical rank.
        """
        if self.pruned is None:
            return kept < LOW_RANK * rank
        return (n - kept) / n > self.pruned


def normalised(spectrum: Spectrum) -> FloatArray | None:
    """d of every singular value, descending; None where all are equal."""
    # what the solver cannot tell from zero is a tie, not a staircase of rounding errors
    s = np.where(spectrum.singular_values > spectrum.resolution, spectrum.singular_values, 0.0)
    span = s[0] - s[-1]
    if span <= 1e-12 * s[0]:
        return None
    values: FloatArray = (s - s[-1]) / span
    return values


def pruned_rank(spectrum: Spectrum, k: float) -> int:
    """Singular values that threshold k removes."""
    d = normalised(spectrum)
    return 0 if d is None else int(np.count_nonzero(d < k))


def fit_under(spectra: Sequence[Spectrum], settings: Settings) -> WeloreFit | None:
    """The threshold of the settings' target: found from the model, or a peer's own.

    Raises:
        OptionError: The peer has none for this target.
    """
    rules = conventions(settings.compat)
    threshold = rules.welore_threshold(settings.welore_target)
    if threshold is None:
        return fit(spectra, settings.welore_target)
    sizes = sum(len(spectrum.singular_values) for spectrum in spectra if spectrum.largest)
    if not sizes:
        return None
    removed = sum(pruned_rank(spectrum, threshold) for spectrum in spectra if spectrum.largest)
    return WeloreFit(threshold, settings.welore_target, removed / sizes, rules.welore_pruned)


def fit(spectra: Sequence[Spectrum], target: float) -> WeloreFit | None:
    """Find the threshold that removes the target share of all ranks, or the nearest reachable one.

    Args:
        spectra: The matrices to be reduced together.
        target: Share of their ranks to remove ("attempted" reduction), in (0, 1).

    Returns:
        The threshold in the middle of the gap it lies in; None where no matrix can be reduced.
    """
    parts = [d for d in map(normalised, spectra) if d is not None]
    if not parts:
        return None
    # matrices whose values are all equal keep every rank, and count
    total = sum(len(spectrum.singular_values) for spectrum in spectra if spectrum.largest)
    d = np.concatenate(parts)
    k, removed = nearest_cut(d, np.ones_like(d), target * total)
    return WeloreFit(k, target, removed / total)


def nearest_cut(d: FloatArray, gains: FloatArray, wanted: float) -> tuple[float, float]:
    """The threshold whose removals come nearest to what is wanted.

    Args:
        d: Normalised singular values of all matrices, in any order; at least two that differ.
        gains: What the removal of each brings once all smaller ones are removed, at least 0.
        wanted: Sum of gains that is sought.

    Returns:
        The middle of the gap that the threshold lies in, and the sum that it reaches.
    """
    order = np.argsort(d, kind="stable")
    pooled, reached = d[order], np.cumsum(gains[order])
    # cutting between two equal values is impossible
    steps = np.flatnonzero(pooled[1:] > pooled[:-1])
    last = int(steps[np.argmin(np.abs(reached[steps] - wanted))])
    return float(pooled[last] + pooled[last + 1]) / 2, float(reached[last])


def evaluate(spectrum: Spectrum, rank: int, fitted: WeloreFit) -> dict[str, Value]:
    """Rank, class and error of one matrix under the model's threshold."""
    if spectrum.largest == 0:
        return {}
    n = len(spectrum.singular_values)
    pruned = pruned_rank(spectrum, fitted.k)
    s = spectrum.singular_values / spectrum.largest
    dropped = float(np.sum(s[n - pruned :] ** 2)) / float(np.sum(s**2))
    return {
        "welore_rank": n - pruned,
        "welore_rank_ratio": (n - pruned) / n,
        "welore_class": "LRC" if fitted.is_low_rank(n - pruned, n, rank) else "N-LRC",
        "welore_relative_error": dropped**0.5,
    }
