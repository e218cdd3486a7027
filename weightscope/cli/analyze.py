"""``weightscope analyze``: the job."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from weightscope.cli import options as o
from weightscope.cli.explained import explained, say

_SAVE = "Saving and resuming"


def analyze(
    model: o.ModelArgument,
    metrics: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--metrics",
            metavar="FAMILY",
            help="Families to compute (repeatable or comma-separated): alpha farms erg condition "
            "rank welore mp norms stats. All by default; the others' columns stay empty.",
        ),
    ] = None,
    include: o.IncludeOption = None,
    exclude: o.ExcludeOption = None,
    xmin: Annotated[
        str,
        typer.Option(
            "--xmin",
            metavar="ks|mid|peak|peak-fixed",
            help="Where the tail of alpha starts: smallest KS distance, the median, or near the "
            "peak of the density (as published code does it, or as it was meant).",
        ),
    ] = "ks",
    farms: Annotated[
        str,
        typer.Option(
            "--farms",
            metavar="auto|paper-llm|paper-cnn",
            help="FARMS windows: chosen by shape, or the paper's settings (slow).",
        ),
    ] = "auto",
    farms_embeddings: Annotated[
        bool, typer.Option("--farms-embeddings", help="FARMS for embeddings and heads too.")
    ] = False,
    conv: o.ConvOption = "slices",
    welore_target: Annotated[
        float,
        typer.Option("--welore-target", metavar="SHARE", help="Ranks that WeLore is to remove."),
    ] = 0.5,
    eval_floor: Annotated[
        str,
        typer.Option(
            "--eval-floor",
            metavar="rank|abs:X|rel:X",
            help="Eigenvalues at or below it are not fitted: float32 rank tolerance, an absolute "
            "value (WeightWatcher's is abs:1e-5), or a share of the largest.",
        ),
    ] = "rank",
    device: Annotated[
        str, typer.Option("--device", metavar="auto|cpu|cuda|cuda:N|mps", help="Where to compute.")
    ] = "auto",
    threads: Annotated[
        int, typer.Option("--threads", help="Cores to use; 0 means all this process may use.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything random.")] = 0,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--out",
            metavar="RUN",
            help="Run folder; default ./NAME.weightscope, numbered where that is another run.",
            rich_help_panel=_SAVE,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel=_SAVE),
    ] = False,
    no_save: Annotated[
        bool, typer.Option("--no-save", help="Keep no run folder.", rich_help_panel=_SAVE)
    ] = False,
    format: o.FormatOption = None,
    csv: o.CsvOption = None,
    json: o.JsonOption = None,
    sort: o.SortOption = None,
    top: o.TopOption = None,
    ww_names: o.WwOption = False,
    bom: o.BomOption = False,
    force: o.ForceOption = False,
    quiet: o.QuietOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Analyse every weight matrix of a checkpoint.

    Prints a table on a terminal and CSV into a pipe, and keeps a run folder from which
    [bold]weightscope report[/] makes any output again without the weights.

    [bold]Examples[/]

      weightscope analyze ./my-model

      weightscope analyze model.safetensors --sort=-alpha --top 20

      weightscope analyze org/name --csv name.csv --metrics alpha,farms

      weightscope analyze ./big-model --resume        (after an interruption)
    """
    hint = "" if no_save else "What was finished is kept; the same command with --resume continues."
    with explained(debug, hint):
        signal.signal(signal.SIGTERM, _interrupt)
        from weightscope.cli.emit import Output
        from weightscope.settings import Settings, parse_floor

        output = Output(format, csv, json, sort, top, ww_names, bom, force)
        output.check()
        chosen: dict[str, Any] = {"metrics": _families(metrics)} if metrics else {}
        settings = Settings(
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            xmin=xmin,  # type: ignore[arg-type]
            farms=farms,
            farms_embeddings=farms_embeddings,
            conv=conv,  # type: ignore[arg-type]
            welore_target=welore_target,
            eval_floor=parse_floor(eval_floor),
            device=device,
            threads=threads,
            seed=seed,
            **chosen,
        )
        _check_saving(out, resume, no_save, force)
        _run(model, settings, (not no_save, out, force, resume), output, quiet)


def _check_saving(out: Path | None, resume: bool, no_save: bool, force: bool) -> None:
    from weightscope.errors import OptionError

    if no_save and (out is not None or resume):
        raise OptionError("--no-save contradicts --out and --resume")
    if resume and force:
        raise OptionError("--resume continues a run and --force replaces it: choose one")


def _families(given: list[str]) -> tuple[str, ...]:
    return tuple(name for text in given for name in text.replace(",", " ").split())


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _run(model: str, settings: Any, saving: tuple[Any, ...], output: Any, quiet: bool) -> None:
    from weightscope.analysis import Saving
    from weightscope.analysis import analyze as analyze_model
    from weightscope.cli.emit import emit
    from weightscope.cli.progress import Talk

    with Talk(quiet) as talk:
        run = analyze_model(model, settings, Saving(*saving), talk)
    if not quiet:
        degenerate = {k: n for k, n in run.summary["status"].items() if k != "ok"}
        if degenerate:
            counts = ", ".join(f"{n} {status}" for status, n in degenerate.items())
            say(f"{sum(degenerate.values())} of {len(run.rows)} rows are not ok: {counts}")
        if run.folder is not None and not run.reused:
            say(f"Run saved in {run.folder}")
    emit(run, output)
