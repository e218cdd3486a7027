"""The page as a file: what is in it, what is not, and how large it is."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import run_weightscope, small_model, write_file
from pages import ATTACKS, Markup, comparison, hostile_run, several, training, trajectory

from weightscope import charting
from weightscope.drawings.page import Page
from weightscope.folders import storage
from weightscope.folders.records import measurement_record
from weightscope.measurement import EntryStatistics, Measurement
from weightscope.present.page import MOST_SPECTRA, run_page
from weightscope.present.page_comparison import comparison_page, wide_page
from weightscope.present.page_steps import trajectory_page
from weightscope.run import Run
from weightscope.sinks import html
from weightscope.spectrum import Spectrum
from weightscope.text import printable

ASSETS = files("weightscope.sinks") / "page"
PAGES: dict[str, Callable[[], Page]] = {
    "run": lambda: run_page(hostile_run()),
    "comparison": lambda: comparison_page(comparison()),
    "several": lambda: wide_page(several()),
    "trajectory": lambda: trajectory_page(trajectory(), ()),
}


@pytest.fixture(scope="module", params=PAGES)
def text(request: pytest.FixtureRequest) -> str:
    """Every kind of page."""
    return html.render(PAGES[request.param]())


@pytest.fixture(scope="module")
def markup() -> Markup:
    """The page of the hostile model."""
    return Markup(html.render(run_page(hostile_run())))


# --- safety ----------------------------------------------------------------------------------


def test_the_policy_knows_the_script_and_the_style_by_hash_and_nothing_else(text: str) -> None:
    found = Markup(text)
    (script,) = [body for kind, body in found.scripts if kind == ""]
    (style,) = found.styles

    def digest(body: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"

    assert found.policy() == {
        "default-src": "'none'",
        "script-src": digest(script),
        "style-src": digest(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # a policy holds for what comes after it
    assert text.index("Content-Security-Policy") < text.index("<style")


def test_nothing_of_the_page_leads_elsewhere(text: str) -> None:
    found = Markup(text)
    assert {"img", "iframe", "object", "embed", "base", "form"}.isdisjoint(found.tags)
    for key, value in found.attributes:
        assert not key.startswith("on"), key
        assert key not in {"src", "srcset", "action", "style"}, key
        if key == "href":
            assert value.startswith("#") or value == "data:,", value
    addresses = set(re.findall(r"https?://[^\s\"'`]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}


def test_names_are_text(markup: Markup) -> None:
    assert markup.tags.count("script") == 2
    names = markup.record()["cells"][0]
    assert names == [printable(str(row["name"])) for row in hostile_run().rows]
    for attack in ATTACKS:
        assert attack in names
    (data,) = [body for kind, body in markup.scripts if kind]
    assert data.isascii()
    assert not set("<>&") & set(data)
    assert "\u202e" not in "".join(names)


def test_the_scripts_make_no_markup_and_no_requests() -> None:
    for name in html.SCRIPTS:
        script = (ASSETS / name).read_text()
        assert len(script.splitlines()) <= 400
        assert "\r" not in script
        for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "</"):
            assert word not in script, (name, word)
        for word in ("fetch(", "XMLHttpRequest", "WebSocket", "import(", "new Function", "Image("):
            assert word not in script, (name, word)


# --- data ------------------------------------------------------------------------------------


def test_the_table_is_that_of_the_run_to_six_digits(markup: Markup) -> None:
    record = markup.record()
    for column, cells in zip(record["columns"], record["cells"], strict=True):
        for row, cell in zip(hostile_run().rows, cells, strict=True):
            value = row[column["name"]]
            if isinstance(value, str):
                assert cell == printable(value)
            elif isinstance(value, float):
                assert cell == pytest.approx(value, rel=5e-6)
            else:
                assert cell == value
    shown = {column["name"] for column in record["columns"]}
    for name in hostile_run().rows[0]:
        filled = any(row[name] is not None for row in hostile_run().rows)
        assert (name in shown) == filled, name
    assert {"alpha", "erg_gap", "condition_number", "welore_rank", "traps"} <= shown


def test_every_column_is_explained(text: str) -> None:
    for column in Markup(text).record()["columns"]:
        assert len(column["tip"]) > 10, column
        assert column["group"]


def test_the_spectra_are_those_that_were_drawn(markup: Markup) -> None:
    drawn = charting.esds(hostile_run())
    record = markup.record()
    assert len(record["spectra"]) == len(hostile_run().rows)
    for name, spectra in zip(
        (r["name"] for r in hostile_run().rows), record["spectra"], strict=True
    ):
        if name not in drawn:
            assert spectra == []
            continue
        (found,), esd = spectra, drawn[str(name)]
        assert (found["n"], found["hidden"]) == (esd.n, esd.hidden)
        start, width = found["edges"]
        edges = (start + width * np.arange(len(esd.edges))) / 1000
        assert edges == pytest.approx(esd.edges, abs=1e-4)
        density = [-np.inf if v is None else v / 1000 for v in found["density"]]
        assert density == pytest.approx(esd.density, abs=6e-4)
        for key, law in (("tail", esd.tail), ("bulk", esd.bulk), ("shuffled", esd.shuffled)):
            assert (found[key] is None) == (law is None), (name, key)
            if law is not None:
                assert np.array(found[key]["density"]) / 1000 == pytest.approx(
                    np.array([law.density.x, law.density.y]), abs=6e-4
                )
        for key, at in (("xmin", esd.xmin), ("erg", esd.erg_cut)):
            assert found[key] == pytest.approx(at and 1000 * at, abs=0.6)


def test_the_grid_and_the_panels_are_those_of_the_charts(markup: Markup) -> None:
    record, rows = markup.record(), hostile_run().rows
    grid = charting.grid_of(rows)
    assert record["grid"]["blocks"] == list(grid.blocks)
    assert record["grid"]["cells"] == [[list(cell) for cell in line] for line in grid.cells]
    assert [chart["name"] for chart in record["panels"]] == [
        "alpha", "erg_gap", "welore_rank_ratio", "condition_number",
    ]  # fmt: skip
    alpha = charting.over_depth({"run": rows}, charting.column_named("alpha"))
    for found, panel in zip(record["panels"][0]["panels"], alpha.panels, strict=True):
        (line,) = found["lines"]
        assert line["x"] == list(panel.lines[0].x)
        assert line["y"] == pytest.approx(list(panel.lines[0].y), rel=5e-6)
        assert panel.noise is not None
        assert found["noise"]["high"] == pytest.approx(list(panel.noise.high), rel=5e-6)


def test_a_comparison_overlays_both_runs() -> None:
    found = comparison_page(comparison())
    drawn = {figures.column.name: figures.values for figures in found.figures}
    rows = comparison().rows
    assert drawn["alpha_delta"] == tuple(row["alpha_delta"] for row in rows)
    for row, spectra in zip(rows, found.spectra, strict=True):
        sides = {"added": [1], "removed": [0]}.get(str(row["change"]), [0, 1])
        if row["name"] == "lm_head.weight":
            assert sides == [1]
        if row["alpha_a"] is not None or row["alpha_b"] is not None:
            assert [one.series for one in spectra] == sides, row["name"]
    alpha = found.panels[0]
    assert [line.label for line in alpha.panels[0].lines] == list(found.series)


def test_a_training_has_its_steps() -> None:
    found = trajectory_page(trajectory(), ("spectral_norm",))
    assert found.series == ("step 100", "step 200", "step 1000")
    assert found.first == "spectral_norm_change"
    assert found.panels[0].column.name == "spectral_norm"
    drawn = {figures.column.name: figures.values for figures in found.figures}
    for i, name in enumerate(trajectory().names):
        first, *_, last = trajectory().values(name, "alpha")
        assert (drawn["alpha_100"][i], drawn["alpha_1000"][i]) == (first, last)
        if first is not None and last is not None:
            assert drawn["alpha_change"][i] == pytest.approx(last - first)
    assert found.spectra[trajectory().names.index("lm_head.weight")][0].series == 2


def test_several_runs_stand_beside_the_first() -> None:
    found = wide_page(several())
    drawn = {figures.column.name: figures.values for figures in found.figures}
    for i, row in enumerate(several().rows):
        of_c = next(r for r in training()[2].rows if r["name"] == row["name"])
        assert drawn["alpha_c"][i] == of_c["alpha"]
        assert [one.series for one in found.spectra[i]] == [
            place for place, letter in enumerate("abc") if letter in str(row["present"])
        ]
    assert [len(panel.lines) for panel in found.panels[0].panels] == [3] * 4


def test_what_produced_it_is_in_the_footer(markup: Markup) -> None:
    version = hostile_run().provenance["weightscope"]
    assert f"weightscope {version}, schema" in markup.text
    assert "seed 0" in markup.text


# --- size, and the command line --------------------------------------------------------------


def _large_run(folder: Path, count: int, order: int) -> None:
    """A saved run of square matrices that was never computed: figures of one, spectra of noise."""
    rng = np.random.default_rng(0)
    source = next(row for row in hostile_run().rows if row["role"] == "attn_q")
    details = hostile_run().details[str(source["name"])]["shuffled"]
    rows, lines, arrays = [], [], {}
    ranks = np.unique(np.geomspace(1, order, 90).astype(int)).tolist()
    for i in range(count):
        name = f"model.layers.{i // 7}.self_attn.projection_number_{i % 7}.weight"
        values = np.sort(rng.lognormal(0, 1, order))[::-1]
        spectrum = Spectrum(values, order, order, solver="given")
        numbers = {
            key: value * float(rng.uniform(0.5, 2)) if isinstance(value, float) else value
            for key, value in source.items()
        }
        module = f"model.layers.#.self_attn.projection_number_{i % 7}"
        cells = {"name": name, "block": i // 7, "module": module}
        cells["spectral_norm"] = float(values[0])
        drawn = {"ranks": ranks, "singular_values": [float(values[rank - 1]) for rank in ranks]}
        rows.append({**numbers, **cells, "details": {"shuffled": {**details, **drawn}}})
        record = measurement_record(Measurement(_matrix(), _statistics(), spectrum))
        lines.append({**record, "name": name})
        arrays[name] = values
    folder.mkdir()
    summary = {**hostile_run().summary, "matrices": count}
    provenance = {**hostile_run().provenance, "finished": True, "summary": summary}
    storage.save_arrays(folder / storage.SPECTRA, arrays)
    for name, records in ((storage.ROWS, lines), (storage.TABLE, rows)):
        storage.write_text(folder / name, "".join(storage.dumps(r) + "\n" for r in records))
    storage.write_text(folder / storage.RUN, storage.dumps(provenance))


def _statistics() -> EntryStatistics:
    return EntryStatistics(0.0, 1.0, 4.0, 0.0, 0, 1e-9)


def _matrix() -> Any:
    class Named:
        name = ""

    return Named()


def test_a_page_of_300_large_matrices_is_under_three_megabytes(tmp_path: Path) -> None:
    _large_run(tmp_path / "run", 300, 4096)
    done = run_weightscope("report", "run", "--html", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_bytes()
    assert len(page) < 3_000_000
    record = Markup(page.decode()).record()
    assert [len(spectra) for spectra in record["spectra"]] == [1] * 300
    assert all(spectra[0]["shuffled"] and spectra[0]["bulk"] for spectra in record["spectra"])
    again = run_weightscope("report", "run", "--html", "-", cwd=tmp_path)
    assert again.stdout.encode() == page


def test_a_page_of_more_matrices_than_it_can_hold_takes_one_of_each_place_first() -> None:
    source = hostile_run()
    template = next(row for row in source.rows if row["role"] == "attn_q")
    spectrum = source.spectrum(str(template["name"]))
    rows = tuple(
        {**template, "name": f"h.{b}.experts.{e}.w1", "module": "h.#.experts.#.w1", "block": b}
        for b in range(4)
        for e in range(MOST_SPECTRA // 2)
    )
    spectra = {str(row["name"]): spectrum for row in rows}
    found = run_page(Run(source.provenance, rows, source.summary, load_spectra=lambda: spectra))
    assert sum(map(len, found.spectra)) == MOST_SPECTRA
    for b in range(4):
        assert found.spectra[b * MOST_SPECTRA // 2]


def test_an_empty_run_has_a_page() -> None:
    source = hostile_run()
    text = html.render(run_page(Run(source.provenance, (), source.summary)))
    assert Markup(text).record()["cells"] == []


def test_the_command_line_writes_every_kind_of_page(tmp_path: Path) -> None:
    for step, seed in (("step-100", 0), ("step-200", 1)):
        write_file(tmp_path / f"{step}.safetensors", small_model(blocks=1, seed=seed))
    both = ("step-100.safetensors", "step-200.safetensors")
    done = run_weightscope("compare", *both, "--html", "compared.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rel_change" in done.stdout.split("\n")[0]  # the table is printed all the same
    done = run_weightscope("track", *both, "--html", "tracked.html", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    titles = {
        name: re.findall(r"<h1>(.*?)</h1>", (tmp_path / name).read_text())
        for name in ("compared.html", "tracked.html")
    }
    assert titles == {name: ["step-100 \u2192 step-200"] for name in titles}
    refused = run_weightscope("compare", *both, "--html", "compared.html", cwd=tmp_path)
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    twice = run_weightscope("compare", *both, "--html", "x", "--csv", "x", cwd=tmp_path)
    assert twice.returncode == 2
    assert "cannot both write x" in twice.stderr
