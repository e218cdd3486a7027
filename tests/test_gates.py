"""Rules of ``--fail-on``: their grammar, what they never do, and how a pipeline sees them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ODD_NAMES, gaussian, run_each, small_model, write_file
from hypothesis import given
from hypothesis import strategies as st

from weightscope import analysis
from weightscope.analysis import Saving
from weightscope.errors import OptionError
from weightscope.evaluate import Row, all_columns
from weightscope.gates import Gate, hits, parse_gate
from weightscope.settings import Settings

COLUMNS = {column.name: column.kind != "text" for column in all_columns()}


def gate(text: str) -> Gate:
    return parse_gate(text, COLUMNS)


def row(**cells: Any) -> Row:
    return {**dict.fromkeys(COLUMNS), **cells}


def hit(text: str, **cells: Any) -> bool:
    return gate(text).test(row(**cells))


# --- the grammar -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sign", "expected"),
    [
        ("<", [True, False, False]),
        ("<=", [True, True, False]),
        (">", [False, False, True]),
        (">=", [False, True, True]),
        ("==", [False, True, False]),
        ("=", [False, True, False]),
        ("!=", [True, False, True]),
    ],
)
def test_comparisons_below_at_and_above_the_bound(sign: str, expected: list[bool]) -> None:
    values = [math.nextafter(6.0, 0), 6.0, math.nextafter(6.0, 9)]
    assert [hit(f"alpha {sign} 6", alpha=v) for v in values] == expected
    assert [hit(f"alpha{sign}6.0", alpha=v) for v in values] == expected


@pytest.mark.parametrize("number", ["-2.5", "+3", "1e-3", "1E5", ".5", "7.", "0", "-0"])
def test_numbers_are_read_as_python_reads_them(number: str) -> None:
    assert hit(f"weight_mean == {number}", weight_mean=float(number))
    assert not hit(f"weight_mean == {number}", weight_mean=float(number) + 1e-9)


def test_counts_are_compared_as_numbers_not_as_text() -> None:
    assert hit("rank > 9", rank=10) and hit("block == 2", block=2) and hit("block == 2.0", block=2)


ATOMS = ("rank > 1", "block > 1", "expert > 1")
TREES = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        inner.map(lambda a: f"not {a}"),
        inner.map(lambda a: f"({a})"),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
    ),
    max_leaves=8,
)


@given(TREES)
def test_precedence_and_parentheses_are_those_of_python(rule: str) -> None:
    """Python's own parser reads the same text: not binds before and, and before or."""
    found = gate(rule)
    for bits in range(8):
        cells = {name: 2 * (bits >> i & 1) for i, name in enumerate(("rank", "block", "expert"))}
        assert found.test(row(**cells)) == eval(rule, {"__builtins__": {}}, cells), cells


def test_words_of_the_grammar_are_of_either_case_and_columns_are_not() -> None:
    assert hit("alpha > 6 OR NOT rank IS EMPTY", alpha=1.0, rank=3)
    with pytest.raises(OptionError, match="no column 'Alpha'"):
        gate("Alpha > 6")


def test_space_is_free_between_the_parts() -> None:
    assert hit(" ( alpha>6 )and(rank<=3)\n", alpha=7.0, rank=3)
    assert hit("not(alpha<6)", alpha=7.0)


def test_text_is_compared_whole_bare_or_quoted() -> None:
    assert hit("role == mlp_up", role="mlp_up") and not hit("role == mlp", role="mlp_up")
    assert hit("role != mlp_up", role="mlp_down") and hit("role == 'mlp_up'", role="mlp_up")
    assert hit("name == \"a and (b) > 'c'\"", name="a and (b) > 'c'")
    assert hit("name == ''", name="") and not hit("name == ''", name="x")
    assert hit("name == model.layers.0.w[3]", name="model.layers.0.w[3]")
    assert hit("name == 5", name="5") and not hit("name == 5", name="5.0")
    assert hit("name == 'and' or name == \"or\"", name="or")


@pytest.mark.parametrize("name", [name for name in ODD_NAMES if "'" not in name])
def test_a_hostile_name_can_be_named(name: str) -> None:
    assert hit(f"name == '{name}'", name=name) and not hit(f"name == '{name}'", name=name + "x")


def test_text_is_ordered_by_character() -> None:
    assert hit("role < 'b'", role="attn_q") and not hit("role < 'b'", role="mlp_up")


def test_columns_of_a_rule_are_told_once_and_in_order() -> None:
    found = gate("rank > 1 or (alpha is empty and not rank < 0) or alpha > 2")
    assert found.columns == ("rank", "alpha")
    assert found.text == "rank > 1 or (alpha is empty and not rank < 0) or alpha > 2"


# --- empty cells -----------------------------------------------------------------------------


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "==", "=", "!="])
def test_an_empty_cell_never_fits_a_comparison(sign: str) -> None:
    assert not hit(f"alpha {sign} 6", alpha=None)
    assert not hit(f"role {sign} mlp_up", role=None)


def test_empty_and_not_empty() -> None:
    assert hit("alpha is empty") and not hit("alpha is empty", alpha=0.0)
    assert hit("alpha is not empty", alpha=0.0) and not hit("alpha is not empty")
    assert hit("not alpha is empty", alpha=0.0) and not hit("not alpha is empty")
    assert not hit("name is empty", name="")


def test_not_turns_a_comparison_that_an_empty_cell_does_not_fit() -> None:
    assert hit("not alpha > 6", alpha=None)
    assert not hit("not alpha > 6 and alpha is not empty", alpha=None)


# --- what is refused -------------------------------------------------------------------------

BROKEN = (
    "", "   ", "alpha", "alpha >", "> 6", "alpha 6", "alpha > 6 7", "alpha > 6 alpha < 3",
    "alpha > 6 and", "and alpha > 6", "alpha > 6 or or rank > 1", "alpha > > 6", "alpha => 6",
    "alpha > )", "alpha > (", "role == <", "role == ==", "(alpha > 6", "alpha > 6)", "()",
    "((alpha > 6)", "alpha is", "alpha is not", "alpha is 6", "alpha is not not empty",
    "alpha empty", "alpha not is empty", "not", "not not", "alpha not > 6", "role == 'mlp",
    'role == "mlp', "role == mlp'", "role == 'a'b", "'alpha' > 6", "6 < alpha", "2 < alpha < 6",
    "alpha > 6; rank > 1", "alpha > 6 && rank > 1", "alpha == 1 | rank == 1", "!alpha > 6",
    "alpha > rank + 1", "max(alpha) > 6", "alpha > or rank > 1", "role == and", "role == not",
)  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_rule_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(OptionError, match="--fail-on") as refused:
        gate(text)
    assert repr(text) in str(refused.value)


def test_an_unknown_column_is_named() -> None:
    with pytest.raises(OptionError, match=r"there is no column 'alhpa'"):
        gate("rank > 1 or alhpa > 6")


@pytest.mark.parametrize("depth", [100, 900])
@pytest.mark.parametrize("opening", ["(", "not "])
def test_a_deep_rule_ends_in_a_sentence_or_a_gate(opening: str, depth: int) -> None:
    depth = min(depth, 1900 // len(opening) // (2 if opening == "(" else 1))
    text = opening * depth + "alpha > 6" + (")" * depth if opening == "(" else "")
    try:
        found = gate(text)
    except OptionError:
        return
    assert found.test(row(alpha=7.0)) == (opening == "(" or depth % 2 == 0)


def test_a_rule_of_many_parts_is_read() -> None:
    found = gate(" or ".join(f"rank == {n}" for n in range(100)))
    assert found.test(row(rank=99)) and not found.test(row(rank=100))
    with pytest.raises(OptionError, match="2000"):
        gate("alpha > 6" + " " * 3 + "or alpha > 6" * 300)


HOSTILE = (
    "__import__('os').system('touch marker')",
    "alpha > __import__('os').system('touch marker')",
    "__import__('pathlib').Path('marker').touch() or alpha > 6",
    "alpha.__class__ == 1",
    "row['alpha'] > 6",
    "alpha > 6 if True else exit()",
    "lambda: alpha > 6",
    "[alpha for alpha in range(9)]",
    'exec(\'open("marker", "w")\')',
    "alpha > (lambda: 6)()",
    "alpha := 6",
    "`touch marker`",
    "$(touch marker)",
    "alpha > {6}",
    "{alpha} > 6",
    "%(alpha)s > 6",
    "alpha > 6\x00",
    "alpha\u2028> 6 evil",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_code_is_refused_and_never_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError):
        gate(text).test(row(alpha=7.0))
    assert not list(tmp_path.iterdir())


def test_code_in_quotes_is_only_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "__import__('pathlib').Path('marker').touch()"
    assert hit(f'name == "{code}"', name=code) and not hit(f'name == "{code}"', name="w")
    assert not list(tmp_path.iterdir())


CELLS = st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
WORDS = st.sampled_from(
    ["alpha", "role", "rank", "and", "or", "not", "is", "empty", "(", ")", "<", "<=", ">", ">=",
     "==", "=", "!=", "!", "6", "-1e3", "nan", "inf", "'a b'", '"', "'", "mlp_up", "__import__"]
)  # fmt: skip


@given(
    st.one_of(st.text(), st.lists(WORDS, max_size=14).map(" ".join), st.lists(WORDS).map("".join)),
    CELLS,
    CELLS,
)
def test_any_text_is_a_gate_or_an_option_error(text: str, alpha: Any, role: Any) -> None:
    try:
        found = gate(text)
    except OptionError as refused:
        assert str(refused).startswith("--fail-on")
        return
    assert found.columns and set(found.columns) <= set(COLUMNS)
    assert found.test(row(alpha=alpha, role=role)) in {True, False}


def test_hits_tell_the_rules_and_their_rows_in_order() -> None:
    rows = [row(name=f"w{n}", alpha=float(n)) for n in range(5)]
    gates = [gate("alpha > 2"), gate("alpha > 9"), gate("name == w0")]
    found = [(g.text, [r["name"] for r in broken]) for g, broken in hits(gates, rows)]
    assert found == [("alpha > 2", ["w3", "w4"]), ("name == w0", ["w0"])]


# --- in a pipeline ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Pipeline:
    """A folder in which the verbs have been run.

    Attributes:
        work: The folder.
        rows: Rows of the model, from its saved run.
        ends: Exit code, standard output and standard error of each command, by its words.
    """

    work: Path
    rows: list[dict[str, Any]]
    ends: dict[str, tuple[int, str, str]]

    @property
    def broken(self) -> dict[str, str]:
        """Names of the rows that fit the rule, and what is to be printed of them."""
        fitting = [r for r in self.rows if r["rank"] > 31 and r["block"] in {None, 0, 1}]
        cells = [("" if r["block"] is None else r["block"], r["rank"]) for r in fitting]
        return {
            r["name"]: f"rank {rank}, block {block}".strip()
            for r, (block, rank) in zip(fitting, cells, strict=True)
        }


RULE = "rank > 31 and not block > 1"
COMMANDS = {
    "analyze": ["analyze", "toy.safetensors", "--csv", "analyze.csv", "--fail-on", RULE],
    "analyze bad": ["analyze", "toy.safetensors", "--csv", "bad.csv", "--out", "bad.weightscope",
                    "--fail-on", "rank >"],
    "report": ["report", "toy.weightscope", "--json", "report.json", "--fail-on", RULE],
    "report stdout": ["report", "toy.weightscope", "--format", "csv", "--fail-on", RULE],
    "report two": ["report", "toy.weightscope", "--fail-on", "alpha is empty and status == ok",
                   "--fail-on", "name == '\x1b[31mred'", "--fail-on", "rank > 31"],
    "report pass": ["report", "toy.weightscope", "--fail-on", "rank > 64",
                    "--fail-on", "alpha is empty and status == ok"],
    "report many": ["report", "toy.weightscope", "--fail-on", "rank >= 0"],
    "report bad": ["report", "toy.weightscope", "--csv", "bad.csv", "--fail-on", "rnk > 3"],
    "report ww": ["report", "toy.weightscope", "--ww-names", "--fail-on", RULE],
    "compare": ["compare", "toy.weightscope", "other.weightscope", "--csv", "compare.csv",
                "--fail-on", "spectral_norm_delta > 0.5"],
    "compare by": ["compare", "toy.weightscope", "other.weightscope", "--by", "module",
                   "--fail-on", "spectral_norm_delta > 0.5"],
    "compare pass": ["compare", "toy.weightscope", "other.weightscope", "--fail-on",
                     "change != common"],
    "compare three": ["compare", "toy.weightscope", "other.weightscope", "toy.weightscope",
                      "--fail-on", "spectral_norm_b > 1.5"],
    "compare bad": ["compare", "toy.weightscope", "other.weightscope", "--csv", "bad.csv",
                    "--fail-on", "alpha > 6"],
}  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    work = tmp_path_factory.mktemp("gates")
    tensors = {**small_model(blocks=5), "\x1b[31mred": gaussian(40, 33, seed=3)}
    write_file(work / "toy.safetensors", tensors)
    scaled = {**tensors, "\x1b[31mred": tensors["\x1b[31mred"] * 9}
    other = write_file(work / "other.safetensors", scaled)
    settings = Settings(threads=1)
    analysis.analyze(other, settings, Saving(True, work / "other.weightscope"))
    first = run_each([COMMANDS["analyze"]], work)
    rest = run_each([words for name, words in COMMANDS.items() if name != "analyze"], work)
    ends = [(done.returncode, done.stdout, done.stderr) for done in (*first, *rest)]
    lines = (work / "toy.weightscope" / "table.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return Pipeline(work, rows, dict(zip(COMMANDS, ends, strict=True)))


@pytest.mark.parametrize("verb", ["analyze", "report", "report stdout", "report ww"])
def test_a_rule_that_is_hit_ends_with_4_and_prints_rule_and_rows(
    pipeline: Pipeline, verb: str
) -> None:
    code, _, talk = pipeline.ends[verb]
    lines, broken = talk.splitlines(), pipeline.broken
    start = lines.index(f"Rule hit by {len(broken)} of {len(pipeline.rows)} rows: {RULE}") + 1
    shown = dict(line.strip().rsplit(": ", 1) for line in lines[start : start + len(broken)])
    assert code == 4 and len(broken) == 10
    assert shown == {name.replace("\x1b", "\\x1b"): cells for name, cells in broken.items()}
    assert lines[-1] == "Error: a --fail-on rule was hit" and "Traceback" not in talk


def test_the_output_is_written_all_the_same(pipeline: Pipeline) -> None:
    written = (pipeline.work / "analyze.csv").read_text("utf-8")
    assert written == pipeline.ends["report stdout"][1] == pipeline.ends["analyze"][1]
    report = json.loads((pipeline.work / "report.json").read_text("utf-8"))
    details = report["details"]
    rows = [
        {**row, "details": details[row["name"]]} if row["name"] in details else row
        for row in report["rows"]
    ]
    assert rows == pipeline.rows
    compared = (pipeline.work / "compare.csv").read_text("utf-8")
    assert len(compared.splitlines()) == len(pipeline.rows) + 1


def test_several_rules_are_all_reported(pipeline: Pipeline) -> None:
    code, _, talk = pipeline.ends["report two"]
    assert code == 4 and "Error: 2 rules were hit" in talk
    assert f"Rule hit by 1 of {len(pipeline.rows)} rows: name == '\\x1b[31mred'" in talk
    assert "rows: rank > 31" in talk and "alpha is empty" not in talk
    assert "\x1b" not in talk


def test_rules_that_no_row_fits_end_with_0(pipeline: Pipeline) -> None:
    for verb in ("report pass", "compare pass"):
        code, _, talk = pipeline.ends[verb]
        assert code == 0 and "Rule hit" not in talk and "Error" not in talk


def test_of_many_rows_the_first_twenty_are_printed(pipeline: Pipeline) -> None:
    code, _, talk = pipeline.ends["report many"]
    lines = talk.splitlines()
    count = len(pipeline.rows)
    assert code == 4 and count > 21 and f"  and {count - 20} more" in lines
    assert sum(line.startswith("  ") and ": rank " in line for line in lines) == 20


@pytest.mark.parametrize("verb", ["compare", "compare by"])
def test_compare_has_rules_on_its_own_columns(pipeline: Pipeline, verb: str) -> None:
    code, _, talk = pipeline.ends[verb]
    assert code == 4
    assert f"Rule hit by 1 of {len(pipeline.rows)} rows: spectral_norm_delta > 0.5" in talk
    assert "  \\x1b[31mred: spectral_norm_delta " in talk


def test_compare_of_many_names_the_rows_of_a_rule(pipeline: Pipeline) -> None:
    code, _, talk = pipeline.ends["compare three"]
    assert code == 4 and "  \\x1b[31mred: spectral_norm_b " in talk


@pytest.mark.parametrize("verb", ["analyze bad", "report bad", "compare bad"])
def test_a_rule_that_cannot_be_read_is_refused_before_any_work(
    pipeline: Pipeline, verb: str
) -> None:
    code, stdout, talk = pipeline.ends[verb]
    assert code == 2 and not stdout and talk.startswith("Error: --fail-on")
    assert not (pipeline.work / "bad.csv").exists()
    assert not (pipeline.work / "bad.weightscope").exists()


def test_a_rule_on_a_column_that_is_not_computed_is_refused(tmp_path: Path) -> None:
    for name in ("toy", "next"):
        write_file(tmp_path / f"{name}.safetensors", {"b.weight": torch.eye(12) * len(name)})
    norms = ["--metrics", "norms"]
    first = [["analyze", f"{n}.safetensors", *norms, "-q"] for n in ("toy", "next")]
    for words in first:
        run_each([words], tmp_path)
    toy, two = "toy.weightscope", ["compare", "toy.weightscope", "next.weightscope"]
    cases = [
        (["analyze", "toy.safetensors", *norms, "--out", "bad"], "N > 1 or alpha > 6",
         "alpha is not computed here; analyze with alpha in --metrics"),
        (["analyze", "toy.safetensors", "--out", "bad"], "traps > 0",
         "traps is not computed here; analyze with --shuffled"),
        (["analyze", "toy.safetensors", "--out", "bad", "--quant-error", "4"], "quant_error_3 > 1",
         "quant_error_3 is not computed here; analyze with --quant-error 3"),
        (["analyze", "toy.safetensors", "--out", "bad", "--shard", "1/2"], "welore_rank > 1",
         "welore_rank is not computed here; merge the parts of the model first"),
        (["report", toy], "not alpha is empty",
         "alpha is not computed here; analyze with alpha in --metrics"),
        (two, "alpha_delta > 1",
         "alpha_delta is not computed here; analyze with alpha in --metrics"),
        (two, "rel_change > 0.5", "rel_change is not computed here; it needs the weights of both "
         "models"),
        ([*two, toy], "alpha_delta_c > 1",
         "alpha_delta_c is not computed here; analyze with alpha in --metrics"),
    ]  # fmt: skip
    refused = run_each([[*words, "--fail-on", rule] for words, rule, _ in cases], tmp_path)
    for (words, rule, why), done in zip(cases, refused, strict=True):
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.splitlines()[-1].startswith(f"Error: --fail-on {rule!r}: "), words
        assert why in done.stderr, words
    assert not (tmp_path / "bad").exists()
    # computed, and empty for a reason: a warning
    whole = ["analyze", "toy.safetensors", "--metrics", "alpha", "--fail-on", "alpha > 6"]
    rules = [whole, ["report", "toy-2.weightscope", "--fail-on", "alpha > 6 and N > 1"]]
    for words in rules:
        [done] = run_each([words], tmp_path)
        rule = words[-1]
        warning = f"Warning: alpha is empty in every row, so the rule cannot fit: {rule}"
        assert done.returncode == 0 and warning in done.stderr.splitlines()
    [done] = run_each([["report", toy, "--fail-on", "spectral_norm < 9 and N > 1"]], tmp_path)
    assert done.returncode == 4 and "Warning" not in done.stderr


def test_a_comparison_that_can_never_fit_is_refused(pipeline: Pipeline) -> None:
    """A slip of the pen must not leave a pipeline without its gate."""
    rules = ["alpha > six", "alpha > 6,5", "alpha > '6'", "rank == nan", "rank != few"]
    done = run_each([["report", "toy.weightscope", "--fail-on", r] for r in rules], pipeline.work)
    assert [(d.returncode, d.stdout) for d in done] == [(2, "")] * len(rules)
    done = run_each(
        [["compare", "toy.weightscope", "other.weightscope", "--fail-on", "alpha_a > six"]],
        pipeline.work,
    )
    assert done[0].returncode == 2
