"""Time against one full SVD with vectors per matrix, which KappaTune and WeLore pay; float64.

python tests/benchmarks/against_svd.py [--hidden 4096] [--matrices 2] [--threads 2] [--runs 3]

Both sides get the same bf16 matrices in memory. Ours is ``analyze``: once for the columns that
those two peers have, once with every default.
"""

from __future__ import annotations

import argparse
import os

import torch
from shapes import heavy_tailed
from timing import call, in_turn, ratio, shown

import weightscope


def main() -> None:
    """Read the command line, draw the matrices, and time both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--matrices", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", type=int, default=3)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    generator = torch.Generator().manual_seed(0)
    model = {
        f"layers.{i}.mlp.weight": heavy_tailed(o.hidden, o.hidden, generator)
        for i in range(o.matrices)
    }

    def svds() -> None:
        for weight in model.values():
            torch.linalg.svd(weight.to(torch.float64), full_matrices=False)

    def ours(**chosen: tuple[str, ...]) -> None:
        weightscope.analyze(model, threads=o.threads, **chosen)

    weightscope.analyze({"warm.weight": torch.randn(64, 64)}, threads=o.threads)
    costs = in_turn(
        {
            "SVD with vectors": lambda: call(svds),
            "same columns": lambda: call(lambda: ours(metrics=("condition", "welore"))),
            "all of ours": lambda: call(ours),
        },
        o.runs,
    )
    print(f"{o.matrices} matrices of {o.hidden}, {o.threads} threads, median of {o.runs}")
    for name, found in costs.items():
        print(f"{name:17} {shown(found)}")
    for name in ("same columns", "all of ours"):
        wall, cpu = ratio(costs["SVD with vectors"], costs[name])
        print(f"SVD with vectors / {name}: {wall:.1f} by the clock, {cpu:.1f} of processors")


if __name__ == "__main__":
    main()
