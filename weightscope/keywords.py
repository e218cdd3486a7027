"""Options of Python functions, named as those of the command line, become what they mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal, TypedDict

from weightscope.alignment import parse_prefix_map
from weightscope.checkpoint import Access, Fetch
from weightscope.comparing import Comparing
from weightscope.errors import OptionError
from weightscope.placement import Placement
from weightscope.recipe import EvalFloor, FitMethod
from weightscope.settings import Settings, parse_bits, parse_floor, parse_replicas
from weightscope.share import Share, share_from
from weightscope.text import did_you_mean


class MeasuringOptions(TypedDict, total=False):
    """How models are analysed and reached, alone or beside others: see Settings and Access."""

    include: str | Iterable[str]
    exclude: str | Iterable[str]
    metrics: str | Iterable[str]
    xmin: FitMethod
    farms: str
    farms_embeddings: bool
    conv: Literal["slices", "flatten"]
    fused: bool
    sample: int
    welore_target: float
    eval_floor: str | EvalFloor
    fit: Literal["pl", "tpl", "etpl"]
    bootstrap: int
    shuffled: str | int | None
    quant_error: str | Iterable[int]
    compat: str | None
    device: str
    threads: int
    seed: int
    fetch: Literal["auto"] | Fetch
    revision: str
    token: str | None
    mmap: bool


class AnalyzeOptions(MeasuringOptions, total=False):
    """Options of ``weightscope.analyze``: of one model, and where the work is done."""

    base: str | None
    merged: bool
    shard: str | Share | None
    executor: Literal["local", "ray"]
    ray_address: str
    ray_gpus_per_task: float | None
    ray_unprotected: bool


class CompareOptions(MeasuringOptions, total=False):
    """Options of ``weightscope.compare``."""

    weights: bool | None
    map: str | Iterable[str]
    force: bool
    save: bool


class TrackOptions(MeasuringOptions, total=False):
    """Options of ``weightscope.track``."""

    metric: str | Iterable[str]
    map: str | Iterable[str]
    force: bool
    save: bool


def check_known(function: str, given: Iterable[str], takes: type) -> None:
    """Refuse an option that a function does not have.

    Args:
        function: Its name.
        given: Names of options.
        takes: The options that it has, as a ``TypedDict``.

    Raises:
        OptionError: Naming those like it, or all that there are.
    """
    known = tuple(takes.__annotations__)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or f"; it takes {', '.join(known)}"
            raise OptionError(f"weightscope.{function} has no option {name!r}{hint}")


def analysis_from(options: Mapping[str, Any]) -> tuple[Settings, Access, Placement]:
    """What to compute, how to reach the model, and where the work is done.

    Args:
        options: As ``AnalyzeOptions`` has them; what is not given has its default.

    Raises:
        OptionError: No such option, or one that makes no sense.
    """
    check_known("analyze", options, AnalyzeOptions)
    return _settings(options), _picked(Access, options), _picked(Placement, options)


def comparing_from(options: Mapping[str, Any]) -> Comparing:
    """How models are compared or followed.

    Args:
        options: Checked already; what is not given has its default. Nothing is saved by default.

    Raises:
        OptionError: One that makes no sense.
    """
    return Comparing(
        options.get("weights"),
        tuple(map(parse_prefix_map, texts(options.get("map", ())))),
        options.get("force", False),
        options.get("save", False),
        _settings(options),
        _picked(Access, options),
    )


def texts(value: str | Iterable[str]) -> tuple[str, ...]:
    """Several texts, or one alone."""
    return (value,) if isinstance(value, str) else tuple(value)


def _families(value: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(name for text in texts(value) for name in text.replace(",", " ").split())


_AS_TYPED: Mapping[str, Callable[[str], Any]] = {
    "include": texts,
    "exclude": texts,
    "metrics": _families,
    "eval_floor": parse_floor,
    "shuffled": parse_replicas,
    "quant_error": parse_bits,
    "shard": lambda text: share_from(text, os.environ)[0],
}
"""How what may be given as it is typed on the command line is read."""
_SEVERAL = ("include", "exclude", "metrics", "quant_error")


def _settings(options: Mapping[str, Any]) -> Settings:
    given = {f.name: options[f.name] for f in fields(Settings) if f.name in options}
    for name, read in _AS_TYPED.items():
        if isinstance(given.get(name), str):
            given[name] = read(given[name])
        elif name in _SEVERAL and name in given:
            given[name] = tuple(given[name])
    return Settings(**given)


def _picked(kind: type[Any], options: Mapping[str, Any]) -> Any:
    return kind(**{f.name: options[f.name] for f in fields(kind) if f.name in options})
