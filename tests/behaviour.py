"""What a layer's outputs do in a model, found out by asking the model and nobody else.

Which outputs of a fused layer are queries, keys and values follows from what they can reach: with
one token the softmax is one and only values get through; with two, keys and values of the first
reach the second and queries do not. Which half of a gated layer is the gate follows from scaling:
the output is affine in the other half. No line here knows how a weight is laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from weightscope.checkpoint import Checkpoint
from weightscope.expressions import read_matrix
from weightscope.measure import reading
from weightscope.select import select
from weightscope.sources import open_model

Call = Callable[[int], torch.Tensor]
"""Runs the model on so many tokens and returns (tokens, features)."""
Override = Callable[[torch.Tensor], torch.Tensor]


def build(family: str, task: str = "", **config: Any) -> nn.Module:
    """A tiny model of transformers in float64 with independent normal weights, no dropout.

    Args:
        family: Value of ``model_type``.
        task: Class, or auto class, to build; by default the causal model, else the bare one.
        config: What differs from the defaults of the family.
    """
    import transformers

    found = transformers.AutoConfig.for_model(family, **config)
    for one in (found, getattr(found, "text_config", found)):
        one._experts_implementation = "eager"  # the others have no float64
    causal = transformers.AutoModelForCausalLM
    auto = getattr(transformers, task) if task else causal
    if not task and type(found) not in causal._model_mapping:
        auto = transformers.AutoModel
    torch.manual_seed(0)
    make = auto.from_config if task.startswith("Auto") or not task else auto._from_config
    model = make(found, attn_implementation="eager", dtype=torch.float64).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
        parameter.requires_grad_(False)
    return model


def save(model: nn.Module, folder: Path) -> Checkpoint:
    """Write a model as its library does, under the names of the hub, and index what was written."""
    model.save_pretrained(folder)
    return open_model(folder)


def dump(model: nn.Module, folder: Path) -> Checkpoint:
    """Write a model under the names that it has in memory, and index what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return open_model(folder)


def parts_of(checkpoint: Checkpoint, tensor: str) -> dict[str, torch.Tensor]:
    """The matrices that come of one stored tensor, by what their names add to its own."""
    found = [m for m in select(checkpoint).matrices if m.tensor.name == tensor]
    with reading(checkpoint, found) as read:
        return {m.name.removeprefix(tensor): read_matrix(read, m) for m in found}


def on_disk(checkpoint: Checkpoint, ending: str) -> str:
    """The one stored tensor whose name ends so."""
    [name] = [ref.name for ref in checkpoint.tensors if ref.name.endswith(ending)]
    return name


def places(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Mask of the rows, or of the columns, of a matrix that a part is made of, in any order.

    The entries are random, so that a row is known by its entries.
    """
    for transposed in (False, True):
        candidates = whole.T if transposed else whole
        for matrix in (part, part.T):
            if matrix.shape[1] != candidates.shape[1]:
                continue
            rows = {tuple(row.tolist()): i for i, row in enumerate(candidates)}
            found = [rows.get(tuple(row.tolist()), -1) for row in matrix]
            if -1 not in found:
                assert len(set(found)) == len(found)
                mask = torch.zeros_like(candidates, dtype=torch.bool)
                mask[found] = True
                return mask.T if transposed else mask
    raise AssertionError("the part is not made of rows or columns of the whole")


def outputs_of(part: torch.Tensor, layer: nn.Module) -> set[int]:
    """Which outputs of a linear layer a part of its weight makes."""
    mask = places(part, layer.weight)
    return set(mask.any(0 if is_transposed(layer) else 1).nonzero().ravel().tolist())


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer stores its weight as inputs by outputs."""
    return type(layer).__name__ == "Conv1D"


@contextmanager
def _caught(layer: nn.Module, override: Override | None) -> Iterator[list[torch.Tensor]]:
    """Outputs of a layer, as leaves that everything after it depends on."""
    outputs: list[torch.Tensor] = []

    def catch(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        value = output.detach().clone()
        outputs.append((override(value) if override else value).requires_grad_())
        return outputs[-1]

    handle = layer.register_forward_hook(catch)
    try:
        yield outputs
    finally:
        handle.remove()


def reaching(
    call: Call,
    layer: nn.Module,
    tokens: int,
    at: int = 0,
    override: Override | None = None,
) -> set[int]:
    """Which outputs of a layer at one token change what the model says at the last of so many."""
    with _caught(layer, override) as outputs, torch.enable_grad():
        answer = call(tokens)[-1]
        weights = torch.linspace(1, 2, answer.numel(), dtype=answer.dtype).reshape(answer.shape)
        [gradient] = torch.autograd.grad((answer * weights).sum(), outputs[:1])
    slopes = gradient.reshape(-1, tokens, gradient.shape[-1])[0, at].abs()
    return set((slopes > 1e-14 * slopes.max()).nonzero().ravel().tolist())


def spread(
    call: Call, layer: nn.Module, probe: nn.Module, override: Override | None = None
) -> dict[int, int]:
    """How many inputs of a later module, one token later, each output of a layer reaches.

    Outputs that reach none are left out.
    """
    inputs: list[torch.Tensor] = []
    handle = probe.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with _caught(layer, override) as outputs, torch.enable_grad():
        call(2)
        rows = [
            torch.autograd.grad(entry, outputs[:1], retain_graph=True)[0][0, 0]
            for entry in inputs[0].reshape(2, -1)[1]
        ]
    handle.remove()
    slopes = torch.stack(rows).abs()
    counts = (slopes > 1e-14 * slopes.max()).sum(0)
    return {i: int(n) for i, n in enumerate(counts) if n}


def attention(call: Call, layer: nn.Module) -> dict[str, set[int]]:
    """Queries, keys and values among the outputs of a fused layer."""
    values = reaching(call, layer, 1)
    later = reaching(call, layer, 2)
    assert values < later
    width = range(layer_width(layer))
    return {"[q]": set(width) - later, "[k]": later - values, "[v]": values}


def layer_width(layer: nn.Module) -> int:
    """Number of outputs of a linear layer, whichever way its weight is stored."""
    return int(layer.weight.shape[1 if is_transposed(layer) else 0])


def is_affine_in(run: Callable[[], torch.Tensor], weight: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether what a block says is affine in some entries of a weight, scaled together.

    Args:
        run: Runs the block.
        weight: One of its weights, changed and restored.
        mask: Where it is true the entries are scaled.
    """
    kept = weight.clone()
    answers = []
    for factor in (1.0, 2.0, 3.0):
        weight.copy_(torch.where(mask, kept * factor, kept))
        answers.append(run())
    weight.copy_(kept)
    first, second, third = answers
    change = (third - first).abs().max()
    assert change > 1e-6
    # some experts compute in float32
    return bool((first - 2 * second + third).abs().max() < 1e-4 * change)
