"""The waist: everything above it ends in a Spectrum, everything below starts from one.

Conventions. W is one real matrix, oriented so that N >= M. ``singular_values`` are those of W
itself, unscaled, descending. ``evals`` are their squares, the eigenvalues of X = W^T W, not divided
by N. The ESD is the distribution of ``evals``. For a convolution the values of all kernel
positions are pooled, and N, M are those of one position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from weightscope.outcome import Failure

WANTED_ERROR = 1e-4
"""Relative error up to which a smallest singular value may be printed."""
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of one weight matrix.

    Attributes:
        singular_values: float64, descending, unscaled; all slices pooled.
        N: Longer side of one slice.
        M: Shorter side of one slice.
        slices: Number of slices pooled.
        resolution: Singular values at or below this cannot be told from zero by the solver.
        relative_error: Admitted relative error of the smallest singular value.
        solver: Routine that produced the values.
    """

    singular_values: FloatArray
    N: int
    M: int
    slices: int = 1
    resolution: float = 0.0
    relative_error: float = 0.0
    solver: str = "given"

    @property
    def Q(self) -> float:
        """Aspect ratio N / M."""
        return self.N / self.M

    @cached_property
    def evals(self) -> FloatArray:
        """Eigenvalues of W^T W, descending, unnormalised (units of W^2)."""
        return np.square(self.singular_values)

    @cached_property
    def relative_evals(self) -> FloatArray:
        """Eigenvalues over the largest one, descending: in range whatever the scale of W."""
        return np.square(self.singular_values / self.largest)

    def unscaled(self, relative: float) -> float | Failure:
        """A relative eigenvalue in units of W^2, or that float64 cannot hold it."""
        value = relative * self.largest * self.largest
        if relative and not 0 < value < float("inf"):
            return Failure("the value is outside the range of float64")
        return value

    @property
    def largest(self) -> float:
        """Largest singular value, the spectral norm."""
        return float(self.singular_values[0])

    @property
    def smallest(self) -> float:
        """Smallest singular value."""
        return float(self.singular_values[-1])
