"""Peak memory follows the largest matrix, not the model; shown under a hard limit.

python tests/benchmarks/memory.py [--like tinyllama] [--layers 8] [--threads 2]
python tests/benchmarks/memory.py --embedding 128256 8192

The bound: four Gram matrices (8 M^2 bytes each), 256 MiB of blocks, one stored matrix, and 600 MiB.
``analyze`` runs once unhindered, and once with no more private writable memory than
that (RLIMIT_DATA), on a checkpoint whose size is printed beside. A model of a quarter of the layers
shows that depth does not matter. With ``--embedding`` the model is one embedding, whose Gram matrix
is summed over blocks.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from shapes import (
    Shape,
    add_shape_options,
    heavy_tailed,
    layer_shapes,
    shape_from,
    write_checkpoint,
)
from timing import THREAD_VARIABLES, analysis, process

MIB = 2**20


def bound(sizes: list[tuple[int, int]]) -> int:
    """Bytes that an analysis of matrices of these sizes in bf16 may take."""
    gram = max(8 * min(size) ** 2 for size in sizes)
    stored = max(2 * rows * cols for rows, cols in sizes)
    return 4 * gram + 256 * MIB + stored + 600 * MIB


def under_limit(model: Path, threads: int, limit: int) -> bool:
    """Whether ``analyze`` succeeds with so much private writable memory, and gives every row."""
    variables = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    done = subprocess.run(
        analysis(model, threads, "--fail-on", "status != ok"),
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
    return not done.returncode


def check(model: Path, total: int, sizes: list[tuple[int, int]], threads: int) -> float:
    """Print one line on one model; returns its peak memory."""
    limit = bound(sizes)
    peak = process(analysis(model, threads), threads).peak
    held = "succeeds" if under_limit(model, threads, limit) else "FAILS"
    print(
        f"model {total / MIB:6.0f} MiB, bound {limit / MIB:6.0f}, peak {peak:6.0f} "
        f"({peak * MIB / limit:.2f} of it); under the hard limit it {held}",
        flush=True,
    )
    return peak


def write_embedding(path: Path, rows: int, cols: int) -> int:
    """A model of one embedding; rows repeat after a while, which the spectrum survives."""
    block = heavy_tailed(min(rows, 2 * cols), cols, torch.Generator().manual_seed(0))
    whole = block.repeat(-(-rows // len(block)), 1)[:rows].contiguous()
    save_file({"model.embed_tokens.weight": whole}, path)
    return path.stat().st_size


def main() -> None:
    """Read the command line, write the models, and run them."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_shape_options(parser, "tinyllama", 8)
    parser.add_argument("--embedding", type=int, nargs=2, metavar=("ROWS", "COLS"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if o.embedding:
            path = Path(scratch) / "embedding.safetensors"
            check(path, write_embedding(path, *o.embedding), [tuple(o.embedding)], o.threads)
            return
        shape: Shape = shape_from(o)
        sizes = [*layer_shapes(shape).values(), (shape.vocab, shape.hidden)]
        peaks = []
        for layers in (max(1, o.layers // 4), o.layers):
            folder = Path(scratch) / str(layers)
            total = write_checkpoint(folder, shape, layers)
            peaks.append(check(folder, total, sizes, o.threads))
        print(f"peak of {o.layers} layers over that of {o.layers // 4}: {peaks[1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
