"""The main sentence: a checkpoint becomes a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from weightscope.checkpoint import Checkpoint
from weightscope.errors import OptionError, RunFolderError
from weightscope.evaluate import Evaluated, complete, evaluate, excluded
from weightscope.measurement import Measurement
from weightscope.plan import Batch, Plan, flops, make_plan
from weightscope.recipe import Farms, farms_preset
from weightscope.resources import available_threads
from weightscope.run import Run
from weightscope.select import Selection, natural_key, select
from weightscope.settings import Settings
from weightscope.sources import open_model
from weightscope.spectrum import Spectrum
from weightscope.storage import (
    RunWriter,
    clear_run,
    differences,
    is_unborn,
    load_run,
    read_provenance,
)
from weightscope.summary import summarise
from weightscope.version import SCHEMA_VERSION, __version__


class Observer(Protocol):
    """Who is told how the work goes on."""

    def note(self, text: str) -> None:
        """A remark for the user."""

    def start(self, plan: Plan, done: float) -> None:
        """Work begins; ``done`` operations of the plan were done before."""

    def advance(self, name: str, operations: float) -> None:
        """A matrix is finished."""


class Silent:
    """An observer that says nothing."""

    def note(self, text: str) -> None:
        """Ignore a remark."""

    def start(self, plan: Plan, done: float) -> None:
        """Ignore the start."""

    def advance(self, name: str, operations: float) -> None:
        """Ignore progress."""


@dataclass(frozen=True)
class Saving:
    """Where a run is kept.

    Attributes:
        save: Keep it at all.
        out: Folder; None chooses ``./<model>.weightscope``, numbered where that is taken.
        force: Replace what is in ``out``.
        resume: Continue an interrupted run.
    """

    save: bool = False
    out: Path | None = None
    force: bool = False
    resume: bool = False


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
    checkpoint = open_model(model)
    for text in checkpoint.notes:
        observer.note(text)
    selection = select(checkpoint, settings.include, settings.exclude, settings.conv)
    settings, provenance = _resolved(settings, checkpoint)
    plan = make_plan(selection.matrices, farms_recipe(settings), settings.threads)
    folder, finished = _choose_folder(saving, provenance, checkpoint.name, observer)
    if finished is not None:
        observer.note(f"{folder} holds this very run; it is used again")
        return replace(finished, reused=True)
    context: AbstractContextManager[RunWriter | None] = (
        RunWriter(folder, provenance, plan) if folder else nullcontext()
    )
    with context as writer:
        evaluated, spectra = _execute(checkpoint, settings, plan, writer, observer)
        rows, summary = _finish(evaluated, spectra, selection, settings)
        if writer:
            writer.finish(rows, spectra, summary)
    return Run(provenance, tuple(rows), summary, folder, load_spectra=lambda: spectra)


def _execute(
    checkpoint: Checkpoint,
    settings: Settings,
    plan: Plan,
    writer: RunWriter | None,
    observer: Observer,
) -> tuple[list[Evaluated], dict[str, Spectrum]]:
    from weightscope.executors import local
    from weightscope.measure import Measure, reader_for

    farms = farms_recipe(settings)
    recovered = writer.measured if writer else {}
    before = [b for b in plan.batches if b.index in recovered]
    observer.start(plan, sum(flops(m, farms) for b in before for m in b.matrices))
    evaluated: list[Evaluated] = []
    spectra: dict[str, Spectrum] = {}

    def take(batch: Batch, measured: list[Measurement]) -> None:
        for one in measured:
            evaluated.append(evaluate(one, settings))
            if one.spectrum is not None:
                spectra[one.matrix.name] = one.spectrum
            if batch.index not in recovered:
                observer.advance(one.matrix.name, flops(one.matrix, farms))

    for batch in before:
        take(batch, recovered[batch.index])
    work = Measure(reader_for(checkpoint), farms, settings.device, settings.farms_embeddings)
    left = [batch for batch in plan.batches if batch.index not in recovered]
    for batch, measured in local.run(left, work, settings.threads, settings.device):
        if writer:
            writer.append(batch, measured)
        take(batch, measured)
    return evaluated, spectra


def _finish(
    evaluated: list[Evaluated],
    spectra: dict[str, Spectrum],
    selection: Selection,
    settings: Settings,
) -> tuple[list[Any], dict[str, Any]]:
    everything = [*evaluated, *map(excluded, selection.exclusions)]
    everything.sort(key=lambda entry: natural_key(str(entry.row["name"])))
    fitted = complete(everything, spectra, settings)
    rows = [entry.row for entry in everything]
    return rows, summarise(rows, selection, fitted)


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


def _resolved(settings: Settings, checkpoint: Checkpoint) -> tuple[Settings, dict[str, Any]]:
    """Settings with device and threads filled in, and the provenance of the run."""
    import platform  # here, because reading a saved run does not need it

    settings, device_name = with_resources(settings)
    environment = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device_name": device_name,
        "compute_dtype": "float64",
        **{name: _version(name) for name in ("torch", "numpy")},
    }
    provenance = {
        "schema": SCHEMA_VERSION,
        "weightscope": __version__,
        "model": checkpoint.name,
        "source": {
            "format": checkpoint.format,
            "revision": checkpoint.revision,
            "files": [asdict(file) for file in checkpoint.files],
        },
        "settings": settings.as_record(),
        "environment": environment,
    }
    return settings, provenance


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _choose_folder(
    saving: Saving, provenance: Mapping[str, Any], name: str, observer: Observer
) -> tuple[Path | None, Run | None]:
    """Where to write, or the finished run that is already there."""
    if not saving.save:
        return None, None
    if saving.out is not None:
        return _explicit_folder(saving, saving.out, provenance)
    for folder in _numbered(name):
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


def _numbered(name: str) -> Iterator[Path]:
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "model"
    yield Path(f"{stem[:100]}.weightscope")
    for number in count(2):
        yield Path(f"{stem[:100]}-{number}.weightscope")


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
