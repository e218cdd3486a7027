"""One checkpoint from several files: what an index says, and what their headers say together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightscope.checkpoint import Checkpoint, SourceFile
from weightscope.errors import CheckpointError
from weightscope.formats.safetensors import Header
from weightscope.json_text import TooManyListsError, parsed
from weightscope.tensor import TensorRef
from weightscope.text import shortened

MAX_JSON = 64 << 20
_QUANTISERS = {
    "quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt",
}  # fmt: skip
"""Files of AutoGPTQ, AutoAWQ and ModelOpt beside the configuration, and the method they mean."""
_MODELOPT = frozenset(
    {"FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "MXFP4", "MXFP8", "MIXED_PRECISION"}
)
"""Algorithms of ModelOpt whose files are recognised by their tensors."""


@dataclass(frozen=True)
class Shard:
    """One file and its header.

    Attributes:
        file: How messages name it.
        name: Its name inside the checkpoint.
        header: What it says.
        modified_ns: When it was written; 0 where a commit identifies it.
    """

    file: str
    name: str
    header: Header
    modified_ns: int = 0


def assemble(
    name: str, shards: Iterable[Shard], config: dict[str, Any], notes: Sequence[str]
) -> Checkpoint:
    """A checkpoint from the headers of its files.

    Raises:
        CheckpointError: A tensor lies in two files, or there is none.
    """
    home: dict[str, str] = {}
    tensors: list[TensorRef] = []
    sources = []
    metadata: dict[str, str] = {}
    for shard in shards:
        for ref in shard.header.tensors:
            if ref.name in home:
                raise CheckpointError(
                    f"{shard.file}: tensor {shortened(ref.name)} is also in {home[ref.name]}; "
                    "name one file, or the index that says which files belong together"
                )
            home[ref.name] = shard.name
        tensors += shard.header.tensors
        header = shard.header
        metadata |= header.metadata
        sources.append(SourceFile(shard.name, header.size, header.sha256, shard.modified_ns))
    if not tensors:
        raise CheckpointError(f"{name}: holds no tensors; download or copy it again")
    return Checkpoint(
        name, tuple(tensors), tuple(sources), config, notes=tuple(notes), metadata=metadata
    )


def index_names(index: Path) -> list[str]:
    """File names an index lists, sorted; each a plain name in the index's own folder.

    Raises:
        CheckpointError: Not an index, or one that points elsewhere.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: has no weight_map, so it is no index; download or copy it again"
        )
    names = set()
    for name in weight_map.values():
        plain = isinstance(name, str) and name == Path(name).name and not set(name) & {"\\", "\0"}
        if not plain or name in {"", "..", "."}:
            raise CheckpointError(
                f"{index}: points to {shortened(name)}, which is not a plain file name in its "
                "own folder; do not trust this model, or correct the index"
            )
        names.add(name)
    return sorted(names)


def check_listed(index: object, listed: Sequence[str], missing: Sequence[str]) -> None:
    """Refuse an index of which files are missing.

    Raises:
        CheckpointError: Naming the first.
    """
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of {len(listed)} shards are missing, first {missing[0]!r}; "
            "download the rest of the model"
        )


def config_file(folder: Path, inside: str) -> Path:
    """The configuration in a folder of a repository, or the one at its root."""
    beside = folder / inside / "config.json"
    return beside if beside.is_file() else folder / "config.json"


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A model's configuration, which may be missing, and a remark where it is broken.

    That of an adapter is kept in it under its own name; so is that of a quantiser which wrote one
    of its own, unless the configuration has one already.
    """
    config, notes = _optional(path)
    adapter, more = _optional(path.with_name("adapter_config.json"))
    if adapter:
        config = {**config, "adapter_config": adapter}
    for name, method in _QUANTISERS.items():
        if "quantization_config" not in config:
            own, broken = _optional(path.with_name(name))
            more += broken
            config = {**config, "quantization_config": _quantiser(own, method)} if own else config
    return config, [*notes, *more]


def _quantiser(own: dict[str, Any], method: str) -> dict[str, Any]:
    """What a quantiser wrote, as ``config.json`` would have it."""
    inside = own.get("quantization") if method == "modelopt" else None
    if not isinstance(inside, dict):
        return {"quant_method": method, **own}
    algorithm = str(inside.get("quant_algo") or "").upper()
    known = not algorithm or algorithm in _MODELOPT
    return {**inside, "quant_method": method if known else f"{method}_{algorithm.lower()}"}


def _optional(path: Path) -> tuple[dict[str, Any], list[str]]:
    if not path.is_file():
        return {}, []
    try:
        return read_json(path), []
    except CheckpointError as error:
        return {}, [f"the config was ignored: {error}"]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size.

    Raises:
        CheckpointError: Not a file, too large, or no JSON object.
    """
    why = ""
    try:
        if not path.is_file():
            why = "is not a file"
        elif path.stat().st_size > MAX_JSON:
            why = f"is larger than {MAX_JSON >> 20} MiB, so it is no config and no index"
        else:
            found = parsed(path.read_bytes())
            if isinstance(found, dict):
                return found
            why = "is not a JSON object"
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    except TooManyListsError:
        why = "has too many lists for a config or an index"
    except (ValueError, RecursionError):
        why = "is not valid JSON"
    raise CheckpointError(f"{path}: {why}; download or copy it again")
