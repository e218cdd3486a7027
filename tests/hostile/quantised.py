"""Quantised weights whose scales and codes do not belong together, and weights that are none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from checkpoints import gaussian, raw_safetensors, write_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hostile.case import Build, Case

DATA = Path(__file__).parent.parent / "data" / "quantised"
Tensors = dict[str, torch.Tensor]
NAN, INFINITE = float("nan"), float("inf")


def _changed(source: str, change: Callable[[Tensors, dict[str, Any]], object]) -> Build:
    """A weight as its library stored it, in which something was changed."""

    def build(folder: Path) -> Path:
        path = DATA / f"{source}.safetensors"
        tensors = {n: t for n, t in load_file(path).items() if ":" not in n}
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata())
        config = json.loads(metadata.pop("case"))["config"]
        change(tensors, config)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata)
        (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
        return folder

    return build


def _put(ending: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., object]:
    """Replace the tensors whose names end so."""

    def change(tensors: Tensors, _config: dict[str, Any]) -> None:
        found = [name for name in tensors if name.endswith(ending)]
        assert found, sorted(tensors)
        for name in found:
            tensors[name] = make(tensors[name])

    return change


def _without(ending: str) -> Callable[..., object]:
    def change(tensors: Tensors, _config: dict[str, Any]) -> None:
        found = [name for name in tensors if name.endswith(ending)]
        assert found, sorted(tensors)
        for name in found:
            del tensors[name]

    return change


def _filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


def _config(**facts: Any) -> Callable[..., object]:
    return lambda _tensors, config: config.update(facts)


def _zeros(*shape: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.zeros(shape, dtype=tensor.dtype)


def _json(text: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda _tensor: torch.tensor(list(text.encode()), dtype=torch.uint8)


STATE = "quant_state.bitsandbytes__nf4"
CASES: dict[str, tuple[str, Callable[..., object], str]] = {
    "scales of NaN": ("gptq-v1-int4", _put("scales", _filled(NAN)), "failed"),
    "infinite scales": ("awq-int4", _put("scales", _filled(INFINITE)), "failed"),
    "scales of zero": ("gptq-v1-int4", _put("scales", _filled(0)), "zero"),
    "negative scales": ("gptq-v1-int4", _put("scales", torch.neg), ""),
    "no scales": ("gptq-v1-int4", _without("scales"), "unsupported"),
    "no codes": ("gptq-v1-int4", _without("qweight"), ""),
    "scales of another shape": ("gptq-v1-int4", _put("scales", _zeros(1, 3)), ""),
    "scales without entries": ("gptq-v1-int4", _put("scales", _zeros(0, 0)), ""),
    "codes without entries": ("gptq-v1-int4", _put("qweight", _zeros(0, 0)), ""),
    "groups that are not there": ("gptq-v2-int4-act", _put("g_idx", _filled(2**31 - 1)), "failed"),
    "groups below zero": ("gptq-v2-int4-act", _put("g_idx", _filled(-(2**31))), "failed"),
    "groups of nothing": ("gptq-v1-int4", _config(group_size=0), ""),
    "groups of 2^62": ("gptq-v1-int4", _config(group_size=2**62), ""),
    "no bits": ("gptq-v1-int4", _config(bits=0), ""),
    "minus four bits": ("awq-int4", _config(bits=-4), ""),
    "fp8 scales of NaN": ("fp8-block-even", _put("scale_inv", _filled(NAN)), "failed"),
    "fp8 without scales": ("fp8-block-even", _without("scale_inv"), "unsupported"),
    "fp8 blocks of nothing": ("fp8-block-even", _config(weight_block_size=[0, 0]), ""),
    "fp8 blocks of text": ("fp8-block-even", _config(weight_block_size=["a", None]), ""),
    "a packed shape of 2^40": (
        "ct-int4-g16", _put("weight_shape", lambda t: torch.tensor([2**40, 2**40])), ""
    ),
    "a packed shape below zero": (
        "ct-int4-g16", _put("weight_shape", lambda t: torch.tensor([-1, -1])), ""
    ),
    "a state that is no JSON": ("bnb-nf4", _put(STATE, _json("{")), ""),
    "a state of lists": ("bnb-nf4", _put(STATE, _json('{"shape": [[]], "blocksize": []}')), ""),
    "a state of 2^60 rows": (
        "bnb-nf4",
        _put(STATE, _json('{"shape": [1152921504606846976, 64], "blocksize": 64, "dtype": "x"}')),
        "",
    ),
    "a state of 100,000 levels": ("bnb-nf4", _put(STATE, _json('{"a":' * 10_000)), ""),
    "NVFP4 scales of NaN": ("ct-nvfp4", _put("weight_global_scale", _filled(NAN)), "failed"),
    "MXFP4 without scales": ("gpt-oss-mxfp4", _without("scales"), "unsupported"),
    "HQQ scales of NaN": ("hqq-int4-axis1", _put(".scale", _filled(NAN)), "failed"),
}  # fmt: skip
WEIGHTS: dict[str, tuple[Mapping[str, torch.Tensor], str]] = {
    "NaN alone": ({"w": torch.full((8, 6), NAN)}, "nonfinite"),
    "one infinite entry": ({"w": gaussian(8, 6).index_fill(0, torch.tensor([1]), INFINITE)},
                           "nonfinite"),
    "the largest numbers": ({"w": torch.full((60, 60), 3e38)}, ""),
    "double precision at its end": ({"w": gaussian(60, 60).double() * 1e307}, ""),
    "the smallest numbers": ({"w": gaussian(60, 60).double() * 1e-320}, ""),
    "no rows": ({"w": torch.zeros(0, 8)}, "empty"),
    "zero-size experts": ({"mlp.experts.up": torch.zeros(4, 0, 8)}, "empty"),
    "no experts": ({"mlp.experts.up": torch.zeros(0, 8, 8)}, "empty"),
    "one entry": ({"w": torch.ones(1, 1)}, "too_few"),
    "kernels without entries": ({"conv.weight": torch.zeros(8, 8, 0, 3)}, "empty"),
    "complex numbers": ({"w": torch.zeros(8, 8, dtype=torch.complex64)}, "unsupported"),
    "flags alone": ({"w": torch.ones(8, 8, dtype=torch.bool)}, ""),
}  # fmt: skip


def _weights(tensors: Mapping[str, torch.Tensor]) -> Build:
    return lambda folder: write_file(folder / "model.safetensors", tensors)


def cases() -> Iterator[Case]:
    """Figures are refused row by row: the rest of a model may be good."""
    for name, (source, change, says) in CASES.items():
        yield Case(f"quantised: {name}", _changed(source, change), says, code=0)
    for name, (tensors, says) in WEIGHTS.items():
        yield Case(f"weights: {name}", _weights(tensors), says, code=0)
    narrow = raw_safetensors(
        {"w": {"dtype": "F4", "shape": [4, 4], "data_offsets": [0, 8]}}, bytes(8)
    )
    yield Case(
        "quantised: half bytes without scales",
        lambda folder: _raw(folder, narrow),
        "unsupported",
        code=0,
    )


def _raw(folder: Path, content: bytes) -> Path:
    (folder / "model.safetensors").write_bytes(content)
    return folder
