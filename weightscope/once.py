"""Values that several threads want, each computed by the first that asks for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import RLock
from typing import TypeVar, cast

Value = TypeVar("Value")


class Once:
    """Holds what was computed for as long as it lives itself."""

    def __init__(self) -> None:
        """Nothing is computed yet."""
        self._found: dict[Hashable, object] = {}
        self._lock = RLock()

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """A value by its key; others wait while it is computed, and try again where it failed."""
        with self._lock:
            if key not in self._found:
                self._found[key] = compute()
            return cast("Value", self._found[key])
