"""Rows become a pandas DataFrame, each column with the type that its meaning says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from weightscope.columns import Column, Kind, base_of
from weightscope.outcome import Value

if TYPE_CHECKING:
    import pandas as pd

_DTYPES: Mapping[Kind, str] = {"text": "string", "integer": "Int64", "number": "float64"}


def frame(
    names: Sequence[str], rows: Sequence[Mapping[str, Value]], glossary: Sequence[Column]
) -> pd.DataFrame:
    """A tidy DataFrame: counts are nullable integers, undefined cells missing.

    Args:
        names: Columns, in order.
        rows: Cells by column name.
        glossary: Columns that the names stand for, alone or with ``_a``, ``_b``, ``_delta``.
    """
    import pandas as pd

    known = {column.name: column for column in reversed(glossary)}
    kinds = {name: known[base_of(name, known)[0]].kind for name in names}
    columns = {
        name: pd.array(
            [row[name] for row in rows],
            dtype=_DTYPES[kind],  # type: ignore[call-overload]
        )
        for name, kind in kinds.items()
    }
    return pd.DataFrame(columns)
