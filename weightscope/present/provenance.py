"""What produced a run, in a few lines under every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightscope.provenance import command_line
from weightscope.text import count_of, scaled

_FILES = 3


def provenance_lines(p: Mapping[str, Any]) -> list[str]:
    """Command, tool, environment, thresholds and files of a run, one line each."""
    return [f"Made by: {p['command']}", provenance_line(p), _thresholds(p), _files(p)]


def provenance_of_all(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """This command, then the lines of several runs; what is the same for all is said once."""
    lines = [f"Made by: {command_line()}"]
    for p in runs:
        lines += [f"Run of {p['model']}, made by: {p['command']}", _files(p, f" of {p['model']}")]
    shared = [line for p in runs for line in (provenance_line(p), _thresholds(p))]
    return [*lines, *dict.fromkeys(shared)]


def provenance_line(p: Mapping[str, Any]) -> str:
    """Tool, device and settings in one line."""
    environment, settings = p["environment"], p["settings"]
    revision = f", {p['source']['revision']}" if p["source"]["revision"] else ""
    counted = p.get("solvers", {}).items()
    solvers = "; solvers: " + ", ".join(f"{name} ({n})" for name, n in counted) if counted else ""
    compat = f", conventions of {settings['compat']}" if settings["compat"] else ""
    shard = f", shard {settings['shard']}" if settings.get("shard") else ""
    return (
        f"weightscope {p['weightscope']}, schema {p['schema']}{revision}{shard}{compat}, "
        f"{environment['device_name']} {environment['compute_dtype']}, "
        f"{settings['threads']} threads, {environment['blas']}, "
        f"seed {settings['seed']}{solvers}"
    )


def _thresholds(p: Mapping[str, Any]) -> str:
    return "Thresholds: " + ", ".join(f"{key} {value:g}" for key, value in p["thresholds"].items())


def _files(p: Mapping[str, Any], whose: str = "") -> str:
    files = p["source"]["files"]
    if not files:
        return f"Files{whose}: none (weights in memory)"
    shown = [
        f"{f['name']} {scaled(f['size'], 'B')} sha256 {f['header_sha256'][:12]}"
        + (f" {f['sample_sha256'][:12]}" if f.get("sample_sha256") else "")
        for f in files
    ]
    more = f" and {count_of(len(files) - _FILES, 'more file')}" if len(files) > _FILES else ""
    listed = "; ".join(shown[:_FILES])
    return f"Files{whose} (hashes of the header and of some of the bytes): {listed}{more}"
