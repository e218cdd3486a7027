"""Workbooks: every cell of the run at full precision, and no text that a spreadsheet obeys."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import torch
from checkpoints import environment, gaussian, run_weightscope, write_file
from hypothesis import given, settings
from hypothesis import strategies as st

import weightscope
from weightscope.drawings.sheets import Field, Sheet, number_format
from weightscope.evaluate import all_columns
from weightscope.folders.storage import load_run
from weightscope.present.sheets import workbook
from weightscope.sinks import excel
from weightscope.summary import counts

HOSTILE = [
    '=HYPERLINK("http://x","y").weight',
    "+cmd|' /C calc'!A0",
    "-1+1",
    "@SUM(A1)",
    "'quoted",
    "#N/A",
    "1e5",
    "2024-01-01",
    "bell\x07.\x1b[2J.weight",
    "_x0041_.weight",
    "\u202egnp.weight",
    "two\nlines",
    "<b>&amp;</b>",
    "名前.0.weight",
    "\ufffe.weight",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ordinary, degenerate and hostile matrices, and its workbook."""
    folder = tmp_path_factory.mktemp("excel")
    tensors = {name: gaussian(24, 16, seed=i) for i, name in enumerate(HOSTILE)}
    tensors |= {f"layers.{i}.mlp.up_proj.weight": gaussian(40, 24, seed=i) for i in range(3)}
    tensors |= {"zero.weight": torch.zeros(12, 12), "thin.weight": gaussian(1, 9, seed=1)}
    tensors["nan.weight"] = torch.full((9, 9), float("nan"))
    write_file(folder / "model.safetensors", tensors)
    options = ("--out", "run", "--excel", "a.xlsx", "--format", "csv", "--shuffled")
    done = run_weightscope("analyze", "model.safetensors", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def cells(path: Path, title: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Headings and rows of a sheet, as openpyxl reads them."""
    page = openpyxl.load_workbook(path)[title]
    head, *rows = page.iter_rows(values_only=True)
    return [str(name) for name in head], rows


def shown(value: Any) -> Any:
    """A cell of a run as a spreadsheet holds it: control characters spelt out."""
    if not isinstance(value, str):
        return value
    text = "\n".join(
        "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in line
        )
        for line in value.split("\n")
    )  # fmt: skip
    return text.replace("_x0041_", "_x005F_x0041_")


def test_every_cell_is_that_of_the_run(folder: Path) -> None:
    run = load_run(folder / "run")
    head, rows = cells(folder / "a.xlsx", "table")
    assert head == [column.name for column in all_columns()]
    assert len(rows) == len(run.rows) == len(HOSTILE) + 6
    for row, found in zip(run.rows, rows, strict=True):
        # equal to the last bit, not nearly
        assert list(found) == [shown(row[name]) for name in head], row["name"]
    numbers = [v for row in rows for v in row if isinstance(v, float)]
    assert len({f"{v:.17g}" for v in numbers if float(f"{v:.16g}") != v}) > 50


def test_no_text_is_a_formula_or_an_error(folder: Path) -> None:
    page = openpyxl.load_workbook(folder / "a.xlsx")["table"]
    kinds = {cell.data_type for row in page.iter_rows() for cell in row}
    assert kinds == {"s", "n"}
    names = {cell.value: cell for cell in page["A"]}
    assert all(names[shown(name)].data_type == "s" for name in HOSTILE)
    # or a cell that someone opens and leaves again turns into what it looks like
    assert names["@SUM(A1)"].quotePrefix and not names["zero.weight"].quotePrefix


def test_it_is_a_table_that_one_can_work_with(folder: Path) -> None:
    page = openpyxl.load_workbook(folder / "a.xlsx")["table"]
    assert page.freeze_panes == "B2"
    assert page.auto_filter.ref == page.dimensions
    head = {cell.value: cell.column_letter for cell in page[1]}
    row = next(r for r in range(2, page.max_row + 1) if page[f"A{r}"].value.startswith("layers.0"))
    formats = {name: page[f"{head[name]}{row}"].number_format for name in head}
    assert formats["params"] == "#,##0" and formats["entropy"] == "0.0000"
    assert formats["name"] == "General"
    # empty in this run: out of sight, not out of the file
    assert page.column_dimensions[head["adapter_rank"]].hidden
    assert not page.column_dimensions[head["alpha"]].hidden


def test_colours_follow_the_thresholds_and_leave_empty_cells_alone(folder: Path) -> None:
    page = openpyxl.load_workbook(folder / "a.xlsx")["table"]
    head = {cell.value: cell.column_letter for cell in page[1]}
    rules = {str(area.sqref): list(area.rules) for area in page.conditional_formatting}
    last = page.max_row
    alpha = rules[f"{head['alpha']}2:{head['alpha']}{last}"]
    cell = f"{head['alpha']}2"
    assert [rule.formula[0] for rule in alpha] == [
        f"AND(ISNUMBER({cell}),{cell}<2)",
        f"AND(ISNUMBER({cell}),{cell}>6)",
        f"ISNUMBER({cell})",
    ]
    fills = [rule.dxf.fill.bgColor.rgb for rule in alpha]
    assert len(set(fills)) == 3
    status = rules[f"{head['status']}2:{head['status']}{last}"]
    assert any(rule.formula == [f'EXACT({head["status"]}2,"nonfinite")'] for rule in status)


def test_the_glossary_says_what_each_column_means(folder: Path) -> None:
    run = load_run(folder / "run")
    head, rows = cells(folder / "a.xlsx", "glossary")
    found = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    for column in all_columns():
        entry = found[column.name]
        assert entry["meaning"] == column.meaning
        assert (entry["caution"] or "") == column.caution
        assert (entry["source"] or "") == column.source
        assert entry["unit"] == (None if column.kind == "text" else column.unit)
        assert entry["filled"] == sum(row[column.name] is not None for row in run.rows)
    assert found["alpha_ks"]["family"] == "alpha"


def test_provenance_and_summary_are_those_of_the_run(folder: Path) -> None:
    run = load_run(folder / "run")
    produced = dict(cells(folder / "a.xlsx", "provenance")[1])
    assert produced["command"] == run.provenance["command"]
    assert produced["weightscope"] == run.provenance["weightscope"]
    assert produced["settings.seed"] == 0
    (file,) = run.provenance["source"]["files"]
    # beyond what a spreadsheet tells apart, so written as text
    assert produced["source.files[0].modified_ns"] == str(file["modified_ns"])
    summary = dict(cells(folder / "a.xlsx", "summary")[1])
    assert summary["alpha_median"] == run.summary["alpha_median"]
    assert summary["status.ok"] == counts(run.rows, "status")["ok"]


def test_the_same_run_gives_the_same_bytes(folder: Path) -> None:
    done = run_weightscope("report", "run", "--excel", "b.xlsx", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "b.xlsx").read_bytes() == (folder / "a.xlsx").read_bytes()


def test_compare_and_track_write_workbooks_too(folder: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        model = {f"layers.{i}.up.weight": gaussian(40, 24, seed=i + step) for i in range(3)}
        weightscope.analyze(
            model, device="cpu", metrics=("alpha", "norms"), out=tmp_path / f"step-{step}"
        )
    models = ("step-1", "step-2")
    for verb in ("compare", "track"):
        out = ("--excel", f"{verb}.xlsx", "--json", f"{verb}.json")
        done = run_weightscope(verb, *models, *out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = json.loads((tmp_path / f"{verb}.json").read_text())["rows"]
        head, found = cells(tmp_path / f"{verb}.xlsx", "table")
        assert [list(row) for row in found] == [[row[name] for name in head] for row in rows]
    meanings = {row[0]: row[3] for row in cells(tmp_path / "compare.xlsx", "glossary")[1]}
    assert all(meanings.values())
    assert meanings["alpha_ks_delta"].endswith("; change from a to b")
    assert "whether alpha changed" in meanings["alpha_moved"]
    explained = [row[0] for row in cells(tmp_path / "track.xlsx", "glossary")[1]]
    assert explained[:4] == ["step", "name", "metric", "value"] and "alpha" in explained


def test_peer_names_come_with_their_own_glossary(folder: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "w.xlsx")
    done = run_weightscope("report", "run", "--ww-names", "--excel", target, cwd=folder)
    assert done.returncode == 0, done.stderr
    meanings = {row[0]: row[3] for row in cells(tmp_path / "w.xlsx", "glossary")[1]}
    assert meanings["spectral_norm"] == "weightscope: spectral_norm squared"


def test_files_are_kept_and_a_terminal_is_spared(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("mine")
    done = run_weightscope("report", str(folder / "run"), "--excel", "a.xlsx", cwd=tmp_path)
    assert done.returncode == 1 and "--force" in done.stderr
    assert (tmp_path / "a.xlsx").read_text() == "mine"
    run = str(folder / "run")
    both = run_weightscope("report", run, "--excel", "b", "--json", "b", cwd=tmp_path)
    assert both.returncode == 2 and "--json and --excel cannot both" in both.stderr
    piped = subprocess.run(
        [sys.executable, "-m", "weightscope", "report", run, "--excel", "-"],
        capture_output=True,
        cwd=tmp_path,
        env=environment(),
        check=True,
    )
    assert piped.stdout == (folder / "a.xlsx").read_bytes()


def test_without_the_package_it_says_what_to_install(folder: Path) -> None:
    code = (
        "import sys; sys.modules['openpyxl'] = None\n"
        "from weightscope.cli.main import main\n"
        "sys.argv = ['weightscope', 'report', 'run', '--excel', 'c.xlsx']\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment()
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "pip install 'weightscope[excel]'" in done.stderr
    assert not (folder / "c.xlsx").exists()


@settings(max_examples=30)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=20))
def test_any_text_can_be_written_and_read_again(texts: list[str]) -> None:
    rows = [{"name": text} for text in texts]
    data = excel.render([Sheet("table", (Field("name", "text"),), rows)])
    page = openpyxl.load_workbook(io.BytesIO(data))["table"]
    assert page.max_row <= len(rows) + 1
    assert {cell.data_type for (cell,) in page.iter_rows() if cell.value is not None} <= {"s"}


@settings(max_examples=30)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_any_number_survives(values: list[float]) -> None:
    rows = [{"x": value} for value in values]
    data = excel.render([Sheet("table", (Field("x", "number"),), rows)])
    page = openpyxl.load_workbook(io.BytesIO(data))["table"]
    assert [cell.value for (cell,) in page.iter_rows(min_row=2)] == values


def test_numbers_of_a_column_are_shown_alike() -> None:
    assert number_format("integer", [1, 2]) == "#,##0"
    assert number_format("number", [3.1415, 2.7, 6.2]) == "0.000"
    assert number_format("number", [0.05, 0.02, None]) == "0.00000"
    assert number_format("number", [1e-9, 2e-9]) == "0.00E+00"
    assert number_format("number", [5.0, 9.0, 3e9]) == "0.00E+00"
    assert number_format("number", [12345.6, 9999.0]) == "#,##0"


def test_more_rows_than_a_spreadsheet_holds_are_refused() -> None:
    class Many(list[dict[str, float]]):
        def __len__(self) -> int:
            return excel.MOST_ROWS + 1

    from weightscope.errors import OptionError

    with pytest.raises(OptionError, match="more than a spreadsheet holds"):
        excel.render([Sheet("table", (Field("x", "number"),), Many())])


def test_workbooks_of_nothing_open(tmp_path: Path) -> None:
    sheets = workbook(["name", "alpha"], [], {"provenance": {"command": "x"}}, all_columns())
    (tmp_path / "empty.xlsx").write_bytes(excel.render(sheets))
    assert cells(tmp_path / "empty.xlsx", "table") == (["name", "alpha"], [])
