"""The condition number (KappaTune) and what the stored precision can resolve of it."""

from __future__ import annotations

from weightscope.columns import Column
from weightscope.measurement import Measurement
from weightscope.outcome import Failure, Value, Values
from weightscope.settings import Settings
from weightscope.spectrum import WANTED_ERROR

NEEDS: tuple[str, ...] = ()
COLUMNS = (
    Column(
        "condition_number",
        "number",
        "largest over smallest singular value (KappaTune's kappa)",
        formula="s_1 / s_M",
        range="[1, inf)",
        reading="Low: an even, unspecialised matrix, which KappaTune picks for fine-tuning; high: "
        "knowledge concentrated in few directions.",
        caution="Above condition_number_resolvable it measures the rounding of the stored dtype. "
        "Square matrices of pure noise already have thousands.",
        noise="(sqrt Q + 1)/(sqrt Q - 1) for sqrt N - sqrt M >= 1; 3.67 M for square (median)",
        source="KappaTune, arXiv 2506.16289; Edelman, SIAM J. Matrix Anal. 9 (1988)",
    ),
    Column(
        "condition_number_resolvable",
        "number",
        "largest condition number that the stored precision can carry",
        formula="s_1 / sv_floor",
        range="(0, inf)",
        reading="Compare with condition_number.",
        source="see sv_floor",
        caution="A bound for random rounding, not a guarantee.",
        noise="about 550 for bf16, 3.7e7 for float32, whatever the shape",
    ),
    Column(
        "sv_floor",
        "number",
        "what rounding to the stored dtype can add to any singular value",
        formula="sqrt(max row sum v) + sqrt(max column sum v), v_ij = ulp(w_ij)^2 / 12",
        unit="W",
        range="[0, inf)",
        reading="Singular values below it say nothing about the model.",
        source="Bandeira & van Handel, Annals of Probability 44 (2016)",
        caution="Takes each entry as rounded to nearest; weights built on a coarser grid have "
        "more noise.",
        noise="1.8e-3 sigma (sqrt N + sqrt M) for bf16, 2.7e-8 for float32",
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """Condition number, empty with a reason where the smallest value is not resolved."""
    spectrum, stats = measured.spectrum, measured.stats
    if stats is None:
        return {}
    values: dict[str, Value | Failure] = {"sv_floor": stats.sv_floor}
    if spectrum is None or spectrum.largest == 0:
        return values
    if stats.sv_floor:
        values["condition_number_resolvable"] = spectrum.largest / stats.sv_floor
    if spectrum.smallest == 0:
        values["condition_number"] = Failure("the smallest singular value is zero")
    elif spectrum.relative_error > WANTED_ERROR or spectrum.smallest <= spectrum.resolution:
        values["condition_number"] = Failure(
            "the smallest singular value is below what the solver resolves "
            f"({spectrum.resolution:.2g})"
        )
    else:
        values["condition_number"] = spectrum.largest / spectrum.smallest
    return values
