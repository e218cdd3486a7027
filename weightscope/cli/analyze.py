"""``weightscope analyze``: the job."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from weightscope.cli import analyze_options as a
from weightscope.cli import options as o
from weightscope.cli.command import OptionalNumbers
from weightscope.cli.explained import explained, say

COMMAND = OptionalNumbers


def analyze(
    context: typer.Context,
    model: o.ModelArgument,
    base: a.BaseOption = None,
    merged: a.MergedOption = False,
    metrics: o.MetricsOption = None,
    include: o.IncludeOption = None,
    exclude: o.ExcludeOption = None,
    xmin: o.XminOption = "ks",
    farms: o.FarmsOption = "auto",
    farms_embeddings: o.FarmsEmbeddingsOption = False,
    conv: o.ConvOption = "slices",
    fused: o.FusedOption = False,
    welore_target: o.WeloreTargetOption = "0.5",
    eval_floor: o.EvalFloorOption = "rank",
    sample: a.SampleOption = 0,
    max_time: a.MaxTimeOption = None,
    shard: o.ShardOption = None,
    fit: a.FitOption = "pl",
    bootstrap: a.BootstrapOption = 0,
    shuffled: a.ShuffledOption = None,
    quant_error: a.QuantErrorOption = None,
    compat: a.CompatOption = None,
    device: o.DeviceOption = "auto",
    threads: o.ThreadsOption = 0,
    executor: a.ExecutorOption = "local",
    ray_address: a.RayAddressOption = "auto",
    ray_gpus_per_task: a.RayGpusOption = None,
    ray_unprotected: a.RayUnprotectedOption = False,
    seed: o.SeedOption = 0,
    out: o.OutOption = None,
    resume: o.ResumeOption = False,
    no_save: o.NoSaveOption = False,
    format: o.FormatOption = None,
    csv: o.CsvOption = None,
    json: o.JsonOption = None,
    html: o.HtmlOption = None,
    excel: o.ExcelOption = None,
    png: o.PngOption = None,
    svg: o.SvgOption = None,
    sort: o.SortOption = None,
    top: o.TopOption = None,
    fail_on: o.FailOnOption = None,
    ww_names: o.WwOption = False,
    bom: o.BomOption = False,
    force: o.ForceOption = False,
    quiet: o.QuietOption = False,
    revision: o.RevisionOption = "",
    fetch: o.FetchOption = "auto",
    token: o.TokenOption = None,
    mmap: o.MmapOption = False,
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

      weightscope analyze ./huge-model --shard 3/8    (then weightscope merge)
    """
    hint = "" if no_save else "What was finished is kept; the same command with --resume continues."
    with explained(debug, hint):
        signal.signal(signal.SIGTERM, _interrupt)
        from weightscope.checkpoint import Access
        from weightscope.cli.emit import Output, emit, run_emission
        from weightscope.cli.gating import apply_gates, check_analysed, check_computed, read_gates
        from weightscope.cli.shares import read_shard
        from weightscope.evaluate import all_columns, left_out
        from weightscope.settings import parse_duration

        names = [column.name for column in all_columns()]
        output = Output(format, csv, json, sort, top, bom, force, excel, png, svg, html, quiet)
        output.check(names)
        gates = read_gates(fail_on, names)
        _check_saving(out, resume, no_save, force)
        if compat is not None:
            _check_compat(compat, context)
        settings = _settings({**context.params, "shard": read_shard(shard, quiet)})
        check_computed(gates, left_out(settings))
        placement = _placement(context.params)
        access = Access(fetch, revision, token, mmap)  # type: ignore[arg-type]
        saving = (not no_save, out, force, resume, parse_duration(max_time))
        run = _run(model, access, (settings, saving, placement), quiet)
        emit(run_emission(run, output, ww_names), output)
        apply_gates(gates, run.rows)
        check_analysed(run, model)


def _settings(given: Mapping[str, Any]) -> Any:
    """Settings from options, each of which has the name of its field."""
    from weightscope.cli.plan_numbers import parse_ratio
    from weightscope.settings import (
        FAMILIES,
        Settings,
        parse_bits,
        parse_floor,
        parse_replicas,
    )

    plain = {f.name: given[f.name] for f in fields(Settings) if f.name in given}
    read = {
        "include": tuple(given["include"] or ()),
        "exclude": tuple(given["exclude"] or ()),
        "metrics": _families(given["metrics"]) if given["metrics"] else FAMILIES,
        "eval_floor": parse_floor(given["eval_floor"]),
        "welore_target": parse_ratio("--welore-target", given["welore_target"]),
        "shuffled": parse_replicas(given["shuffled"]),
        "quant_error": parse_bits(given["quant_error"]),
    }
    return Settings(**plain | read)


def _placement(given: Mapping[str, Any]) -> Any:
    """Where the work is done, from options, each of which has the name of its field."""
    from weightscope.placement import Placement

    return Placement(**{f.name: given[f.name] for f in fields(Placement)})


def _check_saving(out: Path | None, resume: bool, no_save: bool, force: bool) -> None:
    from weightscope.errors import OptionError

    if no_save and (out is not None or resume):
        raise OptionError("--no-save contradicts --out and --resume")
    if resume and force:
        raise OptionError("--resume continues a run and --force replaces it: choose one")


def _check_compat(peer: str, context: typer.Context) -> None:
    """Refuse what was typed against a peer's conventions, even where it is the default."""
    from weightscope import compat
    from weightscope.cli.plan_numbers import parse_ratio
    from weightscope.settings import Settings, parse_floor

    Settings(compat=peer)  # there is such a peer
    typed = {
        name: value
        for name, value in context.params.items()
        if "COMMANDLINE" in str(context.get_parameter_source(name))
    }
    if "eval_floor" in typed:
        typed["eval_floor"] = parse_floor(str(typed["eval_floor"]))
    if "welore_target" in typed:
        typed["welore_target"] = parse_ratio("--welore-target", typed["welore_target"])
    compat.check(peer, typed)


def _families(given: list[str]) -> tuple[str, ...]:
    return tuple(name for text in given for name in text.replace(",", " ").split())


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _run(model: str, access: Any, chosen: tuple[Any, ...], quiet: bool) -> Any:
    from weightscope.analysis import Saving
    from weightscope.analysis import analyze as analyze_model
    from weightscope.cli.progress import Talk
    from weightscope.present.run import partial, untrained

    settings, saving, placement = chosen
    with Talk(quiet) as talk:
        run = analyze_model(model, settings, Saving(*saving), talk, placement, access)
    if not quiet:
        degenerate = {k: n for k, n in run.summary["status"].items() if k != "ok"}
        if degenerate:
            counts = ", ".join(f"{n} {status}" for status, n in degenerate.items())
            say(f"{sum(degenerate.values())} of {len(run.rows)} rows are not ok: {counts}")
        for text in (*partial(run), *untrained(run)):
            say(text)
        if run.folder is not None and not run.reused and run.summary["stopped"] is None:
            say(f"Run saved in {run.folder}")
    return run
