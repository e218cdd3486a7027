"""The run folder: what is on disk, when it is safe there, and how it is read again.

``run.json``      provenance, and with the last write the summary and ``finished``
``rows.jsonl``    one measurement per line, appended batch by batch
``parts/``        spectra of each batch, until the run is finished
``spectra.safetensors``  all full spectra, float64, by matrix name
``table.jsonl``   the finished result rows
``part.json``     of a part of a model: the whole plan, and what joining it needs

A batch is written in two steps: its spectra under a temporary name, renamed; then its lines. A
line without its whole batch is dropped on resume, so a kill at any moment costs the batch in flight
and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from weightscope.errors import RunFolderError
from weightscope.evaluate import Row, all_columns
from weightscope.folders.agreement import check_same
from weightscope.folders.files import (
    AGAIN,
    belongs,
    broken,
    checked_lines,
    read_arrays,
    read_object,
    save_arrays,
    sound_lines,
    spectrum_of,
)
from weightscope.folders.locks import locked
from weightscope.folders.records import measurement_record, recovered
from weightscope.folders.schema import check_measurement, check_record, check_row
from weightscope.json_types import MisfitError
from weightscope.measurement import Measurement
from weightscope.outputs import replace_file
from weightscope.plan import Batch, Plan
from weightscope.run import Run
from weightscope.spectrum import Spectrum
from weightscope.text import shortened
from weightscope.version import SCHEMA_VERSION

RUN, ROWS, PARTS, SPECTRA, TABLE, PART, LOCK = (
    "run.json",
    "rows.jsonl",
    "parts",
    "spectra.safetensors",
    "table.jsonl",
    "part.json",
    ".lock",
)


def dumps(value: Any, **options: Any) -> str:
    """JSON with null instead of NaN, never an invalid literal."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, **options)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    replace_file(path, text.encode("utf-8", "surrogatepass"))


def read_provenance(folder: Path) -> dict[str, Any]:
    """Contents of ``run.json`` of a run that this version understands.

    Raises:
        RunFolderError: Not a run folder, broken, or of another schema version.
    """
    record = read_record(folder)
    schema = record["schema"]
    if type(schema) is not int or schema != SCHEMA_VERSION:
        newer = isinstance(schema, int) and schema > SCHEMA_VERSION
        raise RunFolderError(
            f"{folder}: written with schema version {shortened(schema)}, this version reads "
            f"{SCHEMA_VERSION}; {'update weightscope, or ' if newer else ''}{AGAIN}"
        )
    try:
        check_record(record)
    except MisfitError as error:
        raise broken(folder / RUN, error) from None
    return record


def read_record(folder: Path) -> dict[str, Any]:
    """Contents of ``run.json``, of whatever version.

    Raises:
        RunFolderError: Not a run folder, or broken.
    """
    try:
        record = read_object(folder / RUN)
    except FileNotFoundError:
        raise RunFolderError(f"{folder}: not a run folder (it has no {RUN})") from None
    except NotADirectoryError:
        raise RunFolderError(f"{folder}: not a run folder but a file") from None
    if "schema" not in record:
        raise broken(folder / RUN, "is not the record of a run")
    return record


def load_run(folder: Path) -> Run:
    """Read a finished run; no weights, no torch.

    Raises:
        RunFolderError: Not a run folder, broken, or not finished.
    """
    record = read_provenance(folder)
    if not record.get("finished"):
        raise RunFolderError(
            f"{folder}: the analysis was interrupted; continue it with: "
            f"weightscope analyze ... --resume --out {folder}"
        )
    columns = [column.name for column in all_columns()]
    found = [row for _, row in checked_lines(folder / TABLE, check_row)]
    summary = record.pop("summary")
    record.pop("finished")
    if len(found) != summary["matrices"]:
        raise broken(folder / TABLE, f"has {len(found)} rows of {summary['matrices']}")
    details = {row["name"]: row["details"] for row in found if row.get("details")}
    rows = tuple({name: row[name] for name in columns} for row in found)
    return Run(record, rows, summary, folder, False, details, lambda: _load_spectra(folder, rows))


def _line(row: Row, details: Mapping[str, Mapping[str, Any]]) -> str:
    extra = details.get(str(row["name"]))
    return dumps({**row, "details": extra} if extra else row) + "\n"


def _load_spectra(folder: Path, rows: Iterable[Row]) -> dict[str, Spectrum]:
    """Spectra of a finished run, which are those of its rows."""
    values = read_arrays(folder / SPECTRA)
    by_name = {str(row["name"]): row for row in rows}
    facts = {
        record["name"]: record["spectrum"]
        for _, record in checked_lines(folder / ROWS, check_measurement)
        if record["spectrum"]
    }
    found = {
        name: spectrum_of(folder / SPECTRA, name, values.get(name), facts.get(name))
        for name in dict.fromkeys((*values, *facts))
    }
    spectra = {name: spectrum for name, spectrum in found.items() if spectrum is not None}
    for name, spectrum in spectra.items():
        if name not in by_name or not belongs(spectrum, by_name[name]):
            raise broken(folder / TABLE, f"{name!r} is missing, or is not that of {SPECTRA}")
    return spectra


class RunWriter:
    """A run folder while it is being filled; a lock keeps a second process out.

    Use as a context manager.
    """

    def __init__(self, folder: Path, provenance: Mapping[str, Any], plan: Plan) -> None:
        """Create the folder, or open it where an interrupted run of the same provenance is.

        Raises:
            RunFolderError: It cannot be written, or another process is writing it.
            IncomparableRunsError: It holds a run of something else.
        """
        self.folder = folder
        self._provenance = dict(provenance)
        self._place = {matrix.name: i for i, matrix in enumerate(plan.matrices)}
        try:
            self._check()
            (folder / PARTS).mkdir(parents=True, exist_ok=True)
            self._lock = locked(folder / LOCK)
            try:
                self._check()  # again, now that nobody else writes it
                write_text(folder / RUN, dumps(self._provenance, indent=1))
                self.measured = self._recover(plan)
                self._written = sorted(self.measured)
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise RunFolderError(
                f"{folder}: cannot be written ({error.strerror}); choose another place with --out, "
                "or keep nothing with --no-save"
            ) from None

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._lock)

    def _check(self) -> None:
        """Refuse what is there, before anything is written, unless it is the run to continue."""
        if (self.folder / PARTS).is_symlink():
            raise broken(self.folder / PARTS, "is a link, which no run makes")
        if self.folder.exists() and not is_unborn(self.folder):
            check_same(read_provenance(self.folder), self._provenance, self.folder)

    def _recover(self, plan: Plan) -> dict[int, list[Measurement]]:
        """Batches that are safely on disk, and a rows file that holds those alone."""
        rows = self.folder / ROWS
        found = sound_lines(rows, check_measurement) if rows.exists() else ()
        lines = {record["name"]: record for record in found}
        safe: dict[int, list[Measurement]] = {}
        for batch in plan.batches:
            part = self._part(batch)
            if not part.exists() or any(m.name not in lines for m in batch.matrices):
                continue
            # a part that a power cut left broken is measured again
            with contextlib.suppress(RunFolderError):
                arrays = read_arrays(part)
                safe[batch.index] = [
                    recovered(part, lines[m.name], m, arrays.get(m.name)) for m in batch.matrices
                ]
        text = "".join(dumps(measurement_record(m)) + "\n" for i in sorted(safe) for m in safe[i])
        write_text(self.folder / ROWS, text)
        return safe

    def _part(self, batch: Batch) -> Path:
        return self.folder / PARTS / f"{batch.index:06d}.safetensors"

    def append(self, batch: Batch, measured: Sequence[Measurement]) -> None:
        """Put a finished batch on disk.

        Raises:
            RunFolderError: The disk is full or gone.
        """
        arrays = {
            m.matrix.name: m.spectrum.singular_values for m in measured if m.spectrum is not None
        }
        lines = "".join(dumps(measurement_record(m)) + "\n" for m in measured)
        with self._writing():
            save_arrays(self._part(batch), arrays)
            with (self.folder / ROWS).open("ab") as stream:
                stream.write(lines.encode("utf-8", "surrogatepass"))
                stream.flush()
                os.fsync(stream.fileno())
        self._written.append(batch.index)

    def finish(self, run: Run, part: Mapping[str, Any] | None = None) -> None:
        """Write the table and all spectra, and mark the run as finished.

        Raises:
            RunFolderError: The disk is full or gone.
        """
        with self._writing():
            if self._written != sorted(self._written):
                self._put_in_order()
            write_finished(self.folder, run, part)
            shutil.rmtree(self.folder / PARTS)

    def _put_in_order(self) -> None:
        """Bring the lines into the plan's order, so that they do not tell who did what."""
        lines = (self.folder / ROWS).read_bytes().splitlines(keepends=True)
        lines.sort(key=lambda line: self._place[json.loads(line)["name"]])
        replace_file(self.folder / ROWS, b"".join(lines))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"{self.folder}: cannot be written ({error.strerror}); what was finished is kept, "
                "make room and continue with --resume"
            ) from None


def is_run(folder: Path) -> bool:
    """Whether a path is a run folder, of whatever state and version, as far as one may look."""
    try:
        return (folder / RUN).is_file()
    except OSError:
        return False


def write_finished(folder: Path, run: Run, part: Mapping[str, Any] | None = None) -> None:
    """Write all of a finished run but its measurements; that it is finished comes last.

    Args:
        folder: Where it goes.
        run: With its spectra.
        part: Contents of ``part.json``; None for a whole run.
    """
    arrays = {name: spectrum.singular_values for name, spectrum in run.spectra().items()}
    record = {**run.provenance, "finished": True, "summary": run.summary}
    save_arrays(folder / SPECTRA, arrays)
    write_text(folder / TABLE, "".join(_line(row, run.details) for row in run.rows))
    if part is not None:
        write_text(folder / PART, dumps(part))
    write_text(folder / RUN, dumps(record, indent=1))


_PART = re.compile(r"\d{6}\.safetensors")


def _is_ours(entry: Path) -> bool:
    """Whether an entry of a run folder is one that a run writes."""
    names = (RUN, ROWS, SPECTRA, TABLE, PART)
    if entry.name == PARTS:
        return (
            entry.is_dir()
            and not entry.is_symlink()
            and all(
                _PART.fullmatch(part.name) or _is_temporary(part, r"\d{6}\.safetensors")
                for part in entry.iterdir()
            )
        )
    return entry.name in {*names, LOCK} or _is_temporary(entry, "|".join(map(re.escape, names)))


def _is_temporary(entry: Path, names: str) -> bool:
    return bool(re.fullmatch(rf"\.({names})\.\w+\.tmp", entry.name))


def is_unborn(folder: Path) -> bool:
    """Whether a folder holds nothing but what a run writes before its first ``run.json``."""
    return folder.is_dir() and all(
        _is_ours(entry) and entry.name not in {RUN, TABLE, SPECTRA, PART}
        for entry in folder.iterdir()
    )


def is_replaceable(folder: Path) -> bool:
    """Whether ``clear_run`` would delete it: a run, of whatever state, and nothing else."""
    return (is_unborn(folder) or is_run(folder)) and not _foreign(folder)


def _foreign(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not _is_ours(entry))


def clear_run(folder: Path) -> None:
    """Delete a run, and nothing that is not part of one.

    Raises:
        RunFolderError: It is something else, holds other files, or another process is writing it.
    """
    if folder.is_symlink():
        raise RunFolderError(f"{folder}: is a link, which is not deleted; name the folder itself")
    try:
        if not is_unborn(folder):
            read_record(folder)
        foreign = _foreign(folder)
        if foreign:
            raise RunFolderError(
                f"{folder}: holds files that are not part of a run ({foreign[0]!r}) and is not "
                "deleted; move them, or choose another folder with --out"
            )
        lock = locked(folder / LOCK)
        try:
            shutil.rmtree(folder)
        finally:
            os.close(lock)
    except OSError as error:
        raise RunFolderError(
            f"{folder}: cannot be deleted ({error.strerror}); choose another folder with --out"
        ) from None
