"""Ways to damage a saved run, and every verb that reads one, run in this process."""

from __future__ import annotations

import copy
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from weightscope.cli.main import app

Path_ = tuple[str | int, ...]

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 10**6, 2**53, 2**63 - 1, 2**63, 10**40, 10**400),
    *(0.0, -0.0, 0.5, -1.5, 1.0, 5e-324, 1e-300, 1e300, 1.7e308),
    *("", " ", "a", "7", "1" * 5000, "nan", "ok", "1/2", "\x1b[31m", "\ud800", "x\ny", "\0"),
    *([], [[]], {}, [1], ["a"], {"a": 1}, [None] * 3, {"": {}}),
)
"""Values that belong nowhere, or only in some places."""
values = st.one_of(
    st.sampled_from(ODD),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
)


def places(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Where every value inside a value is, that itself first."""
    yield at
    inside = value.items() if isinstance(value, dict) else ()
    for key, member in enumerate(value) if isinstance(value, list) else inside:
        yield from places(member, (*at, key))


def changed(value: Any, at: Path_, change: str, to: Any) -> Any:
    """A copy in which the value at one place is replaced, deleted, or gets one beside it."""
    if not at:
        return to
    whole = copy.deepcopy(value)
    holder = whole
    for key in at[:-1]:
        holder = holder[key]
    if change == "delete":
        del holder[at[-1]]
    elif change == "add" and isinstance(holder, dict):
        holder[f"{at[-1]}_"] = to
    elif change == "add":
        holder.append(to)
    else:
        holder[at[-1]] = to
    return whole


def written(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def damages(draw: st.DrawFn, files: dict[str, bytes]) -> tuple[str, bytes]:
    """A file of a run and what it holds after one change."""
    name = draw(st.sampled_from(sorted(files)))
    lines = files[name].splitlines(keepends=True) if name.endswith("l") else [files[name]]
    index = draw(st.integers(0, len(lines) - 1))
    kinds = ["replace"] * 6 + ["delete", "add", "twice", "drop", "cut", "word"]
    kind = draw(st.sampled_from(kinds))
    line = lines[index]
    if kind in {"replace", "delete", "add"}:
        record = json.loads(line)
        at = draw(st.sampled_from(list(places(record))))
        line = written(changed(record, at, kind, draw(values))) + b"\n"
    elif kind == "twice":
        line = line + line
    elif kind == "drop":
        line = b""
    elif kind == "cut":
        line = line[: draw(st.integers(0, len(line) - 1))]
    else:
        record = json.loads(line)
        at = draw(st.sampled_from(list(places(record))))
        word = draw(st.sampled_from(["NaN", "Infinity", "1e999", "-Infinity", "[" * 5000, "tru"]))
        line = written(changed(record, at, "replace", "@@")).replace(b'"@@"', word.encode()) + b"\n"
    return name, b"".join([*lines[:index], line, *lines[index + 1 :]])


class _Closed(io.BytesIO):
    """Keeps what was written when the text stream around it goes."""

    def close(self) -> None:
        pass


def said(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command, run in this process."""
    out, err = _Closed(), _Closed()
    streams = [io.TextIOWrapper(s, "utf-8", "backslashreplace") for s in (out, err)]
    with (
        mock.patch.object(sys, "stdout", streams[0]),
        mock.patch.object(sys, "stderr", streams[1]),
        mock.patch.object(sys, "argv", ["weightscope", *words]),
    ):
        try:
            app(list(words), prog_name="weightscope")
            code: Any = 0
        except SystemExit as end:
            code = end.code
        for stream in streams:
            stream.flush()
    texts = [stream.getvalue().decode("utf-8", "replace") for stream in (out, err)]
    return int(code or 0), texts[0], texts[1]


def readers(folder: Path, other: Path, name: str, out: Path) -> list[list[str]]:
    """Every verb that reads a run, in each of its formats."""
    run, html = str(folder), str(out / "page.html")
    report = ["report", run, "--force"]
    return [
        *([*report, "--format", format] for format in ("table", "csv", "json", "markdown")),
        [*report, "--html", html],
        [*report, "--excel", str(out / "book.xlsx")],
        [*report, "--ww-names", "--csv", "-"],
        [*report, "--fail-on", "alpha > 1e9"],
        [*report, "--sort", "alpha", "--top", "2", "--format", "table"],
        ["compare", run, str(other), "--json", "-"],
        ["compare", str(other), run, "--html", html, "--force"],
        ["compare", str(other), run, "--by", "module", "--format", "table"],
        ["compare", str(other), run, str(other), "--csv", "-"],
        ["track", run, str(other), "--csv", "-"],
        ["track", run, str(other), "--html", html, "--force"],
        ["track", run, str(other), "--format", "table"],
        *(["plot", run, name, "--kind", kind] for kind in ("esd", "ks")),
        ["plot", run, "alpha", "--kind", "heatmap", "--out", str(out / "map.svg"), "--force"],
        *(
            ["plan", run, "--for", target, *more]
            for target, *more in (
                ("peft", "--modules", "2"),
                ("peft", "--modules", "2", "--rank", "effective", "--explain"),
                ("axolotl", "--top", "50%"),
                ("trl", "--top", "50%"),
                ("sparsity", "--target", "60%"),
                ("lr",),
                ("bits", "--bits", "4.5"),
                ("welore", "--target", "50%"),
            )
        ),
    ]
