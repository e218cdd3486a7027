"""Talking to the hub's own client: its errors in one sentence, its patience, and its chatter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from logging import ERROR
from time import sleep, time
from typing import Any, TypeVar

from weightscope.errors import CheckpointError

Answer = TypeVar("Answer")

LIBRARY = "weightscope"
TRIES = 6
"""Attempts without progress before giving up; the waits between them add up to half a minute."""
LONGEST_WAIT = 900.0
"""Seconds that a rate limit may ask for: those of the hub last five minutes."""
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses that may be another one in a moment."""


def backoff(failures: int) -> float:
    """Seconds to wait after this many failures in a row: 1, 2, 4, 8, 16."""
    return float(2 ** min(failures - 1, 4))


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, by ``Retry-After`` or the hub's rate-limit header."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


def patiently(call: Callable[[], Answer], wait: Callable[[float], object] = sleep) -> Answer:
    """Call the client again where the hub was busy; every other error is raised at once."""
    from huggingface_hub import errors as hub

    passing = (hub.HfHubHTTPError, hub.RevisionResolutionError, hub.LocalEntryNotFoundError)
    for failures in range(1, TRIES):
        try:
            return call()
        except passing as error:
            response = _response(error)
            if response is None or not _is_passing(response):
                raise
            seconds = asked_wait(response.headers) or backoff(failures)
            if seconds > LONGEST_WAIT:
                raise
        wait(seconds)
    return call()


def _response(error: BaseException) -> Any:
    """The hub's answer behind an error, if it gave one."""
    found = getattr(error, "response", None)
    return getattr(error.__cause__, "response", None) if found is None else found


def _is_passing(response: Any) -> bool:
    # a storage host refuses an address that has expired, without the hub's own reasons
    expired = response.status_code == 403 and "X-Error-Code" not in response.headers
    return expired or response.status_code in TRANSIENT


@contextmanager
def asking(what: str, revision: str = "") -> Iterator[None]:
    """Turn the client's errors into one sentence about ``what`` was asked for.

    Raises:
        CheckpointError: In place of whatever the client raises.
    """
    from huggingface_hub import errors as hub

    try:
        yield
        return
    except hub.GatedRepoError:
        why = "is gated: accept its conditions on the hub, then log in with: hf auth login"
    except hub.RepositoryNotFoundError:
        why = "is not on the hub, or is private: check the name, or log in with: hf auth login"
    except hub.RevisionNotFoundError:
        why = f"has no revision {revision!r} on the hub"
    except hub.HFValidationError as error:
        why = f"is neither a local path nor a hub id ({first_line(error)})"
    except (
        hub.RevisionResolutionError, hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled,
    ) as error:  # fmt: skip
        response = _response(error)
        why = (
            "is no local path and not in the local cache, and the hub cannot be reached or "
            "offline mode is on"
            if response is None
            else f"could not be fetched: the hub answers {response.status_code}"
        )
    except (hub.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        why = f"could not be fetched from the hub ({reason(error)})"
    raise CheckpointError(f"{what}: {why}")


def reason(error: BaseException) -> str:
    """What an error says, in short and without addresses, which may be signed."""
    response = _response(error)
    if response is not None:
        return f"HTTP {response.status_code}"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The beginning of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def hushed() -> Iterator[None]:
    """Keep the client's bars and warnings off the terminal, where our own progress is."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level = logging.get_verbosity()
    bars = not are_progress_bars_disabled() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    logging.set_verbosity(ERROR)
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()
