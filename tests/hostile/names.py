"""Names of tensors that steer, compute, climb or never end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from checkpoints import gaussian, write_file

from hostile.case import Build, Case

LONG = 100_000
GROUPS: dict[str, tuple[str, ...]] = {
    "colours and a window's title": ("escape\x1b[31mred", "\x1b]0;title\x07", "\x9b2J\x1bc"),
    "a link of a terminal": ("\x1b]8;;http://localhost/\x07click\x1b]8;;\x07",),
    "formulas": ("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=HYPERLINK(1)"),
    "HTML": ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"onload='x", "&lt;"),
    "Markdown": ("|a|b|", "[x](javascript:alert(1))", "`code`", "![i](http://localhost/)", "# h"),
    "markup of the library that prints": ("[bold]markup[/bold]", "[/]", "[link=http://x]y[/link]"),
    "paths": ("../../etc/passwd", "/absolute", "C:\\windows", "..", ".", "a/b/../../../c"),
    "NUL bytes": ("nul\x00byte", "\x00", "a\x00"),
    "line breaks": ("line\nbreak", "carriage\rreturn", "crlf\r\n", "\u0085\u2028\u2029"),
    "text that runs backwards": ("right-to-left\u202egnp.exe", "\u2066isolate\u2069", "\u200f"),
    "what cannot be seen": ("", " ", "\u200b", "\ufeff", "\u00ad", "w\u3164"),
    "quotes": ('quote"and,comma;semicolon', "'", '"', "''", "`'\"", "a,b"),
    "100 kB": ("x" * LONG,),
    "100 kB of escapes": ("\x1b[31m" * (LONG // 5),),
    "200,000 digits": ("layers." + "9" * 200_000 + ".weight",),
    "100,000 components": (".".join("a" * LONG) + ".weight",),
    "100,000 blocks": ("layers.1." * LONG + "weight",),
    "100 kB that almost is an adapter": ("lora_" * (LONG // 5) + "A.weight", "alpha." * 10_000),
    "100 kB that almost is quantised": ("weight_scale_inv." * 6000 + "qweight",),
    "every script": ("\u00e4\u00f6\u00fc.\u6743\u91cd.\U0001f600.\u0e01\u0e34", "\u0661\u0662"),
}


def _model(names: Sequence[str]) -> Build:
    def build(folder: Path) -> Path:
        tensors = {name: gaussian(12, 10, seed=seed) for seed, name in enumerate(names)}
        return write_file(folder / "model.safetensors", {"plain.weight": gaussian(9, 8), **tensors})

    return build


def cases() -> Iterator[Case]:
    """Models that are well but for the names of their tensors, and two that are not."""
    for name, group in GROUPS.items():
        yield Case(f"names: {name}", _model(group), "plain", code=0)
    yield Case("names: one that a generated name has", _clash, "two matrices are called 'w[1]'")
    yield Case("names: one in two shards", _twice, "'w' is also in a.safetensors")


def _clash(folder: Path) -> Path:
    tensors = {"w": gaussian(3, 8, 6), "w[1]": gaussian(8, 6)}
    return write_file(folder / "model.safetensors", tensors)


def _twice(folder: Path) -> Path:
    write_file(folder / "a.safetensors", {"w": gaussian(8, 6), "x": gaussian(8, 6)})
    write_file(folder / "b.safetensors", {"w": gaussian(8, 6)})
    return folder
