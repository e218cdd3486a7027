"""A run in a notebook: a table that is text, colours that can be read, figures that show."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from checkpoints import ODD_NAMES, environment, gaussian, run_weightscope, write_file

import weightscope
from weightscope.errors import OptionError
from weightscope.run import Run
from weightscope.sinks import notebook
from weightscope.text import printable


class Page(HTMLParser):
    """Tags, attributes and table cells of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[tuple[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append(("", dict(attrs).get("class") or ""))

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.tags and self.tags[-1][0] in {"td", "th"} and self.rows[-1]:
            text, style = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, style)


def test_every_matrix_is_a_row_with_its_band(minilm_run: Run) -> None:
    page = Page(minilm_run._repr_html_())
    head = [text for text, _ in page.rows[0]]
    place = {name: head.index(name) for name in ("band", "alpha", "shape", "welore")}
    found = [row for row in page.rows[1:] if row[place["shape"]][0].strip()]
    assert len(found) == len(minilm_run.rows)
    bands = {"very-heavy": "extreme", "heavy": "good", "weak": "warn", "": ""}
    shown = []
    for row in found:
        word, style = row[place["band"]]
        assert style.split() == ["ws-left", *([f"ws-{bands[word]}"] if word else [])]
        shown.append((row[place["shape"]][0], row[place["alpha"]][0], word))
    expected = [
        (f"{r['rows']}x{r['cols']}", _alpha(r["alpha"]), r["alpha_band"] or "")
        for r in minilm_run.rows
    ]
    tidied = [(shape, alpha.partition(" ")[0], word) for shape, alpha, word in shown]
    assert sorted(tidied) == sorted(expected)
    assert "WeLore at a target reduction" in "".join(page.text)


def _alpha(value: object) -> str:
    return "" if value is None else f"{float(value):.3g}".ljust(4, "0")  # type: ignore[arg-type]


def test_names_are_text(tmp_path: Path) -> None:
    names = [*ODD_NAMES, "<img src=x onerror=alert(1)>", "a' onmouseover='x"]
    tensors = {name: gaussian(12, 10, seed=i) for i, name in enumerate(names)}
    run = weightscope.analyze(tensors, device="cpu", metrics=("alpha",))
    page = Page(run._repr_html_())
    allowed = {"div", "style", "h4", "p", "table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in page.tags} <= allowed
    assert {name for _, attrs in page.tags for name in attrs} <= {"class", "scope"}
    text = "".join(page.text)
    assert "\x1b" not in text and "\u202e" not in text and "\x00" not in text
    assert printable("escape\x1b[31mred\x1b]0;title\x07") in text
    assert "<script>alert(1)</script>" in text  # as letters


def test_nothing_is_fetched_and_nothing_runs(minilm_run: Run) -> None:
    text = minilm_run._repr_html_()
    assert "http" not in text and "url(" not in text and "<script" not in text
    assert len(text) < 100_000


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    ("colours", "page"), [(notebook._LIGHT, "#ffffff"), (notebook._DARK, "#1e1e1e")]
)
def test_colours_can_be_read(colours: dict[str, str], page: str) -> None:
    for ground in (page, colours["head"]):
        for name in ("ink", "soft", "good", "warn", "bad", "extreme"):
            pair = sorted((_luminance(colours[name]), _luminance(ground)))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, name


def test_dark_pages_are_known_and_light_ones_stay_light() -> None:
    style = notebook._css()
    for page in ('[data-jp-theme-light="false"]', "vscode-dark", 'theme="dark"'):
        assert page in style
    assert "body:not([data-jp-theme-light]):not(.vscode-light)" in style


def test_pictures_show_themselves(minilm_run: Run) -> None:
    plots = minilm_run.plot
    assert "esd" in repr(plots)
    for figure in (
        plots.esd("layer.0.attention.self.query"),
        plots.ks("encoder.layer.0.attention.self.query.weight"),
        plots.heatmap(),
        plots.distribution("erg_gap"),
        plots.depth("condition_number"),
    ):
        data, size = figure._repr_png_()
        assert data.startswith(b"\x89PNG")
        assert int.from_bytes(data[16:20]) == pytest.approx(2 * size["width"], abs=1)
    with pytest.raises(OptionError, match="no numeric column"):
        plots.heatmap("nonsense")
    with pytest.raises(OptionError, match="fits"):
        plots.esd("query")
    with pytest.raises(OptionError, match="cannot be drawn"):
        plots.ks("embeddings.token_type_embeddings")


def test_long_runs_say_that_they_are_cut(minilm_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightscope.integrations import notebook as shown

    monkeypatch.setattr(shown, "MOST_ROWS", 7)
    assert "33 of 40 rows are not shown" in minilm_run._repr_html_()


def test_a_run_made_elsewhere_shows_without_torch(tmp_path: Path) -> None:
    write_file(tmp_path / "m.safetensors", {"a.weight": gaussian(60, 40)})
    assert run_weightscope("analyze", "m.safetensors", "--out", "run", cwd=tmp_path).returncode == 0
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'matplotlib', 'transformers', 'pandas')))\n"
        "import weightscope\n"
        "run = weightscope.load_run('run')\n"
        "print(run._repr_html_())\n"
        "try:\n    run.plot.esd('a')\n"
        "except weightscope.errors.OptionError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "<table>" in done.stdout and "pip install 'weightscope[plots]'" in done.stdout
