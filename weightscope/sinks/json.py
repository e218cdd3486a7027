"""JSON with provenance: raw names, null for what is undefined, never NaN."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from weightscope.evaluate import Row
from weightscope.run import Run


def render(run: Run, rows: Iterable[Row]) -> str:
    """Provenance, summary and rows as one object."""
    return dumps({"provenance": run.provenance, "summary": run.summary, "rows": list(rows)})


def facts(run: Run) -> str:
    """Provenance and summary alone: what lies beside a CSV file."""
    return dumps({"provenance": run.provenance, "summary": run.summary})


def dumps(value: Mapping[str, Any]) -> str:
    """Indented JSON text; control characters are escaped."""
    return json.dumps(value, allow_nan=False, indent=1) + "\n"
