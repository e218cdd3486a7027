"""The Marchenko-Pastur bulk: how much of a spectrum random entries would explain."""

from __future__ import annotations

from math import sqrt

import numpy as np

from weightscope.columns import Column
from weightscope.laws import marchenko_pastur
from weightscope.measurement import Measurement
from weightscope.outcome import Failure, Values
from weightscope.settings import Settings
from weightscope.spectrum import FloatArray

NEEDS = ("rank",)
_SOURCE = "Marchenko & Pastur 1967; median matching after Gavish & Donoho, IEEE IT 60 (2014)"
COLUMNS = (
    Column(
        "mp_sigma",
        "number",
        "entry noise whose Marchenko-Pastur law has the spectrum's median",
        formula="sqrt(median(l / N) / mu(Q)), mu(Q) the median of the law for unit variance",
        unit="W",
        range="(0, inf)",
        caution="An effective noise level: trained layers seldom have a true bulk (see mp_ks).",
        noise="the standard deviation of the entries",
        source=_SOURCE,
        reading="Compare with weight_std: well below it where a few directions carry the energy.",
    ),
    Column(
        "mp_edge",
        "number",
        "upper edge of that law",
        formula="N mp_sigma^2 (1 + Q^-1/2)^2",
        unit="W^2",
        range="(0, inf)",
        source=_SOURCE,
        reading="Eigenvalues above it stand out of the bulk; mp_spikes counts them.",
        caution="As mp_sigma.",
        noise="N sigma^2 (1 + Q^-1/2)^2",
    ),
    Column(
        "mp_spikes",
        "integer",
        "eigenvalues above the edge and its 95 % Tracy-Widom allowance",
        formula="#{l_i > N mp_sigma^2 (x_+ + t Q^-1/2 M^-2/3 (1 + Q^-1/2)^(4/3))}, t = 0.979",
        range="0 .. n",
        reading="Directions that noise of this level would not show.",
        caution="Where mp_ks is above 0.1 there is no bulk, and the count only says how many "
        "eigenvalues lie above the edge of a random matrix with the same median.",
        noise="0, or 1 in one case of twenty",
        source="Tracy & Widom 1996; Johnstone, Annals of Statistics 29 (2001)",
    ),
    Column(
        "mp_softrank",
        "number",
        "edge over the largest eigenvalue",
        formula="min(1, mp_edge / l_1)",
        range="(0, 1]",
        reading="Near 1: like a random matrix; well below: spikes or heavy tails.",
        noise="about 1",
        source="Martin & Mahoney, JMLR 22 (2021)",
        caution="Undefined as a rank where mp_ks is above 0.1.",
    ),
    Column(
        "mp_ks",
        "number",
        "KS distance between the eigenvalues below the cut and the law",
        formula="sup |F_n - F_MP| over the bulk",
        range="[0, 1]",
        reading="Above 0.1 the bulk is not Marchenko-Pastur.",
        noise="about 0.5 / M",
        source=_SOURCE,
        caution="Few eigenvalues below the cut make it large by themselves.",
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """Match the law to the median; undefined where half of the eigenvalues are zero."""
    spectrum = measured.spectrum
    if spectrum is None or spectrum.largest == 0:
        return {}
    if measured.matrix.unlike_noise:
        return {"mp_sigma": Failure(measured.matrix.unlike_noise)}
    N, M, Q = spectrum.N, spectrum.M, spectrum.Q
    evals = spectrum.relative_evals
    middle = float(np.median(evals))
    rank = known["rank"]
    assert isinstance(rank, int)
    if rank <= len(evals) // 2 or middle <= (spectrum.resolution / spectrum.largest) ** 2:
        why = "half of the eigenvalues are zero or storage noise, so there is no bulk"
        return {"mp_sigma": Failure(why)}
    variance = middle / N / marchenko_pastur.median(Q)
    x = evals / N / variance
    edge = marchenko_pastur.edges(Q)[1]
    cut = marchenko_pastur.largest_eval_cut(N, M, spectrum.slices)
    return {
        "mp_sigma": sqrt(variance) * spectrum.largest,
        "mp_edge": spectrum.unscaled(N * variance * edge),
        "mp_spikes": int(np.count_nonzero(x > cut)),
        "mp_softrank": min(1.0, edge / float(x[0])),
        "mp_ks": _distance(np.sort(x[x <= cut]), Q),
    }


def _distance(bulk: FloatArray, Q: float) -> float:
    """Two-sided KS distance of a sorted sample from the law."""
    model = marchenko_pastur.cdf(bulk, Q)
    n = len(bulk)
    below, above = np.arange(n) / n, np.arange(1, n + 1) / n
    return float(max(np.max(np.abs(model - below)), np.max(np.abs(model - above))))
