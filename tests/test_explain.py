"""``weightscope explain`` knows every word that a column of any table can hold."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
from checkpoints import environment, run_each, run_weightscope

from weightscope import columns, difference, tensor
from weightscope.columns import Column
from weightscope.evaluate import all_columns
from weightscope.glossary import COMPARED, TRACKED
from weightscope.laws import power_law, tails
from weightscope.layouts import roles
from weightscope.recipe import FIT_METHODS

TEXTS = [c for c in (*all_columns(), *COMPARED, *TRACKED) if c.kind == "text"]
OPEN = {
    "name", "module", "reason", "advice", "encoding", "name_b", "present", "metric",
    "band_change", "class_change",
}  # fmt: skip
"""Columns of names, sentences, and of two words that other columns hold."""


def words(column: str) -> list[list[str]]:
    return [list(c.words) for c in TEXTS if c.name == column]


def test_every_other_column_of_text_has_a_closed_vocabulary() -> None:
    assert {c.name for c in TEXTS if not c.words} == OPEN
    assert not OPEN & {c.name for c in TEXTS if c.words}


def test_the_vocabularies_are_those_that_the_code_writes() -> None:
    [matrix, change] = words("reading")
    assert change == list(get_args(difference.Reading))
    assert words("role") == [list(roles.ROLES)] and words("dtype") == [list(tensor.DTYPES)]
    assert words("status") == [list(columns.STATUSES)]
    assert words("warnings") == [list(columns.WARNINGS)]
    rivals = [ratio.rival for ratio in tails.compare(1 + np.arange(1.0, 9.0) ** 2).ratios]
    assert words("tail_best") == [[tails.POWER_LAW, *rivals]]
    fewest = power_law.fit_power_law(np.arange(1.0, 13.0), "ks")
    assert isinstance(fewest, power_law.PowerLaw)
    fits = {*FIT_METHODS, fewest.method}
    assert {*words("alpha_method")[0]} == fits | {"tpl", "etpl"}
    assert {*words("farms_method")[0]} == fits
    assert words("change") == [["common", "added", "removed", "resized"]]
    assert words("alpha_moved") == [["yes", "no"]] and "unresolved" in matrix


def explained(column: Column, word: str) -> str:
    """What is told of a word: codes have sentences of their own."""
    return column.words[word] if word in columns.CODES else f"{column.name}: {column.words[word]}"


def test_explain_answers_for_every_word(tmp_path: Path) -> None:
    asked = [(column, word) for column in TEXTS for word in column.words]
    commands = [("explain", word) for _, word in asked]
    silent = []
    for (column, word), done in zip(asked, run_each(commands, tmp_path), strict=True):
        told = " ".join(done.stdout.split())
        if done.returncode or " ".join(explained(column, word).split()) not in told:
            silent.append((column.name, word, told))
    assert silent == [] and len(asked) > 100


def test_explain_knows_cells_as_they_are_printed_and_columns_of_comparisons() -> None:
    wide = environment(COLUMNS="200")
    solver = run_weightscope("explain", "gram-eigvalsh-float64-cpu", env=wide)
    assert solver.returncode == 0 and "solver: eigenvalues of W^T W" in solver.stdout
    moved = run_weightscope("explain", "spectrum_w1", env=wide)
    assert moved.returncode == 0 and "Wasserstein-1 distance" in moved.stdout
    both = run_weightscope("explain", "reading", env=wide)
    assert "the matrix in a word" in both.stdout and "what happened to the weights" in both.stdout


def test_an_unknown_word_is_refused_with_those_like_it() -> None:
    done = run_weightscope("explain", "full-rank-updates")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "Error: 'full-rank-updates' is no column, family, status, warning or word; did you mean "
        "full-rank-update"
    )
