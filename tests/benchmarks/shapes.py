"""Write a llama-shaped checkpoint: bf16, heavy-tailed, sharded.

python tests/benchmarks/shapes.py OUT [--hidden 1024] [--ffn 2816] [--layers 4] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def heavy_tailed(rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    """A matrix of Student-t entries with four degrees of freedom, of trained size, in bf16."""
    normal = torch.randn(rows, cols, generator=generator)
    chi = torch.randn(4, rows, cols, generator=generator).square_().mean(0).sqrt_()
    return (0.02 * normal / chi).to(torch.bfloat16)


def layer_shapes(hidden: int, ffn: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of one block's matrices."""
    attention = {f"self_attn.{x}_proj": (hidden, hidden) for x in "qkvo"}
    mlp = {"mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden)}
    return {**attention, **mlp, "mlp.down_proj": (hidden, ffn)}


def write_checkpoint(folder: Path, hidden: int, ffn: int, layers: int, seed: int = 0) -> int:
    """One shard per layer and an index; returns the bytes written."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    weight_map: dict[str, str] = {}
    total = 0
    for layer in range(layers):
        shard = f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"
        tensors = {
            f"model.layers.{layer}.{name}.weight": heavy_tailed(*shape, generator)
            for name, shape in layer_shapes(hidden, ffn).items()
        }
        save_file(tensors, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
        total += (folder / shard).stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--ffn", type=int, default=2816)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    total = write_checkpoint(a.out, a.hidden, a.ffn, a.layers, a.seed)
    print(f"{a.out}: {total / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
