"""A bounded amount of memory that several threads share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from threading import Condition


class Room:
    """Bytes of which no more than so many are held at once, but for one holder of more.

    Args:
        size: How many; what is larger waits until nothing else is held.
    """

    def __init__(self, size: int) -> None:
        self._size, self._held = size, 0
        self._closed, self._changed = False, Condition()

    def take(self, amount: int) -> None:
        """Wait until so many are free, and hold them.

        Raises:
            CancelledError: The room was closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(amount))
            if self._closed:
                raise CancelledError
            self._held += amount

    def give(self, amount: int) -> None:
        """Hold so many no longer."""
        with self._changed:
            self._held -= amount
            self._changed.notify_all()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Hold so many meanwhile.

        Raises:
            CancelledError: The room was closed.
        """
        self.take(amount)
        try:
            yield
        finally:
            self.give(amount)

    def close(self) -> None:
        """Let nobody in any more, nor wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, amount: int) -> bool:
        return not self._held or self._held + amount <= self._size
