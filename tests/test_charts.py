"""Charts of rows against pandas, numpy and counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from weightscope import charting
from weightscope.columns import Column
from weightscope.drawings.charts import Panels, scale_of
from weightscope.run import Run

ALPHA = charting.column_named("alpha")


def _row(name: str, module: str, block: int | None, role: str = "other", **cells: object):
    return {"name": name, "module": module, "block": block, "role": role, **cells}


EXPERTS = [
    _row(f"h.{b}.experts.{e}.w1", "h.#.experts.#.w1", b, "expert_gate", alpha=float(10 * b + e))
    for b in (2, 10)
    for e in (0, 1, 5)
]
ROWS = [
    *EXPERTS,
    _row("h.2.q", "h.#.q", 2, "attn_q", alpha=3.0, alpha_null_lo=4.0, alpha_null_hi=9.0),
    _row("h.10.q", "h.#.q", 10, "attn_q", alpha=None, alpha_null_lo=5.0, alpha_null_hi=8.0),
    _row("wte", "wte", None, "embedding", alpha=2.0),
]


def test_the_grid_orders_blocks_by_number_and_modules_by_role() -> None:
    grid = charting.grid_of(ROWS)
    assert grid.blocks == (2, 10, None)
    assert grid.modules == ("h.#.q", "h.#.experts.#.w1", "wte")
    assert grid.labels == ("q", "experts.#.w1", "wte")
    assert grid.cells == (((6,), (7,), ()), ((0, 1, 2), (3, 4, 5), ()), ((), (), (8,)))


def test_labels_stay_apart() -> None:
    rows = [_row(f"{side}.0.q", f"{side}.#.q", 0, "attn_q") for side in ("encoder", "decoder")]
    assert charting.grid_of(rows).labels == ("decoder.#.q", "encoder.#.q")


def test_a_heat_map_is_the_median_per_place() -> None:
    found = charting.heat_map(ROWS, ALPHA)
    assert found.values == ((3.0, None, None), (21.0, 101.0, None), (None, None, 2.0))
    assert found.scale == "log"


def test_a_heat_map_of_a_real_run_is_the_pivot_table_of_pandas(minilm_run: Run) -> None:
    frame = minilm_run.to_dataframe()
    for name in ("alpha", "condition_number", "erg_gap"):
        found = charting.heat_map(minilm_run.rows, charting.column_named(name))
        table = frame[frame["block"].notna()].pivot_table(name, "module", "block", "median")
        for module, line in zip(found.grid.modules, found.values, strict=True):
            for block, value in zip(found.grid.blocks, line, strict=True):
                if block is not None and module in table.index:
                    assert value == pytest.approx(table.loc[module, block])
        outside = frame[frame["block"].isna()].set_index("module")[name]
        for module, line in zip(found.grid.modules, found.values, strict=True):
            if found.grid.blocks[-1] is None and line[-1] is not None:
                assert line[-1] == pytest.approx(outside[module])


def test_a_distribution_has_the_quartiles_of_numpy(minilm_run: Run) -> None:
    found = charting.distribution(minilm_run.rows, ALPHA)
    shown = [name for group in found.groups for name in group.names]
    assert sorted(shown) == sorted(r["name"] for r in minilm_run.rows if r["alpha"] is not None)
    by_name = {row["name"]: row["alpha"] for row in minilm_run.rows}
    for group in found.groups:
        assert group.values == tuple(by_name[name] for name in group.names)
        expected = np.percentile(group.values, [0, 25, 50, 75, 100])
        assert group.quartiles == pytest.approx(expected)


def _noise_of(found: Panels, module: str) -> object:
    return next(panel.noise for panel in found.panels if panel.module == module)


def test_depth_has_a_line_per_module_and_its_noise() -> None:
    found = charting.over_depth({"run": ROWS}, ALPHA)
    assert [panel.label for panel in found.panels] == ["q", "experts.#.w1"]
    assert found.panels[0].lines[0].x == (2, 10)
    assert found.panels[0].lines[0].y == (3.0, None)
    assert found.panels[1].lines[0].y == (21.0, 101.0)
    noise = found.panels[0].noise
    assert noise is not None
    assert (noise.x, noise.low, noise.high) == ((2, 10), (4.0, 5.0), (9.0, 8.0))
    assert _noise_of(found, "h.#.experts.#.w1") is None
    assert {value for value, _ in found.marks} == {2.0, 6.0}


def test_two_series_share_their_panels() -> None:
    other = [{**row, "alpha": None if row["alpha"] is None else -row["alpha"]} for row in ROWS[:7]]
    found = charting.over_depth({"a": ROWS, "b": other}, ALPHA)
    assert [line.label for line in found.panels[0].lines] == ["a", "b"]
    assert found.panels[0].lines[1].y == (-3.0,)
    assert found.scale == "diverging"


def test_steps_have_a_line_per_matrix() -> None:
    first = {row["name"]: {**row, "alpha": 9.0} for row in ROWS if row["name"] != "wte"}
    last = {row["name"]: row for row in ROWS}
    found = charting.over_steps((100, 500), (first, last), ALPHA)
    assert [panel.label for panel in found.panels] == ["q", "experts.#.w1", "wte"]
    assert {line.label: line.y for line in found.panels[0].lines} == {
        "h.2.q": (9.0, 3.0),
        "h.10.q": (9.0, None),
    }
    assert found.panels[2].lines[0].y == (None, 2.0)
    noise = found.panels[0].noise
    assert noise is not None
    assert noise.low == (4.5, 4.5)


def test_no_value_is_no_chart() -> None:
    empty = [{**row, "alpha": None} for row in ROWS]
    assert charting.over_depth({"run": empty}, ALPHA).panels == ()
    assert charting.distribution(empty, ALPHA).groups == ()
    assert charting.numeric_columns([ALPHA], empty) == []
    assert charting.numeric_columns([ALPHA, Column("name", "text", "x")], ROWS) == [ALPHA]
    assert charting.heat_map([], ALPHA).values == ()


def test_scales() -> None:
    assert scale_of([1.0, 10.0]) == "linear"
    assert scale_of([1.0, 10.1, None]) == "log"
    assert scale_of([0.0, 100.0]) == "linear"
    assert scale_of([-1.0, 1.0]) == "diverging"
    assert scale_of([None]) == "linear"
