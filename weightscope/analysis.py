"""The main sentence: a checkpoint becomes a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

from weightscope.agreement import differences
from weightscope.bases import selection_of
from weightscope.checkpoint import Checkpoint
from weightscope.errors import OptionError, RunFolderError
from weightscope.evaluate import Evaluated, complete, evaluate, excluded
from weightscope.matrix import Matrix
from weightscope.measurement import Measurement
from weightscope.observer import Observer, Silent
from weightscope.partition import Portion, portion
from weightscope.parts import part_record
from weightscope.plan import Plan, flops, make_plan
from weightscope.provenance import provenance_of
from weightscope.recipe import Farms, farms_preset
from weightscope.resources import available_threads
from weightscope.run import Run
from weightscope.select import Selection, natural_key
from weightscope.settings import Settings
from weightscope.share import parse_share
from weightscope.sources import open_model
from weightscope.spectrum import Spectrum
from weightscope.storage import (
    RunWriter,
    clear_run,
    is_unborn,
    load_run,
    read_provenance,
)
from weightscope.summary import solver_counts, summarise
from weightscope.text import count_of


@dataclass(frozen=True)
class Saving:
    """Where a run is kept.

    Attributes:
        save: Keep it at all.
        out: Folder; None chooses ``./<model>.weightscope``, numbered where that is taken.
        force: Replace what is in ``out``.
        resume: Continue an interrupted run.
        max_time: Seconds after which no further batch is begun; None for as long as it takes.
    """

    save: bool = False
    out: Path | None = None
    force: bool = False
    resume: bool = False
    max_time: float | None = None


def farms_recipe(settings: Settings) -> Farms | None:
    """The FARMS recipe of the settings; None where the family is not wanted."""
    if "farms" not in settings.metrics:
        return None
    return farms_preset(settings.farms, settings.eval_floor)


def analyze(
    model: Any,
    settings: Settings | None = None,
    saving: Saving | None = None,
    observer: Observer | None = None,
) -> Run:
    """Analyse every weight matrix of a model.

    Args:
        model: Path of a safetensors file, folder or index, a hub id ``org/name``, a live
            ``torch.nn.Module``, a mapping of names to tensors, or an indexed checkpoint.
        settings: What to compute and how; the defaults where None.
        saving: Where to keep the run; nowhere where None.
        observer: Who is told about progress.

    Returns:
        The run, with every row; degenerate matrices have a status other than ``ok``.

    Raises:
        CheckpointError: The model cannot be read.
        OptionError: A setting makes no sense here.
        RunFolderError: The run folder cannot be written.
        IncomparableRunsError: ``--resume`` on a run of something else.
    """
    settings, saving = settings or Settings(), saving or Saving()
    observer = observer or Silent()
    from weightscope.ties import without_ties  # here, because it imports torch

    checkpoint = open_model(model)
    for text in checkpoint.notes:
        observer.note(text)
    base = open_model(settings.base) if settings.base else None
    selection = selection_of(checkpoint, base, settings, settings.merged)
    if base is None:
        selection = without_ties(checkpoint, selection)
    settings, device_name = with_resources(settings)
    provenance = provenance_of(settings, checkpoint, device_name, base)
    part = _portion(selection, settings, checkpoint, observer)
    if part is not None:
        selection, provenance = part.selection, {**provenance, "whole": part.as_record()}
    plan = make_plan(selection.matrices, farms_recipe(settings), settings.threads)
    folder, finished = _choose_folder(saving, provenance, checkpoint.name, observer)
    if finished is not None:
        observer.note(f"{folder} holds this very run; it is used again")
        return replace(finished, reused=True)
    context: AbstractContextManager[RunWriter | None] = (
        RunWriter(folder, provenance, plan) if folder else nullcontext()
    )
    until = inf if saving.max_time is None else monotonic() + saving.max_time
    with context as writer:
        done = _execute((checkpoint, base), settings, plan, writer, _Until(observer, until))
        run = replace(_finished(done, selection, settings, provenance), folder=folder)
        if writer and run.summary["stopped"] is None:
            writer.finish(run, _to_join(part, done[0]))
    if run.summary["stopped"] is not None:
        where = "; the same command with --resume continues" if folder else ""
        observer.note(
            f"stopped after {run.summary['stopped']} of {run.summary['planned']} matrices{where}"
        )
    return run


def _portion(
    selection: Selection, settings: Settings, checkpoint: Checkpoint, observer: Observer
) -> Portion | None:
    """The part of a model that the settings ask for; None for all of it.

    Raises:
        OptionError: The weights are in memory, where nothing tells that parts are of one model.
    """
    share = settings.shard
    if share is None:
        return None
    if checkpoint.format == "memory":
        raise OptionError(f"--shard {share}: parts are of checkpoints in files; save the model")
    part = portion(selection, share, farms_recipe(settings))
    observer.note(
        f"{share.label}: {len(part.selection.matrices)} of {count_of(len(part.names), 'matrix')}; "
        "weightscope merge joins the parts"
    )
    return part


def _to_join(part: Portion | None, evaluated: Iterable[Evaluated]) -> dict[str, Any] | None:
    """What joining a part needs beside its rows: WeLore tells classes apart by rank."""
    if part is None:
        return None
    return part_record(part.names, {str(e.row["name"]): e.rank for e in evaluated})


@dataclass(frozen=True)
class _Until:
    """Who is told about progress, and the time at which no further batch is begun."""

    observer: Observer
    until: float


def _execute(
    sides: tuple[Checkpoint, Checkpoint | None],
    settings: Settings,
    plan: Plan,
    writer: RunWriter | None,
    watch: _Until,
) -> tuple[list[Evaluated], dict[str, Spectrum]]:
    observer = watch.observer
    from weightscope.executors import local
    from weightscope.measure import Measure, reading

    farms = farms_recipe(settings)
    recovered = writer.measured if writer else {}
    before = [b for b in plan.batches if b.index in recovered]
    observer.start(plan, sum(flops(m, farms) for b in before for m in b.matrices))
    evaluated: list[Evaluated] = []
    spectra: dict[str, Spectrum] = {}

    def take(one: Measurement, found: Evaluated) -> None:
        evaluated.append(found)
        if one.spectrum is not None:
            spectra[one.matrix.name] = one.spectrum

    again = [one for batch in before for one in recovered[batch.index]]
    entries = local.in_order(again, lambda one: evaluate(one, settings), settings.threads, 1)
    for one, entry in zip(again, entries, strict=True):
        take(one, entry)
    left = [batch for batch in plan.batches if batch.index not in recovered]
    ours, base = sides
    wanted = [matrix for batch in left for matrix in batch.matrices]
    theirs = [matrix.base for matrix in wanted if matrix.base]
    with reading(ours, wanted) as read, reading(base or ours, theirs) as read_base:
        work = Measure(
            read,
            farms,
            settings.device,
            settings.farms_embeddings,
            settings.shuffled,
            settings.quant_error,
            settings.seed,
            read_base,
        )

        def do(matrix: Matrix, fetched: Any) -> tuple[Measurement, Evaluated]:
            measured = work(matrix, fetched)
            return measured, evaluate(measured, settings)  # here, beside the work of the others

        for batch, results in local.run(left, work.fetch, do, settings.threads, settings.device):
            if writer:
                writer.append(batch, [measured for measured, _ in results])
            for one, found in results:
                take(one, found)
                observer.advance(one.matrix.name, flops(one.matrix, farms))
            if monotonic() >= watch.until:
                break
    return evaluated, spectra


def _finished(
    done: tuple[list[Evaluated], dict[str, Spectrum]],
    selection: Selection,
    settings: Settings,
    provenance: Mapping[str, Any],
) -> Run:
    """The run of what was evaluated: all that was selected, unless the time was up."""
    evaluated, spectra = done
    entries = [*evaluated, *map(excluded, selection.exclusions)]
    entries.sort(key=lambda entry: natural_key(str(entry.row["name"])))
    fitted = complete(entries, spectra, settings)
    rows = tuple(entry.row for entry in entries)
    stopped = len(evaluated) < len(selection.matrices)
    summary = {
        **summarise(rows, selection, fitted),
        "planned": len(selection.matrices),
        "stopped": len(evaluated) if stopped else None,
    }
    details = {str(entry.row["name"]): entry.details for entry in entries if entry.details}
    provenance = {**provenance, "solvers": solver_counts(spectra.values())}
    return Run(provenance, rows, summary, details=details, load_spectra=lambda: spectra)


def with_resources(settings: Settings) -> tuple[Settings, str]:
    """Settings with device and threads filled in, and the device's name.

    Raises:
        OptionError: There is no such device here.
    """
    from weightscope.executors import local

    try:
        device, device_name = local.resolve_device(settings.device)
    except (ValueError, RuntimeError) as error:
        raise OptionError(f"--device {settings.device}: {error}") from None
    threads = settings.threads or available_threads()
    return replace(settings, device=device, threads=threads), device_name


def _choose_folder(
    saving: Saving, provenance: Mapping[str, Any], name: str, observer: Observer
) -> tuple[Path | None, Run | None]:
    """Where to write, or the finished run that is already there."""
    if not saving.save:
        return None, None
    if saving.out is not None:
        return _explicit_folder(saving, saving.out, provenance)
    for folder in _numbered(name, provenance["settings"]["shard"]):
        if not folder.exists():
            return folder, None
        state = _state(folder, provenance)
        if state == "empty":
            return folder, None
        if state == "finished":
            return folder, load_run(folder)
        if state == "interrupted" and saving.resume:
            observer.note(f"continuing {folder}")
            return folder, None
        if state == "interrupted":
            observer.note(f"{folder} holds this run, interrupted; --resume would continue it")
    raise AssertionError("the numbered names do not end")


def _numbered(name: str, shard: str | None) -> Iterator[Path]:
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "model"
    stem = stem[:100] + (f".{parse_share(shard).suffix}" if shard else "")
    yield Path(f"{stem}.weightscope")
    for number in count(2):
        yield Path(f"{stem}-{number}.weightscope")


def _explicit_folder(
    saving: Saving, out: Path, provenance: Mapping[str, Any]
) -> tuple[Path, Run | None]:
    if not out.exists():
        return out, None
    if saving.force:
        clear_run(out)
        return out, None
    state = _state(out, provenance)
    if state == "empty":
        return out, None
    if state == "finished":
        return out, load_run(out)
    if saving.resume and provenance["source"]["format"] != "memory":
        return out, None
    if state == "interrupted":
        raise RunFolderError(
            f"{out}: holds this run, interrupted; continue it with --resume, or replace it with "
            "--force"
        )
    raise RunFolderError(f"{out}: exists already; choose another folder, or --force to replace it")


def _state(folder: Path, provenance: Mapping[str, Any]) -> str:
    """``finished`` or ``interrupted`` where the folder holds a run of this provenance."""
    if is_unborn(folder):
        return "empty"
    if provenance["source"]["format"] == "memory":
        return "other"  # nothing tells one live model from another
    try:
        found = read_provenance(folder)
    except RunFolderError:
        return "other"
    if next(differences(found, provenance), None) is not None:
        return "other"
    return "finished" if found.get("finished") else "interrupted"
