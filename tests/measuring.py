"""One matrix through measurement and the families that need its entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weightscope.matrix import Matrix
from weightscope.measure import Measure
from weightscope.measurement import Measurement
from weightscope.plugins import load
from weightscope.settings import Settings
from weightscope.tensor import TensorRef

Array = npt.NDArray[np.float64]
CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def measure(weight: torch.Tensor | Array, name: str = "w.weight", **options: Any) -> Measurement:
    """Measure a matrix, or a convolution of more than two dimensions, by its slices."""
    tensor = weight if isinstance(weight, torch.Tensor) else torch.from_numpy(weight)
    ref = TensorRef(name, tuple(tensor.shape), CODES[tensor.dtype])
    conv = tensor.ndim > 2
    matrix = Matrix(name, ref, "conv_slices" if conv else "whole", "conv" if conv else "other", "w")
    return Measure(lambda ref, part: tensor, **{"farms": None, **options})(matrix)


def figures(measured: Measurement, *families: str, **settings: Any) -> dict[str, Any]:
    """Values of families, and of those that they need."""
    chosen = Settings(**settings)
    known: dict[str, Any] = {}

    def add(family: str) -> None:
        module = load("metrics", family)
        for needed in module.NEEDS:
            add(needed)
        known.update(module.evaluate(measured, chosen, known))

    for family in families:
        add(family)
    return known


def singular_values(weight: torch.Tensor | Array) -> Array:
    """Those of a matrix, or of all slices of a convolution pooled, descending, by LAPACK."""
    exact = weight.double().numpy() if isinstance(weight, torch.Tensor) else weight
    flat = exact.reshape(*exact.shape[:2], -1)
    values = [np.linalg.svd(flat[:, :, j], compute_uv=False) for j in range(flat.shape[2])]
    return np.sort(np.concatenate(values))[::-1]
