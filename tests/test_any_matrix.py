"""Whatever a matrix holds, its run is written, and read again as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import weightscope
from weightscope.settings import FAMILIES

Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def _product(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    rank = max(1, min(rows, cols) // 3)
    return rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, cols))


DRAWN: dict[str, Draw] = {
    "Gaussian": lambda rng, n, m: rng.standard_normal((n, m)),
    "Cauchy": lambda rng, n, m: rng.standard_cauchy((n, m)),
    "two degrees of freedom": lambda rng, n, m: rng.standard_t(2, (n, m)),
    "constant": lambda rng, n, m: np.full((n, m), rng.standard_normal()),
    "identity": lambda rng, n, m: np.eye(n, m),
    "signs": lambda rng, n, m: np.sign(rng.standard_normal((n, m))),
    "few entries": lambda rng, n, m: np.where(rng.random((n, m)) < 0.02, 100.0, 0.0),
    "graded columns": lambda rng, n, m: rng.standard_normal((n, m)) * np.logspace(0, -12, m),
    "low rank": _product,
    "far from zero": lambda rng, n, m: np.abs(rng.standard_normal((n, m))) + 5,
    "whole numbers": lambda rng, n, m: np.round(rng.standard_normal((n, m))),
}
SIDES = (1, 2, 5, 8, 17, 20, 33, 64, 70, 129, 200)
SCALES = (0, 0, 0, -2, -20, -36, 20, 30, -150, 150)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"xmin": "peak"},
    {"xmin": "mid"},
    {"fit": "tpl"},
    {"fit": "etpl"},
    {"bootstrap": 20, "shuffled": 0, "quant_error": (4, 8)},
    {"eval_floor": "abs:0"},
    {"compat": "weightwatcher"},
)


def model(rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Five matrices of any kind, shape, scale and dtype."""

    def one() -> torch.Tensor:
        kind = DRAWN[rng.choice(list(DRAWN))]
        entries = kind(rng, int(rng.choice(SIDES)), int(rng.choice(SIDES)))
        scaled = torch.from_numpy(entries * 10.0 ** rng.choice(SCALES))
        return scaled.to(DTYPES[rng.integers(len(DTYPES))])

    with np.errstate(all="ignore"):
        return {f"layers.{i}.mlp.up_proj.weight": one() for i in range(5)}


def check(seed: int, folder: Path) -> None:
    """Analyse one such model with everything, and read the run."""
    rng = np.random.default_rng(seed)
    settings = SETTINGS[seed % len(SETTINGS)]
    every = ",".join(FAMILIES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = weightscope.analyze(
            model(rng), out=folder / f"{seed}", device="cpu", threads=1, metrics=every, **settings
        )
    assert weightscope.load_run(folder / f"{seed}").rows == run.rows


@pytest.mark.parametrize("first", range(0, 40, 8))
def test_runs_of_any_matrices_are_read_as_they_were_written(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 8):
        check(seed, tmp_path)


@pytest.mark.slow
def test_runs_of_many_such_matrices_are(tmp_path: Path) -> None:
    for seed in range(1000, 3000):
        check(seed, tmp_path)
