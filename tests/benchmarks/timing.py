"""What the benchmarks share: two sides timed in turn, so that a busy machine slows both alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LAUNCHER = """
import os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
wall = time.perf_counter() - start
print(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A small process between: a child's peak begins with that of the process that starts it."""


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock and of the processors, and peak memory in MiB of a process."""

    wall: float
    cpu: float
    peak: float = 0.0


def call(work: Callable[[], object]) -> Cost:
    """Cost of a call in this process; processor time is that of all its threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def process(command: Sequence[str], threads: int, **variables: str) -> Cost:
    """Cost of a process that must succeed; what it prints on standard output is dropped."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment |= dict.fromkeys(THREAD_VARIABLES, str(threads)) | variables
    launcher = [sys.executable, "-c", LAUNCHER, *command]
    done = subprocess.run(launcher, capture_output=True, env=environment, check=False)
    if done.returncode:
        text = done.stderr.decode(errors="replace")[-2000:]
        sys.exit(f"failed with {done.returncode}: {' '.join(command[:4])} ...\n{text}")
    return Cost(*map(float, done.stdout.split()))


def in_turn(sides: Mapping[str, Callable[[], Cost]], runs: int) -> dict[str, list[Cost]]:
    """Every side once per round, so many rounds."""
    rounds = [{name: side() for name, side in sides.items()} for _ in range(runs)]
    return {name: [costs[name] for costs in rounds] for name in sides}


def ratio(above: list[Cost], below: list[Cost]) -> tuple[float, float]:
    """Medians over the rounds of the ratios within a round: by the clock, and of the processors."""
    pairs = list(zip(above, below, strict=True))
    return (
        statistics.median(a.wall / b.wall for a, b in pairs),
        statistics.median(a.cpu / b.cpu for a, b in pairs),
    )


def shown(costs: list[Cost]) -> str:
    """Medians for people."""
    wall = statistics.median(cost.wall for cost in costs)
    cpu = statistics.median(cost.cpu for cost in costs)
    return f"{wall:8.3f} s by the clock, {cpu:8.3f} s of processors"


def analysis(model: object, threads: int, *options: str) -> list[str]:
    """Our command: everything by default, nothing saved."""
    words = ["--no-save", "--format", "csv", "--threads", str(threads), *options]
    return [sys.executable, "-m", "weightscope", "analyze", str(model), *words]
