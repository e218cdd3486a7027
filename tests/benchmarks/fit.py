"""The power-law fit against a NumPy loop over every xmin, with the same answer.

python tests/benchmarks/fit.py [--sizes 4096 15000] [--large 450000] [--runs 3]
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
from timing import call, in_turn, ratio, shown

from weightscope.laws.power_law import fit_power_law
from weightscope.outcome import Failure


def loop(evals: np.ndarray) -> tuple[float, float, float]:
    """Exponent, xmin and distance of Clauset, Shalizi and Newman, one xmin after the other."""
    logs = np.log(np.sort(evals))
    best = (np.inf, 0.0, 0.0)
    for start in range(len(logs) - 1):
        tail = logs[start:] - logs[start]
        n = len(tail)
        slope = n / tail.sum()
        distance = np.abs(1 - np.exp(-slope * tail) - np.arange(n) / n).max()
        best = min(best, (float(distance), float(np.exp(logs[start])), 1 + float(slope)))
    return best[2], best[1], best[0]


def sample(n: int) -> np.ndarray:
    """A heavy tail on a bulk, as of trained weights."""
    generator = np.random.default_rng(n)
    return np.concatenate((generator.pareto(2.0, n // 5) + 2, 3 * generator.random(n - n // 5)))


def main() -> None:
    """Read the command line, compare at every size, and time the largest alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 15000])
    parser.add_argument("--large", type=int, default=450_000)
    parser.add_argument("--runs", type=int, default=3)
    o = parser.parse_args()
    for n in o.sizes:
        evals = sample(n)
        costs = in_turn(
            {
                "loop": lambda e=evals: call(lambda: loop(e)),
                "ours": lambda e=evals: call(lambda: fit_power_law(e)),
            },
            o.runs,
        )
        fit, (alpha, xmin, ks) = fit_power_law(evals), loop(evals)
        assert not isinstance(fit, Failure)
        np.testing.assert_allclose((fit.alpha, fit.xmin, fit.ks), (alpha, xmin, ks), rtol=1e-9)
        wall, cpu = ratio(costs["loop"], costs["ours"])
        print(f"n = {n}: loop {shown(costs['loop'])}")
        print(f"  loop / ours: {wall:.1f} by the clock, {cpu:.1f} of processors; same xmin")
    evals = sample(o.large)
    found = [call(lambda: fit_power_law(evals)) for _ in range(o.runs)]
    print(f"n = {o.large}: {statistics.median(cost.cpu for cost in found):.2f} s of processors")


if __name__ == "__main__":
    main()
