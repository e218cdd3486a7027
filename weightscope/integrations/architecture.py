"""What the model library says a tensor belongs to: a cross-check of the rules, where asked for.

The model is built without weights, on the meta device, from the library's own classes: code that a
checkpoint brings is never run. A configuration is hostile input as well, so counts in it are cut
down to what the headers show, and the model is built in a process of its own that has a time limit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weightscope.checkpoint import Checkpoint
from weightscope.layouts.config import with_infinities

SECONDS = 120
_MOST_MEMORY = 16 << 30
_SCRIPT = "from weightscope.integrations.architecture import answer; answer()"
_LAYERS = re.compile(r"^(num|n)_(\w+_)?(layers?|blocks|stages)($|_)|(^|_)(layers|blocks|depths?)$")
_EXPERTS = re.compile(r"(^|_)(num|n)_(\w+_)?experts($|_)")
_LONGEST = 4096


class Module(NamedTuple):
    """The module a tensor belongs to: its class, and what kind of thing that is."""

    name: str
    kind: str


def modules_of(checkpoint: Checkpoint) -> tuple[dict[str, Module], str]:
    """The module of every tensor that the library knows, and why there is none where it knows none.

    Never fails: what cannot be built is no cross-check.
    """
    family = checkpoint.config.get("model_type")
    if not isinstance(family, str):
        return {}, "there is no configuration that names a family"
    package = str(Path(__file__).parents[2])
    paths = filter(None, (package, os.environ.get("PYTHONPATH")))
    try:
        names = [ref.name for ref in checkpoint.tensors]
        question = {"config": capped(checkpoint.config, checkpoint), "names": names}
        # -P: the folder it runs in may hold files of the checkpoint
        done = subprocess.run(
            [sys.executable, "-P", "-c", _SCRIPT],
            input=json.dumps(question),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {}, f"the model was not built within {SECONDS} seconds"
    except (OSError, ValueError, IndexError, RecursionError):
        return {}, "the model could not be built"
    why = found["why"]
    if not found["modules"]:
        why = why or "transformers builds this family, with other names than these"
    return {name: Module(*module) for name, module in found["modules"].items()}, why


def capped(config: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """A configuration without more layers and experts than the headers show."""
    numbers = [
        int(n) for ref in checkpoint.tensors for n in re.findall(r"(?<!\d)\d{1,5}(?!\d)", ref.name)
    ]
    stacks = [ref.shape[0] for ref in checkpoint.tensors if len(ref.shape) == 3]
    layers = max(numbers, default=0) + 1
    experts = max([layers, *(n for n in stacks if n <= _LONGEST)])
    return {key: _cut(key, value, layers, experts) for key, value in config.items()}


def _cut(key: str, value: Any, layers: int, experts: int) -> Any:
    if isinstance(value, Mapping):
        return {k: _cut(k, v, layers, experts) for k, v in value.items()}
    if isinstance(value, list):
        return [_cut(key, entry, layers, experts) for entry in value[:_LONGEST]]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if _EXPERTS.search(key):
        return min(value, experts)
    return min(value, layers) if _LAYERS.search(key) else value


def answer() -> None:
    """Read a configuration and names from standard input, write their modules as JSON."""
    _limit_memory()
    question = json.load(sys.stdin)
    try:
        modules, why = library_modules(question["config"], question["names"])
    except Exception as error:  # whatever a library raises on a configuration it does not like
        modules, why = {}, f"the model could not be built ({type(error).__name__})"
    sys.stdout.write(json.dumps({"modules": modules, "why": why}))


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))


def library_modules(config: dict[str, Any], names: Iterable[str]) -> tuple[dict[str, Module], str]:
    import torch
    import transformers

    family = config.pop("model_type")
    for key in ("auto_map", "quantization_config"):
        config.pop(key, None)
    if family not in transformers.CONFIG_MAPPING:
        return {}, "transformers does not know the family"
    made = transformers.AutoConfig.for_model(family, **with_infinities(config))
    with torch.device("meta"):
        model = _class_for(made, transformers)(made)
    owners = dict(model.named_modules())
    kinds = {path: Module(type(m).__name__, _kind(m)) for path, m in owners.items()}
    known = set(model.state_dict())
    renamed = _renamer(model, known)
    found = {}
    for name in names:
        target = renamed(name)
        owner = target.rpartition(".")[0]
        if target in known and owner in kinds:
            found[name] = kinds[owner]
    return found, ""


def _class_for(config: Any, transformers: Any) -> Any:
    """The class that the configuration names, if the library has it; else the bare model."""
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return lambda made: transformers.AutoModel.from_config(made, trust_remote_code=False)


def _renamer(model: Any, known: set[str]) -> Any:
    """Names on disk to names in memory; the library's own rules where it has them."""
    state = model.state_dict()
    prefix = getattr(model, "base_model_prefix", "")
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        rules = get_model_conversion_mapping(model)
        plain = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        others = [rule for rule in rules if not isinstance(rule, WeightRenaming)]
    except (ImportError, AttributeError, TypeError):
        return lambda name: _with_prefix(name, prefix, known)

    def rename(name: str) -> str:
        try:
            return str(rename_source_key(name, plain, others, prefix, state)[0])
        except Exception:  # a name that their patterns choke on is compared as it is
            return _with_prefix(name, prefix, known)

    return rename


def _with_prefix(name: str, prefix: str, known: set[str]) -> str:
    """A name with or without the prefix of the bare model, whichever is known."""
    for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if candidate in known:
            return candidate
    return name


def _kind(module: Any) -> str:
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Embedding):
        return "table"
    if isinstance(module, torch.nn.Linear | Conv1D):
        return "matrix"
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        return "conv"
    return "norm" if "norm" in type(module).__name__.lower() else "other"
