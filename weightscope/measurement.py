"""What measuring one matrix yields: its spectrum and the scalars that need the entries."""

from __future__ import annotations

from dataclasses import dataclass

from weightscope.laws.power_law import PowerLaw
from weightscope.matrix import Matrix
from weightscope.outcome import Failure
from weightscope.spectrum import Spectrum


@dataclass(frozen=True)
class EntryStatistics:
    """Facts about the entries of one matrix.

    Attributes:
        mean: Mean of the entries.
        std: Population standard deviation.
        abs_max: Largest magnitude.
        zero_fraction: Share of exact zeros.
        nonfinite: Number of NaN and infinite entries; where any, the others are None.
        sv_floor: What rounding to the stored dtype can add to any singular value (units of W).
        equal_tail: Rows at the end that equal each other, of an embedding or a head.
    """

    mean: float | None
    std: float | None
    abs_max: float | None
    zero_fraction: float | None
    nonfinite: int
    sv_floor: float | None
    equal_tail: int = 0


@dataclass(frozen=True)
class FarmsFit:
    """The power law of the pooled window spectra.

    Attributes:
        fit: Fit of the pooled eigenvalues over the largest of them, or why there is none.
        lambda_max: That largest one, in units of W^2; None where float64 cannot hold it.
        sd: Standard deviation of the exponents of single windows, where at least two were fitted.
        q: Window columns over window rows.
        windows: Windows in all slices together.
        rows: Window rows.
        cols: Window columns.
        coverage: Share of the entries that lie in at least one window.
    """

    fit: PowerLaw | Failure
    lambda_max: float | None
    sd: float | None
    q: float
    windows: int
    rows: int
    cols: int
    coverage: float


@dataclass(frozen=True)
class Shuffled:
    """A spectrum beside those of the same entries in random orders.

    Attributes:
        replicas: Random orders.
        largest: Root mean square of their largest singular values (units of W).
        w1: Wasserstein-1 distance of the log eigenvalues, mean over the replicas; None where
            nothing is above the floor.
        jsd: Jensen-Shannon divergence of the densities of the log eigenvalues, in bits, likewise.
        traps: Eigenvalues beyond what noise of that variance has, mean over the replicas.
        ranks: Ranks, from 1, at which the spectrum of the replicas is kept to be drawn.
        singular_values: Its values there, geometric mean over the replicas, to six digits (units
            of W).
    """

    replicas: int
    largest: float
    w1: float | None
    jsd: float | None
    traps: float
    ranks: tuple[int, ...] = ()
    singular_values: tuple[float, ...] = ()


@dataclass(frozen=True)
class QuantError:
    """What rounding a matrix to a few bits changes.

    Attributes:
        bits: Width of the integers.
        error: Frobenius norm of the difference over that of the matrix.
        shift: Mean change of the log singular values; None where none is above the floor.
    """

    bits: int
    error: float
    shift: float | None


@dataclass(frozen=True)
class Measurement:
    """One matrix, measured.

    Attributes:
        matrix: What was measured.
        stats: Its entries; None where it could not be read as numbers.
        spectrum: Its singular values; None where it has none.
        farms: FARMS fit, why it failed, or None where it was not asked for.
        failure: Why there is no spectrum although the entries were read.
        shuffled: The empirical null, why it failed, or None where it was not asked for.
        quant: Rounding errors, why they failed, or None where they were not asked for.
    """

    matrix: Matrix
    stats: EntryStatistics | None = None
    spectrum: Spectrum | None = None
    farms: FarmsFit | Failure | None = None
    failure: Failure | None = None
    shuffled: Shuffled | Failure | None = None
    quant: tuple[QuantError, ...] | Failure | None = None
