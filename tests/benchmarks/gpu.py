"""A GPU on a llama-shaped checkpoint: time over the bare calls, how busy it is, memory it takes.

python tests/benchmarks/gpu.py [--like 7b] [--layers 2] [--device cuda] [--runs 3]

The bare calls are those of ``overhead.py``, on the device, one after the other, on entries that are
there already in float64. ``analyze`` runs in this process with everything it does by default. How
busy the device is comes from ``nvidia-smi``, four times a second. Last, the FARMS paper's setting
for LLaMA (windows of 2000, 15 x 15) on one block, and what that makes for all blocks. With
``--device cpu`` the same runs without a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from overhead import operands, tensor, weights, windowed
from shapes import add_shape_options, heavy_tailed, layer_shapes, shape_from, write_checkpoint
from timing import Cost, call, in_turn, ratio, shown

import weightscope
from weightscope.decompositions.farms import window_spectra, windows_for
from weightscope.executors.local import is_gpu
from weightscope.recipe import EvalFloor, farms_preset

BUSY = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "250"]


def finished(device: str) -> None:
    """Wait for what the device was asked."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


@contextmanager
def watched(device: str, found: list[int]) -> Iterator[None]:
    """Per cent that the first GPU is busy, into a list; nothing without the tool."""
    try:
        watch = (
            subprocess.Popen(BUSY, stdout=subprocess.PIPE, text=True) if is_gpu(device) else None
        )
    except FileNotFoundError:
        watch = None
    try:
        yield
    finally:
        if watch is not None:
            watch.terminate()
            found.extend(int(line) for line in watch.communicate()[0].split() if line.isdigit())


def bare(folder: Path, device: str) -> Cost:
    """Gram products and eigenvalues of all matrices and windows; moving them is not counted."""
    wall = cpu = 0.0
    for name, path in weights(folder):
        for tall in operands(tensor(name, path).to(device), windowed(name)):
            finished(device)

            def solve(tall: torch.Tensor = tall) -> None:
                torch.linalg.eigvalsh(tall.mT @ tall)
                finished(device)

            cost = call(solve)
            wall, cpu = wall + cost.wall, cpu + cost.cpu
    return Cost(wall, cpu)


def paper_block(o: argparse.Namespace) -> None:
    """The FARMS paper's windows of one block."""
    recipe, generator = farms_preset("paper-llm", EvalFloor()), torch.Generator().manual_seed(0)
    sizes = layer_shapes(shape_from(o)).values()
    block = [heavy_tailed(*size, generator).to(o.device) for size in sizes]
    found = [(matrix, windows_for(*matrix.shape, recipe)) for matrix in block]
    count = sum(windows.count for _, windows in found if windows)

    def work() -> None:
        for matrix, windows in found:
            if windows:
                window_spectra([matrix], windows)

    seconds = call(work).wall
    print(f"paper-llm: {count} windows of one block in {seconds:.1f} s, ", end="")
    print(f"{seconds * o.paper_layers / 60:.1f} minutes for {o.paper_layers} blocks")


def main() -> None:
    """Read the command line, write the model, time both sides and the paper's setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_shape_options(parser, "7b", 2)
    parser.add_argument("--paper-layers", type=int, default=32)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runs", type=int, default=3)
    o = parser.parse_args()
    name = torch.cuda.get_device_name(o.device) if is_gpu(o.device) else "CPU"
    busy: list[int] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        total = write_checkpoint(model, shape_from(o), o.layers)
        print(f"{name}: {o.like}-like, {o.layers} layers, {total / 2**20:.0f} MiB")
        weightscope.analyze({"small.weight": torch.randn(64, 64)}, device=o.device)  # starts it up
        finished(o.device)
        if is_gpu(o.device):
            torch.cuda.reset_peak_memory_stats(o.device)

        def analyzed() -> Cost:
            with watched(o.device, busy):
                return call(lambda: weightscope.analyze(model, device=o.device))

        costs = in_turn({"analyze": analyzed, "bare calls": lambda: bare(model, o.device)}, o.runs)
    for side, found in costs.items():
        print(f"{side:10} {shown(found)}")
    print(f"analyze / bare calls: {ratio(costs['analyze'], costs['bare calls'])[0]:.2f}")
    if is_gpu(o.device):
        peak = torch.cuda.max_memory_allocated(o.device) / 2**20
        print(f"busy {statistics.mean(busy or [0]):.0f} % of the time; peak memory {peak:.0f} MiB")
    paper_block(o)


if __name__ == "__main__":
    main()
