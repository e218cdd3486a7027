"""Calls in threads that never keep the program from ending, whatever a network does to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from itertools import islice
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def start(call: Callable[[], Result]) -> Future[Result]:
    """Begin a call in a thread of its own."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # for whoever waits for it
            with suppress(InvalidStateError):
                future.set_exception(error)
        else:
            with suppress(InvalidStateError):
                future.set_result(result)

    Thread(target=run, name="weightscope-fetch", daemon=True).start()
    return future


def in_order(
    call: Callable[[Item], Result], items: Iterable[Item], at_once: int
) -> Iterator[Result]:
    """Apply a call to items, a number of them at once; results come in the order of the items."""
    rest = iter(items)
    pending = deque(start(partial(call, item)) for item in islice(rest, at_once))
    while pending:
        yield pending.popleft().result()
        pending.extend(start(partial(call, item)) for item in islice(rest, 1))


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """What a call gives, if it does so in time.

    Raises:
        TimeoutError: It did not; it is left to itself.
    """
    future = start(call)
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise
        raise TimeoutError(f"no answer in {seconds:.0f} seconds") from None


def abandon(futures: Iterable[Future[Result]], error: Exception) -> None:
    """Wait no longer: whoever does gets the error, and what still comes is dropped."""
    for future in futures:
        with suppress(InvalidStateError):
            future.set_exception(error)
