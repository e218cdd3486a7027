"""Planted truth: matrices whose figures are known, measured here, on this device.

Every check states its limits. Those of deterministic figures leave room for rounding alone; those
of rates are exceeded by chance in less than one run of a thousand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from weightscope import analysis, planted
from weightscope.errors import OptionError
from weightscope.evaluate import Row, evaluate
from weightscope.laws import marchenko_pastur
from weightscope.laws.bootstrap import alpha_interval, generator
from weightscope.laws.power_law import PowerLaw, fit_power_law
from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, Measurement
from weightscope.outcome import Failure
from weightscope.settings import Settings
from weightscope.spectrum import FloatArray, Spectrum
from weightscope.tensor import TensorRef

if TYPE_CHECKING:
    import torch

EXPONENTS = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
TRACY_WIDOM_MEAN = -1.2065
ERG_REFERENCES: tuple[tuple[str, Callable[[], FloatArray], int], ...] = (
    ("Marchenko-Pastur, Q 1, n 4096", partial(planted.marchenko_pastur_evals, 4096, 1.0), 2995),
    ("Marchenko-Pastur, Q 1, n 8192", partial(planted.marchenko_pastur_evals, 8192, 1.0), 5989),
    ("power law 2, n 200", partial(planted.pareto_evals, 2.0, 200), 75),
    ("power law 3, n 200", partial(planted.pareto_evals, 3.0, 200), 142),
    ("power law 4, n 200", partial(planted.pareto_evals, 4.0, 200), 164),
)
"""Spectra and the number of eigenvalues whose product is one, by sums of logarithms. A running
product underflows: it ends at 2952 and 5375 of the first two."""


@dataclass(frozen=True)
class Limits:
    """What a check may show; None where it is not limited.

    Attributes:
        bias: Largest magnitude of the mean error.
        spread: Largest standard deviation of the errors.
        share: Smallest and largest share of cases.
    """

    bias: float | None = None
    spread: float | None = None
    share: tuple[float, float] | None = None

    def __str__(self) -> str:
        low, high = self.share or (0.0, 1.0)
        parts = [
            "" if self.bias is None else f"bias {self.bias:.2g}",
            "" if self.spread is None else f"spread {self.spread:.2g}",
            f"share {low:.0%} to {high:.0%}" if low < high < 1 or 0 < low < high else "",
            "all" if low == high == 1 else "",
        ]
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Check:
    """One figure, measured in many planted cases.

    Attributes:
        family: What it belongs to.
        planted: The cases.
        cases: How many.
        bias: Mean error.
        spread: Standard deviation of the errors.
        share: Share of the cases that ``counts``.
        counts: Which cases the share is of.
        limits: What is allowed.
    """

    family: str
    planted: str
    cases: int
    bias: float
    spread: float
    share: float
    counts: str
    limits: Limits

    @property
    def passed(self) -> bool:
        """Whether all limits hold; an undefined figure passes none."""
        limits = self.limits
        low, high = limits.share or (0.0, 1.0)
        return (
            (limits.bias is None or abs(self.bias) <= limits.bias)
            and (limits.spread is None or self.spread <= limits.spread)
            and low <= self.share <= high
        )


def check(
    named: tuple[str, str], errors: FloatArray, counted: tuple[str, Sequence[bool]], limits: Limits
) -> Check:
    """Condense cases to a check.

    Args:
        named: Family and what was planted.
        errors: One per case, NaN where there is no figure.
        counted: Which cases the share is of, and which these are.
        limits: What is allowed.
    """
    counts, hits = counted
    bias, spread = float(np.mean(errors)), float(np.std(errors))
    return Check(*named, len(errors), bias, spread, float(np.mean(hits)), counts, limits)


@dataclass
class Bench:
    """Measures planted matrices as a checkpoint is measured.

    Attributes:
        settings: Device, threads and seed.
        solvers: Routines used so far.
    """

    settings: Settings
    solvers: set[str] = field(default_factory=set)

    def rng(self, purpose: str) -> np.random.Generator:
        """Random numbers of the seed and a purpose."""
        return generator(self.settings.seed, "selftest", purpose)

    def rows(self, tensors: Sequence[torch.Tensor], *metrics: str) -> list[Row]:
        """Rows of the given families, in the order of the tensors."""
        named = {f"{k}.weight": tensor for k, tensor in enumerate(tensors)}
        run = analysis.analyze(named, replace(self.settings, metrics=metrics))
        self.solvers |= {run.spectrum(name).solver for name in named}
        found = {row["name"]: row for row in run.rows}
        return [found[name] for name in named]


def numbers(rows: Sequence[Row], column: str) -> FloatArray:
    """A column, NaN where a cell is empty."""
    return np.array([np.nan if row[column] is None else row[column] for row in rows], dtype=float)


def exponents(bench: Bench) -> list[Check]:
    """Power-law tails over a bulk and a noise floor, stored in three types."""
    checks = []
    for N, M, planned in ((1024, 512, EXPONENTS), (2048, 2048, (2.5,))):
        rng, truth = bench.rng(f"exponents {M}"), np.array(planned)
        directions, ends = planted.bases(N, M, rng), dict.fromkeys((planned[0], planned[-1]))
        floor = 0.05 / (sqrt(N) + sqrt(M)) * planted.noise(N, M, rng)
        matrices = [
            planted.with_spectrum(planted.heavy_tail(a, M, M // 2), directions) + floor
            for a in planned
        ]
        for dtype in planted.HALVES:
            rows = bench.rows([planted.stored(W, dtype) for W in matrices], "alpha")
            errors = numbers(rows, "alpha") / truth - 1
            what = f"alpha {' to '.join(f'{a:g}' for a in ends)}, {N}x{M}, {dtype}"
            near = ("within 2 %", list(np.abs(errors) <= 0.02))
            checks.append(check(("exponents", what), errors, near, Limits(0.01, 0.01, (1, 1))))
    return checks


def spikes(bench: Bench) -> list[Check]:
    """One direction in noise, below and above the strength at which it becomes visible."""
    N, M, cases = 400, 200, 100
    edge = marchenko_pastur.edges(N / M)[1] + TRACY_WIDOM_MEAN * planted.edge_scale(N, M)
    limit = planted.detection_limit(N, M)
    checks = []
    for factor in (0.0, 0.7, 1.5, 2.5):
        rng, theta = bench.rng(f"spikes {factor}"), factor * limit
        tensors = [
            planted.stored(planted.spiked(N, M, theta, rng), "float32") for _ in range(cases)
        ]
        rows = bench.rows(tensors, "mp", "norms")
        position = planted.spike_position(N, M, theta) if factor > 1 else edge
        errors = np.square(numbers(rows, "spectral_norm")) / N / position - 1
        found = ("detected", list(numbers(rows, "mp_spikes") > 0))
        what = f"spike of {factor:g} times the limit, {N}x{M}" if factor else f"noise, {N}x{M}"
        share = (0.97, 1.0) if factor > 1 else (0.0, 0.16)
        checks.append(check(("spikes", what), errors, found, Limits(0.025, 0.06, share)))
    return checks


def ranks(bench: Bench) -> list[Check]:
    """Products of two factors, whose rank only rounding hides."""
    checks = []
    for dtype, rank, N, M in planted.LOW_RANKS:
        rng, cases = bench.rng(f"ranks {dtype} {rank}"), 4
        matrices = [planted.low_rank(N, M, rank, rng) for _ in range(2 * cases)]
        for matrix in matrices[cases:]:
            matrix[:, rng.choice(M, 4, replace=False)] *= 60
        rows = bench.rows([planted.stored(W, dtype) for W in matrices], "rank")
        errors = numbers(rows, "rank") - rank
        for what, some in (("", slice(cases)), (", outlier columns", slice(cases, None))):
            exact = ("exact", list(errors[some] == 0))
            name = f"rank {rank}, {N}x{M}, {dtype}{what}"
            checks.append(check(("ranks", name), errors[some], exact, Limits(0, 0, (1, 1))))
    return checks


def kappas(bench: Bench) -> list[Check]:
    """Condition numbers up to 1e6, as exactly as storage allows; none where nothing resolves it."""
    M, checks = 256, []
    directions = planted.bases(M, M, bench.rng("kappas"))

    def rows_of(truth: FloatArray, dtype: planted.Stored) -> list[Row]:
        spectra = [np.square(planted.geometric(kappa, M)) for kappa in truth]
        matrices = [planted.with_spectrum(evals, directions) for evals in spectra]
        return bench.rows([planted.stored(W, dtype) for W in matrices], "condition")

    truth, beyond = np.logspace(1, 6, 6), np.logspace(12, 15, 4)
    spreads: dict[planted.Stored, float] = {"float64": 1e-5, "float32": 1e-3}
    for dtype, spread in spreads.items():
        rows = rows_of(truth, dtype)
        errors = numbers(rows, "condition_number") / truth - 1
        # rounding moves every singular value by about sv_floor / (sqrt N + sqrt M)
        moved = truth / numbers(rows, "condition_number_resolvable") / (2 * sqrt(M))
        right = ("within rounding", list(np.abs(errors) <= 1e-4 + 5 * moved))
        name = f"kappa 1e1 to 1e6, {M}x{M}, {dtype}"
        checks.append(check(("kappas", name), errors, right, Limits(spread, spread, (1, 1))))
        empty = [row["condition_number"] is None for row in rows_of(beyond, dtype)]
        name = f"kappa 1e12 to 1e15, {M}x{M}, {dtype}"
        none = np.zeros(len(empty))
        checks.append(check(("kappas", name), none, ("empty", empty), Limits(share=(1, 1))))
    return checks


def erg(bench: Bench) -> list[Check]:  # noqa: ARG001
    """The ERG cut of spectra whose running product leaves the range of float64, or nearly."""
    checks = []
    for what, evals, expected in ERG_REFERENCES:
        s = np.sqrt(evals()[::-1])
        matrix = Matrix("w", TensorRef("w", (len(s), len(s)), "F64"), "whole", "other", "w")
        stats = EntryStatistics(0.0, 1.0, 1.0, 0.0, 0, 0.0)
        measured = Measurement(matrix, stats, Spectrum(s, len(s), len(s)))
        row = evaluate(measured, Settings(metrics=("erg",))).row
        errors = numbers([row], "erg_n_tail") - expected
        exact = ("exact", list(errors == 0))
        name = f"{what}: {expected}"
        checks.append(check(("erg", name), errors, exact, Limits(0, share=(1, 1))))
    return checks


def intervals(bench: Bench) -> list[Check]:
    """Independent samples of 256 points, where the assumptions of both error bars hold."""
    n, cases, replicates, checks = 256, 80, 80, []
    for truth in (2.0, 3.0, 4.5):
        rng = bench.rng(f"intervals {truth}")
        samples = [planted.pareto_sample(truth, n, rng) for _ in range(cases)]
        fits = [fit for s in samples if isinstance(fit := fit_power_law(s), PowerLaw)]
        errors = np.array([fit.alpha for fit in fits]) / truth - 1
        found = [alpha_interval(s, "ks", replicates, rng) for s in samples]
        inside = [not isinstance(i, Failure) and i[0] <= truth <= i[1] for i in found]
        near = [abs(fit.alpha - truth) <= 1.96 * fit.stderr for fit in fits]
        # the standard error takes xmin as known, so that it covers less than it says
        for bar, covered, least in (("bootstrap", inside, 0.78), ("1.96 stderr", near, 0.75)):
            limits = Limits(0.06, 0.2, (least, 1.0))
            what = f"alpha {truth:g}, n {n}, {bar}"
            checks.append(check(("intervals", what), errors, ("covered", covered), limits))
    return checks


FAMILIES: Mapping[str, Callable[[Bench], list[Check]]] = {
    "exponents": exponents,
    "spikes": spikes,
    "ranks": ranks,
    "kappas": kappas,
    "erg": erg,
    "intervals": intervals,
}
"""What can be tested, in order."""


@dataclass(frozen=True)
class Selftest:
    """Everything that was checked.

    Attributes:
        checks: In order of their families.
        settings: With device and threads filled in.
        device: Name of the device.
        solvers: Routines that produced the spectra.
        seconds: Time it took.
    """

    checks: tuple[Check, ...]
    settings: Settings
    device: str
    solvers: tuple[str, ...]
    seconds: float

    @property
    def failed(self) -> list[str]:
        """Families with a check that does not pass."""
        return list(dict.fromkeys(c.family for c in self.checks if not c.passed))


def selftest(
    settings: Settings, families: Sequence[str] = (), note: Callable[[str], None] = lambda _: None
) -> Selftest:
    """Run families, all of them where none is named.

    Args:
        settings: Device, threads and seed.
        families: Keys of ``FAMILIES``.
        note: Is told which family begins, and where another device stands in.

    Raises:
        OptionError: There is no such device here, or no such family.
    """
    for name in families:
        if name not in FAMILIES:
            raise OptionError(f"--only {name!r}: choose from {', '.join(FAMILIES)}")
    settings, device = analysis.with_resources(settings, note)
    bench, checks, start = Bench(settings), [], time.perf_counter()
    for name in FAMILIES:
        if not families or name in families:
            note(f"{name}: {(FAMILIES[name].__doc__ or '').splitlines()[0]}")
            checks.extend(FAMILIES[name](bench))
    seconds = time.perf_counter() - start
    return Selftest(tuple(checks), settings, device, tuple(sorted(bench.solvers)), seconds)
