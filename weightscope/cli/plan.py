"""``weightscope plan``: a saved run becomes a file that another tool consumes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from weightscope.cli import options as o
from weightscope.cli import plan_options as p
from weightscope.cli.explained import explained, say


def plan(
    run: o.RunArgument,
    target: p.TargetOption,
    by: p.ByOption = None,
    modules: p.ModulesOption = None,
    top: p.TopOption = None,
    budget: p.BudgetOption = None,
    across: p.AcrossOption = False,
    include_embeddings: p.EmbeddingsOption = False,
    prefix: p.PrefixOption = None,
    rank: p.RankOption = None,
    goal: p.GoalOption = None,
    spread: p.SpreadOption = None,
    per: p.PerOption = None,
    cap: p.CapOption = None,
    low: p.LowOption = None,
    high: p.HighOption = None,
    bits: p.BitsOption = None,
    basis: p.BasisOption = None,
    rule: p.RuleOption = None,
    out: p.OutOption = "-",
    explain: p.ExplainOption = False,
    force: o.ForceOption = False,
    quiet: o.QuietOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Turn a saved run into a file that another tool consumes. Needs neither weights nor torch.

    peft      which modules get LoRA, with which ranks and alphas: JSON for LoraConfig

    axolotl   which parameters to train: unfrozen_parameters, as Spectrum writes them

    trl       the same as regular expressions, for scripts around TRL's trainers

    sparsity  how much of each weight to prune (AlphaPruning, FARMS): JSON

    lr        learning-rate multipliers (TempBalance): JSON; integrations.rates reads it

    bits      bits per weight from measured rounding errors: JSON, as a layer_config

    welore    which weights become two factors of which rank (WeLore): JSON for compress

    The plan goes to standard output or --out, and why it says what it says to standard error:
    what decided, what became of the budget, what noise of the same shapes would have got, and
    where it differs from the paper.

    [bold]Examples[/]

      weightscope plan my-model.weightscope --for peft --modules 20 --out lora.json

      weightscope plan my-model.weightscope --for peft --top 25% --rank effective --budget 2M

      weightscope plan my-model.weightscope --for axolotl --top 50% --explain

      weightscope plan my-model.weightscope --for sparsity --target 60%

      weightscope plan my-model.weightscope --for lr --out rates.json

      weightscope plan my-model.weightscope --for bits --bits 4.5
    """
    with explained(debug):
        from weightscope.cli.plan_numbers import parse_params, parse_ratio, parse_share
        from weightscope.present.plan import plan_report
        from weightscope.sinks import terminal

        given = {
            "by": by, "modules": modules, "top": parse_share(top), "budget": parse_params(budget),
            "across": across or None, "include_embeddings": include_embeddings or None,
            "prefix": prefix, "rank": rank, "target": parse_ratio("--target", goal),
            "spread": spread, "per": per, "cap": parse_ratio("--cap", cap), "low": low,
            "high": high, "bits": bits, "basis": basis, "rule": rule,
        }  # fmt: skip
        options = {name: value for name, value in given.items() if value is not None}
        proposal = _written(run, target, options, out, force)
        if explain:
            terminal.write(plan_report(proposal, f"{run}: plan for {target}"), sys.stderr)
        elif not quiet:
            for sentence in proposal.sentences:
                say(sentence)


def _written(run: Path, target: str, options: dict[str, Any], out: str, force: bool) -> Any:
    """The plan, after it was written; what its format cannot hold lies beside the file."""
    from weightscope.folders.storage import load_run
    from weightscope.outputs import STDOUT, check_target, write_output
    from weightscope.planning import options_for, propose
    from weightscope.present.plan import plan_facts, plan_text
    from weightscope.sinks import json

    how = options_for(target, options)
    check_target(out, force)
    found = load_run(run)
    proposal = propose(found, target, how)
    command = shlex.join(["weightscope", *sys.argv[1:]])
    beside = "" if proposal.comment or out == STDOUT else f"{out}.run.json"
    if beside:
        check_target(beside, force)
    write_output(out, plan_text(proposal, found, command))
    if beside:
        write_output(beside, json.dumps(plan_facts(proposal, found, command)))
    return proposal
