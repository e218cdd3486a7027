"""Time of the verbs that read saved runs, against an empty Python process.

python tests/benchmarks/compare.py [--rows 300] [--values 512] [--runs 5]

Builds two saved runs of so many rows, each with a spectrum of so many singular values, through the
writer that ``analyze`` uses. Times ``report``, ``compare`` and ``track`` as whole processes, in
turn with a process that imports the same libraries and does nothing, and prints the ratios of the
medians; the bar is three. Processor time is printed beside, for a busy machine; and an empty typer
command, which imports more than typer's name does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from weightscope.evaluate import complete, evaluate
from weightscope.layouts.roles import place_of, role_of
from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, Measurement
from weightscope.plan import make_plan
from weightscope.select import Selection
from weightscope.settings import Settings
from weightscope.spectrum import Spectrum
from weightscope.storage import RunWriter
from weightscope.summary import summarise
from weightscope.tensor import TensorRef
from weightscope.version import SCHEMA_VERSION, __version__

PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.up_proj", "mlp.down_proj")  # fmt: skip
EMPTY = "import numpy, typer, rich"
COMMAND = """
import numpy, typer, rich
def command(text: str = "") -> None: pass
typer.run(command)
"""


def matrices(count: int, values: int) -> Iterator[Matrix]:
    """Names of a transformer, square matrices of so many singular values."""
    for i in range(count):
        block, part = divmod(i, len(PARTS))
        name = f"model.layers.{block}.{PARTS[part]}.weight"
        place = place_of(name)
        ref = TensorRef(name, (values, values), "BF16", "model.safetensors", i)
        yield Matrix(name, ref, "whole", role_of(place.module), *place)


def measured(matrix: Matrix, generator: np.random.Generator) -> Measurement:
    """A heavy-tailed spectrum with a bulk."""
    evals = np.sort(generator.pareto(2.5, matrix.M) + generator.random(matrix.M))[::-1]
    stats = EntryStatistics(0.0, 0.02, 0.2, 0.0, 0, 1e-3)
    values = np.sqrt(evals)
    spectrum = Spectrum(values, matrix.N, matrix.M, resolution=1e-7, relative_error=1e-10)
    return Measurement(matrix, stats, spectrum)


def write_run(folder: Path, count: int, values: int, seed: int) -> None:
    """A finished run folder, as ``analyze`` leaves it."""
    settings = Settings(device="cpu", threads=1)
    provenance = {
        "schema": SCHEMA_VERSION,
        "weightscope": __version__,
        "model": folder.stem,
        "source": {"format": "safetensors", "revision": "", "files": []},
        "settings": settings.as_record(),
        "environment": {"device_name": "CPU", "compute_dtype": "float64"},
    }
    generator = np.random.default_rng(seed)
    wanted = tuple(matrices(count, values))
    plan = make_plan(wanted, None)
    with RunWriter(folder, provenance, plan) as writer:
        evaluated, spectra = [], {}
        for batch in plan.batches:
            found = [measured(matrix, generator) for matrix in batch.matrices]
            writer.append(batch, found)
            evaluated += [evaluate(one, settings) for one in found]
            spectra |= {m.matrix.name: m.spectrum for m in found if m.spectrum is not None}
        fitted = complete(evaluated, spectra, settings)
        rows = [entry.row for entry in evaluated]
        params = sum(matrix.params for matrix in wanted)
        selection = Selection(wanted, (), 0, 0, 0, params)
        writer.finish(rows, spectra, summarise(rows, selection, fitted))


def measured_process(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"failed with {process.returncode}: {errors.read().decode(errors='replace')}")
    return elapsed, usage.ru_utime + usage.ru_stime


def bytecode_in(folder: Path) -> dict[str, str]:
    """An environment with one BLAS thread and compiled modules, as an installed package has."""
    names = {"OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(folder)}
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **names}


def main() -> None:
    """Read the command line, build the runs, and time the verbs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--values", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = [Path(scratch) / f"checkpoint-{step}.weightscope" for step in (100, 200)]
        for seed, run in enumerate(runs):
            write_run(run, a.rows, a.values, seed)
        commands = {"empty": [sys.executable, "-c", EMPTY]}
        commands["empty typer command"] = [sys.executable, "-c", COMMAND]
        for kind in ("csv", "table"):
            for verb, count in (("report", 1), ("compare", 2), ("track", 2)):
                words = [verb, *map(str, runs[:count]), "--format", kind]
                commands[" ".join((verb, *words[-2:]))] = [
                    sys.executable,
                    "-m",
                    "weightscope",
                    *words,
                ]
        environment = bytecode_in(Path(scratch) / "bytecode")
        rounds = [
            {name: measured_process(command, environment) for name, command in commands.items()}
            for _ in range(a.runs + 1)
        ][1:]
    print(f"{a.rows} rows of {a.values} values, median of {a.runs}; times the empty process:")
    empty = medians([r["empty"] for r in rounds])
    for name in commands:
        (wall, cpu), (wall_0, cpu_0) = medians([r[name] for r in rounds]), empty
        print(f"{name:24} wall {wall:6.3f} s {wall / wall_0:5.2f}", end="   ")
        print(f"cpu {cpu:6.3f} s {cpu / cpu_0:5.2f}")


def medians(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Of wall and processor seconds."""
    wall, cpu = zip(*pairs, strict=True)
    return statistics.median(wall), statistics.median(cpu)


if __name__ == "__main__":
    main()
