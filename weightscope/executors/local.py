"""One machine: a pool of workers for most matrices, all threads together for the largest.

Several matrices side by side, each with a single BLAS thread, use the cores far better than
several threads inside one small eigen-solve. The thread count is set inside each worker: set only
in the main thread it does not reach the linear algebra of the others.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from threading import Thread
from typing import Generic, TypeVar

import torch

from weightscope.executors.allocator import give_back_large_blocks
from weightscope.executors.contract import Job
from weightscope.executors.room import Room
from weightscope.matrix import Matrix
from weightscope.plan import READ_AHEAD_BYTES, Batch, memory_of

Item = TypeVar("Item")
Fetched = TypeVar("Fetched")
Result = TypeVar("Result")

TAKEN_AHEAD = 64
STREAMS = 3
"""Matrices that a GPU has at a time, each in a stream of its own: an eigen-solve leaves most of it
idle, and while one worker fits on the host the others keep it busy."""


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
        note: That it stands in for another one; empty where it does not.
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
        device: Where ``work`` computes; a GPU is fed by a few workers.
    """
    batches = list(batches)
    everything = [matrix for batch in batches for matrix in batch.matrices]
    largest = max((matrix.nbytes for matrix in everything), default=0)
    reader = Reader(fetch, largest + READ_AHEAD_BYTES, device)
    room = Room(free_memory(device))
    queue = deque((matrix, reader.submit(matrix)) for matrix in everything)

    def do(taken: tuple[Matrix, Future[Fetched]]) -> Result:
        matrix, fetched = taken
        try:
            found = fetched.result()
            with room.taken(memory_of(matrix)):
                return work(matrix, found)
        finally:
            reader.release(matrix)

    try:
        for alone, batch_group in groupby(batches, key=lambda b: b.alone and not is_gpu(device)):
            group = list(batch_group)
            matrices = [matrix for batch in group for matrix in batch.matrices]
            workers = 1 if alone else lanes(device, threads)
            items = (queue.popleft() for _ in matrices)  # kept nowhere else, or bytes would be
            done = in_order(items, do, workers, threads if alone else 1, device)
            for batch in group:
                yield batch, [next(done) for _ in batch.matrices]
    finally:
        room.close()
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
        self._fetch, self._room = fetch, Room(room)
        self._pool = ThreadPoolExecutor(1, initializer=begin, initargs=(1, device))

    def submit(self, matrix: Matrix) -> Future[Fetched]:
        """Read a matrix after those submitted before."""
        return self._pool.submit(self._read, matrix)

    def release(self, matrix: Matrix) -> None:
        """Make room: what was read of the matrix is no longer held."""
        self._room.give(matrix.nbytes)

    def close(self) -> None:
        """Read nothing more."""
        self._room.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, matrix: Matrix) -> Fetched:
        self._room.take(matrix.nbytes)
        return self._fetch(matrix)


def begin(threads: int, device: str = "cpu") -> None:
    """Begin a thread that works for a device, with so many linear-algebra threads of the host.

    What it asks of a GPU goes into a stream of its own, beside what other threads ask.
    """
    give_back_large_blocks()
    torch.get_num_threads()  # the first look of a thread takes over what any other has set last
    torch.set_num_threads(threads)
    if is_gpu(device):
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def is_gpu(device: str) -> bool:
    """Whether a device has streams and memory of its own."""
    return torch.device(device).type == "cuda"


def lanes(device: str, threads: int) -> int:
    """How many matrices a device works on side by side, where there is room for them."""
    return STREAMS if is_gpu(device) else threads


def free_memory(device: str = "cpu") -> int:
    """Bytes that matrices may take.

    On a GPU half of what is free: FARMS windows and the solver's workspace come on top. Elsewhere
    what can be had without swapping, as far as the system and the container tell.
    """
    if is_gpu(device):
        return torch.cuda.mem_get_info(device)[0] // 2
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
    items: Iterable[Item],
    work: Callable[[Item], Result],
    workers: int,
    threads: int,
    device: str = "cpu",
) -> Iterator[Result]:
    """Apply ``work`` to every item in a pool; results come in the order of the items.

    Args:
        items: What to work on; taken a little ahead, so that no worker waits for the consumer.
        work: Called in worker threads.
        workers: Worker threads.
        threads: Linear-algebra threads of each.
        device: What they work for.
    """
    rest = iter(items)
    before = torch.get_num_threads()
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=begin, initargs=(threads, device))
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
