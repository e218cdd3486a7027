"""What rounding the weights to a few bits would change."""

from __future__ import annotations

from weightscope.columns import Column
from weightscope.measurement import Measurement
from weightscope.outcome import Failure, Value, Values
from weightscope.settings import QUANT_BITS, Settings

NEEDS: tuple[str, ...] = ()
_SCHEME = (
    "symmetric round-to-nearest, groups of 128 along each row as stored, step = max |w| over the "
    "group / (2^({bits} - 1) - 1)"
)
_GAUSSIAN = {8: 0.0065, 6: 0.026, 5: 0.055, 4: 0.117, 3: 0.274, 2: 0.767}
_SOURCE = "weightscope; groups as in Frantar et al., GPTQ (ICLR 2023)"


def _error_column(bits: int) -> Column:
    return Column(
        f"quant_error_{bits}",
        "number",
        f"relative error of the weights rounded to {bits} bits",
        formula=f"||W - Q||_F / ||W||_F; {_SCHEME.format(bits=bits)}",
        range="[0, 1]",
        reading=f"Compare with {_GAUSSIAN[bits]} of Gaussian entries: above it where outliers "
        "stretch the groups.",
        caution="An error of the weights, not of what the model answers; calibrated quantisers do "
        "better. The matrix as stored decides along which dimension groups run.",
        noise=f"{_GAUSSIAN[bits]}",
        source=_SOURCE,
    )


def _shift_column(bits: int) -> Column:
    return Column(
        f"quant_shift_{bits}",
        "number",
        f"change of the spectrum by rounding to {bits} bits",
        formula="mean |ln s_i - ln s_i(Q)| over the rank largest singular values (rank: above "
        "max(N eps32 s_1, sv_floor))",
        range="[0, inf)",
        reading="0.1: singular values move by a tenth on average. Far more than quant_error where "
        "the small directions drown in the noise of rounding.",
        caution="The smallest values weigh as much as the largest.",
        noise=f"quant_error^2 / 2 = {_GAUSSIAN[bits] ** 2 / 2:.1e}; more for square matrices, "
        "where the smallest singular values move most",
        source=_SOURCE,
    )


COLUMNS = (*map(_error_column, QUANT_BITS), *map(_shift_column, QUANT_BITS))


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """What was measured while the matrix was on the device."""
    if measured.quant is None:
        return {}
    if isinstance(measured.quant, Failure):
        return {f"quant_error_{bits}": measured.quant for bits in settings.quant_error[:1]}
    values: dict[str, Value | Failure] = {}
    for found in measured.quant:
        values[f"quant_error_{found.bits}"] = found.error
        values[f"quant_shift_{found.bits}"] = (
            Failure("no singular value is above the floor") if found.shift is None else found.shift
        )
    return values
