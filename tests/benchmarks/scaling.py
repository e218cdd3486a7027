"""Time is linear in the layers; two cores against one; and reading that overlaps with computing.

python tests/benchmarks/scaling.py [--like tinyllama --hidden 512 ...] [--layers 8] [--runs 3]
    [--part layers cores reading]

layers: ``analyze`` of n, 2n and 4n layers, start-up taken off; linear is 2 and 4.
cores: ``analyze`` of many small matrices with one thread and with two; and torch's own solver on a
    large one with both, which is what one matrix alone could gain.
reading: the executor with a reader that takes about as long as computing, half, and twice as
    long; total time over the larger of the two. The bar is 1.10.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from shapes import Shape, add_shape_options, shape_from, write_checkpoint
from timing import Cost, analysis, call, in_turn, process, ratio, shown

from weightscope.executors import local
from weightscope.matrix import Matrix
from weightscope.measure import Measure
from weightscope.measure import reading as opened
from weightscope.plan import make_plan
from weightscope.recipe import Farms
from weightscope.select import select
from weightscope.sources import open_model


def start_up(scratch: Path, threads: int) -> Cost:
    """``analyze`` of one small matrix."""
    path = scratch / "small.safetensors"
    save_file({"small.weight": torch.randn(32, 32)}, path)
    return process(analysis(path, threads), threads)


def layers(scratch: Path, shape: Shape, count: int, runs: int) -> None:
    """Time of one, two and four times as many layers."""
    sides = {"start-up": lambda: start_up(scratch, 1)}
    for factor in (1, 2, 4):
        folder = scratch / str(factor)
        write_checkpoint(folder, shape, factor * count)
        sides[str(factor)] = lambda f=folder: process(analysis(f, 1), 1)
    costs = in_turn(sides, runs)
    nets = {
        name: [
            Cost(c.wall - s.wall, c.cpu - s.cpu)
            for c, s in zip(found, costs["start-up"], strict=True)
        ]
        for name, found in costs.items()
        if name != "start-up"
    }
    for factor in ("2", "4"):
        wall, cpu = ratio(nets[factor], nets["1"])
        print(f"{factor} times the layers: {wall:.2f} by the clock, {cpu:.2f} of processors")


def cores(scratch: Path, shape: Shape, count: int, runs: int) -> None:
    """One thread over two, for the whole analysis and for one large solve."""
    folder = scratch / "cores"
    write_checkpoint(folder, shape, count)
    gram = torch.randn(4096, 4096, dtype=torch.float64)
    gram = gram.T @ gram

    def solve(threads: int) -> Cost:
        torch.set_num_threads(threads)
        return call(lambda: torch.linalg.eigvalsh(gram))

    costs = in_turn(
        {
            "start-up": lambda: start_up(scratch, 2),
            "one": lambda: process(analysis(folder, 1), 1),
            "two": lambda: process(analysis(folder, 2), 1),
            "solve, one": lambda: solve(1),
            "solve, two": lambda: solve(2),
        },
        runs,
    )
    for name, found in costs.items():
        print(f"{name:10} {shown(found)}")
    start = statistics.median(c.wall for c in costs["start-up"])
    net = {n: [Cost(c.wall - start, c.cpu) for c in costs[n]] for n in ("one", "two")}
    print(f"small matrices, one thread / two: {ratio(net['one'], net['two'])[0]:.2f}")
    print(f"solve of 4096, one / two: {ratio(costs['solve, one'], costs['solve, two'])[0]:.2f}")


@dataclass
class Throttled:
    """A reader of so many bytes per second."""

    measure: Measure
    speed: float
    reading: float = 0.0

    def fetch(self, matrix: Matrix) -> Any:
        """Read one matrix, no faster than that."""
        start = time.perf_counter()
        fetched = self.measure.fetch(matrix)
        time.sleep(max(0.0, matrix.nbytes / self.speed - (time.perf_counter() - start)))
        self.reading += time.perf_counter() - start
        return fetched


def reading(scratch: Path, shape: Shape, count: int, runs: int) -> None:
    """Total time over the larger of reading and computing, one worker."""
    folder = scratch / "reading"
    write_checkpoint(folder, shape, count)
    checkpoint = open_model(folder)
    plan = make_plan(select(checkpoint).matrices, Farms())
    with opened(checkpoint, list(plan.matrices)) as read:
        measure = Measure(read, Farms())

        def run(fetch: Any) -> Cost:
            return call(lambda: list(local.run(plan.batches, fetch, measure, 1, "cpu")))

        for share in (0.5, 1.0, 2.0):
            found = []
            for _ in range(runs):
                compute = run(measure.fetch).wall
                slow = Throttled(measure, plan.bytes_read / (share * compute))
                total = run(slow.fetch).wall
                found.append(total / max(slow.reading, compute))
            print(f"reading takes {share:3.1f} of computing: {statistics.median(found):.2f}")


def main() -> None:
    """Read the command line and run the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_shape_options(parser, "tinyllama", 8)
    parser.set_defaults(hidden=512, ffn=1408, kv=512, vocab=0)
    parser.add_argument("--part", nargs="+", default=["layers", "cores", "reading"])
    parser.add_argument("--runs", type=int, default=3)
    o = parser.parse_args()
    print(f"{shape_from(o)}, {o.layers} layers, median of {o.runs}")
    parts = {"layers": layers, "cores": cores, "reading": reading}
    with tempfile.TemporaryDirectory() as scratch:
        for name in o.part:
            parts[name](Path(scratch), shape_from(o), o.layers, o.runs)


if __name__ == "__main__":
    main()
