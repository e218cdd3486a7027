"""Ranks and entropies: how many directions a matrix uses."""

from __future__ import annotations

from math import exp, log

import numpy as np

from weightscope.columns import Column
from weightscope.compat import Conventions, conventions
from weightscope.measurement import EntryStatistics, Measurement
from weightscope.outcome import Values
from weightscope.settings import Settings
from weightscope.spectrum import FloatArray, Spectrum

EPS32 = 2.0**-23
_OURS = conventions(None)
DEFICIENT = 0.9
"""Below this share of full rank, the tail and the ERG cut are sought among the rank largest."""
NEEDS: tuple[str, ...] = ()
COLUMNS = (
    Column(
        "rank",
        "integer",
        "singular values above rounding and storage noise",
        formula="#{s_i > max(N eps32 s_1, sv_floor)}",
        range="0 .. n",
        reading="Below n_evals the matrix carries exact low-rank structure, or directions that its "
        "stored precision cannot hold.",
        caution="A bf16 matrix loses its smallest directions in storage; they are not counted.",
        noise="n",
        source="numpy.linalg.matrix_rank's rule at float32, and the storage floor (see sv_floor)",
    ),
    Column(
        "stable_rank",
        "number",
        "energy over the energy of the top direction",
        formula="sum l_i / l_1",
        range="[1, n]",
        reading="Small: one or few directions dominate.",
        noise="M / (1 + Q^-1/2)^2: a quarter of M for a square matrix",
        source="Rudelson & Vershynin, JACM 54 (2007)",
        caution="Set by the largest singular value alone.",
    ),
    Column(
        "effective_rank",
        "number",
        "exponential of the entropy of the singular values (Roy & Vetterli)",
        formula="exp(-sum q_i ln q_i), q_i = s_i / sum s",
        range="[1, n]",
        reading="How many directions matter by amplitude.",
        source="Roy & Vetterli, EUSIPCO 2007",
        caution="Counts the small directions of storage noise too.",
        noise="0.80 M (Q = 1) to 0.97 M (Q = 4)",
    ),
    Column(
        "effective_rank_vn",
        "number",
        "exponential of the von Neumann (energy) entropy",
        formula="exp(-sum p_i ln p_i), p_i = l_i / sum l",
        range="[1, n]",
        reading="How many directions matter by energy; never above effective_rank.",
        source="von Neumann entropy of W^T W / Tr",
        caution="Blind to directions of little energy.",
        noise="0.61 M (Q = 1) to 0.88 M (Q = 4)",
    ),
    Column(
        "entropy",
        "number",
        "energy entropy over its largest possible value",
        formula="-sum p_i ln p_i / ln R, R = singular values the solver resolves",
        range="[0, 1]",
        reading="1: all directions alike; near 0: one direction. Correlates with training quality "
        "inside one family only.",
        caution="Defined as 0 for rank one.",
        noise="1 - M / (2 N ln M)",
        source="Martin & Mahoney, JMLR 22 (2021)",
    ),
    Column(
        "participation_ratio",
        "number",
        "inverse sum of squared energy shares (Renyi-2 effective rank)",
        formula="(sum l_i)^2 / sum l_i^2",
        range="[1, n]",
        reading="Between stable_rank and effective_rank_vn; the cheapest of the effective ranks.",
        noise="M / (1 + M/N)",
        source="Renyi entropy of order 2",
        caution="Blind to directions of little energy.",
    ),
)


def numerical_rank(spectrum: Spectrum, sv_floor: float, rules: Conventions = _OURS) -> int:
    """Singular values above what float32 rounding and the stored precision leave.

    Args:
        spectrum: Of the matrix.
        sv_floor: What rounding to the stored dtype can add to any singular value (units of W).
        rules: Which precision counts, and whether that of storage does.
    """
    cut = max(spectrum.N * rules.rank_eps * spectrum.largest, spectrum.resolution)
    cut = max(cut, sv_floor) if rules.storage_floor else cut
    return int(np.count_nonzero(spectrum.singular_values > cut))


def is_deficient(rank: int, spectrum: Spectrum) -> bool:
    """Whether so many directions are missing that figures are computed on the rest alone."""
    return rank < DEFICIENT * len(spectrum.singular_values)


def is_constant(spectrum: Spectrum, stats: EntryStatistics | None) -> bool:
    """Whether several singular values differ by no more than rounding and storage explain."""
    if len(spectrum.singular_values) < 2 or spectrum.largest == 0:
        return False
    floor = (stats.sv_floor if stats else None) or 0.0
    spread = max(5e-7, spectrum.M * EPS32, 2 * floor / spectrum.largest)
    return spectrum.largest - spectrum.smallest < spread * spectrum.smallest


def entropy_of(shares: FloatArray) -> float:
    """-sum p ln p in nats, 0 ln 0 = 0."""
    positive = shares[shares > 0]
    return float(-np.sum(positive * np.log(positive)))


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """Ranks; undefined but for ``rank`` in the zero matrix."""
    spectrum, stats = measured.spectrum, measured.stats
    if spectrum is None or stats is None:
        return {}
    if spectrum.largest == 0:
        return {"rank": 0}
    rules = conventions(settings.compat)
    rank = numerical_rank(spectrum, stats.sv_floor or 0.0, rules)
    s, evals = spectrum.singular_values / spectrum.largest, spectrum.relative_evals
    energy = float(evals.sum())
    shares = evals / energy
    resolved = int(np.count_nonzero(spectrum.singular_values > spectrum.resolution))
    return {
        "rank": rank,
        "stable_rank": energy,
        "effective_rank": exp(entropy_of(s / s.sum())),
        "effective_rank_vn": exp(entropy_of(shares)),
        "entropy": _normalised(shares, resolved, rules.entropy_offset),
        "participation_ratio": energy**2 / float(np.square(evals).sum()),
    }


def _normalised(shares: FloatArray, rank: int, offset: float) -> float:
    if rank < 2:
        return 0.0
    return min(1.0, entropy_of(shares + offset) / log(rank + offset))
