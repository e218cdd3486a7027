"""The main sentence: a checkpoint becomes a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from weightscope.bases import selection_of
from weightscope.checkpoint import Access, Checkpoint
from weightscope.errors import OptionError, RunFolderError
from weightscope.evaluate import Evaluated, complete, evaluate, excluded
from weightscope.folders.agreement import check_same, differences
from weightscope.folders.partition import Portion, portion
from weightscope.folders.parts import part_record
from weightscope.folders.storage import (
    RunWriter,
    clear_run,
    is_replaceable,
    is_run,
    is_unborn,
    load_run,
    read_provenance,
)
from weightscope.measurement import Measurement
from weightscope.observer import Observer, Silent
from weightscope.placement import Placement
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
from weightscope.summary import solver_counts, summarise
from weightscope.text import count_of, shortened

if TYPE_CHECKING:
    from weightscope.assignment import Assignment
    from weightscope.executors.contract import Executor


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
    placement: Placement | None = None,
    access: Access | None = None,
) -> Run:
    """Analyse every weight matrix of a model.

    Args:
        model: Path of a safetensors file, folder or index, a hub id ``org/name``, a live
            ``torch.nn.Module``, a mapping of names to tensors, or an indexed checkpoint.
        settings: What to compute and how; the defaults where None.
        saving: Where to keep the run; nowhere where None.
        observer: Who is told about progress.
        placement: Where the work is done; on this machine where None.
        access: How to reach the model, and but for its revision the base too.

    Returns:
        The run, with every row; degenerate matrices have a status other than ``ok``.

    Raises:
        CheckpointError: The model cannot be read.
        OptionError: A setting makes no sense here.
        ExecutorError: The place where the work is done fails.
        RunFolderError: The run folder cannot be written.
        IncomparableRunsError: ``--resume`` on a run of something else.
    """
    settings, placement = settings or Settings(), placement or Placement()
    observer = observer or Silent()
    from weightscope.assignment import anywhere
    from weightscope.executors import executor_for

    elsewhere = placement.executor != "local"
    access = replace(access or Access(), elsewhere=elsewhere)
    sides = _opened(model, settings.base, access, observer)
    if elsewhere:
        sides = list(map(anywhere, sides))
    with executor_for(placement, settings.device, settings.threads) as executor:
        if executor.note:
            observer.note(executor.note)
        base = sides[1] if len(sides) > 1 else None
        return _analyze((sides[0], base), settings, saving or Saving(), observer, executor)


def _analyze(
    sides: tuple[Checkpoint, Checkpoint | None],
    settings: Settings,
    saving: Saving,
    observer: Observer,
    executor: Executor,
) -> Run:
    """Analyse an indexed checkpoint, beside its base where there is one, where it was chosen."""
    from weightscope.assignment import Assignment  # here, because these import torch
    from weightscope.ties import without_ties

    checkpoint, base = sides
    selection = selection_of(checkpoint, base, settings, settings.merged)
    if base is None:
        selection = without_ties(checkpoint, selection)
    settings = replace(settings, device=executor.device, threads=executor.threads)
    farms = farms_recipe(settings)
    provenance = provenance_of(settings, checkpoint, executor.device_name, base)
    part = _portion(selection, settings, checkpoint, observer)
    if part is not None:
        selection, provenance = part.selection, {**provenance, "whole": part.as_record()}
    plan = make_plan(selection.matrices, farms, settings.threads)
    folder, finished = _choose_folder(saving, provenance, checkpoint.name, observer)
    if finished is not None:
        observer.note(f"{folder} holds this very run; it is used again")
        return replace(finished, reused=True)
    context: AbstractContextManager[RunWriter | None] = (
        RunWriter(folder, provenance, plan) if folder else nullcontext()
    )
    until = inf if saving.max_time is None else monotonic() + saving.max_time
    with context as writer:
        assignment = Assignment(checkpoint, base, settings, farms)
        done = _execute(assignment, plan, executor, _Log(writer, observer, until))
        run = replace(_finished(done, selection, settings, provenance), folder=folder)
        if writer and run.summary["stopped"] is None:
            writer.finish(run, _to_join(part, done[0]))
    if run.summary["stopped"] is not None:
        where = f", kept in {folder}; the same command with --resume continues" if folder else ""
        observer.note(
            f"stopped after {run.summary['stopped']} of {run.summary['planned']} matrices{where}"
        )
    return run


def _opened(model: Any, base: str | None, access: Access, observer: Observer) -> list[Checkpoint]:
    """The model, and its base where there is one; and what there is to say about both."""
    sides = [open_model(model, access)]
    if base is not None:
        sides.append(open_model(base, replace(access, revision="")))
    for prefix, side in zip(("", "base: "), sides, strict=False):
        for text in side.notes:
            observer.note(f"{prefix}{text}")
    return sides


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
class _Log:
    """Who writes down what is done, who is told, and when no further batch is begun."""

    writer: RunWriter | None
    observer: Observer
    until: float


def _execute(
    assignment: Assignment, plan: Plan, executor: Executor, log: _Log
) -> tuple[list[Evaluated], dict[str, Spectrum]]:
    """Do what is left of a plan; the order of what comes back is that of the plan."""
    farms = assignment.farms
    recovered = log.writer.measured if log.writer else {}
    before = [b for b in plan.batches if b.index in recovered]
    log.observer.start(plan, sum(flops(m, farms) for b in before for m in b.matrices))
    done = _again([one for b in before for one in recovered[b.index]], assignment.settings)
    left = [batch for batch in plan.batches if batch.index not in recovered]
    with closing(executor.run(assignment, left)) as finished:
        for batch, results in finished:
            if log.writer:
                log.writer.append(batch, [measured for measured, _ in results])
            for one, found in results:
                done[one.matrix.name] = one.spectrum, found
                log.observer.advance(one.matrix.name, flops(one.matrix, farms))
            if monotonic() >= log.until:
                break
    names = [matrix.name for matrix in plan.matrices if matrix.name in done]
    spectra = {name: done[name][0] for name in names}
    return [done[name][1] for name in names], {n: s for n, s in spectra.items() if s is not None}


def _again(
    measured: list[Measurement], settings: Settings
) -> dict[str, tuple[Spectrum | None, Evaluated]]:
    """Evaluate what an interrupted run had measured."""
    from weightscope.executors import local

    entries = local.in_order(measured, lambda one: evaluate(one, settings), settings.threads, 1)
    return {
        one.matrix.name: (one.spectrum, entry) for one, entry in zip(measured, entries, strict=True)
    }


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


def with_resources(
    settings: Settings, note: Callable[[str], None] | None = None
) -> tuple[Settings, str]:
    """Settings with threads and one device filled in, and the device's name.

    Args:
        settings: As they were asked for.
        note: Is told where another device stands in for the one that was asked for.

    Raises:
        OptionError: There is no such device here.
    """
    from weightscope.executors import devices

    try:
        (device, *_), device_name = devices.resolve_devices(settings.device)
    except (ValueError, RuntimeError) as error:
        raise OptionError(f"--device {settings.device}: {error}") from None
    if note is not None and (remark := devices.instead_of(settings.device)):
        note(remark)
    threads = settings.threads or available_threads()
    return replace(settings, device=device, threads=threads), device_name


def _choose_folder(
    saving: Saving, provenance: Mapping[str, Any], name: str, observer: Observer
) -> tuple[Path | None, Run | None]:
    """Where to write, or the finished run that is already there."""
    if not saving.save:
        return None, None
    if saving.out is not None:
        return _explicit_folder(saving, saving.out, provenance, observer)
    others: list[_Held] = []
    for folder in _numbered(name, provenance["settings"]["shard"]):
        held = _held(folder, provenance)
        if held.state == "nothing":
            _say_if_new(saving, folder, others, observer)
            return folder, None
        if held.state == "finished":
            try:
                return folder, load_run(folder)
            except RunFolderError as error:
                observer.note(f"not used again: {error}")
        if held.state == "damaged":
            observer.note(f"{folder} is no run that can be read; it is left as it is")
        if held.state == "interrupted" and saving.resume:
            observer.note(f"continuing {folder}")
            return folder, None
        if held.state == "interrupted":
            observer.note(f"{folder} holds this run, interrupted; --resume would continue it")
        others.append(held)
    raise AssertionError("the numbered names do not end")


def _say_if_new(saving: Saving, folder: Path, others: Sequence[_Held], observer: Observer) -> None:
    """Say that ``--resume`` found nothing to continue: what differs, in what was interrupted."""
    if not saving.resume:
        return
    why = f"there is no run in {folder}"
    if others:
        why = next((held for held in others if held.unfinished), others[0]).why
    observer.note(f"--resume found nothing to continue: {why}; beginning anew in {folder}")


def _numbered(name: str, shard: str | None) -> Iterator[Path]:
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "model"
    stem = stem[:100] + (f".{parse_share(shard).suffix}" if shard else "")
    yield Path(f"{stem}.weightscope")
    for number in count(2):
        yield Path(f"{stem}-{number}.weightscope")


def _explicit_folder(
    saving: Saving, out: Path, provenance: Mapping[str, Any], observer: Observer
) -> tuple[Path, Run | None]:
    if saving.force and out.exists():
        clear_run(out)
    held = _held(out, provenance)
    if held.state == "nothing":
        _say_if_new(saving, out, (), observer)
        return out, None
    if held.state == "finished":
        return out, load_run(out)
    if saving.resume and provenance["source"]["format"] != "memory":
        check_same(read_provenance(out), provenance, out)
        return out, None
    if held.state == "interrupted":
        raise RunFolderError(
            f"{out}: holds this run, interrupted; continue it with --resume, or replace it with "
            "--force"
        )
    instead = ", or --force to replace it" if is_replaceable(out) else ""
    raise RunFolderError(f"{out}: exists already; choose another folder with --out{instead}")


@dataclass(frozen=True)
class _Held:
    """What a folder holds beside the run that is wanted.

    Attributes:
        state: ``nothing``; ``finished`` or ``interrupted`` where it is this run; ``damaged`` where
            no run can be read; else ``other``.
        why: A clause: what makes it another one.
        unfinished: Whether that other run was interrupted.
    """

    state: str
    why: str = ""
    unfinished: bool = False


def _held(folder: Path, provenance: Mapping[str, Any]) -> _Held:
    if not folder.exists() or is_unborn(folder):
        return _Held("nothing")
    if provenance["source"]["format"] == "memory":
        return _Held("other", f"nothing tells whether {folder} is of this live model")
    try:
        found = read_provenance(folder)
    except RunFolderError as error:
        return _Held("damaged" if is_run(folder) else "other", str(error))
    unfinished = not found.get("finished")
    for name, there, here in differences(found, provenance):
        why = f"{name} is {shortened(there)} in {folder} and {shortened(here)} here"
        return _Held("other", why, unfinished)
    return _Held("interrupted" if unfinished else "finished")
