"""``weightscope analyze``: the job."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from weightscope.cli import options as o
from weightscope.cli.explained import explained, say


def analyze(
    model: o.ModelArgument,
    metrics: o.MetricsOption = None,
    include: o.IncludeOption = None,
    exclude: o.ExcludeOption = None,
    xmin: o.XminOption = "ks",
    farms: o.FarmsOption = "auto",
    farms_embeddings: o.FarmsEmbeddingsOption = False,
    conv: o.ConvOption = "slices",
    welore_target: o.WeloreTargetOption = 0.5,
    eval_floor: o.EvalFloorOption = "rank",
    device: o.DeviceOption = "auto",
    threads: o.ThreadsOption = 0,
    seed: o.SeedOption = 0,
    out: o.OutOption = None,
    resume: o.ResumeOption = False,
    no_save: o.NoSaveOption = False,
    format: o.FormatOption = None,
    csv: o.CsvOption = None,
    json: o.JsonOption = None,
    sort: o.SortOption = None,
    top: o.TopOption = None,
    fail_on: o.FailOnOption = None,
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
        from weightscope.cli.emit import Output, emit, run_emission
        from weightscope.cli.gating import apply_gates, read_gates
        from weightscope.evaluate import all_columns
        from weightscope.settings import FAMILIES, Settings, parse_floor

        names = [column.name for column in all_columns()]
        output = Output(format, csv, json, sort, top, bom, force)
        output.check(names)
        gates = read_gates(fail_on, names)
        _check_saving(out, resume, no_save, force)
        settings = Settings(
            tuple(include or ()),
            tuple(exclude or ()),
            _families(metrics) if metrics else FAMILIES,
            xmin,  # type: ignore[arg-type]
            farms,
            farms_embeddings,
            conv,  # type: ignore[arg-type]
            welore_target,
            parse_floor(eval_floor),
            device,
            threads,
            seed,
        )
        run = _run(model, settings, (not no_save, out, force, resume), quiet)
        emit(run_emission(run, output, ww_names), output)
        apply_gates(gates, run.rows)


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


def _run(model: str, settings: Any, saving: tuple[Any, ...], quiet: bool) -> Any:
    from weightscope.analysis import Saving
    from weightscope.analysis import analyze as analyze_model
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
    return run
