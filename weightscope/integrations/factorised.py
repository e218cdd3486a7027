"""Compressed checkpoints in transformers: linear layers that are two factors.

model = load_compressed("my-model-70")
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from weightscope.compressed import COMPRESSION_VERSION, INDEX, RECORD
from weightscope.errors import CheckpointError
from weightscope.text import shortened


class FactorisedLinear(nn.Module):
    """``x W^T + b`` with ``W = left right``: two linear layers, so that each can be trained.

    Attributes:
        right: From the inputs to r features, weight (r, in).
        left: From there to the outputs, weight (out, r).
        bias: (out,), or None.
    """

    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        """Take the place of a linear layer; the factors hold nothing yet."""
        super().__init__()
        weight = linear.weight
        like = {"device": weight.device, "dtype": weight.dtype}
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.right = nn.Linear(self.in_features, rank, bias=False, **like)
        self.left = nn.Linear(rank, self.out_features, bias=False, **like)
        self.register_parameter("bias", linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both factors in turn, and the bias."""
        return nn.functional.linear(self.right(x), self.left.weight, self.bias)


class FactorisedConv1D(nn.Module):
    """``x W + b`` with ``W = left right`` (in, out), for the layers of GPT-2.

    Attributes:
        left: Holds the weight (in, r).
        right: Holds the weight (r, out).
        bias: (out,).
    """

    bias: torch.Tensor

    def __init__(self, layer: Any, rank: int) -> None:
        """Take the place of such a layer; the factors hold nothing yet."""
        super().__init__()
        inputs, outputs = layer.weight.shape
        self.nx, self.nf = inputs, outputs
        # a Linear keeps (out, in): what it holds here is only ever used as a matrix
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.left = nn.Linear(rank, inputs, bias=False, **like)
        self.right = nn.Linear(outputs, rank, bias=False, **like)
        self.register_parameter("bias", layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both factors in turn, and the bias."""
        return x @ self.left.weight @ self.right.weight + self.bias


def load_compressed(folder: str | Path, model_class: Any = None, **options: Any) -> Any:
    """Load what ``weightscope compress`` has written, as a transformers model.

    The model is built on the meta device from its configuration, the compressed layers are
    replaced, and transformers loads the factors like any other weights. No code of the checkpoint
    is run. A trained model is saved with ``save_pretrained`` as usual; with ``compression.json``
    beside it, this loads it again.

    Args:
        folder: The compressed checkpoint.
        model_class: Class of transformers; by default the architecture of its configuration.
        **options: Passed on to ``from_pretrained``: ``dtype``, ``device_map``, ...

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: No compressed checkpoint, or one that does not fit the class.
    """
    folder = Path(folder)
    ranks = _ranks(folder)
    config = transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    chosen = model_class or _class_of(config, folder)
    if (folder / INDEX).exists():
        config.transformers_weights = INDEX
    options = {**options, "trust_remote_code": False, "local_files_only": True}
    model, loaded = _with_factors(chosen, ranks).from_pretrained(
        folder, config=config, output_loading_info=True, **options
    )
    model.__class__ = chosen
    vars(model.config).pop("transformers_weights", None)
    _check_loaded(folder, loaded)
    return model


def _ranks(folder: Path) -> dict[str, int]:
    """Ranks by name of the module that was compressed."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
        version = record["weightscope_compression"]
        ranks = {
            str(each["name"]).removesuffix(".weight"): int(each["rank"])
            for each in record["matrices"]
        }
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: is no compressed checkpoint (no {RECORD})") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: is no record of a compression ({error!r})") from None
    if version != COMPRESSION_VERSION:
        raise CheckpointError(
            f"{path}: has version {shortened(version)}, this version reads {COMPRESSION_VERSION}"
        )
    return ranks


def _class_of(config: Any, folder: Path) -> Any:
    names = config.architectures or []
    if not names:
        return transformers.MODEL_MAPPING[type(config)]
    found = getattr(transformers, names[0], None)
    if found is None:
        raise CheckpointError(
            f"{folder}: transformers has no class {shortened(names[0])}; give model_class"
        )
    return found


def _with_factors(chosen: Any, ranks: Mapping[str, int]) -> Any:
    """The class with layers replaced as soon as it is built, before any weight is loaded."""

    class WithFactors(chosen):  # type: ignore[misc]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            replace_layers(self, ranks)

    WithFactors.__name__ = chosen.__name__
    return WithFactors


def replace_layers(model: nn.Module, ranks: Mapping[str, int]) -> None:
    """Put factors of the given ranks in the place of linear layers.

    Args:
        model: A transformers model; its new layers hold no values yet.
        ranks: By name of the module, as in the checkpoint: with or without the model's prefix.

    Raises:
        CheckpointError: There is no such layer, or it is none that can be factorised.
    """
    modules = dict(model.named_modules())
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    prefix = getattr(model, "base_model_prefix", "")
    for name, rank in ranks.items():
        spellings = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
        place = next((each for each in spellings if each in modules), None)
        layer = modules[place] if place else None
        if layer is not None and any(uses[id(p)] > 1 for p in layer.parameters(recurse=False)):
            raise CheckpointError(
                f"{type(model).__name__}: {shortened(name)} shares its weight with another module, "
                "which factors would part from it"
            )
        if isinstance(layer, nn.Linear):
            new: nn.Module = FactorisedLinear(layer, rank)
        elif isinstance(layer, Conv1D):
            new = FactorisedConv1D(layer, rank)
        else:
            what = "no such layer" if layer is None else f"a {type(layer).__name__} there"
            raise CheckpointError(
                f"{type(model).__name__}: has {what}: {shortened(name)} cannot be two factors"
            )
        assert place is not None
        parent, _, attribute = place.rpartition(".")
        setattr(modules[parent], attribute, new)


def _check_loaded(folder: Path, loaded: Mapping[str, Any]) -> None:
    """Every factor was in the files and found its place: nothing is left at random."""
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = [key if isinstance(key, str) else key[0] for key in loaded.get(what, ())]
        lost = sorted(name for name in names if name.endswith((".left.weight", ".right.weight")))
        if lost:
            raise CheckpointError(
                f"{folder}: {what.replace('_', ' ')}: {shortened(lost[0])}; the factors do not fit "
                "this class"
            )
