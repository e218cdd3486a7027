"""Adapters whose factors do not belong together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from checkpoints import gaussian, write_file

from hostile.case import Build, Case

A, B = (f"base_model.model.q_proj.lora_{factor}.weight" for factor in "AB")
ALPHA = "base_model.model.q_proj.alpha"
GOOD = {A: gaussian(4, 12, seed=1), B: gaussian(20, 4, seed=2)}
NAN = float("nan")

Broken = tuple[dict[str, torch.Tensor], dict[str, Any] | str, str]
REFUSED: dict[str, Broken] = {
    "ranks that differ": ({**GOOD, B: gaussian(20, 5)}, {}, "rank 4"),
    "no factor B": ({A: GOOD[A]}, {}, "factor B"),
    "no factor A": ({B: GOOD[B]}, {}, "factor A"),
    "rank 0 by its config": (GOOD, {"r": 0}, "rank 4"),
    "rank -1 by its config": (GOOD, {"r": -1}, "rank 4"),
    "another rank by its config": (GOOD, {"r": 8}, "rank 4"),
    "rank 0 by its factors": ({A: gaussian(0, 12), B: gaussian(20, 0)}, {}, "rank 0"),
    "an infinite alpha": (GOOD, {"lora_alpha": float("inf")}, "no finite number"),
    "an alpha of NaN": (GOOD, {"lora_alpha": NAN}, "no finite number"),
    "an alpha of 10^400": (GOOD, {"lora_alpha": 10**400}, "no finite number"),
    "an alpha of text": (GOOD, {"lora_alpha": "8"}, "no finite number"),
    "a stored alpha of NaN": ({**GOOD, ALPHA: torch.tensor(NAN)}, {}, "no finite number"),
    "a stored alpha of many": ({**GOOD, ALPHA: torch.ones(3)}, {}, "alpha"),
    "dimensions that differ": ({**GOOD, B: gaussian(20, 4, 1)}, {}, "shape"),
    "a pattern that hangs": (GOOD, {"alpha_pattern": {"(a+)+$": 4}}, "regular expression"),
    "a pattern that is none": (GOOD, {"rank_pattern": {"(": 4}}, "regular expression"),
    "patterns in a list": (GOOD, {"rank_pattern": ["q_proj"]}, "no dictionary"),
    "another kind": (GOOD, {"peft_type": "LOHA"}, "LOHA"),
    "a kind that steers": (GOOD, {"peft_type": "\x1b[31mX\n"}, "of the kind"),
}
TAKEN: dict[str, Broken] = {
    "B of zeros": ({**GOOD, B: torch.zeros(20, 4)}, {}, "zero"),
    "factors of NaN": ({**GOOD, A: torch.full((4, 12), NAN)}, {}, "nonfinite"),
    "infinite factors": ({**GOOD, A: torch.full((4, 12), float("inf"))}, {}, "nonfinite"),
    "an update without entries": ({A: gaussian(4, 0), B: gaussian(20, 4)}, {}, "empty"),
    "no config": (GOOD, "", "q_proj"),
    "a config that is none": (GOOD, "{", "the config was ignored"),
    "a config of a list": (GOOD, "[]", "the config was ignored"),
    "alpha 0": (GOOD, {"lora_alpha": 0}, "zero"),
}


def _adapter(tensors: Mapping[str, torch.Tensor], config: dict[str, Any] | str) -> Build:
    def build(folder: Path) -> Path:
        write_file(folder / "adapter_model.safetensors", tensors)
        if isinstance(config, dict):
            text = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config})
        else:
            text = config
        if text:
            (folder / "adapter_config.json").write_text(text)
        return folder

    return build


def cases() -> Iterator[Case]:
    """Folders as PEFT writes them."""
    for name, (tensors, config, says) in REFUSED.items():
        yield Case(f"adapter: {name}", _adapter(tensors, config), says)
    for name, (tensors, config, says) in TAKEN.items():
        yield Case(f"adapter: {name}", _adapter(tensors, config), says, code=0)
