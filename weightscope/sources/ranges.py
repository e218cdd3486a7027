"""Byte ranges of hub files over HTTP: resumed where a connection was cut, and patient.

The hub is asked once per file for its place, which for large files is a signed address on a storage
host; the ranges come from there. An address that has expired is asked for again. The token goes to
the hub alone: requests to any other origin carry none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

from weightscope.sources.client import (
    LIBRARY,
    LONGEST_WAIT,
    TRANSIENT,
    TRIES,
    asked_wait,
    backoff,
    first_line,
)
from weightscope.version import __version__

SKIP_AT_MOST = 16 << 20
"""Bytes to throw away where a server sends a whole file instead of a range."""
STALE_TRIES = 3
"""Attempts where every fresh address is refused too."""
_PROGRESS = 1 << 16
_PORTS = {"http": 80, "https": 443}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class UnreachableError(Exception):
    """Bytes that could not be had; the text says why."""


@dataclass(frozen=True)
class _Place:
    """Where a file is at the moment.

    Attributes:
        url: Address, perhaps signed and short-lived.
        size: Bytes of the file.
        headers: What to send along; the token only to the hub itself.
    """

    url: str
    size: int
    headers: Mapping[str, str]


class _TroubleError(Exception):
    """Why an attempt came to an end before its last byte."""

    def __init__(
        self, why: str, final: bool = False, stale: bool = False, wait: float | None = None
    ) -> None:
        """Say what happened.

        Args:
            why: For people.
            final: Trying again is of no use.
            stale: The address may have expired.
            wait: Seconds that the server asks to wait.
        """
        super().__init__(why)
        self.final, self.stale, self.wait = final, stale, wait


class Ranges:
    """Reads ranges of the files of one commit; may be used by several threads."""

    def __init__(self, repository: str, commit: str, token: str | None = None) -> None:
        """Name the commit; nothing is asked yet."""
        self.ignored = False
        """Whether a server has sent a whole file instead of a range."""
        self._repository, self._commit, self._token = repository, commit, token
        self._places: dict[str, _Place] = {}
        self._asking: defaultdict[str, Lock] = defaultdict(Lock)
        self._closed = Event()

    def close(self) -> None:
        """Make every attempt that is still going on end."""
        self._closed.set()

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            UnreachableError: The hub does not say.
        """
        self.fill(path, 0, memoryview(b""))
        return self._places[path].size

    def fill(self, path: str, start: int, view: memoryview) -> None:
        """Fill a view with the bytes of a file from a position on.

        Raises:
            UnreachableError: They could not be had in a number of attempts.
        """
        done = 0
        for piece in self.read(path, start, len(view)):
            view[done : done + len(piece)] = piece
            done += len(piece)

    def read(self, path: str, start: int, count: int) -> Iterator[memoryview]:
        """Bytes of a file from a position on, in pieces as they arrive.

        Raises:
            UnreachableError: They could not be had in a number of attempts.
        """
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

        done = failures = 0
        while True:
            before = done
            try:
                for piece in self._attempt(path, start, done, count):
                    done += len(piece)
                    yield piece
                if done == count:
                    return
                trouble = _TroubleError("the connection ended too early")
            except _TroubleError as error:
                trouble = error
            except (HTTPError, OSError, ValueError, RuntimeError) as error:
                trouble = _trouble(error)  # the last where another thread closed the session
            failures = 1 if done - before >= _PROGRESS else failures + 1
            self._pause(trouble, failures)

    def _pause(self, trouble: _TroubleError, failures: int) -> None:
        """Wait before the next attempt, unless there should be none."""
        wait = backoff(failures) if trouble.wait is None else trouble.wait
        tries = STALE_TRIES if trouble.stale else TRIES
        if trouble.final or failures >= tries or wait > LONGEST_WAIT:
            raise UnreachableError(str(trouble)) from None
        self._closed.wait(0 if trouble.stale and failures == 1 else wait)

    def _attempt(self, path: str, start: int, done: int, count: int) -> Iterator[memoryview]:
        """What one request brings of ``count`` bytes from ``start``, of which some are there."""
        if self._closed.is_set():
            raise _TroubleError("it was stopped", final=True)
        with self._asking[path]:  # so that several threads ask but once
            place = self._places.get(path) or self._find(path)
            self._places[path] = place
        if done == count:
            return
        with _request(place, start + done, count - done) as response:
            try:
                self._check(response, place, start, done)
            except _TroubleError as trouble:
                if trouble.stale:
                    with self._asking[path]:  # another thread may have found the new one
                        if self._places.get(path) is place:
                            del self._places[path]
                raise
            whole = response.status_code == 200
            skip = start + done if whole else 0
            for chunk in response.iter_raw():
                piece = memoryview(chunk)[skip:][: count - done]
                skip = max(skip - len(chunk), 0)
                done += len(piece)
                yield piece
                surplus = whole or len(piece) < len(chunk)
                if self._closed.is_set() or (surplus and done == count):
                    return  # else it is read to its end, so that the connection can be used again

    def _find(self, path: str) -> _Place:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        url = hf_hub_url(self._repository, path, revision=self._commit)
        found = get_hf_file_metadata(
            url, token=self._token, library_name=LIBRARY, library_version=__version__
        )
        if found.size is None or _origin(found.location)[0] not in _PORTS:
            raise ValueError("the hub does not say where it is or how long")
        headers = build_hf_headers(
            token=self._token if _origin(found.location) == _origin(url) else False,
            library_name=LIBRARY,
            library_version=__version__,
        )
        return _Place(found.location, found.size, {**headers, "Accept-Encoding": "identity"})

    def _check(self, response: Any, place: _Place, start: int, done: int) -> None:
        """Refuse an answer before its first byte.

        Raises:
            _TroubleError: It does not bring the bytes that were asked for.
        """
        status = response.status_code
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _TroubleError("the server compresses what it sends", final=True)
        if status == 206:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not found or int(found[1]) != start + done or found[3] not in {"*", str(place.size)}:
                raise _TroubleError("the server sends another range", final=True)
        elif status == 200:
            self.ignored = True
            if start > SKIP_AT_MOST:
                raise _TroubleError("the server ignores byte ranges; use --fetch shard", final=True)
        elif status in TRANSIENT:
            raise _TroubleError(f"HTTP {status}", wait=asked_wait(response.headers))
        else:  # perhaps the address has expired; if not, the hub says why when asked again
            stale = status in {400, 401, 403, 404, 410}
            raise _TroubleError(f"HTTP {status}", final=not stale, stale=stale)


def _request(place: _Place, start: int, count: int) -> Any:
    from huggingface_hub import constants, get_session

    return get_session().stream(
        "GET",
        place.url,
        headers={**place.headers, "Range": f"bytes={start}-{start + count - 1}"},
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
    )


def _trouble(error: Exception) -> _TroubleError:
    """What an exception of the client means for the next attempt."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, GatedRepoError):
        return _TroubleError("it is gated: accept its conditions, then: hf auth login", final=True)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        wait = asked_wait(error.response.headers)
        return _TroubleError(f"the hub answers {status}", final=status not in TRANSIENT, wait=wait)
    if isinstance(error, OfflineModeIsEnabled):
        return _TroubleError("it is not in the local cache, and offline mode is on", final=True)
    return _TroubleError(first_line(error), final=isinstance(error, ValueError))


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
