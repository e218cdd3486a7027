"""Which spectra are wanted of a matrix, and how they are to be fitted: hashable values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FitMethod = Literal["ks", "mid", "peak", "peak-fixed"]
FIT_METHODS: tuple[FitMethod, ...] = ("ks", "mid", "peak", "peak-fixed")


@dataclass(frozen=True)
class EvalFloor:
    """Eigenvalues at or below the floor do not enter a power-law fit.

    Attributes:
        kind: ``rank``: ``l_1 (N eps32)^2``, below which float32 weights carry nothing;
            ``rel``: ``l_1 * value``; ``abs``: ``value`` itself (WeightWatcher: 1e-5).
        value: Number that goes with ``rel`` and ``abs``.
    """

    kind: Literal["rank", "rel", "abs"] = "rank"
    value: float = 0.0

    def relative(self, largest: float, N: int) -> float:
        """Floor over the largest eigenvalue.

        Args:
            largest: Largest singular value, positive.
            N: Longer side of the matrix.
        """
        if self.kind == "abs":
            return self.value / largest / largest  # never squared: it could leave float64
        if self.kind == "rel":
            return self.value
        return float((N * 2.0**-23) ** 2)

    def __str__(self) -> str:
        return "rank" if self.kind == "rank" else f"{self.kind}:{self.value!r}"


FarmsGeometry = Literal["cover", "paper", "paper-conv"]


@dataclass(frozen=True)
class Farms:
    """FARMS windows: fixed-aspect-ratio submatrices whose spectra are pooled.

    Attributes:
        geometry: ``cover``: windows that touch every edge, at most ``per_dimension`` a side;
            ``paper``: the authors' linear-layer code; ``paper-conv``: their convolution code.
        rows: Window rows wanted; 0 chooses half the shorter side, 32 to 1024.
        q: Window columns over window rows.
        per_dimension: Most windows along one side.
        fit: How the pooled eigenvalues are fitted.
        floor: Eigenvalue floor of that fit.
    """

    geometry: FarmsGeometry = "cover"
    rows: int = 0
    q: float = 1.0
    per_dimension: int = 6
    fit: FitMethod = "ks"
    floor: EvalFloor = EvalFloor()


def farms_preset(name: str, floor: EvalFloor) -> Farms:
    """The FARMS settings behind ``--farms``.

    ``paper-llm`` is the authors' LLaMA pruning setting (window 2000, 15 x 15, fit ``peak``),
    ``paper-cnn`` their image-classification setting (window 100, 9 x 9, median xmin).
    Both fit every positive eigenvalue, as the authors' code does.
    """
    every = EvalFloor("abs", 0.0)
    presets = {
        "auto": Farms(floor=floor),
        "paper-llm": Farms("paper", 2000, 1.0, 15, "peak", every),
        "paper-cnn": Farms("paper-conv", 100, 1.0, 9, "mid", every),
    }
    return presets[name]


FARMS_PRESETS = ("auto", "paper-llm", "paper-cnn")
