"""FARMS: the exponent without the bias of the aspect ratio."""

from __future__ import annotations

from weightscope.columns import Column
from weightscope.measurement import FarmsFit, Measurement
from weightscope.outcome import Failure, Value, Values
from weightscope.settings import Settings

NEEDS: tuple[str, ...] = ()
_SOURCE = "Hu et al., FARMS, arXiv 2506.06280"
COLUMNS = (
    Column(
        "alpha_farms",
        "number",
        "power-law exponent of the pooled spectra of fixed-aspect-ratio windows",
        formula="the fit of farms_method on the eigenvalues of all windows together",
        range="(1, inf)",
        reading="For ranking layers of different shapes: higher is less heavy-tailed.",
        caution="Not on the scale of alpha: windows cut from a matrix have spectra of their own. "
        "HTSR's thresholds do not apply. Windows share entries, so they are not independent. "
        "Moves with window and grid: weightscope farms shows how far.",
        noise="see alpha_farms_null; 2.12 under the mid fit with square windows",
        source=_SOURCE,
        published="Authors' caches, window 2000, 15 x 15, fit peak: LLaMA-7B mean 3.55 (q 2.41, "
        "k 2.52, v 3.80, "
        "o 4.09, gate 3.43, up 4.33, down 4.27); LLaMA-13B mean 3.61. Their own 10 x 10 and 15 x "
        "15 grids "
        "differ by 0.3 on average.",
    ),
    Column(
        "farms_method",
        "text",
        "fit of the pooled eigenvalues: ks, mid, peak",
        reading="\n".join(
            f"{fit}: as in alpha_method, of the eigenvalues of all windows together"
            for fit in ("ks", "ks-small-sample", "mid", "peak", "peak-fixed")
        ),
        source=_SOURCE,
    ),
    Column(
        "alpha_farms_sd",
        "number",
        "standard deviation of the exponents of single windows",
        range="[0, inf)",
        reading="How much the answer depends on where one looks; pooling hides it.",
        formula="sd of the exponents fitted to each window alone",
        caution="Windows overlap, so it understates the uncertainty.",
        noise="2.4 to 7 (512 x 512, ks fit)",
        source="weightscope",
    ),
    Column(
        "alpha_farms_xmin",
        "number",
        "where the pooled tail starts",
        formula="as alpha_xmin, on the pooled eigenvalues",
        unit="W^2",
        range="(0, inf)",
        source=_SOURCE,
        reading="Eigenvalues of windows, not of the matrix.",
        caution="Smaller windows have smaller eigenvalues.",
        noise="near the upper edge of the windows' bulk",
    ),
    Column(
        "alpha_farms_ks",
        "number",
        "KS distance of the pooled fit",
        formula="as alpha_ks, on the pooled eigenvalues",
        range="[0, 1]",
        source=_SOURCE,
        reading="As alpha_ks.",
        caution="Pooled eigenvalues are not independent.",
        noise="0.10 to 0.13",
    ),
    Column(
        "alpha_farms_n_tail",
        "integer",
        "pooled eigenvalues in the tail",
        formula="#{l_i >= alpha_farms_xmin} over all windows",
        range="2 .. windows times window short side",
        source=_SOURCE,
        reading="As alpha_n_tail.",
        caution="Pooled eigenvalues are not independent.",
        noise="9 to 244 of 2304 (512 on the short side)",
    ),
    Column(
        "farms_q",
        "number",
        "window columns over window rows",
        caution="May be below 1, unlike the Q of a matrix.",
        source=_SOURCE,
    ),
    Column("farms_windows", "integer", "number of windows, all slices together", source=_SOURCE),
    Column(
        "farms_window_rows",
        "integer",
        "window rows",
        formula="auto: half the shorter side, 32 to 1024",
        source=_SOURCE,
    ),
    Column("farms_window_cols", "integer", "window columns", source=_SOURCE),
    Column(
        "farms_coverage",
        "number",
        "share of the entries that lie in at least one window",
        range="(0, 1]",
        reading="Below 1 the figure speaks for part of the matrix only.",
        formula="covered rows times covered columns, over all entries",
        caution="Says nothing about how often an entry is covered.",
        noise="follows from the shape",
        source="weightscope",
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """What the windows gave when the matrix was on the device."""
    farms = measured.farms
    if farms is None:
        return {}
    if isinstance(farms, Failure):
        return {"alpha_farms": farms}
    return {**_geometry(farms), **_fit(farms)}


def _geometry(farms: FarmsFit) -> dict[str, Value | Failure]:
    return {
        "farms_q": farms.q,
        "farms_windows": farms.windows,
        "farms_window_rows": farms.rows,
        "farms_window_cols": farms.cols,
        "farms_coverage": farms.coverage,
    }


def _fit(farms: FarmsFit) -> dict[str, Value | Failure]:
    fit = farms.fit
    if isinstance(fit, Failure):
        return {"alpha_farms": fit}
    return {
        "alpha_farms": fit.alpha,
        "farms_method": fit.method,
        "alpha_farms_sd": farms.sd,
        "alpha_farms_xmin": fit.xmin * farms.lambda_max if farms.lambda_max else None,
        "alpha_farms_ks": fit.ks,
        "alpha_farms_n_tail": fit.n_tail,
    }
