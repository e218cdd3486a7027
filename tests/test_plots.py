"""Charts as files: where the points lie, whose bytes they are, and names that stay names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
import torch
from checkpoints import ODD_NAMES, environment, gaussian, run_weightscope, write_file
from matplotlib.colors import Normalize, to_hex

import weightscope
from weightscope import gallery
from weightscope.comparing import Comparing, compare_many
from weightscope.drawings.charts import Distribution, HeatMap, Panels
from weightscope.drawings.esd import Esd
from weightscope.drawings.ks_curve import KsCurve
from weightscope.drawings.pictures import Picture
from weightscope.errors import OptionError, WeightscopeError
from weightscope.folders.storage import load_run
from weightscope.outcome import Failure
from weightscope.present.page_comparison import wide_page
from weightscope.present.page_steps import trajectory_page
from weightscope.run import Run
from weightscope.sinks import figure_tables
from weightscope.sinks.figures import render
from weightscope.sinks.folder import file_name, rendered
from weightscope.trajectory import track

SVG = "{http://www.w3.org/2000/svg}"
FACTS = {"command": "weightscope analyze x", "tool": "weightscope 1"}
FORMULAS = (r"a$\frac{1}{2}$.weight", "odd$.weight", "$$.weight")
ODD = {"../../etc/passwd", "<script>alert(1)</script>", "nul\x00byte", "",
       "gewicht.\u00e4\u00f6\u00fc.\u6743\u91cd.\U0001f600"}  # fmt: skip
NO_ONE = "layers.0.mlp.up_proj.weight"


def tensors() -> dict[str, torch.Tensor]:
    """A small model with every kind of odd name."""
    names = dict.fromkeys((*(name for name in ODD_NAMES if name in ODD), *FORMULAS))
    odd = {name: gaussian(24, 20, seed=i) for i, name in enumerate(names)}
    layers = {
        f"layers.{i}.{part}.weight": gaussian(64, 48, seed=10 * i + j)
        for i in range(3)
        for j, part in enumerate(("mlp.up_proj", "self_attn.q_proj"))
    }
    return odd | layers | {"zero.weight": torch.zeros(12, 12)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, drawn as SVG while it was made."""
    folder = tmp_path_factory.mktemp("plots")
    write_file(folder / "model.safetensors", tensors())
    options = ("--shuffled", "1", "--metrics", "alpha,mp,null", "--out", "run", "--svg", "svg")
    done = run_weightscope("analyze", "model.safetensors", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return load_run(folder / "run")


def index_of(folder: Path) -> list[dict[str, str]]:
    pictures: list[dict[str, str]] = json.loads((folder / "index.json").read_text())["pictures"]
    return pictures


def svg_of(picture: Picture) -> ET.Element:
    return ET.fromstring(render(picture, "svg", FACTS))


def group(root: ET.Element, name: str, nth: int = 0) -> ET.Element:
    return [g for g in root.iter(f"{SVG}g") if g.get("id") == name][nth]


def path_points(element: ET.Element) -> np.ndarray:
    path = element.find(f".//{SVG}path")
    assert path is not None
    return np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d", "")), dtype=float)


def markers(element: ET.Element) -> np.ndarray:
    found = [(use.get("x"), use.get("y")) for use in element.iter(f"{SVG}use")]
    return np.array(found, dtype=float)


def affine(pixels: np.ndarray, data: np.ndarray) -> tuple[float, float]:
    """Slope and offset from data to pixels, which must fit every point."""
    slope, offset = np.polyfit(data, pixels, 1)
    assert slope * data + offset == pytest.approx(pixels, abs=2e-3)
    return float(slope), float(offset)


def tick_positions(root: ET.Element, axis: str, panel: int = 1) -> dict[str, float]:
    """Where the labels of a panel's axis stand, by what they say."""
    axes = group(root, f"axes_{panel}")
    found = {}
    for tick in axes.iter(f"{SVG}g"):
        if (tick.get("id") or "").startswith(f"{axis}tick"):
            (use,) = list(tick.iter(f"{SVG}use"))[:1]
            (text,) = list(tick.iter(f"{SVG}text"))[:1]
            found[str(text.text)] = float(use.get(axis[0], "nan"))
    return found


def named(run: Run, name: str, kind: str) -> Picture:
    picture = gallery.matrix_picture(run, run.row(name), kind)
    assert isinstance(picture, Picture)
    return picture


def test_every_picture_is_a_file_and_the_index_says_which(folder: Path, run: Run) -> None:
    spectra = {name for name, s in run.spectra().items() if s.largest > 0}
    index = index_of(folder / "svg")
    files = {path.name for path in (folder / "svg").iterdir()}
    assert files == {"index.json", *(entry["file"] for entry in index)}
    assert len({entry["file"].lower() for entry in index}) == len(index)
    assert {entry["subject"] for entry in index if entry["kind"] == "esd"} == spectra
    kinds = {(entry["kind"], entry["subject"]) for entry in index}
    assert {("heatmap", "alpha"), ("distribution", "mp_softrank"), ("depth", "alpha")} <= kinds
    assert ("heatmap", "alpha_farms") not in kinds  # not computed
    record = json.loads((folder / "svg" / "index.json").read_text())
    assert record["provenance"]["command"] == run.provenance["command"]


def test_hostile_names_stay_in_their_folder(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "run", "svg"}
    for path in (folder / "svg").iterdir():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._~-]*", path.name)
        assert path.is_file() and not path.is_symlink() and len(path.name) < 140


def test_equal_file_names_are_kept_apart() -> None:
    chart = HeatMap.__new__(HeatMap)
    taken: set[str] = set()
    names = ["a/b", "a_b", "A_b.weight", "../" * 90, "../" * 90 + "x", "", "\x00"]
    found = [file_name(Picture("esd", name, "", chart), "png", taken) for name in names]
    assert len({name.lower() for name in found}) == len(names)
    assert found[:3] == ["esd-a_b.png", "esd-a_b~2.png", "esd-A_b~3.png"]
    assert all(len(name) < 140 and "/" not in name for name in found)


def test_svgs_hold_no_code_and_reach_for_nothing(folder: Path) -> None:
    for path in (folder / "svg").glob("*.svg"):
        root = ET.parse(path).getroot()
        for element in root.iter():
            assert element.tag.rpartition("}")[2] not in {"script", "foreignObject", "image", "a"}
            for name, value in element.attrib.items():
                assert not name.rpartition("}")[2].lower().startswith("on")
                if name.endswith("href"):
                    assert value.startswith("#"), path.name


@pytest.mark.parametrize("name", FORMULAS)
def test_names_are_no_formulas(folder: Path, name: str) -> None:
    (entry,) = [e for e in index_of(folder / "svg") if e["subject"] == name]
    root = ET.parse(folder / "svg" / entry["file"]).getroot()
    assert name in [text.text for text in root.iter(f"{SVG}text")]


BLOCKED = ("torch", "transformers", "pandas", "scipy", "huggingface_hub")


def test_drawn_again_elsewhere_without_torch_and_in_whatever_style(
    folder: Path, tmp_path: Path
) -> None:
    style = tmp_path / "matplotlibrc"
    style.write_text("text.usetex: True\nfont.size: 30\nsvg.fonttype: path\n")
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
        "from weightscope.cli.main import main\n"
        "options = ['-q', '--format', 'csv', '--svg', 'svg', '--png', 'png', '--excel', 'a.xlsx']\n"
        f"sys.argv = ['weightscope', 'report', {str(folder / 'run')!r}, *options]\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env=environment(MATPLOTLIBRC=str(style)),
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (tmp_path / "a.xlsx").exists()
    for path in (folder / "svg").iterdir():
        assert path.read_bytes() == (tmp_path / "svg" / path.name).read_bytes(), path.name
    pngs = sorted((tmp_path / "png").glob("*.png"))
    assert {p.stem for p in pngs} == {p.stem for p in (folder / "svg").glob("*.svg")}
    for path in pngs:
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[0] > 300 and pixels.shape[1] > 500, path.name
        inks = np.unique(pixels[::3, ::3, :3] @ np.array([1, 256, 65536], dtype=np.float32))
        assert len(inks) > 10, path.name
        assert 0.01 < np.mean(pixels[:, :, 0] < 0.9) < 0.6, path.name


def test_the_survival_function_is_drawn_where_its_points_are(run: Run) -> None:
    picture = named(run, NO_ONE, "esd")
    chart = picture.chart
    assert isinstance(chart, Esd) and chart.tail and chart.xmin and chart.shuffled and chart.bulk
    root = svg_of(picture)
    points = markers(group(root, "survival"))
    across, down = affine(points[:, 0], chart.survival.x), affine(points[:, 1], chart.survival.y)
    law = path_points(group(root, "power-law", 1))
    assert law[:, 0] == pytest.approx(across[0] * chart.tail.survival.x + across[1], abs=2e-3)
    assert law[:, 1] == pytest.approx(down[0] * chart.tail.survival.y + down[1], abs=2e-3)
    rule = path_points(group(root, "xmin", 1))
    assert rule[:, 0] == pytest.approx(across[0] * chart.xmin + across[1], abs=2e-3)


def test_the_axes_say_the_numbers(run: Run) -> None:
    picture = named(run, NO_ONE, "esd")
    chart = picture.chart
    assert isinstance(chart, Esd) and chart.tail
    root = svg_of(picture)
    law = path_points(group(root, "power-law"))
    plain = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    for axis, pixels, logs in (
        ("x", law[:, 0], chart.tail.density.x),
        ("y", law[:, 1], chart.tail.density.y),
    ):
        slope, offset = affine(pixels, logs)
        ticks = tick_positions(root, axis)
        assert len(ticks) >= 3
        for label, place in ticks.items():
            power = re.fullmatch(r"10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", label)
            value = 10.0 ** int(power[1].translate(plain)) if power else float(label)
            assert place == pytest.approx(slope * np.log10(value) + offset, abs=2e-3)


def test_bars_have_the_heights_of_the_density(run: Run) -> None:
    picture = named(run, NO_ONE, "esd")
    chart = picture.chart
    assert isinstance(chart, Esd) and chart.tail
    root = svg_of(picture)
    law = path_points(group(root, "power-law"))
    across = affine(law[:, 0], chart.tail.density.x)
    down = affine(law[:, 1], chart.tail.density.y)
    corners = path_points(group(root, "density"))
    for left, top in zip(chart.edges, chart.density, strict=False):
        if np.isfinite(top):
            corner = (across[0] * left + across[1], down[0] * top + down[1])
            assert np.abs(corners - corner).sum(axis=1).min() < 5e-3


def test_the_search_is_drawn_with_its_choice(minilm_run: Run) -> None:
    name = next(str(r["name"]) for r in minilm_run.rows if r["alpha_second"] is not None)
    picture = named(minilm_run, name, "ks")
    chart = picture.chart
    assert isinstance(chart, KsCurve) and chart.second is not None
    root = svg_of(picture)
    row = minilm_run.row(name)
    places = tick_positions(root, "x", 2)
    across = affine(np.array([*places.values()]), np.log10([float(x) for x in places]))
    for panel, gid, values, cell in (
        (0, "distance", chart.ks, "alpha_ks"),
        (1, "exponent", chart.alpha, "alpha"),
    ):
        places = tick_positions(root, "y", panel + 1)
        down = affine(np.array([*places.values()]), np.array([float(y) for y in places]))
        points = path_points(group(root, gid))
        box = (points.min(axis=0), points.max(axis=0))
        seen = 0
        for x, y in zip(across[0] * chart.x + across[1], down[0] * values + down[1], strict=True):
            if np.all((x, y) > box[0] + 1) and np.all((x, y) < box[1] - 1):
                seen += 1
                assert np.abs(points - (x, y)).sum(axis=1).min() < 5e-3
        assert seen > 0.7 * len(values)
        for mark, x, y in (
            ("chosen", np.log10(row["alpha_xmin"]), row[cell]),
            ("second-minimum", chart.second.x, (chart.second.ks, chart.second.alpha)[panel]),
        ):
            (place,) = markers(group(root, mark, panel))
            expected = [across[0] * x + across[1], down[0] * y + down[1]]
            assert place == pytest.approx(expected, abs=5e-3)


PAGE_CSS = (Path(weightscope.__file__).parent / "sinks" / "page" / "page.css").read_text()


@pytest.mark.parametrize(
    ("gid", "law"),
    [("Marchenko-Pastur", "bulk"), ("shuffled", "shuffled"), ("power-law", "tail"),
     ("xmin", "xmin"), ("erg-cut", "erg")],
)  # fmt: skip
def test_laws_look_as_they_do_on_the_page(run: Run, gid: str, law: str) -> None:
    rule = re.search(rf"^\.{law} {{ stroke: var\(--(\w+)\);(.*) }}", PAGE_CSS, re.MULTILINE)
    assert rule
    colour = re.search(rf"--{rule[1]}: light-dark\((#\w+),", PAGE_CSS)
    dashes = re.search(r"stroke-dasharray: (\d) (\d)", rule[2])
    picture = named(run, NO_ONE, "esd")
    assert isinstance(picture.chart, Esd) and picture.chart.xmin
    everything = replace(picture.chart, erg_cut=picture.chart.xmin - 0.1)
    style = str(group(svg_of(replace(picture, chart=everything)), gid)[0].get("style"))
    assert colour and f"stroke: {colour[1]}" in style
    drawn = re.search(r"stroke-dasharray: ([\d.]+),([\d.]+)", style)
    assert bool(drawn) == bool(dashes)
    if drawn and dashes:
        expected = int(dashes[1]) / int(dashes[2])
        assert float(drawn[1]) / float(drawn[2]) == pytest.approx(expected, rel=1e-2)


def test_a_distribution_of_alpha_marks_the_thresholds(minilm_run: Run) -> None:
    picture = gallery.column_picture(minilm_run, "alpha", "distribution")
    chart = picture.chart
    assert isinstance(chart, Distribution) and chart.scale == "linear"
    root = svg_of(picture)
    drawn = [markers(group(root, f"group-{k}"))[:, 0] for k in range(len(chart.groups))]
    values = [value for each in chart.groups for value in each.values]
    slope, offset = affine(np.concatenate(drawn), np.array(values))
    for threshold in (2, 6):
        line = path_points(group(root, f"mark-{threshold}"))
        assert line[:, 0] == pytest.approx(slope * threshold + offset, abs=2e-3)


def test_cells_of_a_heat_map_have_the_colours_of_their_values(run: Run) -> None:
    picture = gallery.column_picture(run, "alpha", "heatmap")
    chart = picture.chart
    assert isinstance(chart, HeatMap) and chart.scale != "diverging"
    values = np.array(
        [[np.nan if v is None else v for v in line] for line in chart.values], dtype=float
    )
    points = np.log10(values) if chart.scale == "log" else values
    norm = Normalize(np.nanmin(points), np.nanmax(points))
    colours = mpl.colormaps["viridis"](norm(points))
    expected = [
        to_hex(colour)
        for colour, value in zip(colours.reshape(-1, 4), values.flat, strict=True)
        if np.isfinite(value)
    ]
    drawn = [
        match[1]
        for path in group(svg_of(picture), "cells").iter(f"{SVG}path")
        if (match := re.search(r"fill: (#\w{6})", path.get("style", "")))
    ]
    assert drawn == expected
    assert len(set(drawn)) > 5


def test_panels_put_blocks_across_and_values_up(run: Run) -> None:
    picture = gallery.column_picture(run, "alpha", "depth")
    chart = picture.chart
    assert isinstance(chart, Panels)
    root = svg_of(picture)
    layers = [p for p in chart.panels if len(p.lines[0].x) == 3]
    assert len(layers) == 2 and all(panel.noise is not None for panel in layers)
    scales = []
    for panel in layers:
        nth = chart.panels.index(panel)
        points = markers(group(root, "line-0", nth))
        values = np.array(panel.lines[0].y, dtype=float)
        logs = np.log10(values) if chart.scale == "log" else values
        affine(points[:, 0], np.array(panel.lines[0].x, dtype=float))
        scales.append(affine(points[:, 1], logs)[0])
    assert scales[0] == pytest.approx(scales[1], rel=1e-3)  # common axes


def test_plot_writes_one_file_of_any_format(folder: Path, run: Run, tmp_path: Path) -> None:
    for name, start in (("a.png", b"\x89PNG"), ("a.pdf", b"%PDF")):
        target = tmp_path / name
        done = run_weightscope("plot", folder / "run", "0.mlp.up_proj", "--out", target)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", f"Wrote {target}\n")
        data = target.read_bytes()
        assert data.startswith(start) and b"weightscope analyze" in data
        assert data == rendered(named(run, NO_ONE, "esd"), name[2:], [run.provenance])
    kept = run_weightscope("plot", folder / "run", "0.mlp.up_proj", "--out", target)
    assert kept.returncode == 1 and "--force" in kept.stderr
    assert target.read_bytes() == data


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("up_proj",), "fits 3 matrices"),
        (("layers.9.mlp.up_proj",), "did you mean layers."),
        (("zero",), "cannot be drawn"),
        (("alpha", "--kind", "heatmap"), "give --out FILE.png"),
        (("alhpa", "--kind", "depth", "--out", "a.png"), "did you mean alpha"),
        (("alpha_farms", "--kind", "depth", "--out", "a.png"), "is empty in this run"),
        (("alpha_band", "--kind", "depth", "--out", "a.png"), "no numeric column"),
        (("layers.0.mlp.up_proj", "--out", "a.gif"), "end the name in .png, .svg, .pdf"),
        (("layers.0.mlp.up_proj", "--out", "-"), "end the name in"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    from typer.testing import CliRunner

    from weightscope.cli.main import app

    result = CliRunner().invoke(app, ["plot", str(folder / "run"), *arguments])
    assert result.exit_code == 2
    assert said in result.output + result.stderr


def test_folders_are_kept_unless_forced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "mine.txt").write_text("mine")
    run = folder / "run"
    refused = run_weightscope("report", run, "--png", "png", cwd=tmp_path)
    assert refused.returncode == 1 and "not empty" in refused.stderr
    nowhere = run_weightscope("report", run, "--png", "no/such/place", cwd=tmp_path)
    assert nowhere.returncode == 1 and "does not exist" in nowhere.stderr
    into = run_weightscope("report", run, "--png", run, "--force", cwd=tmp_path)
    assert into.returncode == 1 and "is a run folder" in into.stderr
    same = run_weightscope("report", run, "--png", "x", "--svg", "x", cwd=tmp_path)
    assert same.returncode == 2
    assert (tmp_path / "png" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("verb", [("report", "--png", "p"), ("plot", NO_ONE, "--out", "p.svg")])
def test_without_matplotlib_it_says_what_to_install(
    folder: Path, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from weightscope.cli.main import main\n"
        f"sys.argv = ['weightscope', {verb[0]!r}, {str(folder / 'run')!r}, *{list(verb[1:])!r}]\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env=environment(),
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert "pip install 'weightscope[plots]'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_runs_of_odd_matrices_draw_what_there_is(zoo_run: Run) -> None:
    drawn = list(gallery.pictures(zoo_run))
    subjects = {picture.subject for picture in drawn if picture.kind == "esd"}
    assert {"gaussian_q1.weight", "tiny_float64.weight", "huge_float64.weight"} <= subjects
    assert "zero.weight" not in subjects and "identity.weight" not in subjects
    for picture in drawn:
        if picture.subject in {"alpha", "tiny_float64.weight", "ties.weight", "row.weight"}:
            assert ET.fromstring(render(picture, "svg", FACTS)) is not None
    assert not [picture for picture in drawn if picture.kind == "depth"]  # it has no blocks
    with pytest.raises(OptionError, match="inside a block"):
        gallery.column_picture(zoo_run, "alpha", "depth")
    row = zoo_run.row("zero")
    assert isinstance(gallery.matrix_picture(zoo_run, row, "esd"), Failure)
    with pytest.raises(OptionError):
        zoo_run.row("nothing of the kind")


def test_spectra_go_by_short_names_too(zoo_run: Run) -> None:
    expected = zoo_run.spectra()["gaussian_q1.weight"]
    for name in ("gaussian_q1.weight", "gaussian_q1", "ssian_q1"):
        assert zoo_run.spectrum(name) is expected
    for name, said in {
        "gausian_q1": "'gausian_q1' is no matrix of this run; did you mean gaussian_q1.weight",
        "gaussian": r"'gaussian' fits \d+ matrices: .*, \.\.\.$",
        "one_nan": "one_nan.weight: has no spectrum: .*NaN",
    }.items():
        with pytest.raises(KeyError) as caught:
            zoo_run.spectrum(name)
        assert isinstance(caught.value, WeightscopeError)
        assert re.match(said, str(caught.value)), str(caught.value)


def test_comparisons_and_trainings_are_drawn_too(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        model = {f"layers.{i}.up.weight": gaussian(40, 24, seed=step * i + i) for i in range(2)}
        weightscope.analyze(
            model, device="cpu", metrics=("alpha", "rank"), out=tmp_path / f"step-{step}"
        )
    runs = [str(tmp_path / f"step-{step}") for step in (1, 2, 3)]
    done = run_weightscope("compare", *runs[:2], "--svg", "svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kinds = {(entry["kind"], entry["subject"]) for entry in index_of(tmp_path / "svg")}
    assert {("esd", "layers.0.up.weight"), ("heatmap", "alpha_delta"), ("depth", "alpha")} <= kinds
    how = Comparing()
    wide = list(gallery.page_pictures(wide_page(compare_many(runs, how))))
    steps = list(gallery.page_pictures(trajectory_page(track(runs, how), ())))
    assert {("steps", "alpha"), ("heatmap", "alpha_change")} <= {(p.kind, p.subject) for p in steps}
    overlays = [
        next(p for p in drawn if p.subject == "layers.0.up.weight") for drawn in (wide, steps)
    ]
    roots = [ET.parse(tmp_path / "svg" / "esd-layers.0.up.svg").getroot(), *map(svg_of, overlays)]
    for root, count in zip(roots, (2, 3, 3), strict=True):
        places = tick_positions(root, "x", 2)
        across = affine(np.array([*places.values()]), np.log10([float(x) for x in places]))
        for k in range(count):
            spectrum = load_run(Path(runs[k])).spectrum("layers.0.up.weight")
            points = path_points(group(root, f"survival-{k}"))
            ends = 2 * np.log10(spectrum.singular_values[[-1, 0]])
            assert points[[0, -1], 0] == pytest.approx(across[0] * ends + across[1], abs=5e-3)
        assert not [g for g in root.iter(f"{SVG}g") if g.get("id") == f"survival-{count}"]


def test_more_modules_than_a_page_holds_are_squeezed_or_left_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure_tables, "MOST_LINES", 20)
    monkeypatch.setattr(figure_tables, "MOST_PANELS", 6)
    row = run.row(NO_ONE)
    rows = tuple(
        {**row, "name": f"m{i}.0.w", "module": f"m{i}.#.w", "alpha": 2.0 + i % 7} for i in range(45)
    )
    many = replace(run, rows=rows)
    for kind, count in (("heatmap", 15), ("distribution", 15), ("depth", 6)):
        root = svg_of(gallery.column_picture(many, "alpha", kind))
        assert float(root.get("height", "").removesuffix("pt")) < 8 * 72
        texts = [text.text or "" for text in root.iter(f"{SVG}text")]
        assert sum(bool(re.match(r"m\d+\.#", text)) for text in texts) == count
    assert "6 of 45 modules" in texts
