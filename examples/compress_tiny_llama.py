"""Compress the small Llama by WeLore's ranks, and measure what that costs on held-out text.

For every target the model is written as a checkpoint of factors twice: with WeLore's ranks, and
with uniform ranks of the same total size. Both are loaded again with transformers, and their loss
on the held-out text is printed beside that of the model as it was::

    python examples/compress_tiny_llama.py --targets 0.1,0.3,0.5 --basis parameters

The text is that of ``train_tiny_llama.py``. Needs weightscope, one CPU core and two minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from train_tiny_llama import held_out_loss, load_text
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

import weightscope
from weightscope.compress import compress
from weightscope.integrations.factorised import load_compressed
from weightscope.plans.welore import Options, plan, uniform
from weightscope.rank_plan import RankPlan
from weightscope.settings import Settings
from weightscope.sources import open_model

MODEL = Path(__file__).parent / "tiny-llama" / "checkpoint-2000"
HEADER = (
    "| Target | Factorised | Parameters left | Error, WeLore | Error, uniform | Loss, WeLore "
    "| Loss, uniform |\n|---:|---:|---:|---:|---:|---:|---:|"
)


@dataclass(frozen=True)
class Result:
    """What one target does; parameters and errors are those of the matrices in the blocks."""

    target: float
    factorised: int
    parameters_left: float
    errors: tuple[float, float]
    losses: tuple[float, float]

    def __str__(self) -> str:
        return (
            f"| {100 * self.target:.0f} % | {self.factorised} | {100 * self.parameters_left:.1f} % "
            f"| {self.errors[0]:.3f} | {self.errors[1]:.3f} "
            f"| {self.losses[0]:.3f} | {self.losses[1]:.3f} |"
        )


class Quiet:
    """Who is told about progress, and says nothing."""

    def note(self, text: str) -> None:
        """Ignore a remark."""

    def begin(self, total: float) -> None:
        """Ignore the start."""

    def advance(self, name: str, operations: float) -> None:
        """Ignore progress."""


def loss_under(found: RankPlan, text: torch.Tensor) -> float:
    """Return the held-out loss of the model compressed by a plan, in nats per byte."""
    settings = Settings(device="cpu", threads=torch.get_num_threads())
    with TemporaryDirectory() as work:
        folder = Path(work) / "small"
        compress(open_model(MODEL), found, folder, settings, Quiet())
        return held_out_loss(load_compressed(folder, dtype=torch.float32), text)


def results(targets: Sequence[float], basis: str, rule: str, size: int) -> Iterator[Result]:
    """Yield what each target does to the loss on the first bytes of the held-out text."""
    text = load_text()[1][:size]
    run = weightscope.analyze(MODEL, metrics=("rank", "welore"), device="cpu")
    for target in targets:
        chosen = plan(run, Options(target, basis, rule))
        control = uniform(run, chosen)
        yield Result(
            target,
            len(chosen.factorised),
            chosen.budget["parameter_ratio"],
            (chosen.budget["relative_error"], control.budget["relative_error"]),
            (loss_under(chosen, text), loss_under(control, text)),
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the loss before compression, and a table with a row for every target."""
    parser = argparse.ArgumentParser(description="Compress the small Llama; measure the loss.")
    parser.add_argument("--targets", default="0.1,0.3,0.5", metavar="SHARE,SHARE,...")
    parser.add_argument("--basis", default="parameters", help="as weightscope plan --basis")
    parser.add_argument("--rule", default="breakeven", help="as weightscope plan --rule")
    parser.add_argument("--bytes", type=int, default=sys.maxsize, help="how much text to read")
    options = parser.parse_args(arguments)
    targets = [float(target) for target in options.targets.split(",")]
    transformers_logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
    before = held_out_loss(model, load_text()[1][: options.bytes])
    print(f"Held-out loss before: {before:.3f} nats per byte\n\n{HEADER}")
    for result in results(targets, options.basis, options.rule, options.bytes):
        print(result, flush=True)


if __name__ == "__main__":
    main()
