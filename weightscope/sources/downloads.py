"""Remote files fetched whole, a few ahead of their use: into the hub's cache, or to be deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock

from weightscope.errors import CheckpointError
from weightscope.formats.safetensors import fill_from_file
from weightscope.sources.background import abandon, start
from weightscope.tensor import TensorRef


class Downloads:
    """Fetches each file once and says when it is no longer needed; several threads may use it."""

    def __init__(
        self,
        fetch: Callable[[str], Path],
        expected: Iterable[str],
        ahead: int,
        room: Callable[[str], bool],
        finish: Callable[[Path], None],
    ) -> None:
        """Name what is to come.

        Args:
            fetch: Downloads a file, given how tensors name it.
            expected: The file of every read to come, in their order.
            ahead: Files to fetch before they are wanted, at most.
            room: Whether there is room for one of those.
            finish: What to do with a file after its last use.
        """
        self._fetch, self._ahead, self._room, self._finish = fetch, ahead, room, finish
        self._uses = Counter(expected)
        self._readers: Counter[str] = Counter()
        self._order = list(self._uses)
        self._places = {file: place for place, file in enumerate(self._order)}
        self._files: dict[str, Future[Path]] = {}
        self._lock = Lock()

    def close(self) -> None:
        """Wait for nothing more, but give threads that were told to stop a moment to do so."""
        futures = list(self._files.values())
        wait(futures, timeout=0.5)
        abandon(futures, CheckpointError("reading was stopped"))

    def fill(self, ref: TensorRef, first: int, view: memoryview) -> None:
        """Fill a view with bytes of a tensor's file from a position on.

        Raises:
            CheckpointError: The file could not be fetched or read.
        """
        with self._held(ref.file) as path:
            fill_from_file(path, ref, first, view)

    @contextmanager
    def _held(self, file: str) -> Iterator[Path]:
        """A file that is not finished with meanwhile."""
        with self._lock:
            self._readers[file] += 1
            future = self._demand(file)
        try:
            yield future.result()
        finally:
            with self._lock:
                self._readers[file] -= 1
                self._uses[file] -= 1
                # what nobody announced may be wanted again, nobody knows how often
                if file in self._places and self._uses[file] <= 0 and not self._readers[file]:
                    self._files.pop(file, None)
                    if future.done() and not future.exception():
                        self._finish(future.result())

    def _demand(self, wanted: str) -> Future[Path]:
        """A file on its way, and the ones after it."""
        place = self._places.get(wanted, len(self._order))
        following = self._order[place + 1 : place + 1 + self._ahead]
        for file in (wanted, *following):
            if file in self._files:
                continue
            if file == wanted or (self._uses[file] > 0 and self._room(file)):
                self._files[file] = start(partial(self._fetch, file))
        return self._files[wanted]
