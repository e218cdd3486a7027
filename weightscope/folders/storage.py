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
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from weightscope.errors import RunFolderError
from weightscope.evaluate import Row, all_columns
from weightscope.folders.agreement import check_same
from weightscope.folders.locks import locked
from weightscope.folders.records import RECORD_KEYS, measurement_from, measurement_record
from weightscope.measurement import Measurement
from weightscope.outputs import replace_file
from weightscope.plan import Batch, Plan
from weightscope.run import Run
from weightscope.spectrum import FloatArray, Spectrum
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
_LARGEST = 1 << 30
"""Bytes of a record or table: a hundred times those of the largest models."""


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
    schema = record.get("schema")
    if schema != SCHEMA_VERSION:
        raise RunFolderError(
            f"{folder}: written with schema version {schema}, this version reads {SCHEMA_VERSION}; "
            "analyze the model again"
        )
    return record


def read_record(folder: Path) -> dict[str, Any]:
    """Contents of ``run.json``, of whatever version.

    Raises:
        RunFolderError: Not a run folder, or broken.
    """
    path = folder / RUN
    try:
        record = json.loads(_text_of(path))
    except FileNotFoundError:
        raise RunFolderError(f"{folder}: not a run folder (it has no {RUN})") from None
    except NotADirectoryError:
        raise RunFolderError(f"{folder}: not a run folder but a file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); analyze the model again") from None
    if not isinstance(record, dict) or "schema" not in record:
        raise RunFolderError(f"{path}: is not the record of a run; analyze the model again")
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
    try:
        # not splitlines: a name may hold one of the other line separators of Unicode
        lines = _text_of(folder / TABLE).split("\n")
        rows = tuple(json.loads(line) for line in lines if line)
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{folder / TABLE}: cannot be read ({error}); analyze the model again"
        ) from None
    columns = {column.name for column in all_columns()}
    if not all(isinstance(row, dict) and row.keys() >= columns for row in rows):
        raise RunFolderError(f"{folder / TABLE}: is broken; analyze the model again")
    if len(rows) != record["summary"]["matrices"]:
        raise RunFolderError(
            f"{folder / TABLE}: has {len(rows)} rows of {record['summary']['matrices']}; analyze "
            "the model again"
        )
    summary = record.pop("summary")
    record.pop("finished")
    details = {str(row["name"]): row.pop("details") for row in rows if "details" in row}
    return Run(record, rows, summary, folder, False, details, lambda: _load_spectra(folder))


def _text_of(path: Path) -> str:
    """Text of a regular file of a size that a run may have; a pipe would be waited for."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > _LARGEST:
        raise ValueError(f"it is no file, or larger than {_LARGEST >> 20} MiB")
    return path.read_text(encoding="utf-8", errors="surrogatepass")


def _line(row: Row, details: Mapping[str, Mapping[str, Any]]) -> str:
    extra = details.get(str(row["name"]))
    return dumps({**row, "details": extra} if extra else row) + "\n"


def _load_spectra(folder: Path) -> dict[str, Spectrum]:
    facts = {
        record["name"]: record["spectrum"]
        for record in _complete_lines(folder / ROWS)
        if record["spectrum"]
    }
    values = load_arrays(folder / SPECTRA)
    if facts.keys() != values.keys():
        raise RunFolderError(f"{folder / ROWS}: is broken; analyze the model again")
    return {name: Spectrum(array, **facts[name]) for name, array in values.items()}


def load_arrays(path: Path) -> dict[str, FloatArray]:
    """Arrays of a spectra file, by matrix name.

    Raises:
        RunFolderError: The file is missing or broken.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); analyze the model again") from None


def save_arrays(path: Path, arrays: Mapping[str, FloatArray]) -> None:
    """Write a spectra file whole or not at all."""
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    replace_file(path, data)


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """Measurements in rows.jsonl; a torn last line, and what is no measurement, is dropped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line.decode("utf-8", "surrogatepass"))
            if isinstance(record, dict) and record.keys() >= RECORD_KEYS:
                records.append(record)
    return records


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
            (folder / PARTS).mkdir(parents=True, exist_ok=True)
            self._lock = locked(folder / LOCK)
            try:
                if (folder / RUN).exists():
                    check_same(read_provenance(folder), self._provenance, folder)
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

    def _recover(self, plan: Plan) -> dict[int, list[Measurement]]:
        """Batches that are safely on disk, and a rows file that holds those alone."""
        lines = {record["name"]: record for record in _complete_lines(self.folder / ROWS)}
        recovered: dict[int, list[Measurement]] = {}
        for batch in plan.batches:
            part = self._part(batch)
            if not part.exists() or any(m.name not in lines for m in batch.matrices):
                continue
            # a part that a power cut left broken is measured again
            with contextlib.suppress(RunFolderError, TypeError):
                arrays = load_arrays(part)
                recovered[batch.index] = [
                    measurement_from(lines[m.name], m, arrays.get(m.name)) for m in batch.matrices
                ]
        text = "".join(
            dumps(measurement_record(m)) + "\n" for i in sorted(recovered) for m in recovered[i]
        )
        write_text(self.folder / ROWS, text)
        return recovered

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
    """Whether a path is a run folder, of whatever state and version."""
    return (folder / RUN).is_file()


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
        return entry.is_dir() and all(
            _PART.fullmatch(part.name) or _is_temporary(part, r"\d{6}\.safetensors")
            for part in entry.iterdir()
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
