"""A checkpoint as it is before any weight is read: tensors, where they are, and its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from weightscope.encoded import Encoded
from weightscope.errors import OptionError
from weightscope.tensor import TensorRef

Fetch = Literal["stream", "shard", "cache"]
"""Ways to read a remote model."""
FETCHES = ("auto", *get_args(Fetch))

Fill = Callable[[TensorRef, int, memoryview], None]
"""Fills a view with the bytes of a tensor's file from a position on, or raises CheckpointError."""


@dataclass(frozen=True)
class Access:
    """How a model is reached. It changes no figure, and is no part of what a run is.

    Attributes:
        fetch: How the weights of a hub model come: ``stream`` byte ranges into memory, ``shard``
            files one by one into a temporary folder, ``cache`` files into the hub's ordinary cache,
            or ``auto``. Files that the cache holds already are read there in any case.
        revision: Branch, tag or commit of a hub model; empty for its default branch.
        token: Token for the hub; None for the usual environment and login.
        mmap: Map local files into memory instead of reading them.
        elsewhere: Other machines will read the weights of a hub model too, and their caches may
            hold less than the one here.
    """

    fetch: Literal["auto"] | Fetch = "auto"
    revision: str = ""
    token: str | None = field(default=None, repr=False)
    mmap: bool = False
    elsewhere: bool = False

    def __post_init__(self) -> None:
        """Refuse what makes no sense; a token is never repeated in the sentence.

        Raises:
            OptionError: Naming the option and what it takes.
        """
        if self.fetch not in FETCHES:
            raise OptionError(f"--fetch {self.fetch!r}: choose from {', '.join(FETCHES)}")
        token = self.token
        if token is not None and not (token and token.isascii() and token.isprintable()):
            raise OptionError("--token: this is no token of the hub")


@dataclass(frozen=True)
class Remote:
    """Where the weights of a hub model are, which are not all on this machine.

    Attributes:
        repository: ``org/name``.
        commit: Full commit hash.
        fetch: How to read them.
        sizes: Bytes of each file, by its path in the repository.
        token: Token for the hub; None for the usual environment and login.
    """

    repository: str
    commit: str
    fetch: Fetch
    sizes: Mapping[str, int]
    token: str | None = field(default=None, repr=False)

    def path(self, uri: str) -> str:
        """Path in the repository of a file that a tensor names."""
        return uri.removeprefix(hub_uri(self.repository, self.commit, ""))


def hub_uri(repository: str, commit: str, path: str) -> str:
    """How a tensor names its file on the hub."""
    return f"hf://{repository}@{commit}/{path}"


@dataclass(frozen=True)
class SourceFile:
    """One file of a checkpoint, as far as it identifies the weights.

    Attributes:
        name: File name inside the checkpoint, never a path.
        size: Bytes.
        header_sha256: Hash of its header.
        modified_ns: Modification time of a local file; 0 where the revision identifies it.
        sample_sha256: Hash of some of a local file's bytes; empty where the revision identifies it.
    """

    name: str
    size: int
    header_sha256: str
    modified_ns: int = 0
    sample_sha256: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """Everything known about a model from headers and configuration alone.

    Attributes:
        name: Short name for titles and default file names.
        tensors: Every stored tensor; names are unique.
        files: The files they lie in.
        config: Parsed ``config.json``; empty where there is none.
        revision: Commit of a hub model, else empty.
        notes: Remarks for the user about how the checkpoint was read.
        format: Reader of the bytes: a module of ``formats``.
        memory: Live tensors by name, where the checkpoint is a model in memory.
        conv: Names known to be convolutions, where a live model told us.
        remote: Where the bytes are, unless all of them are on this machine.
        mmap: Map files into memory instead of reading them.
        metadata: What the writers of the files added to their headers, all files merged.
        encoded: What the format itself says is quantised, by the names of tensors; these have the
            shape and dtype that decoding yields.
        undecoded: Why quantised tensors cannot be decoded, by their names.
        held: What has to stay as long as this does: the folder that its files were fetched into.
        place: Absolute path of a local checkpoint, by which another process opens it again; empty
            for others.
    """

    name: str
    tensors: tuple[TensorRef, ...]
    files: tuple[SourceFile, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    revision: str = ""
    notes: tuple[str, ...] = ()
    format: str = "safetensors"
    memory: Mapping[str, Any] = field(default_factory=dict)
    conv: frozenset[str] = frozenset()
    remote: Remote | None = None
    mmap: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    encoded: Mapping[str, Encoded] = field(default_factory=dict)
    undecoded: Mapping[str, str] = field(default_factory=dict)
    held: object = field(default=None, repr=False, compare=False)
    place: str = field(default="", compare=False)

    def moved(self, move: Callable[[TensorRef], TensorRef]) -> Checkpoint:
        """The same with tensors that are elsewhere, or that name their files differently."""
        encoded = {
            name: replace(packed, parts=tuple((role, move(ref)) for role, ref in packed.parts))
            for name, packed in self.encoded.items()
        }
        return replace(self, tensors=tuple(map(move, self.tensors)), encoded=encoded)
