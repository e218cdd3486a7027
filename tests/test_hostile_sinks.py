"""Names that steer, compute, climb and run, through every sink that the command line has."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import openpyxl
import pytest
from checkpoints import ODD_NAMES, gaussian, run_each, run_weightscope, write_file
from hostile.names import GROUPS

from weightscope.cli.options import Format
from weightscope.sinks.csv import unescape

LONGEST = 131_072
"""What a cell may hold that Python's reader of CSV takes."""
ALL = dict.fromkeys([*ODD_NAMES, *(name for group in GROUPS.values() for name in group)])
NAMES = [name for name in ALL if len(name) < LONGEST]
PICTURED = [name for name in NAMES if any(mark in name for mark in ("<", "\x1b", "..", "\u202e"))]
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
ACTIVE = {"script", "img", "iframe", "object", "embed", "base", "foreignobject"}
"""Elements that load or run something."""
FILES = {"--csv": "out.csv", "--json": "out.json", "--html": "out.html", "--excel": "out.xlsx"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a model of all these names was analysed, and every file written that can be."""
    folder = tmp_path_factory.mktemp("sinks")
    tensors = {name: gaussian(12, 10, seed=seed) for seed, name in enumerate(NAMES)}
    write_file(folder / "toy.safetensors", tensors)
    done = run_weightscope(
        "analyze", "toy.safetensors", "--out", "run", "--metrics", "alpha,norms,rank", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    offered = run_weightscope("report", "--help").stdout
    words = [word for pair in FILES.items() if pair[0] in offered for word in pair]
    done = run_weightscope("report", "run", *words, "--format", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    if "--svg" in offered:
        few = {name: tensors[name] for name in PICTURED}
        write_file(folder / "few.safetensors", few)
        options = ("--metrics", "alpha", "--svg", "charts", "--no-save")
        done = run_weightscope("analyze", "few.safetensors", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def written(work: Path, option: str) -> Path:
    return work / {**FILES, "--svg": "charts"}[option]


def steers(text: str) -> set[str]:
    """Characters that a terminal obeys or a reader does not see, but for the end of a line."""
    return {c for c in text if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"}}


def test_csv_holds_names_and_no_formulas(work: Path) -> None:
    text = written(work, "--csv").read_bytes().decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {unescape(row["name"]) for row in rows} == set(NAMES)
    assert not any(row["name"].startswith(FORMULAS) for row in rows)
    assert not any(str(row["module"]).startswith(FORMULAS) for row in rows)


def test_json_holds_names_as_they_are(work: Path) -> None:
    text = written(work, "--json").read_text("utf-8")
    assert not steers(text) and text.isascii()
    assert {row["name"] for row in json.loads(text)["rows"]} == set(NAMES)


class Elements(HTMLParser):
    """Elements of a page, and the names of their attributes."""

    def __init__(self, text: str) -> None:
        """Parse a page."""
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.values: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember an element."""
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.values += [value for _, value in attrs if value]


def test_html_shows_names_and_runs_none(work: Path) -> None:
    page = Elements(written(work, "--html").read_text("utf-8"))
    raw = written(work, "--html").read_text("utf-8")
    assert not steers(raw.replace("\t", ""))
    assert page.tags.count("script") <= 2, "its data and its own"
    assert not set(page.tags) & (ACTIVE - {"script"})
    assert not {name for name in page.attributes if name.startswith("on")}
    assert not any("javascript:" in value for value in page.values)
    assert "<script>alert" not in raw and "onerror=alert" in raw, "it is there, as text"


def test_excel_holds_no_formulas(work: Path) -> None:
    book = openpyxl.load_workbook(written(work, "--excel"))
    cells = [cell for sheet in book for row in sheet.iter_rows() for cell in row]
    texts = [cell for cell in cells if isinstance(cell.value, str)]
    assert len(cells) > 100 and not [cell for cell in cells if cell.data_type == "f"]
    assert any(cell.value.startswith("=cmd|") for cell in texts), "it is there, as text"
    assert not any(steers(cell.value.replace("\t", "")) for cell in texts)


def test_charts_are_pictures_and_lie_in_their_folder(work: Path) -> None:
    folder = written(work, "--svg")
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert found and all(path.parent == folder and path.name.isprintable() for path in found)
    for path in found:
        if path.suffix != ".svg":
            continue
        for element in ElementTree.parse(path).iter():
            tag = str(element.tag).rpartition("}")[2].lower()
            assert tag not in ACTIVE
            names = {name.rpartition("}")[2].lower() for name in element.attrib}
            assert not {name for name in names if name.startswith("on")}
            assert not steers("".join(element.itertext()).replace("\t", ""))


def markdown(text: str) -> None:
    """No element of HTML but a line break, and as many cells in each row of a table."""
    assert set(re.findall(r"(?<!\\)<(\w+)", text)) <= {"br"}
    assert not re.search(r"(?<!\\)\]\((javascript|http)", text)
    cells = None
    for line in text.split("\n"):
        count = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert count is None or cells is None or count == cells, line[:200]
        cells = count


READS: dict[str, Callable[[str], object]] = {
    "table": lambda text: None,
    "csv": lambda text: list(csv.DictReader(io.StringIO(text, newline=""))),
    "json": json.loads,
    "markdown": markdown,
}


@pytest.mark.parametrize("verb", [("inspect",), ("inspect", "--why"), ("report",)], ids=" ".join)
def test_standard_output_in_every_format(work: Path, verb: tuple[str, ...]) -> None:
    """What a person reads is harmless, what a program reads is well formed."""
    model = "run" if verb == ("report",) else "toy.safetensors"
    formats = [str(kind) for kind in Format]
    commands = [(*verb, model, "--format", kind) for kind in formats]
    for kind, done in zip(formats, run_each(commands, work), strict=True):
        assert done.returncode == 0 and not steers(done.stderr), done.stderr
        assert kind == "csv" or not steers(done.stdout)
        READS.get(kind, lambda text: None)(done.stdout)
    ww = run_each([("report", "run", "--ww-names", "--format", "csv")], work)[0].stdout
    rows = list(csv.DictReader(io.StringIO(ww, newline="")))
    assert len(rows) == len(NAMES) and not any(r["longname"].startswith(FORMULAS) for r in rows)


def test_the_names_are_many() -> None:
    assert len(NAMES) >= 60 and len(PICTURED) >= 8
