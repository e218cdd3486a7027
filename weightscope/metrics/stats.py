"""Statistics of the entries."""

from __future__ import annotations

from weightscope.columns import Column
from weightscope.measurement import Measurement
from weightscope.outcome import Failure, Values
from weightscope.settings import Settings

NEEDS: tuple[str, ...] = ()
COLUMNS = (
    Column(
        "weight_mean",
        "number",
        "mean of the entries",
        formula="mean w_ij",
        unit="W",
        range="(-inf, inf)",
        reading="Far from 0 against weight_std: a rank-one part in the spectrum.",
        noise="0",
    ),
    Column(
        "weight_std",
        "number",
        "population standard deviation of the entries",
        formula="sqrt(mean (w_ij - mean)^2)",
        unit="W",
        range="[0, inf)",
        reading="The scale of the weights.",
        noise="sigma",
    ),
    Column(
        "weight_abs_max",
        "number",
        "largest magnitude among the entries",
        formula="max |w_ij|",
        unit="W",
        range="[0, inf)",
        reading="Many times weight_std: outlier weights, which hurt quantisation and can make "
        "spikes in the spectrum by themselves.",
        noise="about sigma sqrt(2 ln(N M))",
    ),
    Column(
        "weight_zero_fraction",
        "number",
        "share of entries that are exactly zero",
        range="[0, 1]",
        reading="Above zero in a pruned or never-used layer.",
        noise="0",
        formula="#{w_ij = 0} / (N M)",
    ),
    Column(
        "weight_nonfinite",
        "integer",
        "number of NaN and infinite entries",
        range="0, 1, ...",
        reading="Anything but 0 means a broken checkpoint: no other figure of the row is computed.",
        noise="0",
        formula="#{w_ij is NaN or infinite}",
    ),
)


_UNFORMED = Failure("it needs the entries of the update, which is kept as its factors")


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """What the pass over the entries measured."""
    stats = measured.stats
    if stats is None:
        return {}
    largest = stats.abs_max
    return {
        "weight_mean": stats.mean,
        "weight_std": stats.std,
        "weight_abs_max": _UNFORMED if not stats.nonfinite and largest is None else largest,
        "weight_zero_fraction": stats.zero_fraction,
        "weight_nonfinite": stats.nonfinite,
    }
