"""What Gaussian noise of the same shape gives, next to the figures that move with shape alone."""

from __future__ import annotations

from typing import Literal

from weightscope.columns import Column
from weightscope.laws.noise import expected, tabulated
from weightscope.laws.noise.expected import Shape
from weightscope.laws.noise.tabulated import Exponent
from weightscope.laws.power_law import SMALLEST_SAMPLE
from weightscope.measurement import FarmsFit, Measurement
from weightscope.metrics.erg import crossing
from weightscope.outcome import Failure, Value, Values
from weightscope.recipe import FIT_METHODS
from weightscope.settings import Settings

NEEDS: tuple[str, ...] = ()
_SIMULATED = "simulated with the chi model of Dumitriu & Edelman, J. Math. Phys. 43 (2002)"


def _null(name: str, of: str, formula: str, caution: str, source: str, reading: str = "") -> Column:
    kind: Literal["integer", "number"] = "integer" if name == "erg_null" else "number"
    return Column(
        name,
        kind,
        f"{of} of Gaussian noise of the same shape",
        formula=formula,
        range="1 .. n" if kind == "integer" else "[0, 1]" if "entropy" in name else "[1, inf)",
        reading=reading
        or f"Compare with {name.removesuffix('_null')}: what agrees with it says "
        "nothing about training.",
        caution=caution,
        noise="itself",
        source=source,
    )


_TAIL_CAUTION = (
    "Of independent Gaussian entries under the same fit; 'peak' has none, and neither have "
    "truncated laws. Within about 5 %, more in the far tail of large pooled spectra."
)
COLUMNS = (
    _null(
        "alpha_null", "median alpha", "median over draws, interpolated in a table of shapes",
        _TAIL_CAUTION, _SIMULATED,
        "An alpha between alpha_null_lo and alpha_null_hi is no evidence of a tail.",
    ),
    _null(
        "alpha_null_lo", "2.5 % quantile of alpha", "as alpha_null",
        _TAIL_CAUTION, _SIMULATED, "An alpha below it does not come from noise (1 in 40 does).",
    ),
    _null(
        "alpha_null_hi", "97.5 % quantile of alpha", "as alpha_null",
        _TAIL_CAUTION, _SIMULATED, "An alpha above it does not come from noise (1 in 40 does).",
    ),
    _null(
        "alpha_farms_null", "median alpha_farms",
        "as alpha_null, for as many independent windows of that size",
        "The windows of one matrix overlap; taking them as independent shifts the median by up to "
        "10 % (measured: -4 to +10 %). Single draws scatter by a factor of three either way.",
        _SIMULATED,
        "Compare with alpha_farms of layers of the same window.",
    ),
    _null(
        "erg_null", "typical erg_n_tail", "erg_n_tail of the expected eigenvalues",
        "Single draws differ by 1 or 2 per slice.",
        "Marchenko-Pastur law with the correction of order 1/M (Dumitriu & Edelman 2006)",
        "Compare with erg_n_tail: a smaller one means energy gathered in few directions.",
    ),
    _null(
        "entropy_null", "mean entropy",
        "(ln n - M/(2 N) - c/M + 1/(n N)) / ln n, c between 0 and 0.39 from the edges of the bulk",
        "Within 0.001 for M of 8 and more.",
        "Marchenko-Pastur law with the correction of order 1/M (Dumitriu & Edelman 2006)",
    ),
    _null(
        "stable_rank_null", "median stable_rank", "n N / median largest eigenvalue",
        "Within 1 % for M of 8 and more.",
        "Tracy-Widom law, centred after Johnstone & Ma (Ann. Appl. Probab. 22, 2012)",
    ),
    _null(
        "condition_number_null", "median condition_number",
        "(sqrt N + sqrt M)/(sqrt N - sqrt M) with the shifts of both edges and a tabulated "
        "correction",
        "Single draws of square noise scatter by a factor of ten either way.",
        "Edelman, SIAM J. Matrix Anal. 9 (1988); " + _SIMULATED,
    ),
)  # fmt: skip


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """Nulls of a spectrum of at least 8 eigenvalues, whatever its own figures."""
    spectrum = measured.spectrum
    if spectrum is None or spectrum.largest == 0:
        return {}
    if measured.matrix.unlike_noise:
        return {"alpha_null": Failure(measured.matrix.unlike_noise)}
    shape = Shape(spectrum.N, spectrum.M, spectrum.slices)
    if shape.count < SMALLEST_SAMPLE or shape.M < 2:
        return {}
    values: dict[str, Value | Failure] = {
        **_of_alpha(shape, settings),
        "erg_null": crossing(expected.expected_evals(shape)).n_tail,
        "entropy_null": expected.entropy(shape),
        "stable_rank_null": expected.stable_rank(shape),
        "condition_number_null": tabulated.condition_number(shape),
    }
    if isinstance(measured.farms, FarmsFit):
        values["alpha_farms_null"] = _of_farms(measured.farms, spectrum.slices)
    return values


def _of_alpha(shape: Shape, settings: Settings) -> dict[str, Value | Failure]:
    if settings.fit != "pl":
        return {"alpha_null": Failure(f"noise is tabulated for power laws, not for {settings.fit}")}
    found = tabulated.exponent(shape, settings.xmin)
    if not isinstance(found, Exponent):
        return {"alpha_null": found}
    return {
        "alpha_null": found.median,
        "alpha_null_lo": found.low,
        "alpha_null_hi": found.high,
    }


def _of_farms(farms: FarmsFit, slices: int) -> Value | Failure:
    if isinstance(farms.fit, Failure):
        return None
    # blocks are fitted one by one, each pooled over the kernel alone
    pooled = slices if farms.fit.method.endswith("-block-mean") else farms.windows
    shape = Shape(max(farms.rows, farms.cols), min(farms.rows, farms.cols), pooled)
    method = next(m for m in reversed(FIT_METHODS) if farms.fit.method.startswith(m))
    found = tabulated.exponent(shape, method)
    return found.median if isinstance(found, Exponent) else found
