"""One machine: a pool of workers for small matrices, all threads together for large ones.

Several matrices side by side, each with a single BLAS thread, use the cores far better than
several threads inside one small eigen-solve. The thread count is set inside each worker: set only
in the main thread it does not reach the linear algebra of the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from threading import Thread
from typing import TypeVar

import torch

from weightscope.matrix import Matrix
from weightscope.measurement import Measurement
from weightscope.plan import Batch

Item = TypeVar("Item")
Result = TypeVar("Result")


def resolve_device(wanted: str) -> tuple[str, str]:
    """Device to compute on, and its name for people.

    Raises:
        ValueError: The device does not exist here.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.partition(":")[0] == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("no CUDA device can be used here")
        index = torch.device(wanted).index or 0
        if index >= torch.cuda.device_count():
            raise ValueError(f"there are {torch.cuda.device_count()} CUDA devices")
        return f"cuda:{index}", torch.cuda.get_device_name(index)
    if wanted == "mps":
        # Metal has no float64, which the figures need
        return "cpu", "CPU (mps has no float64)"
    if wanted != "cpu":
        raise ValueError("choose auto, cpu, cuda, cuda:N or mps")
    return "cpu", "CPU"


def run(
    batches: Iterable[Batch], work: Callable[[Matrix], Measurement], threads: int, device: str
) -> Iterator[tuple[Batch, list[Measurement]]]:
    """Measure every matrix; yield whole batches in the order of the plan.

    Args:
        batches: What to do.
        work: Measures one matrix; called in worker threads.
        threads: Cores to use.
        device: Where ``work`` computes; a GPU is fed by one worker.
    """
    single = device != "cpu"
    for alone, group in groupby(batches, key=lambda batch: batch.alone or single):
        workers = 1 if alone else threads
        yield from _run_group(list(group), work, workers, threads if alone else 1)


def _run_group(
    batches: list[Batch], work: Callable[[Matrix], Measurement], workers: int, threads: int
) -> Iterator[tuple[Batch, list[Measurement]]]:
    matrices = (matrix for batch in batches for matrix in batch.matrices)
    measured = in_order(matrices, work, workers, threads)
    for batch in batches:
        yield batch, [next(measured) for _ in batch.matrices]


def in_order(
    items: Iterable[Item], work: Callable[[Item], Result], workers: int, threads: int
) -> Iterator[Result]:
    """Apply ``work`` to every item in a pool; results come in the order of the items.

    Args:
        items: What to work on; at most two per worker are taken ahead.
        work: Called in worker threads.
        workers: Worker threads.
        threads: Linear-algebra threads of each.
    """
    rest = iter(items)
    before = torch.get_num_threads()
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        pending.extend(pool.submit(work, item) for item in islice(rest, 2 * workers))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        _reset_threads(before)


def _reset_threads(count: int) -> None:
    """Undo for later threads what the workers set: torch keeps the last count as their default."""
    thread = Thread(target=torch.set_num_threads, args=(count,))
    thread.start()
    thread.join()
