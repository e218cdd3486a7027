"""Which files of a folder are its model, told from their names: every weight once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from weightscope.errors import CheckpointError

Format = Literal["safetensors", "distributed", "pytorch", "gguf"]
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "distributed": (".distcp",),
    "pytorch": (".bin", ".pt", ".pth", ".ckpt"),
    "gguf": (".gguf",),
}
"""What the names of weights end in; the format that comes first wins."""
INDEX_SUFFIXES: dict[Format, tuple[str, ...]] = {
    "safetensors": (".safetensors.index.json",),
    "distributed": (),
    "pytorch": (".bin.index.json", ".pt.index.json", ".pth.index.json"),
    "gguf": (),
}
_USUAL = ("pytorch_model", "model", "diffusion_pytorch_model", "consolidated")
_SHARD = re.compile(r"-\d{5}-of-\d{5}|(?<=consolidated)\.\d\d$")
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")
_TRAINING_STATE = re.compile(
    r"(optim|optimizer|scheduler|scaler|sampler|rng_state|random_states|training_args"
    r"|trainer_state|(bf16_|fp16_)?zero_pp_rank)(?![a-z]).*|.*optim_states\.pt"
)


@dataclass(frozen=True)
class Choice:
    """The files of a folder that are its model.

    Attributes:
        format: What they are.
        index: Name of the index that lists them; empty where their own names tell.
        files: Their names, sorted; empty with an index.
        left: Names of other weights, which are not read.
    """

    format: Format
    index: str
    files: tuple[str, ...]
    left: tuple[str, ...]


_FOREIGN = (".onnx", ".h5", ".keras", ".msgpack", ".tflite", ".pb", ".npz", ".pkl")


def is_training_state(name: str) -> bool:
    """Whether a file is the state of an optimiser or the like, which is never opened."""
    return bool(_TRAINING_STATE.fullmatch(name.lower()))


def index_format(name: str) -> Format | None:
    """Format of the files that an index lists, by its name; None for no index."""
    return next((f for f, suffixes in INDEX_SUFFIXES.items() if name.endswith(suffixes)), None)


def choose(place: str, names: Iterable[str]) -> Choice | None:
    """The files of a folder that are its model; None where it has none.

    Args:
        place: How messages name the folder.
        names: Of its files.

    Raises:
        CheckpointError: It holds several models.
    """
    names = sorted(names)
    weights = {form: weights_of(form, names) for form in SUFFIXES}
    for form, found in weights.items():
        index = _index_among(form, names)
        if not (index or found) or (form == "distributed" and ".metadata" not in names):
            continue
        kept = [] if index else _one_model(place, form, found)
        _check_complete(place, kept)
        others = [name for more in weights.values() for name in more if name not in kept]
        return Choice(form, index, tuple(kept), tuple(sorted(others)))
    return None


def _check_complete(place: str, names: Sequence[str]) -> None:
    """Refuse some of the shards that their own names count.

    Raises:
        CheckpointError: Naming the first that is missing.
    """
    numbered = [found for name in names if (found := _NUMBERED.fullmatch(name))]
    for stem, total, suffix in dict.fromkeys(found.group(1, 3, 4) for found in numbered):
        wanted = (f"{stem}-{i:05d}-of-{total}{suffix}" for i in range(1, int(total) + 1))
        missing = [name for name in wanted if name not in names]
        if missing:
            raise CheckpointError(
                f"{place}: {len(missing)} of {int(total)} shards are missing, first "
                f"{missing[0]!r}; download the rest of the model, or name one file to read it alone"
            )


def weights_of(form: Format, names: Iterable[str]) -> list[str]:
    """Names of visible files of weights of a format, sorted."""
    visible = (name for name in names if not name.startswith(".") and not is_training_state(name))
    return sorted(name for name in visible if name.endswith(SUFFIXES[form]))


def _index_among(form: Format, names: Sequence[str]) -> str:
    """The index that says which files belong together; empty where there is none."""
    suffixes = INDEX_SUFFIXES[form]
    usual = [stem + suffix for stem in _USUAL for suffix in suffixes if stem + suffix in names]
    return next(
        iter([*usual, *(name for name in names if suffixes and name.endswith(suffixes))]), ""
    )


def _one_model(place: str, form: Format, names: Sequence[str]) -> list[str]:
    """Files without the variants of others among them: ``model.fp16``, ``consolidated``.

    Safetensors files of any names belong together, since shards without an index are like that;
    of PyTorch and GGUF files one model is one file, or several of one name but for a number.
    """
    if form == "distributed":
        return list(names)
    stems = {name: _stem(form, name) for name in names}
    known = set(stems.values())
    usual = next((stem for stem in _USUAL if stem in known), None)

    def is_variant(stem: str) -> bool:
        base = stem.rpartition(".")[0]
        return base in known or (stem == "consolidated" and stem != usual)

    kept = [name for name in names if not is_variant(stems[name])]
    if form == "safetensors":
        return kept
    if usual:
        return [name for name in kept if stems[name] == usual]
    if len({stems[name] for name in kept}) > 1:
        several = ", ".join(kept[:3]) + (", ..." if len(kept) > 3 else "")
        raise CheckpointError(f"{place}: holds several models ({several}); name one of the files")
    return kept


def _stem(form: Format, name: str) -> str:
    """A name without its suffix and the number of its shard."""
    suffix = next(suffix for suffix in SUFFIXES[form] if name.endswith(suffix))
    return _SHARD.sub("", name.removesuffix(suffix))


def weights_in(names: Iterable[str]) -> list[str]:
    """Names of visible files of weights of any format, sorted."""
    names = list(names)
    return sorted(name for form in SUFFIXES for name in weights_of(form, names))


def remarks(
    choice: Choice, files: Sequence[str], names: Iterable[str], original: bool
) -> list[str]:
    """A remark on weights beside those that were chosen; none where there are none.

    Args:
        choice: What was chosen.
        files: Its files, or those that its index lists.
        names: Of all files of the folder.
        original: There is a folder with the model as its makers published it.
    """
    left = set(weights_in(names)) - set(files) if choice.index else set(choice.left)
    if original:
        left.add("original/")
    if not left:
        return []
    others = ", ".join(sorted(left))
    if choice.index:
        return [f"{choice.index} chooses the files; not in it and not read: {others}"]
    return [f"read: {files[0] if files else '.metadata'}; not read beside it: {others}"]


def why_none(names: Iterable[str]) -> str:
    """Why a folder of these files, of which none was chosen, holds no model."""
    names = list(names)
    state = [name for name in names if is_training_state(name)]
    if state:
        return (
            f"holds no weights, only the state of a training ({state[0]!r}); name the folder of "
            "the model"
        )
    foreign = [name for name in names if name.endswith(_FOREIGN)]
    if foreign:
        return (
            f"holds no weights that can be read, only {foreign[0]!r}; convert the model to "
            "safetensors first"
        )
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    return f"holds no weights (no file of {known}); name the folder or the file that does"
