"""Which routine produced the spectrum."""

from __future__ import annotations

from weightscope.columns import Column
from weightscope.measurement import Measurement
from weightscope.outcome import Values
from weightscope.settings import Settings

NEEDS: tuple[str, ...] = ()
COLUMNS = (
    Column(
        "solver",
        "text",
        "routine, precision and device that produced the singular values",
        formula="the first of gram-eigvalsh (gram-dsyevd), svdvals (direct for M <= 16: "
        "small-svdvals) and, on the CPU, numpy-svd that converges to finite values whose squares "
        "add up to ||W||_F^2; a device that fails altogether is followed by the CPU",
        range="method-precision-device",
        reading="gram-eigvalsh: eigenvalues of W^T W in float64, good to 4e-8 of the largest "
        "singular value\n"
        "gram-dsyevd: as gram-eigvalsh, by OpenBLAS instead of MKL, where that is faster: "
        "order 257 to 1599 on processors that are not Intel's\n"
        "svdvals: a direct SVD, where that was not enough or failed\n"
        "small-svdvals: a direct SVD, because the matrix is small\n"
        "numpy-svd: where both failed\n"
        "factors-qr: of an adapter's update, from its factors without their product",
        caution="On another device the last digits differ.",
        noise="as for any other matrix",
        source="LAPACK syevd, gesdd; cuSOLVER on a GPU",
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """As recorded with the spectrum."""
    return {"solver": measured.spectrum.solver} if measured.spectrum else {}
