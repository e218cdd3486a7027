"""The facts that layouts are made of: head counts and sizes, and the tower they hold for.

A model of several towers has a configuration for each, and the head counts of one say nothing about
the others: a fused tensor of a vision tower is never divided by the heads of the language model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from weightscope.layouts.config import ALIASES, completed, count_in, flattened

_TOWERS = (
    (re.compile(r"(^|[._])(vis|vision|visual|vit|vpm|image)([._]|$)"), ("vision_config", "visual")),
    (re.compile(r"(^|[._])(audio|speech|sound)([._]|$)"), ("audio_config", "speech_config")),
)
_DERIVED_FROM = ("attn_config", "ffn_config")


class Facts:
    """What a configuration says about one tower of a model.

    Attributes:
        families: Values of ``model_type`` that name it, the narrowest first.
        values: Plain values by name; counts under the names of ``ALIASES`` too.
    """

    def __init__(self, config: Mapping[str, Any], tower: tuple[str, ...] = ()) -> None:
        """Take a whole configuration, and the keys under which that of the tower may be."""
        self._config, self._tower = config, tower
        part = self._part(config)
        self.families = _families(part.get("model_type"), config.get("model_type"))
        self.values = _derived(part)

    @cached_property
    def completed(self) -> Mapping[str, Any]:
        """The values with what the family has by default, as transformers knows it."""
        family = self._config.get("model_type")
        if not isinstance(family, str):
            return self.values
        # importing transformers takes seconds: nothing that a configuration says waits for it
        return _derived(self._part({**self._config, **completed(dict(self._config), family)}))

    def _part(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._tower:
            return flattened(config)
        found = [config[key] for key in self._tower if isinstance(config.get(key), Mapping)]
        return flattened(found[0]) if found else {}


class Towers:
    """The facts for every tensor of a checkpoint, by its name."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Take the whole configuration."""
        self.main = Facts(config)
        self._towers = [(pattern, Facts(config, keys)) for pattern, keys in _TOWERS]

    def of(self, module: str) -> Facts:
        """Facts of the tower that a module belongs to."""
        return next((f for pattern, f in self._towers if pattern.search(module)), self.main)


def _families(own: Any, outer: Any) -> tuple[str, ...]:
    found = []
    for family in (own, outer):
        if isinstance(family, str):
            found += [family, family.removesuffix("_text")]
    return tuple(dict.fromkeys(found))


def _derived(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values, and head counts under one name each.

    Key and value heads default to the heads, the width of a head to that of the stream over them.
    """
    values = dict(part)
    for key in _DERIVED_FROM:
        nested = values.get(key)
        if isinstance(nested, Mapping):
            values = {**nested, **values}
    counts = {name: count_in(values, aliases) for name, aliases in ALIASES.items()}
    heads, width = counts["heads"], counts["hidden_size"]
    counts["kv_heads"] = counts["kv_heads"] or heads
    if heads and width and not counts["head_dim"] and width % heads == 0:
        counts["head_dim"] = width // heads
    return {**values, **{name: count for name, count in counts.items() if count is not None}}
