"""One machine: a pool of workers for most matrices, all threads together for the largest.

Several matrices side by side, each with a single BLAS thread, use the cores far better than
several threads inside one small eigen-solve. The thread count is set inside each worker: set only
in the main thread it does not reach the linear algebra of the others.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from threading import Condition, Thread
from typing import Generic, TypeVar

import torch

from weightscope.executors.contract import Job
from weightscope.matrix import Matrix
from weightscope.plan import READ_AHEAD_BYTES, Batch, memory_of

Item = TypeVar("Item")
Fetched = TypeVar("Fetched")
Result = TypeVar("Result")

TAKEN_AHEAD = 64


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


@dataclass(frozen=True)
class Local:
    """One device of this machine, and the cores beside it.

    Attributes:
        device: Where the linear algebra runs.
        device_name: Its name for people.
        threads: Cores to use.
    """

    device: str
    device_name: str
    threads: int
    note: str = ""

    def run(
        self, job: Job[Result], batches: Sequence[Batch]
    ) -> Generator[tuple[Batch, list[Result]], None, None]:
        """Do every matrix once; whole batches come in the order of the plan."""
        with job.opened([matrix for batch in batches for matrix in batch.matrices]) as work_on:
            work = work_on(self.device)
            yield from run(batches, work.fetch, work, self.threads, self.device)


def run(
    batches: Iterable[Batch],
    fetch: Callable[[Matrix], Fetched],
    work: Callable[[Matrix, Fetched], Result],
    threads: int,
    device: str,
) -> Iterator[tuple[Batch, list[Result]]]:
    """Do every matrix, reading the next ones meanwhile; yield whole batches in the plan's order.

    Args:
        batches: What to do.
        fetch: Reads one matrix; called in a thread of its own.
        work: Does one matrix with what was read; called in worker threads.
        threads: Cores to use.
        device: Where ``work`` computes; a GPU is fed by one worker.
    """
    batches = list(batches)
    everything = [matrix for batch in batches for matrix in batch.matrices]
    largest = max((matrix.nbytes for matrix in everything), default=0)
    reader = Reader(fetch, largest + READ_AHEAD_BYTES, device)
    queue = deque((matrix, reader.submit(matrix)) for matrix in everything)
    single = device != "cpu"

    def do(taken: tuple[Matrix, Future[Fetched]]) -> Result:
        matrix, fetched = taken
        try:
            return work(matrix, fetched.result())
        finally:
            reader.release(matrix)

    try:
        for alone, batch_group in groupby(batches, key=lambda batch: batch.alone or single):
            group = list(batch_group)
            matrices = [matrix for batch in group for matrix in batch.matrices]
            workers = 1 if alone else side_by_side(matrices, threads)
            items = (queue.popleft() for _ in matrices)  # kept nowhere else, or bytes would be
            done = in_order(items, do, workers, threads if alone else 1)
            for batch in group:
                yield batch, [next(done) for _ in batch.matrices]
    finally:
        reader.close()


class Reader(Generic[Fetched]):
    """Reads matrices in the order in which they are wanted, as far ahead as there is room.

    Args:
        fetch: Reads one matrix.
        room: Stored bytes that may be held at once, from their reading to their release; a matrix
            that is larger is read when nothing else is held.
        device: What it reads for: memory that a GPU takes from directly is pinned in its context.
    """

    def __init__(self, fetch: Callable[[Matrix], Fetched], room: int, device: str = "cpu") -> None:
        self._fetch, self._room = fetch, room
        self._held, self._closed, self._changed = 0, False, Condition()
        self._pool = ThreadPoolExecutor(1, initializer=begin, initargs=(1, device))

    def submit(self, matrix: Matrix) -> Future[Fetched]:
        """Read a matrix after those submitted before."""
        return self._pool.submit(self._read, matrix)

    def release(self, matrix: Matrix) -> None:
        """Make room: what was read of the matrix is no longer held."""
        with self._changed:
            self._held -= matrix.nbytes
            self._changed.notify()

    def close(self) -> None:
        """Read nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, matrix: Matrix) -> Fetched:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(matrix.nbytes))
            self._held += matrix.nbytes
        if self._closed:
            raise CancelledError
        return self._fetch(matrix)

    def _fits(self, nbytes: int) -> bool:
        return not self._held or self._held + nbytes <= self._room


def begin(threads: int, device: str = "cpu") -> None:
    """Begin a thread that works for a device, with so many linear-algebra threads of the host."""
    torch.get_num_threads()  # the first look of a thread takes over what any other has set last
    torch.set_num_threads(threads)
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)


def side_by_side(matrices: Iterable[Matrix], threads: int) -> int:
    """How many of these matrices, one thread each, fit into the memory that is free."""
    largest = max(map(memory_of, matrices), default=1)
    return max(1, min(threads, free_memory() // largest))


def free_memory() -> int:
    """Bytes that can be had without swapping, as far as the system and the container tell."""
    free = sys.maxsize
    with suppress(OSError, ValueError, IndexError):  # not on macOS and Windows
        free = _number_after("MemAvailable:", "/proc/meminfo") * 1024
    with suppress(OSError, ValueError, IndexError):  # where there is no limit it is called "max"
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - _number_after("anon ", "/sys/fs/cgroup/memory.stat"))
    return max(free, 0)


def _number_after(label: str, file: str) -> int:
    return int(Path(file).read_text().partition(label)[2].split()[0])


def in_order(
    items: Iterable[Item], work: Callable[[Item], Result], workers: int, threads: int
) -> Iterator[Result]:
    """Apply ``work`` to every item in a pool; results come in the order of the items.

    Args:
        items: What to work on; taken a little ahead, so that no worker waits for the consumer.
        work: Called in worker threads.
        workers: Worker threads.
        threads: Linear-algebra threads of each.
    """
    rest = iter(items)
    before = torch.get_num_threads()
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=begin, initargs=(threads,))
    try:
        pending.extend(pool.submit(work, item) for item in islice(rest, 2 * workers + TAKEN_AHEAD))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        reset_threads(before)


def reset_threads(count: int) -> None:
    """Undo for later threads what the workers set: torch keeps the last count as their default."""
    thread = Thread(target=torch.set_num_threads, args=(count,))
    thread.start()
    thread.join()
