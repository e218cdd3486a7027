"""What ``config.json`` says about a model: family and head counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_NESTED = ("text_config", "language_config", "llm_config")
VOCABULARY = ("vocab_size", "padded_vocab_size")
_ESSENTIAL = ("layers", "hidden_size", "heads")
ALIASES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads"),
    "head_dim": ("head_dim", "kv_channels", "attention_head_size"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
}
"""What configurations call a count, by the name it has here."""


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a configuration; None where it does not say.

    Attributes:
        family: ``model_type``.
        architecture: First of ``architectures``.
        layers: Number of blocks.
        hidden_size: Width of the residual stream.
        heads: Attention heads.
        kv_heads: Key and value heads.
        head_dim: Width of one head.
        experts: Experts per block.
        quantization: Quantisation method.
    """

    family: str | None = None
    architecture: str | None = None
    layers: int | None = None
    hidden_size: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    experts: int | None = None
    quantization: str | None = None

    def as_record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def as_text(self) -> str:
        """One line for people; empty without a configuration."""
        record = self.as_record()
        named = [
            (record[key], name)
            for key, name in (
                ("layers", "layers"),
                ("hidden_size", "wide"),
                ("heads", "heads"),
                ("kv_heads", "key/value heads"),
                ("head_dim", "per head"),
                ("experts", "experts"),
            )
            if record[key] is not None
        ]
        parts = [f"{value} {name}" for value, name in named]
        if self.quantization:
            parts.append(f"quantised with {self.quantization}")
        if not self.family and not parts:
            return ""
        family = f"{self.family or 'unknown family'}"
        family += f" ({self.architecture})" if self.architecture else ""
        return ": ".join(filter(None, (family, ", ".join(parts))))


def model_facts(config: Mapping[str, Any]) -> ModelFacts:
    """Read the facts; what a config leaves out, transformers knows for the families it has.

    Never instantiates a model and never runs code that a checkpoint brings.
    """
    family = config.get("model_type")
    family = family if isinstance(family, str) else None
    merged = flattened(config)
    if family and any(count_in(merged, ALIASES[key]) is None for key in _ESSENTIAL):
        # a config may leave out what its family has by default; importing transformers takes
        # seconds, so a complete config is not made to wait for it
        merged = flattened({**config, **completed(dict(config), family)})
    architectures = config.get("architectures")
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return ModelFacts(
        family,
        first if isinstance(first, str) else None,
        **{name: count_in(merged, aliases) for name, aliases in ALIASES.items()},
        quantization=method if isinstance(method, str) else None,
    )


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with that of its language model, where it has several, on top."""
    merged = dict(config)
    for key in _NESTED:
        if isinstance(merged.get(key), Mapping):
            merged.update(merged[key])
    return merged


def completed(config: dict[str, Any], family: str) -> dict[str, Any]:
    """The configuration as transformers completes it; empty for a family it does not know."""
    from transformers import AutoConfig

    config.pop("auto_map", None)
    config.pop("model_type", None)
    config.pop("quantization_config", None)
    try:
        return dict(AutoConfig.for_model(family, **with_infinities(config)).to_dict())
    except Exception:  # a hostile or newer config: its plain fields still count
        return {}


def with_infinities(value: Any) -> Any:
    """A configuration with the numbers that JSON has no word for, as transformers writes them."""
    if isinstance(value, Mapping):
        if set(value) == {"__float__"} and value["__float__"] in {"Infinity", "-Infinity", "NaN"}:
            return float(value["__float__"])
        return {key: with_infinities(entry) for key, entry in value.items()}
    return [with_infinities(entry) for entry in value] if isinstance(value, list) else value


def count_in(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of these that is a positive whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
