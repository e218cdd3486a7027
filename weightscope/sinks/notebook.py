"""Reports as a piece of a notebook's page: nothing but a table, readable in light and dark.

What matters is said in words too, so that nothing hangs on telling colours apart, or on a viewer
that leaves styles out.
"""

from __future__ import annotations

from html import escape

from weightscope.report import Cell, Report, Table
from weightscope.text import printable

_LIGHT = {"ink": "#1f1f1f", "soft": "#595959", "line": "#d5d5d5", "head": "#f2f2f2",
          "good": "#00664a", "warn": "#7d5300", "bad": "#a83700", "extreme": "#87366d"}  # fmt: skip
_DARK = {"ink": "#e6e6e6", "soft": "#a8a8a8", "line": "#4a4a4a", "head": "#2b2b2b",
         "good": "#56d8b0", "warn": "#f0b93f", "bad": "#ff946a", "extreme": "#ecaad0"}  # fmt: skip
"""Okabe and Ito's green, orange, vermilion and purple, as dark or light as text must be."""
_DARK_PAGES = (
    '[data-jp-theme-light="false"] .weightscope',
    "body.vscode-dark .weightscope",
    "body.vscode-high-contrast .weightscope",
    'html[theme="dark"] .weightscope',
)
"""How JupyterLab, VS Code and Colab mark a dark page; others leave it to the system."""


def render(report: Report) -> str:
    """HTML of a report: one ``div`` with its own style; every name is text."""
    parts = [f"<div class='weightscope'><style>{_css()}</style>", _line("h4", report.title, "")]
    for block in report.blocks:
        parts.append(
            _table(block) if isinstance(block, Table) else _line("p", block.text, block.style)
        )
    return "\n".join([*parts, "</div>"])


def _css() -> str:
    light = f"color-scheme:light;{_variables(_LIGHT)}"
    dark = f"color-scheme:dark;{_variables(_DARK)}"
    return (
        f".weightscope{{{light}color:var(--ws-ink);max-width:100%}}"
        "@media (prefers-color-scheme:dark){"
        "body:not([data-jp-theme-light]):not(.vscode-light) .weightscope"
        f"{{{dark}}}}}"
        f"{','.join(_DARK_PAGES)}{{{dark}}}"
        ".weightscope .ws-scroll{max-height:32em;overflow:auto;display:inline-block;max-width:100%}"
        ".weightscope table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
        ".weightscope th{position:sticky;top:0;background:var(--ws-head);text-align:right}"
        ".weightscope td,.weightscope th{padding:2px 8px;white-space:pre;text-align:right;"
        "color:var(--ws-ink);border-bottom:1px solid var(--ws-line)}"
        ".weightscope .ws-left{text-align:left}"
        ".weightscope .ws-strong{font-weight:600}"
        ".weightscope .ws-dim{color:var(--ws-soft)}"
        + "".join(
            f".weightscope .ws-{name}{{color:var(--ws-{name});font-weight:600}}"
            for name in ("good", "warn", "bad", "extreme")
        )
    )


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--ws-{name}:{colour};" for name, colour in colours.items())


def _line(tag: str, text: str, style: str) -> str:
    name = f" class='ws-{style}'" if style else ""
    return f"<{tag}{name}>{_escape(text)}</{tag}>"


def _table(table: Table) -> str:
    heads = "".join(
        f"<th scope='col'{_side(numeric)}>{_escape(name)}</th>"
        for name, numeric in zip(table.headers, table.numeric, strict=True)
    )
    rows = "\n".join(f"<tr>{_cells(row, table.numeric)}</tr>" for row in table.rows)
    title = _line("p", table.title, "strong") if table.title else ""
    return (
        f"{title}<div class='ws-scroll'><table><thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cells(row: tuple[Cell, ...], numeric: tuple[bool, ...]) -> str:
    return "".join(
        f"<td{_side(number, cell.style)}>{_escape(cell.text)}</td>"
        for cell, number in zip(row, numeric, strict=True)
    )


def _side(numeric: bool, style: str = "") -> str:
    names = ([] if numeric else ["ws-left"]) + ([f"ws-{style}"] if style else [])
    return f" class='{' '.join(names)}'" if names else ""


def _escape(text: str) -> str:
    return escape(printable(text))
