"""What every target of the drawer promises, tested over all of them."""

from __future__ import annotations

import dataclasses
import inspect
import random
from pathlib import Path
from typing import Any

import pytest

import weightscope
from weightscope import plugins
from weightscope.cli import plan as verb
from weightscope.errors import WeightscopeError
from weightscope.evaluate import all_columns
from weightscope.plans import TARGETS
from weightscope.present.plan import plan_facts, plan_report, plan_text
from weightscope.proposal import Proposal
from weightscope.run import Run
from weightscope.sinks import json as json_sink

TINY = Path(__file__).parents[1] / "examples" / "tiny-llama" / "checkpoint-2000"
COLUMNS = {column.name for column in all_columns()}


@pytest.fixture(scope="module")
def tiny() -> Run:
    return weightscope.analyze(TINY, quant_error=(8, 4, 3), device="cpu", threads=1)


def proposed(target: str, run: Run, **options: Any) -> Proposal:
    module: Any = plugins.load("plans", target)
    found = module.propose(run, module.Options(**options))
    assert isinstance(found, Proposal)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_made_of_what_the_drawer_promises(target: str, tiny: Run) -> None:
    module: Any = plugins.load("plans", target)
    assert module.MEANING and not module.MEANING.endswith(".")
    assert module.SOURCE
    assert dataclasses.is_dataclass(module.Options)
    assert module.Options.__dataclass_params__.frozen
    proposal = proposed(target, tiny)
    assert proposal.body.endswith("\n")
    assert proposal.records
    for sentence in proposal.sentences:
        assert sentence.endswith(".") and sentence.strip() == sentence


@pytest.mark.parametrize("target", TARGETS)
def test_figures_are_columns_of_the_run(target: str, tiny: Run) -> None:
    rows = {row["name"]: row for row in tiny.rows}
    for record in proposed(target, tiny).records:
        row = rows[record.get("decided_by", record["name"])]
        shared = [key for key in record if key in COLUMNS and key not in {"name", "module", "rank"}]
        assert shared, record
        for key in shared:
            if record[key] is not None:
                assert record[key] == pytest.approx(row[key], rel=1e-14), key


@pytest.mark.parametrize("target", TARGETS)
def test_a_plan_repeats_itself_whatever_the_order_of_rows(target: str, tiny: Run) -> None:
    first = proposed(target, tiny)
    assert proposed(target, tiny) == first
    rows = list(tiny.rows)
    random.Random(0).shuffle(rows)
    other = proposed(target, dataclasses.replace(tiny, rows=tuple(rows)))
    if target in {"peft", "axolotl", "trl"}:  # no two values are equal, so nothing hangs on it
        assert other.body == first.body
    else:
        assert sorted(other.body.splitlines()) != [] and len(other.records) == len(first.records)


@pytest.mark.parametrize("target", TARGETS)
def test_an_empty_run_is_refused_in_a_sentence(target: str, tiny: Run) -> None:
    with pytest.raises(WeightscopeError, match="checkpoint-2000"):
        proposed(target, dataclasses.replace(tiny, rows=()))


@pytest.mark.parametrize("target", TARGETS)
def test_every_form_of_a_plan_can_be_written(target: str, tiny: Run) -> None:
    proposal = proposed(target, tiny)
    assert proposal.body in plan_text(proposal, tiny, "command")
    record = json_sink.dumps(plan_facts(proposal, tiny, "command"))
    assert '"checkpoint-2000"' in record
    table: Any = plan_report(proposal, "title").blocks[0]
    assert len(table.rows) == len(proposal.records)
    assert all(len(cells) == len(table.headers) for cells in table.rows)


def test_the_verb_has_an_option_for_every_field_and_no_other() -> None:
    fields = {
        field.name
        for target in TARGETS
        for field in dataclasses.fields(plugins.load("plans", target).Options)
    }
    verbs_own = {"run", "target", "out", "explain", "force", "quiet", "debug"}
    taken = {"goal": "target"}
    options = {
        taken.get(p, p) for p in inspect.signature(verb.plan).parameters if p not in verbs_own
    }
    assert options == fields


def test_the_help_tells_of_every_target() -> None:
    text = str(verb.plan.__doc__)
    for target in TARGETS:
        assert f"\n    {target} " in text
