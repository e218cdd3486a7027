"""Wall time of ``analyze`` beyond its start-up, over the bare linear algebra that it cannot avoid.

python tests/benchmarks/overhead.py [--like tinyllama|1b|7b] [--layers 1] [--threads 2] [--runs 3]

The bare calls of a matrix: the Gram product of its short side, the eigenvalues of that, and both
for every FARMS window; in float64, on entries converted before the clock starts, by the fastest
routine for the order among torch's, SciPy's and NumPy's. They are timed twice: one matrix after
the other with all threads, and several side by side with one thread each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from shapes import add_shape_options, shape_from, write_checkpoint
from timing import Cost, analysis, call, in_turn, process, ratio, shown

from weightscope.decompositions.farms import windows_for
from weightscope.recipe import Farms

SOLVERS: dict[str, Callable[[torch.Tensor], object]] = {
    "torch eigvalsh": torch.linalg.eigvalsh,
    "numpy eigvalsh": lambda gram: np.linalg.eigvalsh(gram.numpy()),
    "scipy evd": lambda gram: scipy.linalg.eigh(gram.numpy(), eigvals_only=True, driver="evd"),
    "scipy evr": lambda gram: scipy.linalg.eigh(gram.numpy(), eigvals_only=True, driver="evr"),
}
PRODUCTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "torch product": lambda tall: tall.T @ tall,
    "scipy dsyrk": lambda tall: torch.from_numpy(scipy.linalg.blas.dsyrk(1.0, tall.numpy().T).T),
}


def fastest(routines: Mapping[str, Callable[[torch.Tensor], object]], operand: torch.Tensor) -> str:
    """Name of the routine with the least time, all in turn, small operands more often."""
    sides = {name: lambda r=routine: call(lambda: r(operand)) for name, routine in routines.items()}
    costs = in_turn(sides, 1 if operand.numel() > 1 << 22 else 3)
    return min(costs, key=lambda name: min(cost.wall for cost in costs[name]))


@cache
def best_product(N: int, M: int) -> str:
    """Fastest Gram product of tall matrices of this shape."""
    name = fastest(PRODUCTS, torch.randn(N, M, dtype=torch.float64))
    print(f"  product of {N} x {M}: {name}", flush=True)
    return name


@cache
def best_solver(M: int) -> str:
    """Fastest values-only solver of this order."""
    tall = torch.randn(M, M, dtype=torch.float64)
    name = fastest(SOLVERS, tall.T @ tall)
    print(f"  eigenvalues of {M}: {name}", flush=True)
    return name


def bare(tall: torch.Tensor, product: str, solver: str) -> None:
    """Gram product and eigenvalues of one tall matrix."""
    SOLVERS[solver](PRODUCTS[product](tall))


def operands(weight: torch.Tensor, cut: bool) -> Iterator[torch.Tensor]:
    """A matrix and its FARMS windows in float64, contiguous, tall."""
    wide = weight.to(torch.float64)
    wide = wide if wide.shape[0] >= wide.shape[1] else wide.T.contiguous()
    yield wide
    windows = windows_for(*wide.shape, Farms()) if cut else None
    for r in windows.row_starts if windows else ():
        for c in windows.col_starts if windows else ():
            yield wide[r : r + windows.rows, c : c + windows.cols].contiguous()


def weights(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names of all tensors, and the files that they lie in."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            yield from ((name, path) for name in file.keys())  # noqa: SIM118


def tensor(name: str, path: Path) -> torch.Tensor:
    """One tensor of a file."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def windowed(name: str) -> bool:
    """Whether the analysis cuts windows from it."""
    return "embed" not in name


def bare_of(name: str, path: Path) -> Cost:
    """The bare calls of one tensor; reading, cutting and converting are not counted."""
    wall = cpu = 0.0
    for tall in operands(tensor(name, path), windowed(name)):
        product, solver = best_product(*tall.shape), best_solver(tall.shape[1])
        cost = call(lambda t=tall, p=product, s=solver: bare(t, p, s))
        wall, cpu = wall + cost.wall, cpu + cost.cpu
    return Cost(wall, cpu)


def one_after_the_other(folder: Path) -> Cost:
    """The bare calls of a checkpoint with all threads each."""
    costs = [bare_of(name, path) for name, path in weights(folder)]
    return Cost(sum(c.wall for c in costs), sum(c.cpu for c in costs))


def side_by_side(folder: Path, threads: int) -> Cost:
    """The bare calls of a checkpoint by torch, one thread each; reading is counted here."""

    def work(name: str, path: Path) -> None:
        for tall in operands(tensor(name, path), windowed(name)):
            bare(tall, "torch product", "torch eigvalsh")

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return call(lambda: list(pool.map(work, *zip(*weights(folder), strict=True))))


def main() -> None:
    """Read the command line, write the model, and time both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_shape_options(parser, "7b", 1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    threads = options.threads
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        model, small = Path(scratch) / "model", Path(scratch) / "small.safetensors"
        total = write_checkpoint(model, shape_from(options), options.layers)
        save_file({"small.weight": torch.randn(32, 32)}, small)
        print(f"{options.like}-like, {options.layers} layers, {total / 2**20:.0f} MiB, {threads}")
        print("fastest routines, measured:")
        for name, path in weights(model):
            shapes = {tuple(tall.shape) for tall in operands(tensor(name, path), windowed(name))}
            for N, M in shapes:
                best_product(N, M), best_solver(M)
        costs = in_turn(
            {
                "start-up": lambda: process(analysis(small, threads), threads),
                "bare, one after the other": lambda: one_after_the_other(model),
                "bare, side by side": lambda: side_by_side(model, threads),
                "analyze": lambda: process(analysis(model, threads), threads),
            },
            options.runs,
        )
    for name, found in costs.items():
        print(f"{name:26} {shown(found)}")
    start = statistics.median(cost.wall for cost in costs["start-up"])
    start_cpu = statistics.median(cost.cpu for cost in costs["start-up"])
    net = [Cost(c.wall - start, c.cpu - start_cpu) for c in costs["analyze"]]
    for name in ("bare, one after the other", "bare, side by side"):
        wall, cpu = ratio(net, costs[name])
        print(f"(analyze - start-up) / {name}: {wall:.2f} by the clock, {cpu:.2f} of processors")


if __name__ == "__main__":
    main()
