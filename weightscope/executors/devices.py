"""Several devices of this machine, each of which takes the next matrices when it has room.

A device has a thread of its own, not a process: linear algebra releases the interpreter, so that
devices do not wait for each other; live models, open files and what is read ahead are shared; and
nothing has to be sent. What a failing driver leaves behind in one device's context does not reach
the others, so a device that dies is left alone and its matrices are done elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from weightscope.errors import ExecutorError
from weightscope.executors.contract import Job, Work, by_cost
from weightscope.executors.local import (
    Local,
    Reader,
    begin,
    free_memory,
    is_gpu,
    lanes,
    reset_threads,
    resolve_device,
)
from weightscope.executors.room import Room
from weightscope.plan import READ_AHEAD_BYTES, Batch, memory_of

Result = TypeVar("Result")

READ_MEANWHILE = 1
"""Batches that a device has beside those that it works on."""


def on_this_machine(wanted: str, threads: int) -> Local | Devices:
    """The executor for devices of this machine, by their names.

    Args:
        wanted: As ``Settings.device``: ``auto`` and ``cuda`` mean all CUDA devices of one model.
        threads: Cores to use.

    Raises:
        ValueError: A device does not exist here, or several cannot work together.
    """
    names, device_name = resolve_devices(wanted)
    if len(names) == 1:
        return Local(names[0], device_name, threads, instead_of(wanted))
    return Devices(names, device_name, threads)


def resolve_devices(wanted: str) -> tuple[tuple[str, ...], str]:
    """Devices to compute on, and the name for people that they share.

    Raises:
        ValueError: A device does not exist here, or several are not of one model: their figures
            would depend on which of them did a matrix.
    """
    if wanted in {"auto", "cuda"}:
        first, name = resolve_device(wanted)
        if first == "cpu":
            return (first,), name
        indices = range(torch.cuda.device_count())
        return tuple(f"cuda:{i}" for i in indices if torch.cuda.get_device_name(i) == name), name
    found = dict(map(resolve_device, wanted.split(",")))
    models = set(found.values())
    if len(models) > 1:
        raise ValueError(
            f"{' and '.join(sorted(models))} do not round alike; name devices of one model"
        )
    return tuple(found), models.pop()


def instead_of(wanted: str) -> str:
    """What to tell who asked for a device that another one stands in for; empty for all others."""
    if wanted != "mps":
        return ""
    return "--device mps: it has no float64, which the figures need; computing on the CPU"


@dataclass(frozen=True)
class Devices:
    """Several devices of one model.

    Attributes:
        names: Each with its index, such as ``cuda:1``.
        device_name: What they are, for people.
        threads: Linear-algebra threads of the host for each.
    """

    names: tuple[str, ...]
    device_name: str
    threads: int

    @property
    def device(self) -> str:
        """Their kind."""
        return torch.device(self.names[0]).type

    @property
    def note(self) -> str:
        """How many there are."""
        return f"{len(self.names)} devices: {', '.join(self.names)} ({self.device_name})"

    def run(
        self, job: Job[Result], batches: Sequence[Batch]
    ) -> Generator[tuple[Batch, list[Result]], None, None]:
        """Do every matrix once; whole batches come as they finish.

        Raises:
            CheckpointError: The bytes of a matrix cannot be read.
            ExecutorError: Every device has failed.
        """
        waiting = deque(by_cost(batches))
        largest = max((m.nbytes for batch in waiting for m in batch.matrices), default=0)
        before = torch.get_num_threads()
        with job.opened([m for batch in waiting for m in batch.matrices]) as work_on:
            workers = [
                Worker(name, work_on(name), self.threads, largest + READ_AHEAD_BYTES)
                for name in self.names
            ]
            try:
                yield from _shared(waiting, workers)
            finally:
                for worker in workers:
                    worker.close()
                reset_threads(before)


def _shared(
    waiting: deque[Batch], workers: Sequence[Worker[Result]]
) -> Iterator[tuple[Batch, list[Result]]]:
    """Hand batches out as workers have room; what a dead one held goes back to the front."""
    alive = list(workers)
    running: dict[Future[list[Result]], tuple[Worker[Result], Batch]] = {}
    while waiting or running:
        for _ in range(max(worker.at_hand for worker in workers)):
            for worker in alive:
                if waiting and sum(w is worker for w, _ in running.values()) < worker.at_hand:
                    batch = waiting.popleft()
                    running[worker.submit(batch)] = worker, batch
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            worker, batch = running.pop(future)
            error = future.exception()
            if isinstance(error, DeadDeviceError):
                waiting.appendleft(batch)
                alive = [w for w in alive if w is not worker]
                if not alive:
                    raise ExecutorError(
                        f"{error}, and no other device is left; what was finished is kept, and "
                        "--device cpu or a restart with --resume goes on"
                    )
            else:
                yield batch, future.result()


class DeadDeviceError(Exception):
    """A device that does nothing any more; the message names it."""


@dataclass
class Worker(Generic[Result]):
    """One device with a thread for each of its lanes, and a reader that is ahead of them.

    Attributes:
        name: Of the device.
        work: What it does with a matrix.
        threads: Linear-algebra threads for what the host has to do.
        room: Stored bytes that may be held at once.
        at_hand: Batches that it has at a time.
    """

    name: str
    work: Work[Result]
    threads: int
    room: int
    at_hand: int = field(init=False)
    _reader: Reader[Any] = field(init=False)
    _memory: Room = field(init=False)
    _pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        """Start the threads."""
        side_by_side = lanes(self.name, 1)
        self.at_hand = side_by_side + READ_MEANWHILE
        self._reader = Reader(self.work.fetch, self.room, self.name)
        self._memory = Room(free_memory(self.name))
        self._pool = ThreadPoolExecutor(side_by_side, initializer=begin, initargs=(1, self.name))

    def submit(self, batch: Batch) -> Future[list[Result]]:
        """Do a batch after those submitted before; it is read meanwhile.

        The result raises ``DeadDeviceError`` where the device does not answer afterwards.
        """
        fetched = deque(self._reader.submit(matrix) for matrix in batch.matrices)
        return self._pool.submit(self._do, batch, fetched)

    def close(self) -> None:
        """Read and do nothing more."""
        self._memory.close()
        self._reader.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _do(self, batch: Batch, fetched: deque[Future[Any]]) -> list[Result]:
        torch.set_num_threads(self.threads if batch.alone and not is_gpu(self.name) else 1)
        results = []
        for matrix in batch.matrices:
            try:
                found = fetched.popleft().result()
                with self._memory.taken(memory_of(matrix)):
                    results.append(self.work(matrix, found))
            finally:
                self._reader.release(matrix)
            check(self.name)
        return results


def check(device: str) -> None:
    """Make sure that what a device has computed in this thread's stream can be trusted.

    A matrix that does not fit into its memory is done by the CPU and no reason for mistrust.

    Raises:
        DeadDeviceError: It reports an error that no later call can undo.
    """
    if not is_gpu(device):
        return
    try:
        torch.cuda.current_stream(device).synchronize()
    except RuntimeError as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DeadDeviceError(f"{device} has failed ({why})") from None
