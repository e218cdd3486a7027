"""Write a llama-shaped checkpoint: bf16, heavy-tailed, one shard per layer.

python tests/benchmarks/shapes.py OUT [--like tinyllama|1b|7b] [--layers 4] [--seed 0]
    [--hidden H --ffn F --kv K --vocab V]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        hidden: Width of the residual stream.
        ffn: Width of the MLP.
        kv: Width of keys and values together.
        vocab: Rows of the embedding; 0 leaves it out.
    """

    hidden: int
    ffn: int
    kv: int
    vocab: int = 0


MODELS = {
    "tinyllama": Shape(2048, 5632, 256, 32000),
    "1b": Shape(2048, 8192, 512, 128256),
    "7b": Shape(4096, 11008, 4096, 32000),
}


def heavy_tailed(rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    """A matrix of Student-t entries with four degrees of freedom, of trained size, in bf16."""
    whole = torch.empty(rows, cols, dtype=torch.bfloat16)
    for part in whole.split(4096):  # of an embedding, four more copies in float32 are too many
        normal = torch.randn(part.shape, generator=generator)
        chi = torch.randn(4, *part.shape, generator=generator).square_().mean(0).sqrt_()
        part.copy_(0.02 * normal / chi)
    return whole


def layer_shapes(shape: Shape) -> dict[str, tuple[int, int]]:
    """Names and shapes of one block's matrices."""
    hidden, ffn, kv = shape.hidden, shape.ffn, shape.kv
    wide = {"self_attn.q_proj": (hidden, hidden), "self_attn.o_proj": (hidden, hidden)}
    keys = {"self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden)}
    mlp = {"mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden)}
    return {**wide, **keys, **mlp, "mlp.down_proj": (hidden, ffn)}


def write_checkpoint(folder: Path, shape: Shape, layers: int, seed: int = 0) -> int:
    """One shard per layer, one for the embedding, and an index; returns the bytes written."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    parts = [
        {f"model.layers.{i}.{name}.weight": size for name, size in layer_shapes(shape).items()}
        for i in range(layers)
    ]
    if shape.vocab:
        parts.append({"model.embed_tokens.weight": (shape.vocab, shape.hidden)})
    weight_map: dict[str, str] = {}
    total = 0
    for i, part in enumerate(parts):
        shard = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        tensors = {name: heavy_tailed(*size, generator) for name, size in part.items()}
        save_file(tensors, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
        total += (folder / shard).stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def add_shape_options(parser: argparse.ArgumentParser, like: str, layers: int) -> None:
    """The options that ``shape_from`` reads."""
    parser.add_argument("--like", choices=MODELS, default=like)
    parser.add_argument("--layers", type=int, default=layers)
    for name in ("hidden", "ffn", "kv", "vocab"):
        parser.add_argument(f"--{name}", type=int)


def shape_from(options: argparse.Namespace) -> Shape:
    """The model named, with the sizes that were given."""
    sizes = {name: getattr(options, name) for name in ("hidden", "ffn", "kv", "vocab")}
    return replace(MODELS[options.like], **{k: v for k, v in sizes.items() if v is not None})


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    add_shape_options(parser, "tinyllama", 4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total = write_checkpoint(options.out, shape_from(options), options.layers, options.seed)
    print(f"{options.out}: {total / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
