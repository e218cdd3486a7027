"""A corpus of hostile checkpoints: real files on disk, and what has to become of each."""

from __future__ import annotations

from hostile.case import Case

__all__ = ["Case", "corpus"]


def corpus() -> dict[str, Case]:
    """Every case by its name."""
    from hostile import adapters, configs, gguf, headers, names, pickles, places, quantised

    drawers = (headers, names, places, pickles, gguf, configs, adapters, quantised)
    found: dict[str, Case] = {}
    for drawer in drawers:
        for case in drawer.cases():
            assert case.name not in found, case.name
            found[case.name] = case
    return found
