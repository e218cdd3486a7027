"""What a user may call a model on the hub: ids, ``hf://`` addresses, and the site's own URLs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from weightscope.errors import CheckpointError
from weightscope.text import shortened

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
_NOT_REMOTE = (
    ".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".weightscope",
)  # fmt: skip
_SCHEMES = ("hf://", "http://", "https://")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class HubAddress:
    """A model on the hub.

    Attributes:
        repository: ``org/name``.
        revision: Branch, tag or commit; empty for the default branch.
        path: A file or folder in the repository; empty for its root.
    """

    repository: str
    revision: str = ""
    path: str = ""


def is_address(text: str) -> bool:
    """Whether a text can only mean something on the hub: ``hf://...`` or a URL."""
    return text.lower().startswith(_SCHEMES)


def hub_address(text: str) -> HubAddress | None:
    """Read ``org/name``, ``org/name@revision``, ``hf://...`` or a URL; None for what is a path.

    Raises:
        CheckpointError: An address of something else than a model on the hub.
    """
    if is_address(text):
        return _from_uri(text)
    match = _ID.fullmatch(text)
    if match is None or text.endswith(_NOT_REMOTE):
        return None
    return HubAddress(match[1], match[2] or "")


def _from_uri(text: str) -> HubAddress:
    from huggingface_hub import constants, parse_hf_uri
    from huggingface_hub.errors import HfUriError

    scheme, _, rest = text.partition("://")
    uri = f"{scheme.lower()}://{rest}"
    try:
        if scheme.lower() != "hf" and not _is_of(uri, constants.ENDPOINT):
            raise CheckpointError(
                f"{shortened(text)}: is no address of the hub at {constants.ENDPOINT}; set "
                "HF_ENDPOINT for another hub"
            )
        parsed = parse_hf_uri(uri, constants.ENDPOINT)
    except (HfUriError, ValueError):
        raise CheckpointError(
            f"{shortened(text)}: is no address of a model; write org/name, org/name@revision, "
            "hf://org/name@revision/path, or the URL of its page"
        ) from None
    if parsed.type != "model":
        raise CheckpointError(f"{shortened(text)}: is a {parsed.type}, not a model")
    if {".", ".."} & set(parsed.path_in_repo.split("/")):
        raise CheckpointError(f"{shortened(text)}: leads out of its repository")
    return HubAddress(parsed.id, parsed.revision or "", parsed.path_in_repo.strip("/"))


def _is_of(url: str, endpoint: str) -> bool:
    """Whether a URL is of the hub in use, or of the public one that it may mirror."""
    return _origin(url) in {
        _origin(place) for place in (endpoint, "https://huggingface.co", "https://hf.co")
    }


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
