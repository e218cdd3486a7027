"""JSON: raw names, null for what is undefined, never NaN."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def dumps(value: Mapping[str, Any]) -> str:
    """Indented JSON text; control characters are escaped."""
    return json.dumps(value, allow_nan=False, indent=1) + "\n"
