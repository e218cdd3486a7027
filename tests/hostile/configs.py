"""Configurations that lie: the weights beside them are good, and are analysed all the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from checkpoints import gaussian, raw_safetensors, small_model, write_file

from hostile.case import Build, Case

FUSED = "model.layers.0.self_attn.qkv_proj.weight"
LIES: dict[str, dict[str, Any]] = {
    "a million layers": {"model_type": "llama", "num_hidden_layers": 1_000_000},
    "10^30 everything": {
        "model_type": "phi3", "hidden_size": 10**30, "num_attention_heads": 10**30,
        "num_hidden_layers": 10**30, "vocab_size": 10**30, "num_local_experts": 10**30,
    },
    "no heads": {"model_type": "phi3", "num_attention_heads": 0, "hidden_size": 32},
    "minus eight heads": {"model_type": "phi3", "num_attention_heads": -8, "hidden_size": 32},
    "many heads": {"model_type": "phi3", "num_attention_heads": "many", "hidden_size": [32]},
    "infinite heads": {"model_type": "phi3", "num_attention_heads": 1e400, "hidden_size": 32},
    "heads that do not divide": {
        "model_type": "phi3", "num_attention_heads": 7, "num_key_value_heads": 3, "hidden_size": 32,
    },
    "a family of a list": {"model_type": ["llama"], "architectures": {"a": [[[]]]}},
    "a family that steers": {
        "model_type": "llama\x1b[31m\n<b>=1+1", "architectures": ["\x1b]0;title\x07|x|"],
        "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
        "quantization_config": {"quant_method": "\x1b[2J\n|"},
    },
    "a family of 1 MB": {"model_type": "x" * 1_000_000, "architectures": ["y" * 1_000_000]},
    "code of its own": {
        "model_type": "llama", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.M"},
    },
    "towers in towers": {
        "text_config": {"text_config": {"text_config": {"model_type": 3}}}, "vision_config": 7,
    },
    "wrong types": {
        "model_type": "llama", "rope_scaling": "yes", "vocab_size": None, "tie_word_embeddings": [],
        "rope_parameters": {"rope_type": {"a": 1}}, "layer_types": 3, "attn_config": "x",
    },
    "quantised by a number": {"quantization_config": 4, "compression_config": []},
    "quantised by a list": {"quantization_config": {"quant_method": ["gptq"], "bits": {}}},
    "quantised to no bits": {"quantization_config": {"quant_method": "gptq", "bits": 0}},
    "quantised in groups of nothing": {
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 0},
    },
    "quantised by nonsense": {
        "quantization_config": {
            "quant_method": "compressed-tensors", "format": 7, "config_groups": {"a": [1]},
            "ignore": {"b": 2}, "weight_block_size": [0, -1], "bits": 2**70,
        },
    },
}  # fmt: skip
TEXTS: dict[str, str] = {
    "empty": "",
    "a list": "[]",
    "binary": "\x00\x01\x02",
    "nested 100,000 deep": '{"a":' * 100_000,
    "lists a million deep": "[" * 1_000_000,
    "a number of 10,000 digits": '{"n": ' + "9" * 10_000 + "}",
    "8 MB of empty lists": '{"a": [' + "[]," * 2_700_000 + "0]}",
}


def _model(folder: Path) -> Path:
    model = {**small_model(blocks=1, width=16), FUSED: gaussian(96, 32, seed=9)}
    write_file(folder / "model.safetensors", model)
    return folder


def _with(config: dict[str, Any]) -> Build:
    return _text(json.dumps(config))


def _text(text: str) -> Build:
    def build(folder: Path) -> Path:
        (folder / "config.json").write_text(text)
        return _model(folder)

    return build


def _instead(make: Callable[[Path], object]) -> Build:
    def build(folder: Path) -> Path:
        make(folder / "config.json")
        return _model(folder)

    return build


def _huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(1 << 34)


def _stack(folder: Path) -> Path:
    """A stack of a million experts by its configuration, in a file that takes no room."""
    config = {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 1_000_000}}
    (folder / "config.json").write_text(json.dumps(config))
    name, size = "transformer.blocks.0.ffn.experts.mlp.w1", 2_000_000 * 4
    header = {name: {"dtype": "F32", "shape": [1_000_000, 2], "data_offsets": [0, size]}}
    start = raw_safetensors(header)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + size)
    return folder


def cases() -> Iterator[Case]:
    """Folders of a good model and a bad config.json."""
    import os

    for name, config in LIES.items():
        yield Case(f"config: {name}", _with(config), "", code=0)
    for name, text in TEXTS.items():
        yield Case(f"config: is {name}", _text(text), "the config was ignored", code=0)
    yield Case("config: is 16 GiB, sparse", _instead(_huge), "larger than", code=0)
    yield Case("config: is a pipe", _instead(os.mkfifo), "", code=0)
    yield Case("config: is a folder", _instead(Path.mkdir), "", code=0)
    yield Case(
        "config: is a link to itself", _instead(lambda p: p.symlink_to("config.json")), "", code=0
    )
    yield Case("config: a million experts", _stack, "zero", code=0)
