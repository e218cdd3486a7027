"""What the files of a run folder hold: one table per file, checked before anything is believed.

A run folder may be damaged, edited, of another version or of a stranger. What has passed these
checks has every key that is read anywhere, with a value of its type and range.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from math import inf
from typing import Any

from weightscope.columns import STATUSES, Column
from weightscope.errors import OptionError
from weightscope.evaluate import all_columns
from weightscope.json_types import (
    COUNT,
    INTEGER,
    LARGEST_INTEGER,
    NUMBER,
    Check,
    MisfitError,
    by_name,
    each,
    entries,
    misfit,
    number,
    one_of,
    optional,
    text,
    truth,
    whole,
)
from weightscope.layouts.roles import ROLES
from weightscope.settings import settings_from
from weightscope.summary import MEDIANS
from weightscope.tensor import DTYPES

SIZE = whole(1)
AT_LEAST_0 = number(least=0)
COUNTS = by_name(COUNT)

FILE = entries(
    {"name": text, "size": COUNT, "header_sha256": text},
    {"modified_ns": INTEGER, "sample_sha256": text},
)
SETTINGS = {
    "include": each(text),
    "exclude": each(text),
    "metrics": each(text),
    "xmin": text,
    "farms": text,
    "farms_embeddings": truth,
    "conv": text,
    "fused": truth,
    "sample": COUNT,
    "welore_target": NUMBER,
    "eval_floor": text,
    "fit": text,
    "bootstrap": COUNT,
    "shuffled": optional(COUNT),
    "quant_error": each(COUNT),
    "compat": optional(text),
    "device": text,
    "threads": COUNT,
    "seed": INTEGER,
    "base": optional(text),
    "merged": truth,
}
ENVIRONMENT = entries(dict.fromkeys(("device_name", "compute_dtype", "blas"), text))
MADE = {
    "shard": text,
    "command": text,
    "device": text,
    "threads": COUNT,
    "environment": ENVIRONMENT,
}
PROVENANCE = {
    "schema": INTEGER,
    "weightscope": text,
    "command": text,
    "model": text,
    "source": entries({"format": text, "revision": text, "files": each(FILE)}),
    "base": optional(entries({"model": text, "revision": text, "files": each(FILE)})),
    "settings": entries(SETTINGS, {"shard": optional(text)}),
    "thresholds": by_name(NUMBER),
    "compat": optional(entries({})),
    "environment": ENVIRONMENT,
}
ALSO = {
    "solvers": COUNTS,
    "whole": entries({"matrices": COUNT, "names_sha256": text}),
    "parts": each(entries(MADE)),
    "finished": truth,
}
SUMMARY = entries(
    {
        **dict.fromkeys(("matrices", "analysed", "planned"), COUNT),
        **dict.fromkeys(("status", "readings", "bands"), COUNTS),
        **dict.fromkeys(("alpha_mean", "alpha_median", "alpha_hat_mean"), optional(NUMBER)),
        **dict.fromkeys(("params_analysed", "params_total", "vectors"), COUNT),
        **dict.fromkeys(("integer_tensors", "filtered", "undrawn"), COUNT),
        "welore": optional(
            entries(
                {
                    **dict.fromkeys(("target", "threshold"), NUMBER),
                    **dict.fromkeys(
                        ("effective", "attempted", "parameter_ratio"), optional(NUMBER)
                    ),
                    **dict.fromkeys(("matrices", "lrc"), COUNT),
                }
            )
        ),
        "medians": each(
            entries(
                {"role": text, "matrices": COUNT, **dict.fromkeys(MEDIANS, optional(NUMBER))},
                others=False,
            )
        ),
        "worth_a_look": each(
            entries({"topic": text, "why": text, "count": optional(COUNT), "names": each(text)})
        ),
        "stopped": optional(COUNT),
    }
)
RECORD = entries(PROVENANCE, ALSO)
FINISHED = entries({**PROVENANCE, "summary": SUMMARY}, ALSO)

FAILURE = entries({"reason": text}, {"advice": text}, others=False)
FAILED = entries({"failure": FAILURE}, others=False)
STATS = entries(
    {
        **dict.fromkeys(("mean", "std", "abs_max"), optional(NUMBER)),
        **dict.fromkeys(("zero_fraction", "sv_floor"), optional(AT_LEAST_0)),
        "nonfinite": COUNT,
    },
    {"equal_tail": COUNT},
    others=False,
)
SPECTRUM = entries(
    {
        **dict.fromkeys(("N", "M", "slices"), SIZE),
        **dict.fromkeys(("resolution", "relative_error"), AT_LEAST_0),
        "solver": text,
    },
    others=False,
)
POWER_LAW = entries(
    {
        **dict.fromkeys(("alpha", "ks", "stderr"), NUMBER),
        "xmin": AT_LEAST_0,
        "n_tail": COUNT,
        "method": text,
    },
    {"gap": optional(NUMBER)},
    others=False,
)


def _or_failed(check: Check) -> Check:
    """What a check takes, or why it is not there."""

    def checked(value: Any, at: str) -> None:
        (FAILED if isinstance(value, dict) and "failure" in value else check)(value, at)

    return checked


FARMS = entries(
    {
        "fit": _or_failed(POWER_LAW),
        **dict.fromkeys(("lambda_max", "sd"), optional(NUMBER)),
        **dict.fromkeys(("q", "coverage"), NUMBER),
        **dict.fromkeys(("windows", "rows", "cols"), COUNT),
    },
    others=False,
)
DRAWN = {"ranks": each(SIZE), "singular_values": each(AT_LEAST_0)}
SHUFFLED = entries(
    {
        "replicas": SIZE,
        "largest": AT_LEAST_0,
        **dict.fromkeys(("w1", "jsd"), optional(NUMBER)),
        "traps": NUMBER,
    },
    DRAWN,
    others=False,
)
QUANT = each(entries({"bits": SIZE, "error": NUMBER, "shift": optional(NUMBER)}, others=False))
MEASUREMENT = entries(
    {
        "name": text,
        "stats": optional(STATS),
        "spectrum": optional(SPECTRUM),
        "farms": optional(_or_failed(FARMS)),
        "failure": optional(FAILURE),
        "shuffled": optional(_or_failed(SHUFFLED)),
        "quant": optional(_or_failed(QUANT)),
    }
)
PART = entries({"plan": each(text), "ranks": COUNTS})
DETAILS = entries({}, {"shuffled": entries(DRAWN)})
_ALWAYS = ("name", "module", "rows", "cols", "N", "M", "slices", "params")


def check_record(record: Any) -> None:
    """Make sure that a ``run.json`` is one of this schema version, finished or not.

    Raises:
        MisfitError: Naming the first value that is not what belongs there.
    """
    (FINISHED if isinstance(record, dict) and record.get("finished") else RECORD)(record, "")
    try:
        settings = settings_from(record["settings"])
    except OptionError as error:
        raise MisfitError(f"settings make no sense ({error})") from None
    if settings.shard is not None and "whole" not in record:
        raise MisfitError("settings.shard names a part, but nothing says of what ('whole')")


def check_measurement(record: Any) -> None:
    """Make sure that a line of ``rows.jsonl`` is a measurement.

    Raises:
        MisfitError: Naming the first value that is not what belongs there.
    """
    MEASUREMENT(record, "")
    stats, shuffled = record["stats"], record["shuffled"]
    if record["spectrum"] and (stats is None or stats["nonfinite"]):
        raise MisfitError("it has a spectrum of entries that are no numbers")
    _check_drawn(shuffled or {}, "shuffled")


def check_part(record: Any) -> None:
    """Make sure that a ``part.json`` holds a plan and ranks.

    Raises:
        MisfitError: Naming the first value that is not what belongs there.
    """
    PART(record, "")


def check_row(row: Any) -> None:
    """Make sure that a line of ``table.jsonl`` is a row: every column, with cells of its range.

    Raises:
        MisfitError: Naming the first value that is not what belongs there.
    """
    _row()(row, "")
    sides = row["rows"], row["cols"]
    entries_of = sides[0] * sides[1] * row["slices"]
    if (row["N"], row["M"], row["params"]) != (max(sides), min(sides), entries_of):
        raise MisfitError("N, M and params are not those of its rows, cols and slices")
    n = row["M"] * row["slices"]
    for name in _counts_of_n():
        if row[name] is not None and abs(row[name]) > n * (1 + _SLACK):
            raise misfit(row[name], name, f"a number of no more than the {n} eigenvalues")
    _check_drawn(row.get("details", {}).get("shuffled") or {}, "details.shuffled")


def _check_drawn(shuffled: Mapping[str, Any], at: str) -> None:
    """Ranks ascend, and each has a value."""
    ranks = shuffled.get("ranks", [])
    if len(ranks) != len(shuffled.get("singular_values", [])):
        raise MisfitError(f"{at} has other numbers of ranks and singular values")
    if any(low >= high for low, high in pairwise(ranks)):
        raise MisfitError(f"{at}.ranks do not ascend")


@cache
def _row() -> Check:
    cells = {column.name: _cell(column) for column in all_columns()}
    return entries(cells, {"details": DETAILS})


def _cell(column: Column) -> Check:
    """The cells of a column, whose range is what its documentation says."""
    if column.name == "status":
        return one_of(STATUSES)
    if column.name == "dtype":
        return one_of(DTYPES)
    if column.name == "role":
        return one_of(ROLES)
    check = _of_kind(column)
    return check if column.name in _ALWAYS else optional(check)


_SLACK = 0.01
"""How far a figure may lie beyond the end of its range: that is rounding, and no damage."""
_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)[\])]")
_STEPS = re.compile(r"(-?\w+) \.\. (\w+)")


def _of_kind(column: Column) -> Check:
    if column.kind == "text":
        return text
    if column.kind == "integer":
        found = _STEPS.fullmatch(column.range)
        least = found[1] if found else "0"
        return whole(int(least) if least.isdecimal() else -LARGEST_INTEGER)
    interval = _INTERVAL.fullmatch(column.range)
    if interval is None:
        return NUMBER
    least, most = (_bound(end) for end in interval.groups()[1:])
    if interval[1] == "(" or not least:  # roots are taken of it; what is above 0 may underflow
        return number(least, most=most + _SLACK)
    return number(least - _SLACK, most=most + _SLACK)


def _bound(end: str) -> float:
    return inf if end == "n" else float(end)


@cache
def _counts_of_n() -> tuple[str, ...]:
    """Columns of which none exceeds the number of eigenvalues."""
    return tuple(c.name for c in all_columns() if re.search(r"\bn\]?$", c.range))
