"""A selftest as rows, facts and a report."""

from __future__ import annotations

from math import isfinite
from typing import Any

from weightscope.evaluate import Row
from weightscope.provenance import blas_name
from weightscope.report import Cell, Paragraph, Report, Table
from weightscope.selftest import Selftest
from weightscope.text import count_of, short
from weightscope.version import __version__


def selftest_rows(found: Selftest) -> list[Row]:
    """One row per check, for CSV and JSON."""

    def finite(value: float) -> float | None:
        return value if isfinite(value) else None

    return [
        {
            "family": c.family,
            "planted": c.planted,
            "cases": c.cases,
            "bias": finite(c.bias),
            "spread": finite(c.spread),
            "share": finite(c.share),
            "counts": c.counts,
            "limits": str(c.limits),
            "verdict": "PASS" if c.passed else "FAIL",
        }
        for c in found.checks
    ]


def selftest_facts(found: Selftest) -> dict[str, Any]:
    """What the figures were computed with."""
    return {
        "weightscope": __version__,
        "device_name": found.device,
        "device": found.settings.device,
        "threads": found.settings.threads,
        "seed": found.settings.seed,
        "blas": blas_name(),
        "solvers": list(found.solvers),
        "seconds": round(found.seconds, 3),
        "failed": found.failed,
    }


def selftest_report(found: Selftest) -> Report:
    """The checks for people."""
    rows = []
    for c in found.checks:
        figures = (str(c.cases), _figure(c.bias), _figure(c.spread), f"{c.share:.0%} {c.counts}")
        verdict = Cell("PASS", "good") if c.passed else Cell("FAIL", "bad")
        named = (Cell(c.family, "strong"), Cell(c.planted))
        rows.append((*named, *map(Cell, figures), Cell(str(c.limits), "dim"), verdict))
    headers = ("family", "planted", "cases", "bias", "spread", "share", "limits", "verdict")
    numeric = (False, False, True, True, True, True, False, False)
    table = Table("", headers, tuple(rows), numeric, ("cases", "limits"))
    return Report(f"weightscope {__version__}: planted truth", (table, *_conclusion(found)))


def _figure(value: float) -> str:
    return short(value, 2) if isfinite(value) else "undefined"


def _conclusion(found: Selftest) -> tuple[Paragraph, Paragraph]:
    failed, tested = found.failed, len({c.family for c in found.checks})
    text = f"PASS: {count_of(tested, 'family', 'families')}."
    if failed:
        text = f"FAIL: {', '.join(failed)}. Figures measured here cannot be trusted."
    facts = (
        f"{found.device}, {count_of(found.settings.threads, 'thread')}, seed "
        f"{found.settings.seed}, {found.seconds:.0f} s; {', '.join(found.solvers) or 'no solver'}. "
        "Errors of alpha, kappa and spike positions are relative."
    )
    return Paragraph(text, "bad" if failed else "good"), Paragraph(facts, "dim")
