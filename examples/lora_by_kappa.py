"""Where to put LoRA: the matrices with the lowest condition numbers of each kind (KappaTune).

Analyses a checkpoint, plans a budget of adapter parameters, and, where peft is installed, puts the
adapters on::

    python examples/lora_by_kappa.py --budget 40000 --out lora.json

The file is what ``weightscope plan RUN --for peft --rank effective`` writes;
``peft.LoraConfig(**json.load(open("lora.json")))`` takes it as it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import weightscope

CHECKPOINT = Path(__file__).parent / "tiny-llama" / "checkpoint-2000"


def adapt(checkpoint: Path, config: dict[str, Any]) -> None:
    """Put the planned adapters on the model and say what is trained."""
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, local_files_only=True)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
    trained, everything = adapted.get_nb_trainable_parameters()
    print(f"peft trains {trained:,} parameters beside {everything - trained:,} frozen ones")


def main() -> None:
    """Analyse, plan, adapt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--budget", type=int, default=40_000, help="adapter parameters")
    parser.add_argument("--modules", type=int, default=12, help="most modules with an adapter")
    parser.add_argument("--out", type=Path, default=Path("lora.json"))
    options = parser.parse_args()

    run = weightscope.analyze(options.checkpoint, metrics="condition rank null")
    plan = weightscope.propose(
        run, "peft", modules=options.modules, rank="effective", budget=options.budget
    )
    options.out.write_text(plan.body, encoding="utf-8")
    print(*plan.sentences, sep="\n")
    for record in plan.records[: options.modules]:
        print(f"{record['name']}: kappa {record['condition_number']:.4g}, rank {record['rank']}")
    if importlib.util.find_spec("peft"):
        adapt(options.checkpoint, json.loads(plan.body))
    else:
        print(f"pip install peft to put the adapters of {options.out} on")


if __name__ == "__main__":
    main()
