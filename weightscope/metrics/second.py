"""Another tail that fits almost as well: when the exponent hangs on the choice of xmin."""

from __future__ import annotations

from weightscope.columns import Column
from weightscope.laws.power_law import fitted_evals, second_minimum
from weightscope.measurement import Measurement
from weightscope.metrics.rank import is_deficient
from weightscope.outcome import Values
from weightscope.recipe import FIT_METHODS
from weightscope.settings import Settings

NEEDS = ("alpha", "rank")
_SOURCE = "Martin & Hinrichs, SETOL, arXiv 2507.17912, figure 1d; definition weightscope"
COLUMNS = (
    Column(
        "alpha_second",
        "number",
        "exponent at another local minimum of the KS distance, within 0.005 of the best",
        formula="alpha at the candidate of smallest ks <= alpha_ks + 0.005 that the best candidate "
        "is reached from only over a ks at least 0.005 higher (its prominence)",
        range="(1, inf)",
        reading="Far from alpha: the exponent hangs on the choice of xmin, so quote neither alone. "
        "Close to alpha: harmless. Empty: there is no such minimum.",
        caution="With short tails the distance moves in steps of 1 / n and has many minima.",
        noise="there in half of all draws (512 x 512), anywhere from 4 to 28",
        source=_SOURCE,
    ),
    Column(
        "alpha_second_xmin",
        "number",
        "eigenvalue where that other tail starts",
        formula="the l_i of alpha_second",
        unit="W^2",
        range="(0, inf)",
        reading="Compare with alpha_xmin: below it the other tail is longer, above it shorter.",
        caution="Moves with the scale of the weights.",
        noise="inside the bulk, near its upper edge",
        source=_SOURCE,
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:
    """The second minimum; nothing where there is none, or where no power law was searched."""
    spectrum, alpha, rank = measured.spectrum, known.get("alpha"), known.get("rank")
    if spectrum is None or not isinstance(alpha, float) or known["alpha_method"] not in FIT_METHODS:
        return {}
    assert isinstance(rank, int)
    kept = rank if is_deficient(rank, spectrum) else len(spectrum.singular_values)
    second = second_minimum(fitted_evals(spectrum, settings.eval_floor, kept), settings.xmin)
    if second is None:
        return {}
    return {
        "alpha_second": second.alpha,
        "alpha_second_xmin": spectrum.unscaled(second.xmin),
    }
