"""The command line as users meet it: exit codes, streams, formats, and hostile names."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pytest
import torch
from checkpoints import (
    ODD_NAMES,
    environment,
    gaussian,
    hostile_files,
    many_matrices,
    raw_safetensors,
    run_each,
    run_weightscope,
    small_model,
    weightscope_command,
    write_file,
    write_sharded,
)
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from safetensors.torch import save

COLUMNS = [
    "name", "block", "module", "role", "expert", "rows", "cols", "N", "M", "Q", "slices", "dtype",
    "params", "status", "warnings", "reason",
    "alpha", "alpha_method", "alpha_stderr", "alpha_xmin", "alpha_ks", "alpha_n_tail",
    "alpha_band", "alpha_hat", "log_alpha_norm",
    "alpha_farms", "farms_method", "alpha_farms_sd", "alpha_farms_xmin", "alpha_farms_ks",
    "alpha_farms_n_tail", "farms_q",
    "farms_windows", "farms_window_rows", "farms_window_cols", "farms_coverage",
    "erg_n_tail", "erg_xmin", "erg_gap", "erg_delta", "erg_log_ratio", "erg_tracelog",
    "condition_number", "condition_number_resolvable", "sv_floor",
    "rank", "stable_rank", "effective_rank", "effective_rank_vn", "entropy",
    "participation_ratio",
    "welore_rank", "welore_rank_ratio", "welore_class", "welore_relative_error",
    "mp_sigma", "mp_edge", "mp_spikes", "mp_softrank", "mp_ks",
    "frobenius_norm", "spectral_norm", "nuclear_norm", "log_norm", "log_spectral_norm",
    "weight_mean", "weight_std", "weight_abs_max", "weight_zero_fraction", "weight_nonfinite",
    "alpha_null", "alpha_null_lo", "alpha_null_hi", "alpha_farms_null", "erg_null", "entropy_null",
    "stable_rank_null", "condition_number_null", "noise_w1", "noise_p",
    "shuffled_lambda_max", "shuffled_w1", "shuffled_jsd", "traps", "trap_cause",
    "alpha_lo", "alpha_hi", "alpha_p", "tail_best", "tail_llr", "tail_llr_p", "alpha_lambda",
    "alpha_second", "alpha_second_xmin", "snr", "snr_mp", "solver",
    "quant_error_8", "quant_error_6", "quant_error_5", "quant_error_4", "quant_error_3",
    "quant_error_2", "quant_shift_8", "quant_shift_6", "quant_shift_5", "quant_shift_4",
    "quant_shift_3", "quant_shift_2", "reading", "advice",
    "delta_rank_90", "delta_rank_95", "delta_rank_99", "delta_top_share", "adapter_rank",
    "adapter_scale", "encoding",
]  # fmt: skip
TEXT = {
    "name", "module", "role", "dtype", "status", "warnings", "reason", "alpha_method", "alpha_band",
    "farms_method", "welore_class", "trap_cause", "tail_best", "solver", "reading", "advice",
    "encoding",
}  # fmt: skip
WHOLE = {
    "block", "expert", "rows", "cols", "N", "M", "slices", "params", "alpha_n_tail",
    "alpha_farms_n_tail", "farms_windows", "farms_window_rows", "farms_window_cols", "erg_n_tail",
    "erg_gap", "rank", "welore_rank", "mp_spikes", "weight_nonfinite", "erg_null",
    "delta_rank_90", "delta_rank_95", "delta_rank_99", "adapter_rank",
}  # fmt: skip
DEGENERATE = {
    "zero.weight": (torch.zeros(20, 12), "zero"),
    "constant.weight": (torch.eye(16), "constant"),
    "outer.weight": (gaussian(20, 1) @ gaussian(1, 18, seed=1), "rank_one"),
    "nan.weight": (torch.full((9, 9), float("nan")), "nonfinite"),
    "few.weight": (gaussian(30, 4), "too_few"),
    "row.weight": (gaussian(1, 30), "too_few"),
    "empty.weight": (torch.zeros(0, 8), "empty"),
    "packed.weight": (torch.zeros(8, 8).to(torch.float8_e4m3fn), "unsupported"),
}


def hostile_model() -> dict[str, torch.Tensor]:
    """A small model, with degenerate tensors, all kinds of layers, and every odd name."""
    odd = {name: gaussian(12, 10, seed=n) for n, name in enumerate(ODD_NAMES)}
    return {
        **small_model(blocks=12),
        **odd,
        **{name: tensor for name, (tensor, _) in DEGENERATE.items()},
        "vision.conv.weight": gaussian(16, 12, 3, 3, seed=51),
        "layers.2.mlp.experts.down_proj": gaussian(11, 24, 20, seed=52),
        "half.weight": gaussian(40, 30, seed=53, dtype=torch.bfloat16),
    }


@dataclass(frozen=True)
class Analysed:
    """What the command made of the hostile model.

    Attributes:
        work: Working folder: the model's file, the run folder, the written files.
        stdout: Standard output.
        stderr: Standard error.
    """

    work: Path
    stdout: str
    stderr: str

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.work / "toy.weightscope"

    @property
    def table(self) -> list[dict[str, Any]]:
        """Rows with raw names, as saved."""
        lines = (self.run / "table.jsonl").read_text("utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        return [{column: row[column] for column in COLUMNS} for row in rows]

    def report(self, *options: str) -> str:
        """Standard output of ``weightscope report`` on the run."""
        done = run_weightscope("report", self.run, "--quiet", *options)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    work = tmp_path_factory.mktemp("work")
    write_file(work / "toy.safetensors", hostile_model())
    options = ("--csv", "out.csv", "--json", "out.json", "--threads", "2")
    done = run_weightscope("analyze", "toy.safetensors", *options, cwd=work)
    assert done.returncode == 0, done.stderr
    return Analysed(work, done.stdout, done.stderr)


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def one_error(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one line that a failed command says, and nothing else."""
    assert done.returncode == code and done.stdout == ""
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    return done.stderr


STYLES_OF_OUTPUT = ("csv", "json", "table", "markdown")


# --- streams ---------------------------------------------------------------------------------


def test_standard_output_is_data_and_standard_error_is_talk(analysed: Analysed) -> None:
    assert analysed.stdout == (analysed.work / "out.csv").read_bytes().decode()
    assert len(read_csv(analysed.stdout)) == len(analysed.table)
    assert "Run saved in toy.weightscope" in analysed.stderr
    assert sorted(path.name for path in analysed.work.iterdir()) == [
        "out.csv",
        "out.csv.run.json",
        "out.json",
        "toy.safetensors",
        "toy.weightscope",
    ]


def test_degenerate_rows_end_with_zero_and_one_line(analysed: Analysed) -> None:
    [line] = [line for line in analysed.stderr.splitlines() if "not ok" in line]
    found = {row["name"]: row for row in analysed.table}
    for name, (_, status) in DEGENERATE.items():
        assert found[name]["status"] == status and found[name]["reason"].endswith(".")
        assert status in line
    others = [row for name, row in found.items() if name not in DEGENERATE]
    assert {row["status"] for row in others} == {"ok"} and f"{len(DEGENERATE)} of" in line


def test_a_run_without_any_figure_ends_with_one_and_says_why(tmp_path: Path) -> None:
    nan = torch.full((20, 12), float("nan"))
    models = {
        "nan": {"a.weight": nan, "z.weight": torch.zeros(20, 12)},
        "packed": {"packed.weight": DEGENERATE["packed.weight"][0]},
        "vectors": {"a.bias": torch.zeros(5), "b.bias": torch.zeros(5)},
        "zero": {"a.weight": torch.zeros(20, 12), "few.weight": gaussian(30, 4)},
        "one": {"a.weight": nan, "b.weight": gaussian(20, 12)},
    }
    for name, tensors in models.items():
        write_file(tmp_path / f"{name}.safetensors", tensors)
    commands = [("analyze", f"{n}.safetensors", "--metrics", "norms", "-q") for n in models]
    commands += [
        commands[0],
        (*commands[0], "--shard", "1/1"),
        (*commands[0], "--fail-on", "N > 0"),
    ]
    done = run_each(commands, tmp_path)
    assert [one.returncode for one in done] == [1, 1, 1, 0, 0, 1, 0, 4]
    assert [one.stderr.rstrip("\n") for one in done[:6]] == [
        "Error: nan.safetensors: no matrix could be analysed (1 nonfinite, 1 zero), as 'a.weight': "
        "240 of 240 entries are NaN or Inf; check what wrote it",
        "Error: packed.safetensors: no matrix could be analysed (1 unsupported), as "
        "'packed.weight': Not analysed: it is quantised (fp8), and its scales "
        "('packed.weight_scale_inv') are missing; check what wrote it",
        "Error: vectors.safetensors: no matrix to analyse, only 2 vectors and scalars; name a file "
        "that holds weights",
        "",
        "",
        done[0].stderr.rstrip("\n"),  # the finished run, used again
    ]
    # the output is there all the same, and the parts of a model are judged with the whole
    assert done[0].stdout == done[5].stdout != "" and "nonfinite" in done[0].stdout
    merged = run_weightscope(
        "merge", "nan.shard-1-of-1.weightscope", "--out", "merged", cwd=tmp_path
    )
    why = done[0].stderr.replace("nan.safetensors", "merged")
    assert merged.returncode == 1 and merged.stderr.endswith(why)


def test_a_run_is_saved_where_it_is_said(tmp_path: Path) -> None:
    names = ["my model (v2)+é", "...", ".hidden", "-rf"]
    for seed, name in enumerate(names):
        write_file(tmp_path / name / "model.safetensors", {"w.weight": gaussian(9, 8, seed=seed)})
    paths = [f"./{name}" for name in names]
    commands = [("analyze", path, "--metrics", "norms") for path in paths]
    commands += [("analyze", paths[0], "--metrics", "rank"), ("compare", *paths[:2])]
    said = []
    for command in commands:
        [done] = run_each([command], tmp_path)
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        said += [line[13:] for line in lines if line.startswith("Run saved in ")]
    assert len(said) == len(set(said)) == 7
    assert set(said) == {path.name for path in tmp_path.glob("*.weightscope")}
    assert said[:2] == ["my_model__v2__é.weightscope", "model.weightscope"]


def test_a_device_that_another_one_stands_in_for_is_said_once(tmp_path: Path) -> None:
    for name in "ab":
        write_file(tmp_path / f"{name}.safetensors", {"w.weight": gaussian(12, 10)})
    one, both = ("analyze", "a.safetensors", "--metrics", "norms"), "a.safetensors b.safetensors"
    commands = [one, ("compare", *both.split()), (*one, "--quiet")]
    done = run_each([(*command, "--device", "mps") for command in commands], tmp_path)
    assert [each.returncode for each in done] == [0, 0, 0]
    said = "--device mps: it has no float64, which the figures need; computing on the CPU"
    assert [each.stderr.splitlines().count(said) for each in done] == [1, 1, 0]


def test_a_run_that_is_used_again_says_so(analysed: Analysed) -> None:
    done = run_weightscope("analyze", "toy.safetensors", "--threads", "2", cwd=analysed.work)
    assert done.returncode == 0 and done.stdout == analysed.stdout
    assert "used again" in done.stderr and "saved" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "analyze MODEL --no-save --metrics norms | head -1",
        "report RUN | head -2",
        "report RUN --format table | true",
        "report RUN --format markdown | head -1",
        "inspect MODEL | true",
        "explain | true",
        "--help | true",
    ],
)
def test_a_closed_pipe_ends_quietly(big: Path, command: str) -> None:
    arguments, _, reader = command.partition(" | ")
    words = arguments.replace("MODEL", "toy").replace("RUN", "run").split()
    line = f"set -o pipefail; {shlex.join(weightscope_command(*words))} | {reader}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=big, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or set(done.stderr) == {"\n"}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of so many rows that no pipe holds them, and its run."""
    work = tmp_path_factory.mktemp("big")
    write_sharded(work / "toy", many_matrices(250, 10, 9))
    done = run_weightscope("analyze", "toy", "--out", "run", "--metrics", "norms,rank", cwd=work)
    assert done.returncode == 0 and len(done.stdout) > 1 << 16, done.stderr
    return work


def test_a_full_device_is_one_sentence(analysed: Analysed) -> None:
    for style in ("csv", "table"):
        command = weightscope_command("report", analysed.run, "--format", style)
        with open("/dev/full", "w") as full:  # noqa: PTH123
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment()
            )
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
        assert "unexpected" not in done.stderr


# --- CSV -------------------------------------------------------------------------------------


def test_csv_has_the_documented_columns_in_order(analysed: Analysed) -> None:
    assert analysed.stdout.split("\n")[0] == ",".join(COLUMNS)
    assert len(COLUMNS) == 118
    first = (analysed.run / "table.jsonl").read_text("utf-8").split("\n")[0]
    assert [key for key in json.loads(first) if key != "details"] == COLUMNS


def test_every_tensor_of_two_or_more_dimensions_has_its_row(analysed: Analysed) -> None:
    model = hostile_model()
    wanted = {name for name, tensor in model.items() if tensor.ndim >= 2} - {
        "layers.2.mlp.experts.down_proj"
    }
    wanted |= {f"layers.2.mlp.experts.down_proj[{e}]" for e in range(11)}
    names = [row["name"] for row in analysed.table]
    assert set(names) == wanted and len(names) == len(wanted)
    summary = json.loads((analysed.run / "run.json").read_text())["summary"]
    assert (summary["vectors"], summary["integer_tensors"], summary["filtered"]) == (1, 1, 0)


def test_rows_are_in_natural_order_of_names(analysed: Analysed) -> None:
    names = [row["name"] for row in analysed.table]
    q_proj = [f"model.layers.{block}.self_attn.q_proj.weight" for block in range(12)]
    assert [name for name in names if name in q_proj] == q_proj
    experts = [f"layers.2.mlp.experts.down_proj[{e}]" for e in range(11)]
    assert [name for name in names if name in experts] == experts


def test_cells_are_the_saved_values_exactly(analysed: Analysed) -> None:
    """Numbers round-trip, whole numbers have no decimal point, an undefined cell is empty."""
    rows = read_csv(analysed.stdout)
    assert len(rows) == len(analysed.table)
    for cells, values in zip(rows, analysed.table, strict=True):
        for column in COLUMNS:
            cell, value = cells[column], values[column]
            if value is None:
                assert cell == ""
            elif column in TEXT:
                assert isinstance(value, str) and cell.lstrip("'") == value.lstrip("'")
            elif column in WHOLE:
                assert re.fullmatch(r"-?\d+", cell) and int(cell) == value
            else:
                assert re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", cell) and float(cell) == value


def test_names_that_a_spreadsheet_would_compute_are_quoted(analysed: Analysed) -> None:
    """A leading quote for = + - @ tab and CR, in name and module alike; nowhere else."""
    for cells, values in zip(read_csv(analysed.stdout), analysed.table, strict=True):
        for column in ("name", "module"):
            raw = values[column]
            prefix = "'" if raw[:1] in ("=", "+", "-", "@", "\t", "\r") and raw else ""
            assert cells[column] == prefix + raw
    names = [cells["name"] for cells in read_csv(analysed.stdout)]
    for name in ("'=cmd|' /C calc'!A0", "'+1", "'-1", "'@SUM(A1)", "'\ttab", "'\rreturn"):
        assert name in names
    raw = json.loads(run_weightscope("report", analysed.run, "--format", "json").stdout)
    assert {row["name"] for row in raw["rows"]} == {row["name"] for row in analysed.table}


def test_our_reader_strips_the_quote() -> None:
    from weightscope.sinks.csv import render, unescape

    for name in ODD_NAMES:
        [row] = read_csv(render(["name"], [{"name": name}])) if name else [{"name": ""}]
        assert unescape(row["name"]) == name


def test_pandas_reads_numbers_as_numbers(analysed: Analysed) -> None:
    frame = pd.read_csv(io.StringIO(analysed.stdout))
    assert list(frame.columns) == COLUMNS and len(frame) == len(analysed.table)
    for column in set(COLUMNS) - TEXT:
        assert pd.api.types.is_numeric_dtype(frame[column]), column
        expected = pd.Series([row[column] for row in analysed.table], dtype="float64")
        pd.testing.assert_series_equal(
            frame[column].astype("float64"), expected, check_names=False, rtol=1e-15
        )


def test_a_spreadsheet_opens_it_with_numbers_and_without_formulas(
    analysed: Analysed, tmp_path: Path
) -> None:
    """Cells are taken as a spreadsheet takes typed text: what looks like a number is one."""
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for line in csv.reader(io.StringIO(analysed.stdout, newline="")):
        sheet.append([as_typed(cell) for cell in line])
    book.save(tmp_path / "out.xlsx")
    opened = openpyxl.load_workbook(tmp_path / "out.xlsx").active
    assert opened is not None and opened.max_row == len(analysed.table) + 1
    for line, values in zip(opened.iter_rows(min_row=2), analysed.table, strict=True):
        for cell, column in zip(line, COLUMNS, strict=True):
            assert cell.data_type != "f"
            if column in TEXT or values[column] is None:
                assert cell.value is None or isinstance(cell.value, str)
            else:
                # the format keeps sixteen digits
                assert cell.data_type == "n"
                assert cell.value == pytest.approx(values[column], rel=1e-15)


def as_typed(cell: str) -> float | str | None:
    try:
        return float(cell)
    except ValueError:
        return ILLEGAL_CHARACTERS_RE.sub("", cell) or None


def test_a_byte_order_mark_on_request(analysed: Analysed, tmp_path: Path) -> None:
    done = run_weightscope("report", analysed.run, "--bom", "--csv", tmp_path / "x.csv")
    assert done.stdout == "\ufeff" + analysed.stdout
    assert (tmp_path / "x.csv").read_bytes() == b"\xef\xbb\xbf" + analysed.stdout.encode()


def test_what_was_written_is_said(analysed: Analysed, tmp_path: Path) -> None:
    options = ("--csv", "a.csv", "--json", "-", "--html", "a.html", "--png", "png")
    done = run_weightscope("report", analysed.run, *options, cwd=tmp_path)
    count = len(list((tmp_path / "png").glob("*.png")))
    wrote = f"Wrote a.csv\nWrote {count} pictures into png\nWrote a.html\n"
    assert (done.returncode, done.stderr) == (0, wrote) and count > 1
    again = run_weightscope("report", analysed.run, *options, "--force", "-q", cwd=tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")


def test_a_target_in_per_cent_is_a_ratio(analysed: Analysed, tmp_path: Path) -> None:
    options = ("--metrics", "norms", "--no-save", "--format", "json")
    for text in ("50%", "0.5"):
        done = run_weightscope(
            "analyze", analysed.work / "toy.safetensors", *options, "--welore-target", text,
            cwd=tmp_path,
        )  # fmt: skip
        assert json.loads(done.stdout)["provenance"]["settings"]["welore_target"] == 0.5


def test_an_interruption_while_it_loads_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    path = os.pathsep.join((str(tmp_path), environment()["PYTHONPATH"]))
    done = run_weightscope("--help", env=environment(PYTHONPATH=path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_two_families_quietly_without_a_run_folder(analysed: Analysed, tmp_path: Path) -> None:
    """The other families' columns stay, empty; nothing is said and nothing is kept."""
    options = ("--metrics", "norms", "--metrics", "rank", "--quiet", "--no-save")
    done = run_weightscope("analyze", analysed.work / "toy.safetensors", *options, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and not list(tmp_path.iterdir())
    rows = read_csv(done.stdout)
    assert list(rows[0]) == COLUMNS and len(rows) == len(analysed.table)
    filled = {column for row in rows for column in COLUMNS if row[column]}
    norms = {"frobenius_norm", "spectral_norm", "nuclear_norm", "log_norm", "log_spectral_norm"}
    ranks = set(COLUMNS[COLUMNS.index("rank") : COLUMNS.index("welore_rank")])
    assert filled - set(COLUMNS[:16]) == norms | ranks


def test_weightwatcher_names_carry_weightwatcher_values(analysed: Analysed) -> None:
    rows = read_csv(analysed.report("--ww-names"))
    ours = {row["name"].removesuffix(".weight"): row for row in analysed.table}
    assert len(rows) == len(ours)
    assert list(rows[0])[:2] == ["layer_id", "name"]
    weights = {name.removesuffix(".weight"): w for name, w in hostile_model().items()}
    name = "model.layers.3.mlp.up_proj"
    [row] = [row for row in rows if row["name"] == name]
    values = np.linalg.svd(weights[name].double().numpy(), compute_uv=False)
    expected = {
        "norm": np.sum(values**2),
        "spectral_norm": values[0] ** 2,
        "lambda_max": values[0] ** 2,
        "xmax": values[0] ** 2,
        "log_norm": np.log10(np.sum(values**2)),
        "log_spectral_norm": np.log10(values[0] ** 2),
        "sv_max": values[0],
        "sv_min": values[-1],
        "stable_rank": np.sum(values**2) / values[0] ** 2,
        "num_evals": 32,
        "matrix_rank": 32,
        "rank_loss": 0,
        "N": 64,
        "M": 32,
        "Q": 2,
        "rf": 1,
    }
    for column, value in expected.items():
        assert float(row[column]) == pytest.approx(value, rel=1e-9), column
    same = {
        "alpha": "alpha",
        "D": "alpha_ks",
        "sigma": "alpha_stderr",
        "xmin": "alpha_xmin",
        "num_pl_spikes": "alpha_n_tail",
        "alpha_weighted": "alpha_hat",
        "log_alpha_norm": "log_alpha_norm",
        "detX_num": "erg_n_tail",
        "num_ERG_spikes": "erg_n_tail",
        "ERG_gap": "erg_gap",
    }
    for theirs, column in same.items():
        assert float(row[theirs]) == ours[name][column], theirs
    numbers = [cell for row in rows for column, cell in row.items() if "name" not in column]
    assert not set(numbers) & {"inf", "-inf", "nan", "None"}


# --- the other formats -----------------------------------------------------------------------


def test_json_holds_raw_names_and_null(analysed: Analysed) -> None:
    def no_constant(text: str) -> None:
        raise AssertionError(text)

    written = (analysed.work / "out.json").read_bytes().decode()
    found = json.loads(written, parse_constant=no_constant)
    assert found["rows"] == analysed.table
    assert set(found) == {"provenance", "summary", "details", "rows"}
    assert analysed.report("--format", "json") == written
    assert analysed.report("--json", "-") == written


def test_facts_lie_beside_a_csv_file(analysed: Analysed) -> None:
    facts = json.loads((analysed.work / "out.csv.run.json").read_bytes())
    record = json.loads((analysed.run / "run.json").read_bytes())
    assert facts["summary"] == record["summary"]
    assert facts["provenance"]["settings"] == record["settings"]
    [file] = facts["provenance"]["source"]["files"]
    model = analysed.work / "toy.safetensors"
    assert file["size"] == model.stat().st_size and len(file["header_sha256"]) == 64
    assert str(analysed.work) not in json.dumps(facts)  # no folder of this machine


def test_csv_dash_is_standard_output(analysed: Analysed) -> None:
    assert analysed.report("--csv", "-", "--format", "table") == analysed.stdout
    done = run_weightscope("report", analysed.run, "--csv", "-", "--json", "-")
    assert "--json" in one_error(done, 2)


def test_the_table_is_a_table(analysed: Analysed) -> None:
    table = analysed.report("--format", "table")
    assert "alpha mean" in table and "attn_q" in table and "Worth a look" in table
    coverage = sum(t.numel() for t in hostile_model().values() if t.is_floating_point())
    assert f"{coverage:,} parameters" in table


def test_markdown_is_a_table_with_provenance(analysed: Analysed) -> None:
    text = analysed.report("--format", "markdown")
    assert text.startswith("# toy: ") and "| --- |" in text
    last = [line for line in text.rstrip().splitlines() if line.startswith("_")]
    assert last[1].startswith("_weightscope ") and "seed 0" in last[1]
    assert "<script>" not in text and "[bold]markup" not in text


@pytest.mark.parametrize(("sort", "sign"), [("alpha", -1), ("-alpha", 1), ("-params", 1)])
def test_sort_and_top(analysed: Analysed, sort: str, sign: int) -> None:
    column = sort.removeprefix("-")
    known = [row for row in analysed.table if row[column] is not None]
    wanted = sorted(known, key=lambda row: sign * row[column])[:3]
    text = analysed.report("--format", "json")  # not sorted, not cut
    assert [row["name"] for row in json.loads(text)["rows"]] == [r["name"] for r in analysed.table]
    table = analysed.report("--format", "table", f"--sort={sort}", "--top", "3")
    assert f"{len(analysed.table) - 3} of {len(analysed.table)} rows not shown" in table
    head = table.split("rows not shown")[0]
    order = [row[column] for row in wanted]
    assert order == sorted(order, reverse=sign < 0)
    if column == "alpha":
        for row in wanted:
            assert row["name"].encode("unicode_escape").decode()[:12] in head


# --- files are never overwritten -------------------------------------------------------------


def test_an_existing_file_is_refused_before_any_work(analysed: Analysed, tmp_path: Path) -> None:
    model = analysed.work / "toy.safetensors"
    for name in ("mine.csv", "mine.json", "beside.csv.run.json"):
        (tmp_path / name).write_text("mine")
    outputs = (
        ("--csv", "mine.csv"),
        ("--json", "mine.json"),
        ("--csv", "beside.csv"),
        ("--json", "new.json", "--csv", "mine.csv"),
    )
    verbs = (("analyze", model), ("report", analysed.run))
    for done in run_each([(*verb, *output) for verb in verbs for output in outputs], tmp_path):
        message = one_error(done)
        assert "exists already" in message and "--force" in message
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files == dict.fromkeys(("mine.csv", "mine.json", "beside.csv.run.json"), "mine")
    done = run_weightscope("report", analysed.run, "--csv", "mine.csv", "--force", cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "mine.csv").read_bytes().decode() == analysed.stdout
    assert not list(tmp_path.glob("*.tmp"))


def test_places_that_cannot_be_written_are_refused_before_any_work(
    analysed: Analysed, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    targets = ("folder", "missing/out.csv", "file/out.csv", "")
    verbs = (("analyze", analysed.work / "toy.safetensors"), ("report", analysed.run))
    commands = [(*v, o, t) for v in verbs for o in ("--csv", "--json") for t in targets]
    for done in run_each(commands, tmp_path):
        assert "unexpected" not in one_error(done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_special_files_are_written_to_and_not_replaced(analysed: Analysed, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with (tmp_path / "copy").open("wb") as copy:
        reader = subprocess.Popen(["cat", tmp_path / "pipe.csv"], stdout=copy)
    options = ("--csv", "pipe.csv", "--force")
    done = run_weightscope("report", analysed.run, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    reader.wait(60)
    assert (tmp_path / "pipe.csv").is_fifo()
    assert (tmp_path / "copy").read_bytes().decode() == analysed.stdout


def test_a_neighbour_of_the_output_is_not_overwritten(analysed: Analysed, tmp_path: Path) -> None:
    (tmp_path / "out.csv.tmp").write_text("mine")
    done = run_weightscope("report", analysed.run, "--csv", "out.csv", cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "out.csv.tmp").read_text() == "mine"


# --- hostile names on a terminal -------------------------------------------------------------


def on_a_terminal(*arguments: object, cwd: Path | None = None, stream: str = "stdout") -> str:
    """What a command prints on one stream that is a terminal of 120 columns."""
    leader, follower = pty.openpty()
    env = environment(TERM="xterm-256color", COLUMNS="120", LINES="40")
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    streams[stream] = follower
    process = subprocess.Popen(
        weightscope_command(*arguments), cwd=cwd, env=env, stdin=subprocess.DEVNULL, **streams
    )
    os.close(follower)
    pieces = []
    while True:
        try:
            piece = os.read(leader, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(leader)
    process.wait(timeout=120)
    return b"".join(pieces).decode("utf-8", "surrogateescape")


STYLES = re.compile(r"\x1b\[[0-9;]*m")


def steering(text: str) -> set[str]:
    """Characters that steer a terminal or turn the direction of text, styles taken out."""
    plain = STYLES.sub("", text)
    return {c for c in plain if unicodedata.category(c) in {"Cc", "Cf", "Cs"} and c not in "\r\n"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "RUN"),
        ("report", "RUN", "--sort", "alpha"),
        ("report", "RUN", "--format", "markdown"),
        ("report", "RUN", "--format", "csv"),
        ("report", "RUN", "--format", "json"),
        ("inspect", "MODEL"),
        ("inspect", "MODEL", "--format", "csv"),
        ("inspect", "MODEL", "--format", "markdown"),
    ],
    ids=" ".join,
)
def test_no_control_character_reaches_a_terminal(
    analysed: Analysed, arguments: tuple[str, ...]
) -> None:
    paths = {"RUN": analysed.run, "MODEL": analysed.work / "toy.safetensors"}
    text = on_a_terminal(*(paths.get(word, word) for word in arguments))
    assert "up_proj" in text
    assert steering(text) == set()
    assert "\x1b[31mred" not in text  # a style of the name's own


def test_a_table_is_what_a_terminal_gets_and_it_is_coloured(analysed: Analysed) -> None:
    text = on_a_terminal("report", analysed.run)
    assert STYLES.search(text) and "Worth a look" in text
    widest = max(len(line) for line in STYLES.sub("", text).replace("\r", "").split("\n"))
    assert widest <= 120


def test_markup_in_names_is_text(analysed: Analysed) -> None:
    assert "[bold]markup[/bold]" in analysed.report("--format", "table")


def test_file_names_cannot_steer_the_terminal_either(tmp_path: Path) -> None:
    """On success, and in the sentence of an error, which stays one line; Unicode or not."""
    evil = os.fsdecode(b"mo\x1b[31mdel\n\x1b]0;title\x07\xe2\x80\xae\xff")
    (tmp_path / f"{evil}.safetensors").write_bytes(save(small_model()))
    (tmp_path / f"{evil}.broken").write_bytes(b"")
    names = (f"{evil}.safetensors", f"{evil}.broken", f"{evil}.missing")
    commands = [
        ("inspect", name, "--format", style) for name in names for style in STYLES_OF_OUTPUT
    ]
    for done in run_each(commands, tmp_path):
        assert steering(done.stdout + done.stderr) == set()
        if done.args[1] == names[0]:
            assert done.returncode == 0, done.stderr
        else:
            one_error(done)
    options = ("--format", "table", "--metrics", "norms", "--csv", "x.csv", "--json", "x.json")
    done = run_weightscope("analyze", names[0], *options, cwd=tmp_path)
    assert done.returncode == 0 and steering(done.stdout + done.stderr) == set()
    [folder] = tmp_path.glob("*.weightscope")
    assert steering(folder.name) == set()
    for done in run_each(
        [("report", folder.name, "--format", s) for s in STYLES_OF_OUTPUT], tmp_path
    ):
        assert done.returncode == 0 and steering(done.stdout + done.stderr) == set()


def test_progress_on_a_terminal_shows_names_harmless(analysed: Analysed) -> None:
    text = on_a_terminal(
        "analyze", analysed.work / "toy.safetensors", "--no-save", "--metrics", "norms",
        stream="stderr",
    )  # fmt: skip
    assert "\x1b[31mred" not in text and "\x1b]0;" not in text and "\u202e" not in text


# --- errors ----------------------------------------------------------------------------------


def test_hostile_files_are_one_sentence_without_traceback_or_output(tmp_path: Path) -> None:
    """Every kind goes through the reader's own tests; here a few go through the command."""
    labels = ("empty", "truncated data", "name twice", "pickle", "nesting of objects")
    corpus = dict(hostile_files())
    for label in labels:
        (tmp_path / f"{label}.bad").write_bytes(corpus[label])
    commands = [(verb, f"{label}.bad") for label in labels for verb in ("analyze", "inspect")]
    for done in run_each(commands, tmp_path):
        assert str(done.args[1]) in one_error(done)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(labels)


def test_debug_shows_the_traceback_as_well(tmp_path: Path) -> None:
    verbs = ("analyze", "inspect", "report")
    plain = run_each([(verb, "nothing") for verb in verbs], tmp_path)
    traced = run_each([(verb, "nothing", "--debug") for verb in verbs], tmp_path)
    for short, done in zip(plain, traced, strict=True):
        assert done.returncode == 1
        assert "Traceback (most recent call last)" in done.stderr
        assert done.stderr.endswith(one_error(short))


USAGE_ERRORS: list[tuple[tuple[str, ...], str]] = [
    (("analyze",), "MODEL"),
    (("analyze", "MODEL", "--no-such-option"), "no-such-option"),
    (("analyse", "MODEL"), "analyse"),
    (("analyze", "MODEL", "--metrics", "alfa"), "'alfa'"),
    (("analyze", "MODEL", "--xmin", "best"), "'best'"),
    (("analyze", "MODEL", "--farms", "many"), "'many'"),
    (("analyze", "MODEL", "--conv", "fft"), "'fft'"),
    (("analyze", "MODEL", "--welore-target", "1"), "--welore-target"),
    (("analyze", "MODEL", "--welore-target", "nan"), "--welore-target"),
    (("analyze", "MODEL", "--welore-target", "120%"), "--welore-target 1.2"),
    (("analyze", "MODEL", "--eval-floor", "abs:"), "--eval-floor"),
    (("analyze", "MODEL", "--eval-floor", "rel:-1"), "--eval-floor"),
    (("analyze", "MODEL", "--device", "cuda:99"), "--device cuda:99"),
    (("analyze", "MODEL", "--threads", "-1"), "--threads"),
    (("analyze", "MODEL", "--format", "xml"), "xml"),
    (("analyze", "MODEL", "--include", "no.such.*"), "--include"),
    (("analyze", "MODEL", "--sort", "beauty"), "beauty"),
    (("analyze", "MODEL", "--top", "-1"), "--top"),
    (("analyze", "MODEL", "--no-save", "--out", "x"), "--no-save"),
    (("analyze", "MODEL", "--resume", "--force"), "--resume"),
    (("analyze", "MODEL", "--csv", "-", "--json", "-"), "--json"),
    (("report",), "RUN"),
    (("report", "RUN", "--sort", "beauty"), "beauty"),
    (("explain", "alfa"), "alpha"),
    (("explain", "randm-like"), "random-like"),
    (("inspect", "MODEL", "--conv", "fft"), "'fft'"),
]


def test_usage_errors_end_with_two_and_leave_nothing(analysed: Analysed, tmp_path: Path) -> None:
    paths = {"RUN": analysed.run, "MODEL": analysed.work / "toy.safetensors"}
    commands = [[paths.get(word, word) for word in words] for words, _ in USAGE_ERRORS]
    for done, (words, says) in zip(run_each(commands, tmp_path), USAGE_ERRORS, strict=True):
        assert (done.returncode, done.stdout) == (2, ""), words
        assert says in done.stderr and "Traceback" not in done.stderr, words
    assert not list(tmp_path.iterdir())


def test_another_run_ends_with_five(analysed: Analysed) -> None:
    before = (analysed.run / "run.json").read_bytes()
    done = run_weightscope(
        "analyze", "toy.safetensors", "--out", "toy.weightscope", "--resume", "--xmin", "mid",
        cwd=analysed.work,
    )  # fmt: skip
    assert "settings.xmin is 'ks' there and 'mid' here" in one_error(done, 5)
    assert (analysed.run / "run.json").read_bytes() == before


def test_help_states_the_exit_codes_and_examples() -> None:
    text = " ".join(run_weightscope("--help", env=environment(COLUMNS="200")).stdout.split())
    for code in (
        "0 done", "1 failed", "2 usage", "3 selftest failed", "4 a --fail-on rule hit",
        "5 runs not comparable", "130 interrupted",
    ):  # fmt: skip
        assert code in text
    verbs = ("analyze", "inspect", "report", "explain")
    for verb, done in zip(verbs, run_each([(v, "--help") for v in verbs], Path()), strict=True):
        assert verb in text
        assert done.returncode == 0 and "Examples" in done.stdout
        assert f"weightscope {verb}" in done.stdout
        assert "[ray]" in done.stdout or verb != "analyze"  # which is no markup
        assert "<bool>" not in done.stdout  # a flag takes nothing


def test_version() -> None:
    from weightscope import __version__

    done = run_weightscope("--version")
    assert (done.returncode, done.stdout) == (0, f"weightscope {__version__}\n")


# --- inspect, explain, report ----------------------------------------------------------------


def test_inspect_counts_what_is_there(analysed: Analysed) -> None:
    model = hostile_model()
    found = json.loads(
        run_weightscope("inspect", analysed.work / "toy.safetensors", "--format", "json").stdout
    )
    patterns = {pattern["module"]: pattern for pattern in found["patterns"]}
    q_proj = patterns["model.layers.#.self_attn.q_proj"]
    assert (q_proj["count"], q_proj["shape"], q_proj["role"]) == (12, [32, 32], "attn_q")
    assert q_proj["params"] == 12 * 32 * 32
    experts = patterns["layers.#.mlp.experts.down_proj"]
    assert experts["count"] == 11 and experts["params"] == 11 * 24 * 20
    assert patterns["half"]["dtype"] == "BF16"
    assert patterns["packed"]["treatment"] != "analysed" == patterns["half"]["treatment"]
    total = sum(tensor.numel() for tensor in model.values() if tensor.ndim >= 2)
    assert sum(pattern["params"] for pattern in found["patterns"]) == total
    assert sum(pattern["count"] for pattern in found["patterns"]) == len(analysed.table)


def test_inspect_tells_the_family_and_the_heads(tmp_path: Path) -> None:
    write_sharded(tmp_path / "toy", small_model())
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }
    (tmp_path / "toy" / "config.json").write_text(json.dumps(config))
    text = run_weightscope("inspect", tmp_path / "toy", "--format", "table").stdout
    assert "llama" in text and "8 heads" in text and "4 key/value heads" in text
    for work in ("FLOP", "to read", "memory", "second"):
        assert work in text


def test_inspect_reads_headers_only(tmp_path: Path) -> None:
    """A sparse file of 200 GiB: reading its weights would be noticed."""
    rows, cols, layers = 131072, 8192, 50
    size = rows * cols * 4
    header = {
        f"model.layers.{i}.mlp.up_proj.weight": {
            "dtype": "F32", "shape": [rows, cols], "data_offsets": [i * size, (i + 1) * size],
        }
        for i in range(layers)
    }  # fmt: skip
    path = tmp_path / "large.safetensors"
    path.write_bytes(raw_safetensors(header))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + layers * size)
    done = run_weightscope("inspect", path, "--format", "json")
    assert done.returncode == 0, done.stderr
    [pattern] = json.loads(done.stdout)["patterns"]
    assert pattern["count"] == layers and pattern["params"] == layers * rows * cols


def test_explain_knows_every_column() -> None:
    everything = run_weightscope("explain", env=environment(COLUMNS="200")).stdout
    for column in COLUMNS:
        assert re.search(rf"\b{column}\b", everything), column


def test_explain_knows_every_word_of_the_remarks(tmp_path: Path) -> None:
    words = {
        "unresolved": "reading: no exponent", "random-like": "reading: neither the spectrum",
        "very-heavy-tailed": "alpha below 2", "heavy-tailed": "alpha from 2 to 6",
        "weakly-heavy-tailed": "alpha above 6", "dead": "all weights are zero",
        "LRC": "welore_class: low-rank", "N-LRC": "welore_class: no low-rank",
        "very-heavy": "alpha_band: alpha below 2", "heavy": "alpha_band: alpha from 2 to 6",
        "weak": "alpha_band: alpha above 6", "giant entries": "trap_cause: the largest entry",
    }  # fmt: skip
    for word, done in zip(words, run_each([("explain", w) for w in words], tmp_path), strict=True):
        assert done.returncode == 0 and words[word] in " ".join(done.stdout.split()), word


METRICS = (
    "alpha", "alpha_hat", "log_alpha_norm", "alpha_farms", "erg_n_tail", "erg_gap", "erg_delta",
    "condition_number", "condition_number_resolvable", "rank", "stable_rank", "effective_rank",
    "effective_rank_vn", "entropy", "participation_ratio", "welore_rank", "welore_rank_ratio",
    "mp_sigma", "mp_edge", "mp_spikes", "mp_softrank", "mp_ks", "frobenius_norm", "spectral_norm",
    "nuclear_norm", "log_norm", "log_spectral_norm",
    *(name for name in COLUMNS[COLUMNS.index("alpha_null") :] if name not in TEXT),
)  # fmt: skip


def test_explain_tells_all_about_every_metric(tmp_path: Path) -> None:
    headings = (
        "formula", "range", "unit", "how to read it", "when not to believe it", "for pure noise",
        "source",
    )  # fmt: skip
    missing = []
    for done in run_each([("explain", metric) for metric in METRICS], tmp_path):
        assert done.returncode == 0
        missing += [(done.args[1], text) for text in headings if f"\n {text} " not in done.stdout]
    assert missing == []


def test_report_needs_neither_weights_nor_the_working_folder(
    analysed: Analysed, tmp_path: Path
) -> None:
    shutil.copytree(analysed.run, tmp_path / "elsewhere")
    done = run_weightscope("report", "elsewhere", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == analysed.stdout


def test_report_of_what_is_no_run_is_one_sentence(analysed: Analysed, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    names = ("nothing", "file", ".", analysed.work / "toy.safetensors")
    for done in run_each([("report", name) for name in names], tmp_path):
        one_error(done)


# --- what is imported ------------------------------------------------------------------------

HEAVY = "torch transformers pandas scipy huggingface_hub matplotlib"
IMPORTS = """
import sys
try:
    {code}
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", *(name for name in "{heavy}".split() if name in sys.modules))
"""


def loaded(code: str, *arguments: object) -> list[str]:
    """Heavy packages that a piece of code has imported."""
    text = IMPORTS.format(code=code, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rsplit("LOADED", 1)[1].split()


MAIN = "from weightscope.cli.main import main; main()"


def test_import_and_help_load_nothing_heavy() -> None:
    assert loaded("import weightscope") == []
    for arguments in (("--help",), ("analyze", "--help"), ("--version",), ("explain", "alpha")):
        assert loaded(MAIN, *arguments) == []


def test_report_and_inspect_do_without_torch(analysed: Analysed) -> None:
    for style in STYLES_OF_OUTPUT:
        found = loaded(MAIN, "report", analysed.run, "--format", style)
        assert not set(found) & {"torch", "transformers", "pandas", "huggingface_hub"}
    found = loaded(MAIN, "inspect", analysed.work / "toy.safetensors")
    assert not set(found) & {"torch", "transformers", "pandas", "huggingface_hub"}
    code = "import weightscope; weightscope.load_run(sys.argv[1]).spectra()"
    assert not set(loaded(code, analysed.run)) & {"torch", "transformers", "pandas"}


# --- from Python -----------------------------------------------------------------------------


def test_python_gives_what_the_command_gives(analysed: Analysed) -> None:
    import weightscope

    run = weightscope.analyze(analysed.work / "toy.safetensors", threads=2)
    assert list(run.rows) == analysed.table
    assert list(weightscope.load_run(analysed.run).rows) == analysed.table


def test_the_data_frame_is_tidy(analysed: Analysed) -> None:
    import weightscope

    frame = weightscope.load_run(analysed.run).to_dataframe()
    assert list(frame.columns) == COLUMNS and len(frame) == len(analysed.table)
    for column in COLUMNS:
        kind = "string" if column in TEXT else "Int64" if column in WHOLE else "float64"
        assert str(frame[column].dtype).lower().startswith(kind.lower()[:5]), column
        for value, row in zip(frame[column], analysed.table, strict=True):
            assert (row[column] is None) == bool(pd.isna(value))
            assert row[column] is None or value == row[column]
