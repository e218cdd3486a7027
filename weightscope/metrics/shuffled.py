"""The empirical null: what the same entries would give in a random order."""

from __future__ import annotations

from collections.abc import Sequence
from math import erfc

import numpy as np

from weightscope.columns import Column
from weightscope.distances import log_wasserstein
from weightscope.drawings.esd import ranks
from weightscope.laws import marchenko_pastur
from weightscope.measurement import EntryStatistics, Measurement, Shuffled
from weightscope.metrics.rank import entropy_of, numerical_rank
from weightscope.outcome import Details, Failure, Value, Values
from weightscope.settings import Settings
from weightscope.spectrum import FloatArray, Spectrum

BINS = 100
LEVEL = 0.99
"""Share of noise matrices that have no eigenvalue beyond the cut."""
NEEDS: tuple[str, ...] = ()
_SOURCE = "Martin & Mahoney, JMLR 22 (2021); correlation traps: Martin & Hinrichs, SETOL (2025)"
COLUMNS = (
    Column(
        "shuffled_lambda_max",
        "number",
        "largest eigenvalue of the same entries in random order",
        formula="mean over the replicas of the largest eigenvalue of W^T W, entries permuted",
        unit="W^2",
        range="(0, inf)",
        reading="Compare with spectral_norm squared: far below it where the largest direction "
        "comes from the order of the entries, that is from learning.",
        caution="Giant entries and a mean survive every order; see traps.",
        noise="N sigma^2 (1 + Q^-1/2)^2",
        source=_SOURCE,
    ),
    Column(
        "shuffled_w1",
        "number",
        "distance of the spectrum from that of its shuffled entries",
        formula="Wasserstein-1 distance of ln l, original to replica: mean |ln l_(i) - ln r_(i)|; "
        "both keep singular values above max(N eps32 s_1, sv_floor); mean over the replicas",
        range="[0, inf)",
        reading="How much of the spectrum comes from correlations: the distribution of the entries "
        "is the same on both sides. 0.5: eigenvalues move by a factor of e^0.5 on average.",
        caution="Values below the floor are left out on either side, so quantiles are compared "
        "where the ranks differ.",
        noise="about 16 / M (Q = 1), 2.5 / M (Q = 2 and more)",
        source="weightscope, after WeightWatcher's rand_distance",
    ),
    Column(
        "shuffled_jsd",
        "number",
        "divergence of the spectral density from that of the shuffled entries",
        formula="Jensen-Shannon divergence in bits of histograms of log10 l, 100 bins on common "
        "edges; mean over the replicas",
        range="[0, 1]",
        reading="0: the same density; 1: no overlap.",
        caution="Histograms of few eigenvalues differ by chance, the more the fewer; shuffled_w1 "
        "has no bins.",
        noise="about 9 / M for M from 200 up",
        source="Lin, IEEE Trans. Information Theory 37 (1991)",
    ),
    Column(
        "traps",
        "number",
        "correlation traps: outliers that survive shuffling",
        formula="#{r > N v [(1 + Q^-1/2)^2 + t Q^-1/2 M^-2/3 (1 + Q^-1/2)^(4/3)]}, v = var(W), "
        "t = 2.023 (99 % of Tracy-Widom); mean over the replicas",
        range="0 .. n",
        reading="Above 0: single giant entries or a mean carry a direction that no order of the "
        "entries removes; see trap_cause. Typical of a learning rate too large.",
        caution="Pure noise has one in one draw of a hundred. A convolution with a mean has one "
        "for each kernel position. Not every trap does harm.",
        noise="0, or 1 in one case of a hundred (of two hundred where M is below 100)",
        source="Martin & Hinrichs, SETOL (2025), arXiv 2507.17912; Johnstone, Annals of "
        "Statistics 29 (2001)",
    ),
    Column(
        "trap_cause",
        "text",
        "what makes the traps: mean, giant entries, heavy-tailed entries, chance",
        formula="x = (v + c)(v/Q + c)/c > cut/N for c = M mu^2 (mean), c = max (|w| - |mu|)^2 / N "
        "(giant entries); else heavy-tailed entries where P(max |w|) < 1 % for Gaussian ones",
        range="words, joined by '; '; empty without a trap",
        reading="mean: the mean alone would cause the trap\n"
        "giant entries: the largest entry alone would\n"
        "heavy-tailed entries: neither would, but the largest entry is larger than chance makes "
        "it\n"
        "chance: nothing stands out",
        caution="Says what would suffice, not what else there is.",
        noise="empty, or chance in one case of a hundred",
        source="Benaych-Georges & Nadakuditi, J. Multivariate Analysis 111 (2012)",
    ),
)


def compare(
    spectrum: Spectrum, replicas: Sequence[tuple[Spectrum, float]], stats: EntryStatistics
) -> Shuffled:
    """How far a spectrum is from those of its shuffled entries.

    Args:
        spectrum: The matrix as it is, not zero.
        replicas: At least one spectrum of shuffled entries, each with its own ``sv_floor``.
        stats: The entries.
    """
    original = _kept(spectrum, stats.sv_floor or 0.0)
    shuffled = [_kept(replica, floor) for replica, floor in replicas]
    pairs = [(original, values) for values in shuffled if len(values) and len(original)]
    cut = (stats.std or 0.0) * (spectrum.N * _cut(spectrum)) ** 0.5
    tops = np.array([replica.largest for replica, _ in replicas]) / spectrum.largest
    return Shuffled(
        len(replicas),
        float(np.mean(tops**2)) ** 0.5 * spectrum.largest,
        float(np.mean([2 * log_wasserstein(*pair) for pair in pairs])) if pairs else None,
        float(np.mean([log_divergence(*pair) for pair in pairs])) if pairs else None,
        float(np.mean([np.count_nonzero(values > cut) for values in shuffled])),
        *_to_be_drawn(shuffled),
    )


def _to_be_drawn(shuffled: Sequence[FloatArray]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Ranks that stand for the spectrum, and the geometric mean of the replicas at them."""
    shortest = min(map(len, shuffled))
    if not shortest:
        return (), ()
    chosen = ranks(shortest)
    means = np.exp(np.mean([np.log(values[chosen - 1]) for values in shuffled], axis=0))
    return tuple(map(int, chosen)), tuple(float(f"{mean:.6g}") for mean in means)


def _kept(spectrum: Spectrum, sv_floor: float) -> FloatArray:
    return spectrum.singular_values[: numerical_rank(spectrum, sv_floor)]


def _cut(spectrum: Spectrum) -> float:
    """Eigenvalue of X = W^T W / N that noise of unit variance rarely exceeds."""
    return marchenko_pastur.largest_eval_cut(spectrum.N, spectrum.M, spectrum.slices, LEVEL)


def log_divergence(a: FloatArray, b: FloatArray) -> float:
    """Jensen-Shannon divergence in bits of two samples' logarithms, in 100 common bins.

    Args:
        a: Positive values, in any order.
        b: Positive values, in any order.
    """
    x, y = np.log10(a), np.log10(b)
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    if high - low < 1e-9:  # equal up to rounding
        return 0.0
    edges = np.linspace(low, high, BINS + 1)
    p, q = (np.histogram(values, edges)[0] / len(values) for values in (x, y))
    nats = entropy_of((p + q) / 2) - (entropy_of(p) + entropy_of(q)) / 2
    return max(0.0, nats / float(np.log(2)))


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """What the replicas gave when the matrix was on the device."""
    shuffled, spectrum, stats = measured.shuffled, measured.spectrum, measured.stats
    if isinstance(shuffled, Failure):
        return {"shuffled_lambda_max": shuffled}
    if shuffled is None or spectrum is None or stats is None:
        return {}
    values: dict[str, Value | Failure | Details] = {
        "shuffled_lambda_max": spectrum.unscaled((shuffled.largest / spectrum.largest) ** 2),
        "shuffled_w1": shuffled.w1,
        "shuffled_jsd": shuffled.jsd,
        "traps": int(shuffled.traps) if shuffled.traps.is_integer() else shuffled.traps,
        "trap_cause": trap_cause(spectrum, stats) if shuffled.traps else None,
        "shuffled": {
            "replicas": shuffled.replicas,
            "level": LEVEL,
            "ranks": list(shuffled.ranks),
            "singular_values": list(shuffled.singular_values),
        },
    }
    if shuffled.w1 is None:
        values["shuffled_w1"] = Failure("no singular value is above the floor on both sides")
    return values


def trap_cause(spectrum: Spectrum, stats: EntryStatistics) -> str:
    """What would be enough for an eigenvalue beyond the cut, in words."""
    largest = stats.abs_max or 1.0
    std, mean = (stats.std or 0.0) / largest, abs(stats.mean or 0.0) / largest
    entry = 1.0 - mean  # the least that the largest entry can differ from the mean
    N, M, variance = spectrum.N, spectrum.M, std * std
    count = N * M * spectrum.slices
    rest = max(0.0, variance - entry * entry / count)
    cut = variance * _cut(spectrum)
    causes = {
        "mean": _spike(M * mean * mean, variance, spectrum.Q) > cut,
        "giant entries": _spike(entry * entry / N, rest, spectrum.Q) > cut,
    }
    found = [cause for cause, enough in causes.items() if enough]
    if not found:
        heavy = count * erfc(entry / std / 2**0.5) < 1 - LEVEL
        found = ["heavy-tailed entries" if heavy else "chance"]
    return "; ".join(found)


def _spike(strength: float, variance: float, Q: float) -> float:
    """Where a rank-one matrix puts the largest eigenvalue of X in noise of that variance.

    Args:
        strength: Eigenvalue of the rank-one matrix alone, over N.
        variance: Of the noise.
        Q: N / M.
    """
    if strength * strength <= variance * variance / Q:
        return 0.0  # it stays inside the bulk
    return (variance + strength) * (variance / Q + strength) / strength
