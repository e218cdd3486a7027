"""How long a model takes on how many devices: a prediction, and its check against a run here.

python tests/benchmarks/scaling_model.py
    the tables of the README, from the rates in HERE and the assumptions in GPU
python tests/benchmarks/scaling_model.py --check [--threads 2] [--runs 3]
    measure the rates, predict the time of a generated checkpoint, analyse it

Every process takes a part of the plan, cut as ``analyze --shard`` cuts it, and reads ahead, so

    t = start-up + max over the parts of max(bytes / reading, compute)

On the CPU, for a matrix of N x M, N >= M, with w FARMS windows of n x n,

    compute = N M^2 / product(M) + 4/3 M^3 / solve(M) + w window(n) + host

The rates are measured by bare calls of the package's own routines, in processor time of one core
with its neighbour at the same work; ``host`` is all the rest (decoding, statistics, fits, nulls,
metrics), so much per matrix and per entry. Matrices that get all threads of a process, one after
the other, use them at ALONE.

On a GPU compute is the transfer, the host work per matrix (that per entry is done on the device),
the product at a share of the float64 peak, and per solve of order n one reduction column by column:
n times ``column`` seconds of launches and 8/3 n^3 bytes of memory traffic. None was measured.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import exp, log
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from shapes import MODELS as LLAMAS
from shapes import Shape, heavy_tailed, layer_shapes, write_checkpoint
from timing import analysis, call, process

from weightscope.decompositions.entries import entry_statistics
from weightscope.decompositions.farms import window_spectra, windows_for
from weightscope.decompositions.full import gram_of, solve_gram
from weightscope.evaluate import evaluate
from weightscope.folders.partition import cost, cut
from weightscope.inspection import duration
from weightscope.layouts.roles import place_of, role_of
from weightscope.matrix import Matrix
from weightscope.measure import Measure, reading
from weightscope.plan import SOLVE_FLOPS, flops, make_plan, windows_in
from weightscope.recipe import Farms
from weightscope.select import select
from weightscope.settings import Settings
from weightscope.sources import open_model
from weightscope.tensor import DTYPES, TensorRef

FARMS = Farms()
T = TypeVar("T")
GB = 1e9

# --- models: shapes alone --------------------------------------------------------------------


def matrix(name: str, rows: int, cols: int, dtype: str, place: int) -> Matrix:
    """A matrix as a checkpoint would have it, in files of 64."""
    found = place_of(name)
    ref = TensorRef(name, (rows, cols), dtype, f"{place // 64:06d}", place, place + 1)
    return Matrix(name, ref, "whole", role_of(found.module), *found)


def llama(layers: int, shape: Shape) -> Iterator[tuple[str, int, int]]:
    """Names and shapes of a dense model."""
    yield "model.embed_tokens.weight", shape.vocab, shape.hidden
    for i in range(layers):
        for name, (rows, cols) in layer_shapes(shape).items():
            yield f"model.layers.{i}.{name}.weight", rows, cols
    yield "lm_head.weight", shape.vocab, shape.hidden


def deepseek() -> Iterator[tuple[str, int, int]]:
    """Names and shapes of DeepSeek-V3 (its config.json) without the layer of next tokens."""
    layers, experts, hidden = 61, 256, 7168
    yield "model.embed_tokens.weight", 129280, hidden
    attention = {
        "q_a_proj": (1536, hidden),
        "q_b_proj": (128 * (128 + 64), 1536),
        "kv_a_proj_with_mqa": (512 + 64, hidden),
        "kv_b_proj": (128 * (128 + 128), 512),
        "o_proj": (hidden, 128 * 128),
    }
    for i in range(layers):
        block = f"model.layers.{i}"
        for name, (rows, cols) in attention.items():
            yield f"{block}.self_attn.{name}.weight", rows, cols
        width = 2048 if i >= 3 else 18432
        if i >= 3:
            yield f"{block}.mlp.gate.weight", experts, hidden
        members = [f"experts.{e}." for e in range(experts)] + ["shared_experts."]
        for member in members if i >= 3 else [""]:
            yield f"{block}.mlp.{member}gate_proj.weight", width, hidden
            yield f"{block}.mlp.{member}up_proj.weight", width, hidden
            yield f"{block}.mlp.{member}down_proj.weight", hidden, width
    yield "lm_head.weight", 129280, hidden


def model(shapes: Iterable[tuple[str, int, int]], dtype: str = "BF16") -> tuple[Matrix, ...]:
    """Matrices of a model from names and shapes."""
    return tuple(matrix(n, rows, cols, dtype, i) for i, (n, rows, cols) in enumerate(shapes))


MODELS = {
    "1B": lambda: model(list(llama(16, LLAMAS["1b"]))[:-1]),  # the head is tied
    "7B": lambda: model(llama(32, LLAMAS["7b"])),
    "70B": lambda: model(llama(80, Shape(8192, 28672, 1024, 128256))),
    "671B": lambda: model(deepseek(), "F8_E4M3"),
}

# --- machines --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """What one core does; operations per second, or seconds.

    Attributes:
        product: Gram products by order, in N M^2.
        solve: Eigenvalues by order, in 4/3 M^3.
        window: Seconds per FARMS window by order, its product included.
        per_matrix: Seconds of everything else per matrix.
        per_entry: Seconds of everything else per entry.
        start: Seconds of a process before its first matrix.
    """

    product: Mapping[int, float]
    solve: Mapping[int, float]
    window: Mapping[int, float]
    per_matrix: float
    per_entry: float
    start: float

    def host(self, one: Matrix) -> float:
        """All but the linear algebra, per matrix."""
        return self.per_matrix + self.per_entry * one.params

    def seconds(self, one: Matrix, farms: Farms | None) -> float:
        """One matrix on one core."""
        N, M = one.N, one.M
        count, short = windows_in(one, farms)
        full = N * M**2 / between(self.product, M) + SOLVE_FLOPS * M**3 / between(self.solve, M)
        windows = count * between(self.window, short) if count else 0.0
        return full + windows + self.host(one)


def between(table: Mapping[int, float], order: int) -> float:
    """A value by interpolation in logarithms; that of the nearest order beyond the ends."""
    orders = sorted(table)
    place = min(max(bisect(orders, order), 1), len(orders) - 1)
    low, high = orders[place - 1], orders[place]
    share = min(max(log(order / low) / log(high / low), 0.0), 1.0)
    return exp((1 - share) * log(table[low]) + share * log(table[high]))


@dataclass(frozen=True)
class Gpu:
    """A GPU on paper, fed by one process.

    Attributes:
        product: Gram products, in N M^2 per second.
        column: Seconds of launches per column of a solve.
        memory: Bytes of memory traffic per second.
        transfer: Bytes per second from the host.
        rates: The host's.
    """

    product: float
    column: float
    memory: float
    transfer: float
    rates: Rates

    def solve(self, n: int) -> float:
        """One solve of order n."""
        return n * self.column + 8 / 3 * n**3 / self.memory

    def seconds(self, one: Matrix, farms: Farms | None) -> float:
        """One matrix, windows one after the other."""
        count, short = windows_in(one, farms)
        full = one.N * one.M**2 / self.product + self.solve(one.M)
        windows = count * (short**3 / self.product + self.solve(short)) if count else 0.0
        return full + windows + self.rates.per_matrix + one.nbytes / self.transfer


@dataclass(frozen=True)
class Forecast:
    """What a run will take, where reading is never waited for.

    Attributes:
        wall: Seconds of the slowest part, with its start-up.
        busy: Seconds of one core or device after the other.
        reading: Bytes per second that a process has to get so as not to wait.
    """

    wall: float
    busy: float
    reading: float


@dataclass(frozen=True)
class Work:
    """Matrices in the order of their plan.

    Attributes:
        matrices: With whether each gets all threads.
        farms: Windows of each, or none.
    """

    matrices: tuple[tuple[Matrix, bool], ...]
    farms: Farms | None

    @classmethod
    def of(cls, matrices: tuple[Matrix, ...], farms: Farms | None = FARMS) -> Work:
        """The plan of some matrices."""
        batches = make_plan(matrices, farms).batches
        return cls(tuple((one, b.alone) for b in batches for one in b.matrices), farms)

    def each(self, value: Callable[[Matrix, Farms | None], T]) -> Iterator[T]:
        """A value of every matrix that depends on its shape and role alone."""
        known: dict[tuple[int, int, str], T] = {}
        for one, _ in self.matrices:
            key = (*one.tensor.shape, one.role)
            if key not in known:
                known[key] = value(one, self.farms)
            yield known[key]


def forecast(work: Work, rates: Rates | Gpu, parts: int, cores: int) -> Forecast:
    """Time of a plan cut into parts, each for a process of so many cores, or for a GPU."""
    owners = cut(list(work.each(cost)), parts)
    walls, taken, busy = [0.0] * parts, [0] * parts, 0.0
    seconds = work.each(rates.seconds)
    for (one, alone), owner, each in zip(work.matrices, owners, seconds, strict=True):
        busy += each
        walls[owner] += each / (cores * (ALONE if alone and cores > 1 else 1.0))
        taken[owner] += one.nbytes
    start = rates.rates.start if isinstance(rates, Gpu) else rates.start
    reading = max(n / wall for n, wall in zip(taken, walls, strict=True) if wall)
    return Forecast(start + max(walls), busy, reading)


# --- this machine ----------------------------------------------------------------------------

ALONE = 0.66
"""Share of two cores that one solve of order 4096 uses: 2.06 s with one thread, 1.57 with two."""
ORDERS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
WINDOWS = (32, 64, 128, 256, 512, 1024)
SMALL, LARGE = (200, 160), (2048, 1536)
"""Shapes that tell host work."""


def per_core(work: Callable[[int], object], cores: int, most: int) -> float:
    """Seconds of a processor for one piece of work while all cores do the same.

    Args:
        work: Takes the number of the core.
        cores: How many at once.
        most: Repetitions.
    """
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        if most > 1:
            list(pool.map(work, range(cores)))  # warm
        costs = [call(lambda: list(pool.map(work, range(cores)))) for _ in range(most)]
    return min(c.cpu for c in costs) / cores


def rates_here(cores: int) -> Rates:
    """Measure the rates of this machine."""
    product, solve, window = {}, {}, {}
    generator = torch.Generator().manual_seed(1)
    for n in ORDERS:
        talls = [heavy_tailed(2 * n, n, generator) for _ in range(cores)]
        grams = [gram_of(tall, 1.0) for tall in talls]
        most = max(1, min(20, 2**31 // n**3))
        product[n] = 2 * n**3 / per_core(lambda i, t=talls: gram_of(t[i], 1.0), cores, most)
        solve[n] = SOLVE_FLOPS * n**3 / per_core(lambda i, g=grams: solve_gram(g[i]), cores, most)
    for n in WINDOWS:
        wide = [heavy_tailed(2 * n, 2 * n, generator) for _ in range(cores)]
        places = windows_for(2 * n, 2 * n, FARMS)
        assert places is not None and places.rows == max(n, 32)
        took = per_core(
            lambda i, w=wide, p=places: window_spectra([w[i]], p), cores, 1 if n > 256 else 5
        )
        window[n] = took / places.count
    bare = Rates(product, solve, window, 0.0, 0.0, 0.0)
    per_matrix, per_entry = host_work(bare, cores)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "small.safetensors"
        save_file({"small.weight": torch.randn(32, 32)}, path)
        start = min(process(analysis(path, cores), 1).cpu for _ in range(2))  # hardly parallel
    return Rates(product, solve, window, per_matrix, per_entry, start)


def host_work(bare: Rates, cores: int) -> tuple[float, float]:
    """Seconds of everything else: per matrix, from one whose solve is nothing, and per entry."""
    generator = torch.Generator().manual_seed(2)
    name = "model.layers.0.mlp.up_proj.weight"
    opened = [open_model({name: heavy_tailed(*SMALL, generator)}) for _ in range(cores)]
    found = [select(one).matrices[0] for one in opened]
    settings = Settings(device="cpu", threads=1)
    wide = [heavy_tailed(*LARGE, generator) for _ in range(cores)]

    def one(i: int) -> None:
        with reading(opened[i]) as read:
            evaluate(Measure(read, FARMS)(found[i]), settings)

    per_entry = per_core(lambda i: entry_statistics([wide[i]], DTYPES["BF16"]), cores, 5)
    per_entry /= wide[0].numel()
    whole = per_core(one, cores, 20) - bare.seconds(found[0], FARMS)
    return whole - per_entry * found[0].params, per_entry


def check(cores: int, runs: int) -> None:
    """Predict the time of a checkpoint and analyse it, so many times in turn with the rates."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_mixture(folder)
        matrices = select(open_model(folder)).matrices
        ratios = []
        for _ in range(runs):
            rates = rates_here(cores)
            print(rates)
            expected = forecast(Work.of(matrices), rates, 1, cores)
            found = process(analysis(folder, cores), 1)
            busy = found.cpu - rates.start
            ratios.append((expected.wall / found.wall, expected.busy / busy))
            print(
                f"{len(matrices)} matrices, {cores} cores: predicted {expected.wall:.1f} s by the "
                f"clock and {expected.busy:.1f} s of processors, measured {found.wall:.1f} and "
                f"{busy:.1f}: {ratios[-1][0]:.2f} and {ratios[-1][1]:.2f}",
                flush=True,
            )
    wall, cpu = (statistics.median(r[i] for r in ratios) for i in (0, 1))
    print(f"predicted / measured: {wall:.2f} by the clock, {cpu:.2f} of processors")


def write_mixture(folder: Path) -> None:
    """A dense layer and one of 48 small experts."""
    write_checkpoint(folder, Shape(1280, 3456, 320, 4000), 1)
    generator = torch.Generator().manual_seed(3)
    experts = {
        f"model.layers.2.mlp.experts.{e}.{part}.weight": heavy_tailed(*shape, generator)
        for e in range(48)
        for part, shape in {"up_proj": (256, 1024), "down_proj": (1024, 256)}.items()
    }
    save_file(experts, folder / "experts.safetensors")
    (folder / "model.safetensors.index.json").unlink()


HERE = Rates(
    product=dict(zip(ORDERS, (1.7e9, 6.7e9, 15e9, 18e9, 19e9, 24e9, 29e9, 36e9), strict=True)),
    solve=dict(zip(ORDERS, (0.53e9, 2.2e9, 5.3e9, 7.4e9, 10e9, 12e9, 17e9, 22e9), strict=True)),
    window=dict(zip(WINDOWS, (4.8e-5, 1.3e-4, 6.6e-4, 3.6e-3, 0.023, 0.146), strict=True)),
    per_matrix=0.011,
    per_entry=4.1e-9,
    start=2.2,
)
"""Medians of three rounds of --check on two shared cores of an AMD EPYC, in processor time."""
GPU = Gpu(0.25 * 67e12, column=20e-6, memory=0.7 * 3.35e12, transfer=25e9, rates=HERE)
"""H100 SXM: a quarter of the float64 peak and 0.7 of the memory bandwidth of its data sheet (67
TFLOP/s in tensor cores, 3.35 TB/s). The launches of a column and the transfer are guesses."""
PRICES = {"core": 0.04, "GPU": 2.5}
"""Dollars per hour, to be replaced by one's own."""


ROW = 4750
"""Bytes of a row in a run folder, measurement and table together (the example model: 4,747)."""


def tables() -> None:
    """What the README says."""
    models = {name: Work.of(make()) for name, make in MODELS.items()}
    print("| model | matrices | parameters | stored | operations | of them FARMS | run folder |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, work in models.items():
        found = [one for one, _ in work.matrices]
        everything, bare = (sum(replace(work, farms=f).each(flops)) for f in (FARMS, None))
        cells = (
            f"{len(found):,}",
            f"{sum(one.params for one in found) / 1e9:.1f} G",
            f"{sum(one.nbytes for one in found) / GB:,.1f} GB",
            f"{everything:.1e}",
            f"{100 * (1 - bare / everything):.0f}%",
            f"{sum(8 * one.n_evals + ROW for one in found) / 1e6:,.1f} MB",
        )
        print("|", " | ".join((name, *cells)), "|")
    print()
    print("| model | on | time | without FARMS | device-hours | cost | reads, per process |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    machines = [(HERE, f"{2 * n} cores", n, 2, PRICES["core"]) for n in (1, 8, 64)]
    machines += [(GPU, f"{n} GPU{'s' if n > 1 else ''}", n, 1, PRICES["GPU"]) for n in (1, 8, 64)]
    for name, work in models.items():
        for rates, label, parts, cores, price in machines if name != "1B" else machines[:1]:
            whole = forecast(work, rates, parts, cores)
            quick = forecast(replace(work, farms=None), rates, parts, cores)
            hours = whole.wall * parts * cores / 3600
            cells = (
                duration(whole.wall),
                duration(quick.wall),
                f"{hours:,.2f}",
                f"${hours * price:,.{2 if hours * price >= 0.1 else 3}f}",
                f"{whole.reading / 1e6:,.0f} MB/s",
            )
            print("|", " | ".join((name, label, *cells)), "|")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if options.check:
        check(options.threads, options.runs)
    else:
        tables()


if __name__ == "__main__":
    main()
