"""Charts made of characters: each bar, dot and label where the figures say."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import environment, gaussian, run_weightscope, write_file
from hypothesis import given
from hypothesis import strategies as st

from weightscope import gallery
from weightscope.drawings.esd import Esd
from weightscope.drawings.ks_curve import KsCurve
from weightscope.drawings.pictures import Picture
from weightscope.drawings.ticks import linear_ticks, log_ticks, power_of_ten
from weightscope.run import Run
from weightscope.sinks import terminal_chart
from weightscope.sinks.terminal_canvas import GUTTER, Canvas

EIGHTHS = " ▁▂▃▄▅▆▇█"
BITS = {1: (0, 0), 2: (1, 0), 4: (2, 0), 64: (3, 0), 8: (0, 1), 16: (1, 1), 32: (2, 1), 128: (3, 1)}


def rows_of(canvas: Canvas) -> list[str]:
    """Lines of a canvas without its axes."""
    return [line[GUTTER + 1 :] for line in canvas.rendered([], []).plain.split("\n")][
        : canvas.lines
    ]


def dots_of(rows: list[str]) -> set[tuple[int, int]]:
    """Row and column of every Braille dot, from the top left."""
    return {
        (4 * line + row, 2 * column + side)
        for line, text in enumerate(rows)
        for column, character in enumerate(text)
        if 0x2800 <= ord(character) < 0x2900
        for bit, (row, side) in BITS.items()
        if (ord(character) - 0x2800) & bit
    }


def test_bars_are_as_high_as_their_bins() -> None:
    canvas = Canvas((8, 5), (0.0, 8.0), (0.0, 10.0))
    tops = np.array([0.0, 1.25, 2.5, -np.inf, 5.0, 7.25, 10.0, 99.0])
    canvas.bars(np.arange(9.0), tops, "")
    rows = rows_of(canvas)
    heights = [sum(EIGHTHS.index(row[column]) for row in rows) for column in range(8)]
    assert heights == [0, 5, 10, 0, 20, 29, 40, 40]


def test_a_straight_line_is_dots_on_it_without_a_gap() -> None:
    canvas = Canvas((30, 10), (0.0, 60.0), (0.0, 40.0))
    canvas.curve(np.array([0.0, 60.0]), np.array([40.0, 0.0]), "", (1, 0))
    dots = dots_of(rows_of(canvas))
    assert {column for _, column in dots} == set(range(60))
    for row, column in dots:
        assert abs(row + 0.5 - (column + 0.5) * 2 / 3) <= 1.2


def test_steep_curves_are_drawn_in_full_and_gaps_are_left() -> None:
    canvas = Canvas((10, 10), (0.0, 10.0), (0.0, 1.0))
    canvas.curve(np.array([0.0, 5.0, 5.01, 10.0]), np.array([0.05, 0.05, 0.95, 0.95]), "", (1, 0))
    assert {row for row, _ in dots_of(rows_of(canvas))} >= set(range(2, 38))
    canvas = Canvas((10, 2), (0.0, 10.0), (0.0, 1.0))
    canvas.curve(np.array([0.0, 4.0, 6.0, 10.0]), np.array([0.5, np.nan, np.nan, 0.5]), "", (1, 0))
    assert not dots_of(rows_of(canvas))


def test_rules_marks_and_what_lies_outside() -> None:
    canvas = Canvas((10, 4), (0.0, 10.0), (0.0, 4.0))
    canvas.rule(3.5, "│", "")
    canvas.rule(99.0, "│", "")
    canvas.mark(7.2, 0.5, "●", "")
    canvas.mark(-1.0, 0.5, "x", "")
    rows = rows_of(canvas)
    assert [row.index("│") for row in rows] == [3] * 4
    assert rows[3][7] == "●" and not any("x" in row for row in rows)


def shown(picture: Picture, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO()
    terminal_chart.write(picture, stream)
    return stream.getvalue().split("\n")


def drawn(run: Run, name: str, kind: str) -> Picture:
    picture = gallery.matrix_picture(run, run.row(name), kind)
    assert isinstance(picture, Picture)
    return picture


@pytest.mark.parametrize("width", [45, 80, 200])
def test_a_spectrum_has_its_bars_and_cuts_in_place(
    minilm_run: Run, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = drawn(minilm_run, "layer.0.attention.self.query", "esd")
    chart = picture.chart
    assert isinstance(chart, Esd) and chart.xmin is not None and chart.erg_cut is not None
    lines = shown(picture, width, monkeypatch)
    assert max(map(len, lines)) <= min(width, 111)
    body = [line[GUTTER + 1 :] for line in lines if line[GUTTER : GUTTER + 1] in {"│", "┤"}]
    columns = max(map(len, body))
    assert len(body) == 18 and columns > 30
    low, high = chart.edges[0], chart.edges[-1]
    room = 0.02 * (high - low)
    for place, character in ((chart.xmin, "│"), (chart.erg_cut, "┊")):
        column = int((place - low + room) / (high - low + 2 * room) * columns)
        assert sum(line[column : column + 1] == character for line in body) > 8
    text = "\n".join(lines)
    for words in ("spectrum", "xmin", "ERG cut", "Marchenko-Pastur", "power law", "alpha 2.46"):
        assert words in text
    assert "shuffled" not in text and "\x1b" not in text
    colours = {str(span.style) for span in terminal_chart.esd(chart, 60).spans}
    assert {"#56B4E9", "#D55E00", "#009E73", "#E69F00"} <= colours
    assert not terminal_chart.esd(chart, 60).style  # nothing is dimmed as a whole


def test_the_search_marks_the_choice_at_the_lowest_dots(
    minilm_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = drawn(minilm_run, "layer.1.attention.self.value", "ks")
    chart = picture.chart
    assert isinstance(chart, KsCurve) and chart.second is not None
    lines = shown(picture, 100, monkeypatch)
    text = "\n".join(lines)
    assert f"chosen: alpha {chart.chosen.alpha:.2f}" in text
    assert f"second minimum: alpha {chart.second.alpha:.2f}" in text
    first = [line.index("●") for line in lines if "●" in line][:2]
    assert first[0] == first[1]  # the same xmin in both panels
    second = [line.index("◆") for line in lines if "◆" in line][:2]
    assert (second[0] > first[0]) == (chart.second.x > chart.chosen.x)


def test_on_the_terminal_it_needs_neither_matplotlib_nor_torch(tmp_path: Path) -> None:
    name = "esc\x1b]0;title\x07[bold]x[/bold].weight"
    write_file(tmp_path / "m.safetensors", {name: gaussian(60, 40), "z.weight": torch.zeros(9, 9)})
    assert run_weightscope("analyze", "m.safetensors", "--out", "run", cwd=tmp_path).returncode == 0
    for kind in ("esd", "ks"):
        code = (
            "import sys\n"
            "sys.modules.update(dict.fromkeys(('torch', 'matplotlib', 'transformers', 'pandas')))\n"
            "from weightscope.cli.main import main\n"
            f"sys.argv = ['weightscope', 'plot', 'run', 'bold', '--kind', {kind!r}]\n"
            "main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
            env=environment(COLUMNS="90"),
        )  # fmt: skip
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert "\x1b" not in done.stdout and "\x07" not in done.stdout
        assert r"esc\x1b]0;title\x07[bold]x[/bold].weight" in done.stdout
        assert max(map(len, done.stdout.split("\n"))) <= 90


@given(st.floats(-12, 12), st.floats(0.01, 20), st.integers(3, 9))
def test_marks_of_a_logarithmic_axis_say_where_they_are(low: float, span: float, most: int) -> None:
    ticks = log_ticks(low, low + span, most)
    places = [place for place, _ in ticks]
    assert places == sorted(places) and len(set(places)) == len(places) <= max(most, 9)
    assert all(low - 1e-6 <= place <= low + span + 1e-6 for place in places)
    if span > 0.5:
        assert len(ticks) >= 1
    plain = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
    for place, label in ticks:
        found = re.fullmatch(r"(?:(\d)·)?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", label)
        value = (
            float(found[1] or 1) * 10.0 ** int(found[2].translate(plain))
            if found
            else float(label.translate(plain))
        )
        assert np.log10(value) == pytest.approx(place, abs=2e-3)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(3, 9))
def test_marks_of_a_linear_axis_are_round(low: float, span: float, most: int) -> None:
    ticks = linear_ticks(low, low + span, most)
    assert 1 <= len(ticks) <= most
    for place, label in ticks:
        assert low - 1e-6 * span <= place <= low + span * (1 + 1e-6)
        said = float(label.replace("−", "-"))
        assert said == pytest.approx(place, rel=1e-9, abs=1e-6 * span)
    steps = np.diff([place for place, _ in ticks])
    if len(steps):
        mantissa = steps[0] / 10.0 ** np.floor(np.log10(steps[0]) + 1e-9)
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-6


def test_powers_of_ten() -> None:
    assert [power_of_ten(k) for k in (-12, -3, -2, 0, 3, 4)] == [
        "10⁻¹²", "0.001", "0.01", "1", "1000", "10⁴",
    ]  # fmt: skip


def test_the_readme_shows_a_real_one(minilm_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    found = re.search(r"<!-- plot -->\n```text\n(.*?)\n```\n<!-- /plot -->", readme, re.DOTALL)
    assert found
    lines = shown(drawn(minilm_run, "layer.0.attention.self.query", "esd"), 101, monkeypatch)
    now = "\n".join(line.rstrip() for line in lines).strip().split("\n")
    then = found[1].split("\n")
    assert len(now) == len(then)
    # another linear algebra may move the top of a bar
    assert sum(a != b for a, b in zip(now, then, strict=True)) <= 3
