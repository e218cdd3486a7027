"""The README says what the code does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from weightscope.columns import IDENTITY
from weightscope.evaluate import columns_of
from weightscope.settings import FAMILIES
from weightscope.sinks.weightwatcher import COLUMNS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _section(name: str) -> list[str]:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, re.DOTALL)
    assert found
    return found[1].splitlines()[2:]


def test_columns_are_listed_in_order_with_their_meaning() -> None:
    expected = []
    for family, columns in [("identity", IDENTITY), *((f, columns_of([f])) for f in FAMILIES)]:
        for index, column in enumerate(columns):
            meaning = column.meaning.replace("|", "\\|")
            first = "" if index else family
            expected.append(f"| {first} | `{column.name}` | {meaning} |")
    assert _section("columns") == expected


def test_aliases_are_listed() -> None:
    assert _section("aliases") == [f"| `{k}` | {ours} |" for k, (ours, _) in COLUMNS.items()]


def test_the_tables_are_those_of_a_real_run(minilm: Path, tmp_path: Path) -> None:
    for model in (ROOT / "examples" / "tiny-llama" / "checkpoint-2000", minilm):
        command = [sys.executable, "-m", "weightscope", "analyze", str(model)]
        result = subprocess.run(
            [*command, "--format", "table", "--no-save", "--quiet"],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT)},
        )
        lines = [line.rstrip() for line in result.stdout.splitlines()]
        shown = [line for line in lines if re.match(r" {3}\d+ ", line)]
        assert shown
        in_readme = set(README.splitlines())
        assert all(line in in_readme for line in shown[:8])


def test_the_plan_is_that_of_a_real_run() -> None:
    import weightscope

    model = ROOT / "examples" / "tiny-llama" / "checkpoint-2000"
    run = weightscope.analyze(model, metrics="condition null", device="cpu")
    plan = weightscope.propose(run, "peft", modules=8, across=True)
    found = re.search(r"<!-- plan -->\n```text\n(.*?)```", README, re.DOTALL)
    assert found
    assert found[1].splitlines() == list(plan.sentences)


def test_what_python_prints_is_what_it_printed() -> None:
    found = re.search(
        r"<!-- python -->\n```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL
    )
    assert found
    done = subprocess.run(
        [sys.executable, "-c", found[1]],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert [line.rstrip() for line in done.stdout.splitlines()] == found[2].splitlines()


def test_every_target_of_a_plan_is_listed() -> None:
    from weightscope.plans import TARGETS

    for target in TARGETS:
        assert f"| `{target}` |" in README
