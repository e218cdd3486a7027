"""Remote tensors without a disk: pieces of files, read ahead of their use in bounded memory.

What will be asked for is known beforehand, so that small tensors that lie side by side come in one
request, large ones over several connections, and the next ones while the present one is worked on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from mmap import mmap
from threading import Lock

from weightscope.sources.background import abandon, start
from weightscope.sources.ranges import Ranges, UnreachableError

Span = tuple[str, int, int]
"""File, first byte, and number of bytes of something to read."""

PIECE = 8 << 20
"""Bytes of one request at most."""
GAP = 256 << 10
"""Unwanted bytes between two tensors that are cheaper to read than another request."""
AHEAD = 12
"""Pieces that are read before they are wanted, and so the connections in use."""
KEPT = 8
"""Pieces that are kept for tensors that were passed over; the oldest goes first."""


@dataclass(frozen=True)
class Piece:
    """What one request reads.

    Attributes:
        file: Which file.
        start: First byte.
        stop: One past the last.
    """

    file: str
    start: int
    stop: int


class Stream:
    """Hands out spans of remote files; may be used by several threads."""

    def __init__(self, ranges: Ranges, expected: Sequence[Span]) -> None:
        """Plan the requests for the spans that will be read, in their order."""
        self._ranges = ranges
        self._pieces, self._routes = plan_pieces(expected)
        self._uses = Counter(index for span in expected for index in self._routes[span])
        self._loading: dict[int, Future[memoryview]] = {}
        self._front = -1
        self._lock = Lock()

    def close(self) -> None:
        """Stop reading, and waiting for what was to be read."""
        self._ranges.close()
        with self._lock:
            abandon(self._loading.values(), UnreachableError("it was stopped"))

    def fill(self, file: str, first: int, view: memoryview) -> None:
        """Fill a view with the bytes of a file from a position on; best a span that was expected.

        Raises:
            UnreachableError: They could not be had.
        """
        route = self._routes.get((file, first, len(view)))
        if route is None:
            self._ranges.fill(file, first, view)
            return
        for index in route:
            piece = self._pieces[index]
            data = self._demand(index).result()
            begin, end = max(piece.start, first), min(piece.stop, first + len(view))
            view[begin - first : end - first] = data[begin - piece.start : end - piece.start]
            self._release(index)

    def _demand(self, wanted: int) -> Future[memoryview]:
        """A piece on its way, and the ones after it behind it."""
        with self._lock:
            self._front = max(self._front, wanted)
            self._uses[wanted] = max(self._uses[wanted], 1)
            following = range(self._front + 1, min(self._front + AHEAD, len(self._pieces)))
            for index in (wanted, *following):
                if index not in self._loading and self._uses[index] > 0:
                    self._loading[index] = start(partial(self._read, self._pieces[index]))
            for index in sorted(self._loading)[: -(AHEAD + KEPT)]:
                if index != wanted and self._loading[index].done():
                    del self._loading[index]
            return self._loading[wanted]

    def _read(self, piece: Piece) -> memoryview:
        # pages of their own, because an allocator keeps what its threads have freed
        data = memoryview(mmap(-1, piece.stop - piece.start))
        self._ranges.fill(piece.file, piece.start, data)
        return data

    def _release(self, index: int) -> None:
        with self._lock:
            self._uses[index] -= 1
            if self._uses[index] <= 0:
                self._loading.pop(index, None)


def plan_pieces(expected: Sequence[Span]) -> tuple[list[Piece], dict[Span, range]]:
    """Requests that cover the spans in their order, and which of them each span needs."""
    pieces: list[Piece] = []
    routes: dict[Span, range] = {}
    for run in _runs(expected):
        file = run[0][0]
        start, stop = run[0][1], max(first + count for _, first, count in run)
        number = max(1, -(-(stop - start) // PIECE))
        cuts = [start + (stop - start) * k // number for k in range(number + 1)]
        begin = len(pieces)
        pieces += [Piece(file, *ends) for ends in pairwise(cuts)]
        for span in run:
            first, stop = bisect_right(cuts, span[1]) - 1, bisect_left(cuts, span[1] + span[2])
            routes[span] = range(begin + first, begin + stop)
    return pieces, routes


def _runs(expected: Sequence[Span]) -> Iterator[list[Span]]:
    """Neighbours in order and in one file."""
    run: list[Span] = []
    stop = 0
    for span in dict.fromkeys(expected):
        file, start, count = span
        if run and (file != run[0][0] or not run[0][1] <= start <= stop + GAP):
            yield run
            run, stop = [], 0
        run.append(span)
        stop = max(stop, start + count)
    if run:
        yield run
