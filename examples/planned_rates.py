"""Learning rates by exponent (TempBalance): train on with planned rates, and with equal ones.

Continues the training of an early checkpoint of the example for a few steps with the multipliers of
``weightscope plan RUN --for lr``, and again with one rate for all::

    python examples/planned_rates.py --steps 100
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from train_tiny_llama import held_out_loss, load_text, next_byte_loss
from transformers import LlamaForCausalLM

import weightscope
from weightscope.integrations.rates import parameter_groups

CHECKPOINT = Path(__file__).parent / "tiny-llama" / "checkpoint-100"
LENGTH, WINDOWS = 64, 4


def trained(
    checkpoint: Path, multipliers: Mapping[str, float], text: Tensor, steps: int
) -> LlamaForCausalLM:
    """The model after some steps of AdamW on the text, the same for all multipliers."""
    model = LlamaForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, local_files_only=True
    ).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, multipliers, lr=5e-4), weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(text) - LENGTH - 1, (WINDOWS,), generator=generator)
        loss = next_byte_loss(model, torch.stack([text[i : i + LENGTH] for i in starts]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    """Analyse, plan, train twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--bytes", type=int, default=0, help="held-out text to use; 0 takes all")
    options = parser.parse_args()

    run = weightscope.analyze(options.checkpoint, metrics="alpha null", xmin="mid")
    plan = weightscope.propose(run, "lr")
    print(*plan.sentences, sep="\n")
    multipliers = json.loads(plan.body)["multipliers"]
    training, held_out = load_text()
    held_out = held_out[: options.bytes or len(held_out)]
    for name, given in (("planned", multipliers), ("equal", {})):
        model = trained(options.checkpoint, given, training, options.steps)
        loss = held_out_loss(model, held_out)
        print(f"{name} rates: held-out loss {loss:.3f} nats after {options.steps} steps")


if __name__ == "__main__":
    main()
