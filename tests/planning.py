"""Runs made by hand, whose plans can be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weightscope.evaluate import Row, all_columns
from weightscope.layouts.roles import place_of, role_of
from weightscope.run import Run
from weightscope.settings import Settings

EMPTY: Row = dict.fromkeys(column.name for column in all_columns())


def row(name: str, shape: tuple[int, int] = (32, 16), **cells: Any) -> Row:
    """A row as ``analyze`` would name it, with the given cells."""
    place = place_of(name)
    rows, cols = shape
    return {
        **EMPTY,
        "name": name,
        "block": place.block,
        "module": place.module,
        "role": role_of(place.module),
        "expert": place.expert,
        "rows": rows,
        "cols": cols,
        "N": max(shape),
        "M": min(shape),
        "Q": max(shape) / min(shape),
        "slices": 1,
        "dtype": "F32",
        "params": rows * cols,
        "status": "ok",
        **cells,
    }


def layers(column: str, values: Iterable[float | None], module: str = "mlp.up_proj") -> list[Row]:
    """One row per block, all of one module type and shape."""
    return [
        row(f"model.layers.{block}.{module}.weight", **{column: value})
        for block, value in enumerate(values)
    ]


def run_of(rows: Iterable[Row], source: str = "safetensors", **settings: Any) -> Run:
    """A run with these rows, in this order."""
    provenance = {
        "schema": 2,
        "weightscope": "0",
        "command": "by hand",
        "model": "toy",
        "source": {"format": source, "revision": "", "files": []},
        "base": None,
        "settings": Settings(**settings).as_record(),
        "thresholds": {},
        "environment": {"device_name": "CPU", "compute_dtype": "float64", "blas": "none"},
    }
    return Run(provenance, tuple(rows), {})
