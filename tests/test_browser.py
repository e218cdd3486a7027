"""The page in a browser: it draws, sorts, filters, selects; it runs and asks for nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from pages import ATTACKS, comparison, hostile_run, several, trajectory

from weightscope import charting
from weightscope.drawings.page import Page
from weightscope.evaluate import Row
from weightscope.present.page import run_page
from weightscope.present.page_comparison import comparison_page, wide_page
from weightscope.present.page_steps import trajectory_page
from weightscope.sinks import html
from weightscope.text import printable, short

pytestmark = pytest.mark.browser
SHOWN = 'Array.from(document.querySelectorAll("#rows tbody th"), (cell) => cell.textContent)'


@pytest.fixture(scope="module")
def rows() -> tuple[Row, ...]:
    """Rows of the hostile model."""
    return hostile_run().rows


def _opened(browser: Browser, page: Page, folder: Path) -> Browser:
    path = folder / "page.html"
    path.write_bytes(html.render(page).encode())
    browser.open(path)
    assert browser.run("document.documentElement.dataset.ready") == "true"
    return browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page of the hostile model, open."""
    with Browser() as found:
        yield _opened(found, run_page(hostile_run()), tmp_path_factory.mktemp("page"))


def _complaints(browser: Browser) -> list[Any]:
    """Everything that a page without a fault never reports."""
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    return [params for kind in kinds for params in browser.seen(kind)]


def _requests(browser: Browser) -> list[str]:
    return [params["request"]["url"] for params in browser.seen("Network.requestWillBeSent")]


def _choose(browser: Browser, control: str, value: object) -> None:
    browser.run(
        f"{{ const it = document.getElementById({control!r}); it.value = {value!r};"
        "it.dispatchEvent(new Event('change', { bubbles: true })); }"
    )


def test_hostile_names_are_shown_and_not_run(browser: Browser, rows: tuple[Row, ...]) -> None:
    names = browser.run(SHOWN)
    assert names == [printable(str(row["name"])) for row in rows]
    assert set(ATTACKS) <= set(names)
    # every matrix once, so that every name has been everywhere
    for row in range(len(rows)):
        _choose(browser, "matrix", str(row))
    assert browser.run("typeof window.pwned") == "undefined"
    assert browser.run("document.scripts.length") == 2
    assert browser.run("document.images.length") == 0
    assert browser.seen("Page.javascriptDialogOpening") == []
    assert _complaints(browser) == []


def test_the_map_shows_every_metric_as_the_charts_have_it(
    browser: Browser, rows: tuple[Row, ...]
) -> None:
    names = browser.run("Array.from(document.querySelectorAll('#metric option'), (o) => o.value)")
    assert len(names) > 40
    cells = (
        "Array.from(document.querySelectorAll('#heat .cell'),"
        "(c) => [+c.dataset.line, +c.dataset.block, c.getAttribute('aria-label')])"
    )
    for name in names:
        _choose(browser, "metric", name)
        found = {(line, block): text for line, block, text in browser.run(cells)}
        expected = charting.heat_map(rows, charting.column_named(name))
        for line, values in enumerate(expected.values):
            for block, value in enumerate(values):
                if expected.grid.cells[line][block]:
                    said = found.pop((line, block)).partition(f": {name} ")[2].split(",")[0]
                    # the page has six digits, which may fall on the other side of a half
                    assert said == ("empty" if value is None else short(value)) or (
                        value is not None and float(said) == pytest.approx(value, rel=0.006)
                    ), (name, line, block)
        assert found == {}
    assert _complaints(browser) == []
    _choose(browser, "metric", "alpha")


def test_a_click_on_a_heading_sorts(browser: Browser, rows: tuple[Row, ...]) -> None:
    def click(column: str) -> tuple[list[str], str]:
        button = f"document.querySelector('#rows button[data-column={column}]')"
        browser.run(f"{button}.click()")
        return browser.run(SHOWN), browser.run(f"{button}.parentNode.getAttribute('aria-sort')")

    places = {printable(str(row["name"])): row for row in rows}
    for rising in (False, True):
        names, said = click("alpha")
        assert said == ("ascending" if rising else "descending")
        values = [places[name]["alpha"] for name in names]
        known = [value for value in values if value is not None]
        assert known == sorted(known, reverse=not rising)
        assert None not in values[: len(known)]
    names, said = click("role")
    assert said == "ascending"
    roles = [str(places[name]["role"]) for name in names]
    assert roles == sorted(roles)


@pytest.mark.parametrize(
    ("typed", "keeps"),
    [
        ("ATTN_Q", lambda row: row["role"] == "attn_q"),
        ("alpha>2.5", lambda row: row["alpha"] is not None and row["alpha"] > 2.5),
        ("mlp block<=1 M>=32", lambda r: "mlp" in str(r["name"]) and r["block"] in {0, 1}
         and r["M"] >= 32),
        ("status=zero", lambda row: row["status"] == "zero"),
        ("<script>", lambda row: "<script>" in str(row["name"])),
        ("no such thing", lambda row: False),
    ],
)  # fmt: skip
def test_the_filter_keeps_what_fits(
    browser: Browser, rows: tuple[Row, ...], typed: str, keeps: Any
) -> None:
    browser.run("{ const f = document.getElementById('filter'); f.value = ''; f.focus(); }")
    browser.type(typed)
    expected = {printable(str(row["name"])) for row in rows if keeps(row)}
    assert set(browser.run(SHOWN)) == expected
    count = browser.run("document.getElementById('counted').textContent")
    assert count == f"{len(expected)} of {len(rows)} rows"
    browser.run("document.getElementById('filter').value = ''")
    browser.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
    assert len(browser.run(SHOWN)) == len(rows)


def test_all_columns_are_there_when_asked_for(browser: Browser, rows: tuple[Row, ...]) -> None:
    headings = "document.querySelectorAll('#rows thead button').length"
    few = browser.run(headings)
    browser.run("document.getElementById('all').click()")
    columns = sum(any(row[name] is not None for row in rows) for name in rows[0])
    assert few < browser.run(headings) == columns
    browser.run("document.getElementById('all').click()")
    assert browser.run(headings) == few


def test_the_keyboard_walks_over_the_map_and_chooses(
    browser: Browser, rows: tuple[Row, ...]
) -> None:
    browser.run("document.querySelector('#heat .cell[tabindex=\"0\"]').focus()")
    at = "[+document.activeElement.dataset.line, +document.activeElement.dataset.block]"
    line, block = browser.run(at)
    browser.press("ArrowRight")
    assert browser.run(at) == [line, block + 1]
    browser.press("ArrowDown")
    assert browser.run(at) == [line + 1, block + 1]
    tip = browser.run("document.getElementById('tip').textContent")
    row = int(browser.run("document.activeElement.dataset.row"))
    assert tip.startswith(str(rows[row]["name"]))
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "spectrum-title"
    assert browser.run("document.getElementById('matrix').value") == str(row)
    current = "document.querySelector('#rows tr[aria-current]').dataset.row"
    assert browser.run(current) == str(row)
    browser.run("document.querySelector('#rows thead button').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelectorAll('#rows th[aria-sort]').length") == 1


def test_a_matrix_shows_its_spectrum_and_its_laws(browser: Browser, rows: tuple[Row, ...]) -> None:
    drawn = charting.esds(hostile_run())
    row, name = next((i, str(r["name"])) for i, r in enumerate(rows) if r["role"] == "attn_q")
    browser.run(f"document.querySelector('#rows button[data-row=\"{row}\"]').click()")
    assert browser.run("document.getElementById('matrix').value") == str(row)
    dots = browser.run("document.querySelectorAll('#survival circle').length")
    assert dots == len(drawn[name].survival.x)
    for plot in ("density", "survival"):
        for law in ("tail", "bulk", "shuffled"):
            line = f"document.querySelectorAll('#{plot} path.{law}').length"
            box = f"document.querySelector('#keys input[data-law={law}]')"
            assert browser.run(line) == 1
            browser.run(f"{box}.click()")
            assert browser.run(line) == 0
            browser.run(f"{box}.click()")
    facts = browser.run(
        "Object.fromEntries(Array.from(document.querySelectorAll('#facts dt'),"
        "(dt) => [dt.textContent, dt.nextSibling.textContent]))"
    )
    for key in ("alpha", "erg_gap", "welore_class", "stable_rank"):
        assert facts[key] == short(rows[row][key])


def _calibrated(pairs: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """From pixels to values, through ticks; off by less than a tenth of a pixel."""
    pixels, values = np.array(pairs, dtype=float).T
    slope, start = np.polyfit(pixels, values, 1)
    assert np.abs(slope * pixels + start - values).max() < 0.1 * abs(slope)
    return lambda pixel: float(slope * pixel + start)


def test_the_points_of_a_spectrum_are_where_its_axes_say(browser: Browser) -> None:
    drawn = charting.esds(hostile_run())
    rows = hostile_run().rows
    row, name = next((i, str(r["name"])) for i, r in enumerate(rows) if r["role"] == "mlp_up")
    _choose(browser, "matrix", str(row))
    marks = browser.run(
        "Array.from(document.querySelectorAll('#survival .gridline'), (l) =>"
        "['x1', 'x2', 'y1'].map((k) => +l.getAttribute(k)).concat(l.nextSibling.textContent))"
    )
    ticks = {"\u207b": "-", **{c: str(i) for i, c in enumerate("\u2070\u00b9\u00b2\u00b3\u2074")}}

    def power(text: str) -> float:
        return float("".join(ticks[c] for c in text.removeprefix("10")))

    x = _calibrated([(x1, power(text)) for x1, x2, _, text in marks if x1 == x2])
    y = _calibrated([(y1, power(text)) for x1, x2, y1, text in marks if x1 != x2])
    dots = browser.run(
        "Array.from(document.querySelectorAll('#survival circle'),"
        "(c) => [+c.getAttribute('cx'), +c.getAttribute('cy')])"
    )
    esd = drawn[name]
    assert [x(cx) for cx, _ in dots] == pytest.approx(list(esd.survival.x), abs=2e-3)
    assert [y(cy) for _, cy in dots] == pytest.approx(list(esd.survival.y), abs=2e-3)
    assert esd.tail is not None
    path = browser.run("document.querySelector('#survival path.tail').getAttribute('d')")
    ends = [tuple(map(float, point.split())) for point in path.removeprefix("M").split("L")]
    assert [x(end[0]) for end in ends] == pytest.approx(list(esd.tail.survival.x), abs=2e-3)
    assert [y(end[1]) for end in ends] == pytest.approx(list(esd.tail.survival.y), abs=2e-3)
    for line, at in (("xmin", esd.xmin), ("erg", esd.erg_cut)):
        cut = f"+document.querySelector('#survival line.{line}').getAttribute('x1')"
        assert x(browser.run(cut)) == pytest.approx(at, abs=2e-3)


@pytest.mark.parametrize("metric", ["alpha", "erg_gap", "condition_number"])
def test_dots_and_boxes_are_values_and_quartiles(browser: Browser, metric: str) -> None:
    rows = hostile_run().rows
    _choose(browser, "metric", metric)
    dots = browser.run(
        "Array.from(document.querySelectorAll('#heat .dot'),"
        "(c) => [+c.dataset.row, +c.getAttribute('cx'), +c.getAttribute('cy')])"
    )
    expected = charting.distribution(rows, charting.column_named(metric))
    assert len(dots) == sum(len(group.values) for group in expected.groups)
    warp = math.log10 if expected.scale == "log" else float
    value = _calibrated([(cx, warp(float(rows[int(row)][metric] or 0))) for row, cx, _ in dots])
    boxes = browser.run(
        "Array.from(document.querySelectorAll('#heat .box'),"
        "(b) => [+b.getAttribute('x'), +b.getAttribute('x') + +b.getAttribute('width')])"
    )
    groups = [group.quartiles for group in expected.groups if len(group.values) > 2]
    assert len(boxes) == len(groups) >= 4
    span = max(map(warp, (g[4] for g in groups))) - min(map(warp, (g[0] for g in groups)))
    for (left, right), (_, lower, _, upper, _) in zip(boxes, groups, strict=True):
        assert value(left) == pytest.approx(warp(lower), abs=2e-3 * span)
        assert value(right) == pytest.approx(warp(upper), abs=5e-3 * span)
    _choose(browser, "metric", "alpha")


def test_lines_over_depth_are_where_their_axis_says(browser: Browser) -> None:
    expected = charting.over_depth({"run": hostile_run().rows}, charting.column_named("alpha"))
    ticks = browser.run(
        "Array.from(document.querySelector('#panels svg[role=img]').querySelectorAll('.gridline'),"
        "(l) => [+l.getAttribute('y1'), +l.nextSibling.textContent])"
    )
    warp = math.log10 if expected.scale == "log" else float
    value = _calibrated([(y, warp(text)) for y, text in ticks])
    drawn = browser.run(
        "Array.from(document.querySelector('#panels .trellis').querySelectorAll('svg[role=img]'),"
        "(s) => Array.from(s.querySelectorAll('.knot'), (c) => +c.getAttribute('cy')))"
    )
    assert len(drawn) == len(expected.panels)
    for knots, panel in zip(drawn, expected.panels, strict=True):
        values = [warp(y) for line in panel.lines for y in line.y if y is not None]
        assert [value(y) for y in knots] == pytest.approx(values, rel=2e-3, abs=2e-3)


def test_a_matrix_without_a_spectrum_says_why(browser: Browser, rows: tuple[Row, ...]) -> None:
    row = next(i for i, r in enumerate(rows) if r["status"] == "nonfinite")
    _choose(browser, "matrix", str(row))
    text = browser.run("document.getElementById('density').textContent")
    assert text == f"No spectrum to draw. {rows[row]['reason']}"
    assert _complaints(browser) == []


def test_light_and_dark(browser: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    seen = set()
    for scheme in ("light", "dark"):
        preferred = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.send("Emulation.setEmulatedMedia", features=preferred)
        before = browser.run(paper)
        browser.run("document.getElementById('theme').click()")
        after = browser.run(paper)
        assert before != after
        seen.add((before, after))
        browser.run("delete document.documentElement.dataset.theme")
    (light, dark), (dark_again, light_again) = sorted(seen, key=lambda pair: pair[0], reverse=True)
    assert (light, dark) == (light_again, dark_again)
    browser.send("Emulation.setEmulatedMedia", media="print", features=preferred)
    assert browser.run(paper) == light
    browser.send("Emulation.setEmulatedMedia", media="", features=[])
    assert _complaints(browser) == []


def test_every_control_has_a_name(browser: Browser) -> None:
    browser.send("Accessibility.enable")
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "combobox", "searchbox", "checkbox", "link", "img"}
    named = [node for node in nodes if node.get("role", {}).get("value") in controls]
    assert len(named) > 100
    nameless = [n for n in named if not n["ignored"] and not n.get("name", {}).get("value")]
    # the model has a tensor whose name is empty
    assert len(nameless) <= 1


@pytest.mark.parametrize("width", [360, 700, 1600])
def test_nothing_sticks_out_of_the_window(browser: Browser, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.send("Emulation.setDeviceMetricsOverride", **metrics)
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.send("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("kind", ["comparison", "several", "trajectory"])
def test_the_other_pages_open(kind: str, tmp_path: Path) -> None:
    if kind == "comparison":
        page, series = comparison_page(comparison()), 2
    elif kind == "several":
        page, series = wide_page(several()), 3
    else:
        page, series = trajectory_page(trajectory(), ()), 3
    with Browser() as browser:
        _opened(browser, page, tmp_path)
        assert browser.run("document.querySelectorAll('#density path.outline').length") == series
        assert browser.run("document.querySelectorAll('#panels .trellis').length") > 3
        assert len(browser.run(SHOWN)) == len(page.spectra)
        for row in range(len(page.spectra)):
            _choose(browser, "matrix", str(row))
        assert _complaints(browser) == []
        assert [url.partition(":")[0] for url in _requests(browser)] == ["file"]


def test_nothing_but_the_file_is_asked_for_and_the_policy_holds(browser: Browser) -> None:
    assert [url.partition(":")[0] for url in _requests(browser)] == ["file"]
    refused = browser.run("fetch('http://127.0.0.1:9/').then(() => 'sent', (e) => e.name)")
    assert refused == "TypeError"
    browser.run(
        "{ const s = document.createElement('script'); s.textContent = 'window.pwned = 1';"
        "document.body.append(s); }"
    )
    assert browser.run("typeof window.pwned") == "undefined"
    entries = [params["entry"]["text"] for params in browser.seen("Log.entryAdded")]
    assert any("connect-src" in text or "default-src" in text for text in entries)
    assert any("script-src" in text for text in entries)
    assert [url.partition(":")[0] for url in _requests(browser)] == ["file"]
