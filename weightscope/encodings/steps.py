"""Weights that a library has decoded, and how far rounding may have moved them, by their spread.

For formats whose codes only their library knows: the distance between neighbouring values is taken
from the range that a run of entries covers, over the number of steps that so many bits allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from weightscope.encodings.grid import Blocks, Decoded

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Steps:
    """A decoded matrix.

    Attributes:
        weights: (rows, cols) float32.
        step: (rows, runs) float32: distance of neighbouring values in every run of a row.
        width: Entries of a run.
    """

    weights: torch.Tensor
    step: torch.Tensor
    width: int

    def decoded(self) -> Decoded:
        """Weights and the noise of rounding errors that are uniform over one step."""
        variance = self.step.double().square_() / 12  # of every entry of a run
        col_sums = variance.sum(0).repeat_interleave(self.width)
        return Decoded(self.weights, variance.sum(1) * self.width, col_sums)

    def deviations(self) -> torch.Tensor:
        """Standard deviation of the rounding error of every entry: (rows, cols) float32."""
        rows, cols = self.weights.shape
        spread = Blocks(1, self.width).spread(self.step, slice(0, rows), cols)
        return spread.expand(rows, cols) / sqrt(12)


def steps_of(weights: torch.Tensor, bits: int, width: int) -> Steps:
    """Steps of a matrix whose rows are runs of ``width`` entries with a scale of their own each."""
    import torch

    rows, cols = weights.shape
    low, high = torch.aminmax(weights.reshape(rows, cols // width, width), dim=2)
    return Steps(weights, (high - low) / max(2**bits - 1, 1), width)
