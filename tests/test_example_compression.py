"""The example's compression script runs, and its README says what it prints."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import environment

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ROW = re.compile(
    r"\| (\d+) % \| (\d+) \| ([\d.]+) % \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|"
)


def printed(*arguments: str) -> tuple[float, list[tuple[float, ...]]]:
    """The loss before, and the rows of the table, that the script prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "compress_tiny_llama.py"), *arguments],
        capture_output=True,
        text=True,
        env={**environment(), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    before = re.search(r"^Held-out loss before: ([\d.]+) nats per byte$", done.stdout, re.M)
    assert before is not None
    return float(before[1]), rows_in(done.stdout)


def rows_in(text: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, row)) for row in ROW.findall(text)]


def test_the_script_measures_the_loss_of_both_plans() -> None:
    before, rows = printed("--targets", "0.5", "--bytes", "3000")
    ((target, factorised, left, welore, uniform, *losses),) = rows
    assert target == 50 and left == pytest.approx(50, abs=1)
    assert 20 <= factorised <= 28
    assert 0.3 < welore < 0.5 and 0.3 < uniform < 0.5
    # half of the parameters gone costs something, and leaves much more than a guess
    assert all(before + 0.05 < loss < 0.5 * math.log(256) for loss in losses)


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["parameters", "attempted"])
def test_the_readme_states_what_it_prints(basis: str) -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    section = re.search(rf"<!-- {basis} -->\n(.*?)<!-- /{basis} -->", readme, re.S)
    assert section is not None
    stated = rows_in(section[1])
    targets = ",".join(str(row[0] / 100) for row in stated)
    _, rows = printed("--basis", basis, "--targets", targets)
    for found, told in zip(rows, stated, strict=True):
        assert found == pytest.approx(told, abs=0.006)
