"""The executor: everything once, in order, read ahead within its room, on the threads promised."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightscope.errors import CheckpointError
from weightscope.executors import local
from weightscope.matrix import Matrix
from weightscope.plan import Batch, make_plan, memory_of
from weightscope.tensor import TensorRef

SECONDS = 20
"""More than any wait that ends well."""


def matrix(i: int, rows: int = 8) -> Matrix:
    name = f"layers.{i}.w"
    return Matrix(name, TensorRef(name, (rows, 8), "F32", "f", i, i + 1), "whole", "linear", "w", i)


def batches(*matrices: Matrix, alone: bool = False) -> list[Batch]:
    return [Batch(i, (m,), alone) for i, m in enumerate(matrices)]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(SECONDS)
        assert not thread.is_alive()


@given(st.integers(1, 3), st.lists(st.integers(1, 40), min_size=1, max_size=30), st.booleans())
def test_every_matrix_is_read_once_in_order_and_batches_come_whole(
    threads: int, sizes: list[int], alone: bool
) -> None:
    matrices = tuple(matrix(i, rows) for i, rows in enumerate(sizes))
    plan = [Batch(0, matrices[::2], alone), Batch(1, matrices[1::2], False)]
    read: list[str] = []

    def fetch(m: Matrix) -> str:
        read.append(m.name)
        return f"bytes of {m.name}"

    found = list(local.run(plan, fetch, lambda m, got: (m.name, got), threads, "cpu"))
    expected = [m.name for batch in plan for m in batch.matrices]
    assert read == expected
    assert [batch for batch, _ in found] == plan
    assert [pair for _, pairs in found for pair in pairs] == [
        (name, f"bytes of {name}") for name in expected
    ]


def test_the_next_matrix_is_read_while_one_is_worked_on() -> None:
    """One worker: the work on the first waits until the second has been read."""
    second_read = threading.Event()

    def fetch(m: Matrix) -> None:
        if m.block == 1:
            second_read.set()

    def work(m: Matrix, _: None) -> bool:
        return second_read.wait(SECONDS)

    found = local.run(batches(matrix(0), matrix(1)), fetch, work, 1, "cpu")
    assert [done for _, group in found for done in group] == [True, True]


@pytest.mark.parametrize("threads", [1, 2])
def test_no_more_is_held_than_the_largest_matrix_and_the_room(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "READ_AHEAD_BYTES", 600)
    sizes = [1, 9, 4, 40, 2, 2, 2, 30, 6, 6, 6, 6, 40, 1]
    matrices = [matrix(i, rows) for i, rows in enumerate(sizes)]
    lock, held, most = threading.Lock(), 0, 0

    def fetch(m: Matrix) -> int:
        nonlocal held, most
        with lock:
            held += m.nbytes
            most = max(most, held)
        return m.nbytes

    def work(m: Matrix, nbytes: int) -> None:
        nonlocal held
        with lock:
            held -= nbytes

    list(local.run(batches(*matrices), fetch, work, threads, "cpu"))
    assert max(m.nbytes for m in matrices) <= most <= 600 + max(m.nbytes for m in matrices)


def test_reading_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of equal matrices is read only after the first is done: there is room for two."""
    monkeypatch.setattr(local, "READ_AHEAD_BYTES", matrix(0).nbytes)
    first_done, order = threading.Event(), list[str]()
    third_read = threading.Event()

    def fetch(m: Matrix) -> None:
        order.append(f"read {m.block}")
        if m.block == 2:
            third_read.set()

    def work(m: Matrix, _: None) -> None:
        if m.block == 0:
            assert not third_read.wait(0.2)
            order.append("done 0")
            first_done.set()

    list(local.run(batches(*map(matrix, range(3))), fetch, work, 1, "cpu"))
    assert order == ["read 0", "read 1", "done 0", "read 2"]


def test_what_was_read_is_let_go_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """No list, future or frame keeps it: of fifty at most the present and the last one live."""

    class Bytes:
        pass

    monkeypatch.setattr(local, "READ_AHEAD_BYTES", 0)
    alive: weakref.WeakSet[Bytes] = weakref.WeakSet()
    most = 0

    def fetch(m: Matrix) -> Bytes:
        found = Bytes()
        alive.add(found)
        return found

    def work(m: Matrix, found: Bytes) -> None:
        nonlocal most
        most = max(most, len(alive))

    list(local.run(batches(*map(matrix, range(50))), fetch, work, 1, "cpu"))
    assert 1 <= most <= 2


def test_a_matrix_that_cannot_be_read_ends_the_run_in_its_place() -> None:
    def fetch(m: Matrix) -> int:
        if m.block == 2:
            raise CheckpointError("gone")
        return 1

    done = []
    with pytest.raises(CheckpointError, match="gone"):
        for batch, _ in local.run(
            batches(*map(matrix, range(50))), fetch, lambda m, x: x, 2, "cpu"
        ):
            done.append(batch.index)
    assert done == [0, 1]


def test_a_run_that_is_left_reads_and_works_no_further() -> None:
    """Both the reader that waits for room and the worker that waits for bytes are set free."""
    worked: list[int | None] = []
    many = [matrix(i, 1 << 20) for i in range(200)]
    running = local.run(
        batches(*many), lambda m: m.block, lambda m, got: worked.append(got), 1, "cpu"
    )
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert len(worked) < 200


def test_workers_side_by_side_have_one_thread_each_and_one_alone_has_all() -> None:
    before = torch.get_num_threads()
    for alone, expected in ((False, 1), (True, 3)):
        plan = batches(*map(matrix, range(6)), alone=alone)
        found = local.run(plan, lambda m: None, lambda m, _: torch.get_num_threads(), 3, "cpu")
        assert {n for _, group in found for n in group} == {expected}
    assert torch.get_num_threads() == before


def test_as_many_workers_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = batches(*(matrix(i, 4096) for i in range(12)))
    lock = threading.Condition()
    inside = most = 0

    def work(m: Matrix, _: None) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            lock.notify_all()
            assert lock.wait_for(lambda: most >= workers, SECONDS)
        time.sleep(0.01)  # for one too many to come
        with lock:
            inside -= 1

    for room, workers in ((3.9, 3), (9.0, 4), (0.5, 1)):
        free = int(room * memory_of(matrix(0, 4096)))
        monkeypatch.setattr(local, "free_memory", lambda device, free=free: free)
        inside = most = 0
        list(local.run(plan, lambda m: None, work, 4, "cpu"))
        assert most == workers


def test_the_free_memory_is_a_plausible_number() -> None:
    assert local.free_memory() > 32 << 20


def test_results_do_not_depend_on_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tuple(map(matrix, range(9))), None, 3)
    runs = []
    for room in (1, 1 << 40):
        monkeypatch.setattr(local, "free_memory", lambda device, r=room: r)
        runs.append(list(local.run(plan.batches, id, lambda m, _: m.name, 3, "cpu")))
    assert runs[0] == runs[1]
