"""FARMS window spectra against a loop of ``svdvals`` over the same windows, both in float64.

python tests/benchmarks/farms.py [--hidden 4096] [--window 1000 2000] [--per-dimension 4]
    [--threads 2] [--runs 3] [--device cpu]

The loop takes the faster of torch's routine and LAPACK's through NumPy, found on the first window.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
from shapes import heavy_tailed
from timing import call, in_turn, ratio, shown

from weightscope.decompositions.farms import Windows, window_spectra, windows_for
from weightscope.recipe import Farms


def by_torch(window: torch.Tensor) -> np.ndarray:
    """Singular values, descending."""
    return torch.linalg.svdvals(window).cpu().numpy()


def by_numpy(window: torch.Tensor) -> np.ndarray:
    """Singular values, descending."""
    return np.linalg.svd(window.numpy(), compute_uv=False)


def cut(matrix: torch.Tensor, windows: Windows) -> list[torch.Tensor]:
    """All windows, as views."""
    return [
        matrix[r : r + windows.rows, c : c + windows.cols]
        for r in windows.row_starts
        for c in windows.col_starts
    ]


def compare(matrix: torch.Tensor, windows: Windows, runs: int) -> None:
    """Time both sides in turn and check that they find the same."""
    pieces = cut(matrix, windows)
    first = pieces[0].to(torch.float64)
    routines = [by_torch] if first.device.type == "cuda" else [by_torch, by_numpy]
    trial = in_turn({f.__name__: lambda f=f: call(lambda: f(first)) for f in routines}, 2)
    best = min(routines, key=lambda f: min(cost.wall for cost in trial[f.__name__]))
    spectra: dict[str, np.ndarray] = {}

    def loop() -> None:
        spectra["loop"] = np.array([best(piece.to(torch.float64)) for piece in pieces])

    def ours() -> None:
        spectra["ours"] = window_spectra([matrix], windows)[0]

    costs = in_turn({"loop": lambda: call(loop), "ours": lambda: call(ours)}, runs)
    wall, cpu = ratio(costs["loop"], costs["ours"])
    error = np.abs(np.sqrt(spectra["ours"][:, ::-1]) - spectra["loop"]).max()
    print(f"window {windows.rows}: {windows.count} of {tuple(matrix.shape)}, {best.__name__}")
    for name, found in costs.items():
        print(f"  {name} {shown(found)}")
    print(f"  loop / ours: {wall:.2f} by the clock, {cpu:.2f} of processors", end="; ")
    print(f"largest difference {error / spectra['loop'].max():.1e} of the norm")


def main() -> None:
    """Read the command line and compare at every window size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--window", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--per-dimension", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    matrix = heavy_tailed(o.hidden, o.hidden, torch.Generator().manual_seed(0)).to(o.device)
    print(f"{o.threads} threads, median of {o.runs}")
    for window in o.window:
        windows = windows_for(o.hidden, o.hidden, Farms("paper", window, 1.0, o.per_dimension))
        assert windows is not None
        compare(matrix, windows, o.runs)


if __name__ == "__main__":
    main()
