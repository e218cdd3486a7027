"""Options of ``analyze`` alone: other models, samples, uncertainty and nulls."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

BaseOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--base",
        metavar="MODEL",
        help="Analyse the difference to this model; for an adapter, the model it belongs to.",
        show_default=False,
    ),
]
MergedOption = Annotated[
    bool,
    typer.Option("--merged", help="Put the adapter into --base and analyse the result."),
]
_QUICK = "A quick look at something huge"

SampleOption = Annotated[
    int,
    typer.Option(
        "--sample",
        metavar="K",
        min=0,
        help="At most K matrices of every module type, drawn with --seed; 0 takes all.",
        rich_help_panel=_QUICK,
        show_default=False,
    ),
]
MaxTimeOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--max-time",
        metavar="DURATION",
        help="Begin nothing new after so long (90s, 10m, 2h); --resume continues.",
        rich_help_panel=_QUICK,
        show_default=False,
    ),
]
_PLACE = "Where the work is done"

ExecutorOption = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="local|ray",
        help="The devices of this machine, or a Ray cluster (pip install 'weightscope\\[ray]').",
        rich_help_panel=_PLACE,
    ),
]
RayAddressOption = Annotated[
    str,
    typer.Option(
        "--ray-address",
        metavar="auto|local|HOST:PORT|ray://HOST:PORT",
        help="The cluster that this machine belongs to, one that is started here for this run "
        "alone, or another one.",
        rich_help_panel=_PLACE,
    ),
]
RayGpusOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--ray-gpus-per-task",
        metavar="SHARE",
        help="Share of a GPU that a task takes, such as 0.25; 0 computes on the CPU. By default a "
        "whole one where the cluster has GPUs. --threads is its number of cores, by default 1.",
        rich_help_panel=_PLACE,
        show_default=False,
    ),
]
RayUnprotectedOption = Annotated[
    bool,
    typer.Option(
        "--ray-unprotected",
        help="Use a cluster beyond this machine that asks for no token, and so runs code of anyone "
        "who reaches it.",
        rich_help_panel=_PLACE,
    ),
]
_TRUST = "Uncertainty and nulls"

FitOption = Annotated[
    str,
    typer.Option(
        "--fit",
        metavar="pl|tpl|etpl",
        help="Law of the tail: a power law, a truncated one, or a truncated one that starts near "
        "the peak of the density.",
        rich_help_panel=_TRUST,
    ),
]
BootstrapOption = Annotated[
    int,
    typer.Option(
        "--bootstrap",
        metavar="B",
        min=0,
        help="Interval and goodness of fit of alpha from B resampled spectra each (try 200).",
        rich_help_panel=_TRUST,
    ),
]
ShuffledOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--shuffled",
        metavar="[R]",
        help="The empirical null: the same entries permuted, R times; R is 1 for large and 5 for "
        "small matrices where it is left out.",
        rich_help_panel=_TRUST,
        show_default=False,
    ),
]
QuantErrorOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--quant-error",
        metavar="BITS,...",
        help="Measure the error of rounding to so many bits in groups of 128: any of 8,6,5,4,3,2.",
        rich_help_panel=_TRUST,
        show_default=False,
    ),
]
CompatOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--compat",
        metavar="PEER",
        help="Follow a peer's conventions, to explain a disagreement: weightwatcher, farms, "
        "welore, kappatune or spectrum.",
        rich_help_panel=_TRUST,
        show_default=False,
    ),
]
