"""What layer-wise sparsities are worth: AlphaPruning's against the same sparsity everywhere.

Prunes the smallest weights of the example model by magnitude, once with the sparsities of
``weightscope plan RUN --for sparsity`` and once with one sparsity for all, and prints the loss on
text that the model was not trained on::

    python examples/prune_by_alpha.py --targets 0.3,0.5,0.7
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from train_tiny_llama import held_out_loss, load_text
from transformers import LlamaForCausalLM

import weightscope

CHECKPOINT = Path(__file__).parent / "tiny-llama" / "checkpoint-2000"


def pruned(checkpoint: Path, sparsities: dict[str, float]) -> LlamaForCausalLM:
    """The model without the given share of the smallest entries of each weight."""
    model = LlamaForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, local_files_only=True
    ).eval()
    with torch.no_grad():
        for name, sparsity in sparsities.items():
            weight = model.get_parameter(name)
            smallest = weight.abs().flatten().argsort()[: round(sparsity * weight.numel())]
            weight.view(-1)[smallest] = 0.0
    return model


def main() -> None:
    """Analyse once, then plan and prune for every target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--targets", default="0.3,0.5,0.7")
    parser.add_argument("--bytes", type=int, default=0, help="held-out text to use; 0 takes all")
    options = parser.parse_args()

    run = weightscope.analyze(options.checkpoint, metrics="alpha null", xmin="peak")
    text = load_text()[1]
    text = text[: options.bytes or len(text)]
    untouched = held_out_loss(pruned(options.checkpoint, {}), text)
    print(f"held-out loss {untouched:.3f} nats before pruning")
    for target in map(float, options.targets.split(",")):
        plan = weightscope.propose(run, "sparsity", target=target)
        planned = json.loads(plan.body)["sparsity"]
        losses = [
            held_out_loss(pruned(options.checkpoint, sparsities), text)
            for sparsities in (planned, dict.fromkeys(planned, target))
        ]
        print(f"{target:.0%} pruned: planned {losses[0]:.3f}, one sparsity for all {losses[1]:.3f}")


if __name__ == "__main__":
    main()
