"""One self-contained page: opens from disk, asks nothing of any network, and says so in its policy.

Charts are plain SVG, drawn in the reader's browser by the scripts beside this file (40 KB).
A plotting library would weigh more than everything a page may hold (Plotly 3.5 MB, the Vega stack
0.8 MB), and pictures drawn here would be one for every metric and every matrix.

Names are hostile: text enters the markup escaped, and the data as JSON without any character that
ends a script; the page shows it as text only, and its policy allows no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from string import Template

from weightscope.drawings.page import Page
from weightscope.report import Block, Cell, Paragraph, Table
from weightscope.sinks.html_data import page_json
from weightscope.text import printable

SCRIPTS = ("base.js", "map.js", "panels.js", "spectrum.js", "table.js", "start.js")
_LEAD = ("strong", "warn", "bad")


def render(page: Page) -> str:
    """The page as HTML text; the same page gives the same bytes."""
    style = _asset("page.css")
    script = "(() => {\n'use strict';\n" + "\n".join(map(_asset, SCRIPTS)) + "})();\n"
    lead = [b for b in page.blocks[:3] if isinstance(b, Paragraph) and b.style in _LEAD]
    words = [block for block in page.blocks if block not in lead]
    return Template(_asset("page.html")).substitute(
        policy=_policy(script, style),
        title=_text(page.title),
        subtitle=_text(page.subtitle),
        style=style,
        over="Over steps" if any(p.axis == "step" for p in page.panels) else "Over depth",
        lead="\n".join(map(_block, lead)),
        words="\n".join(map(_block, words)),
        origin="\n".join(f"<p>{_text(line)}</p>" for line in page.origin),
        data=page_json(page),
        script=script,
    )


def _asset(name: str) -> str:
    return (files("weightscope.sinks") / "page" / name).read_text(encoding="utf-8")


def _policy(script: str, style: str) -> str:
    """Nothing is loaded from anywhere; the one script and the one style are known by their hash."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _text(text: str) -> str:
    return escape(printable(text))


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block)
    return f'<p class="{block.style}">{_text(block.text)}</p>'


def _table(table: Table) -> str:
    title = f"<caption>{_text(table.title)}</caption>" if table.title else ""
    head = "".join(
        f'<th scope="col"{_align(n)}>{_text(name)}</th>'
        for name, n in zip(table.headers, table.numeric, strict=True)
    )
    rows = "\n".join(f"<tr>{_row(row, table.numeric)}</tr>" for row in table.rows)
    inside = f"{title}<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody>"
    name = _text(table.title or "Table")
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
    return f"{region}<table>{inside}</table></div>"


def _row(cells: tuple[Cell, ...], numeric: tuple[bool, ...]) -> str:
    return "".join(
        f"<td{_align(n)}>{_text(cell.text)}</td>" for cell, n in zip(cells, numeric, strict=True)
    )


def _align(numeric: bool) -> str:
    return ' class="number"' if numeric else ""
