"""Parts of one model become its run: joined, completed where the whole model counts, and checked.

Rows and spectra are taken as they are; what needs all matrices (WeLore's threshold, the summary)
is computed from them as one run would, so table, spectra and summary are the same bytes.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightscope.errors import IncomparableRunsError, MissingPartsError, RunFolderError
from weightscope.evaluate import Evaluated, complete
from weightscope.folders.agreement import differences
from weightscope.folders.partition import fingerprint
from weightscope.folders.parts import measured_lines, part_record, read_part
from weightscope.folders.storage import (
    ROWS,
    clear_run,
    is_replaceable,
    load_run,
    read_provenance,
    write_finished,
)
from weightscope.provenance import command_line
from weightscope.run import Run
from weightscope.select import Selection, natural_key
from weightscope.settings import settings_from
from weightscope.share import Share, parse_share
from weightscope.spectrum import Spectrum
from weightscope.summary import solver_counts, summarise
from weightscope.text import count_of, shortened

_OWN = ("environment.", "settings.device", "settings.shard")
"""Where parts of one model may differ: each process has its own machine, device and share."""
_TIME = "modified_ns"
_SHOWN = 5


@dataclass(frozen=True)
class Merging:
    """How parts are joined.

    Attributes:
        out: Folder of the run that they become.
        force: Replace what is in ``out``.
        partial: Join what is there although parts are missing.
        copies: The parts read copies of the same files, whose modification times may differ.
    """

    out: Path
    force: bool = False
    partial: bool = False
    copies: bool = False


@dataclass(frozen=True)
class PartRun:
    """A finished part.

    Attributes:
        folder: Where it is.
        record: Its provenance.
        share: What it is of the model.
    """

    folder: Path
    record: Mapping[str, Any]
    share: Share


@dataclass(frozen=True)
class Joined:
    """What parts hold together.

    Attributes:
        plan: Names of all matrices of the model, in the order of the plan.
        entries: Rows of the parts, WeLore's columns empty.
        ranks: Numerical ranks by name.
        spectra: By name.
        lines: Of their measurements, by name.
        summaries: Of the parts.
    """

    plan: Sequence[str]
    entries: list[Evaluated]
    ranks: dict[str, int]
    spectra: dict[str, Spectrum]
    lines: dict[str, bytes]
    summaries: list[Mapping[str, Any]]


def merge(folders: Sequence[Path], how: Merging) -> tuple[Run, list[str]]:
    """Join parts of a model to a run folder, without weights and without torch.

    Args:
        folders: Finished parts, in any order.
        how: Where to, and what may be missing.

    Returns:
        The run, and remarks for the user.

    Raises:
        RunFolderError: A folder is no finished part, one is there twice, or ``out`` is taken.
        IncomparableRunsError: Two of them are no parts of one run, naming the first difference.
        MissingPartsError: Matrices are missing, by name.
    """
    _check_out(how, folders)
    parts = [_part(folder) for folder in folders]
    if not parts:
        raise RunFolderError("merge needs the folders of the parts")
    parts.sort(key=lambda part: part.share.indices)
    _check_once(parts)
    remarks = [text for part in parts[1:] for text in _check_joinable(parts[0], part, how.copies)]
    joined = _joined(parts)
    share = _together(parts)
    whole = len(share.indices) == share.count
    if not whole:
        remarks.append(_without_the_others(share, joined, how))
    run = _run(parts, joined, None if whole else share)
    _write(run, joined, how)
    return run, list(dict.fromkeys(remarks))


def _check_out(how: Merging, folders: Iterable[Path]) -> None:
    out = how.out
    if any(out.exists() and folder.exists() and out.samefile(folder) for folder in folders):
        raise RunFolderError(f"{out}: is one of the parts; choose another folder with --out")
    if out.exists() and not how.force:
        instead = ", or --force to replace it" if is_replaceable(out) else ""
        raise RunFolderError(f"{out}: exists already; choose another folder with --out{instead}")


def _part(folder: Path) -> PartRun:
    record = read_provenance(folder)
    text = record["settings"].get("shard")
    if not text:
        raise RunFolderError(f"{folder}: holds a whole run, not a part of one; nothing to join")
    share = parse_share(text)
    if not record.get("finished"):
        raise RunFolderError(
            f"{folder}: {share.label} is not finished; continue it with: "
            f"{_resume(record['command'], share, folder)}"
        )
    return PartRun(folder, record, share)


def _resume(command: str, share: Share, folder: Path) -> str:
    """The command that continues a part, whatever the environment says by then."""
    words = shlex.split(command)
    if words[:1] != ["weightscope"]:
        return f"the same call with resume=True, shard={str(share)!r} and out={str(folder)!r}"
    words = [*_without(words, "--shard", "--out"), "--shard", str(share), "--out", str(folder)]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])


def _without(words: Sequence[str], *options: str) -> Iterator[str]:
    """The words of a command without options and their values."""
    following = iter(words)
    for word in following:
        if word in options:
            next(following, None)
        elif not word.startswith(tuple(f"{option}=" for option in options)):
            yield word


def _check_once(parts: Sequence[PartRun]) -> None:
    """Refuse a part that is there twice; parts of different cuts are refused later, by name."""
    seen: dict[tuple[int, int], PartRun] = {}
    for part in parts:
        for index in part.share.indices:
            other = seen.setdefault((index, part.share.count), part)
            if other is not part:
                raise RunFolderError(
                    f"part {index} of {part.share.count} is there twice: {other.folder} and "
                    f"{part.folder}; name one of them"
                )


def _check_joinable(first: PartRun, other: PartRun, copies: bool) -> list[str]:
    """Refuse a part of another run; remarks on what may differ.

    Raises:
        IncomparableRunsError: Naming the first thing that differs.
    """
    if first.share.count != other.share.count:
        raise IncomparableRunsError(
            f"{first.folder} is {first.share.label} and {other.folder} is {other.share.label}: "
            "parts of different cuts cannot be joined"
        )
    remarks = []
    ours = {key: value for key, value in first.record.items() if key != "parts"}
    theirs = {key: value for key, value in other.record.items() if key != "parts"}
    for name, here, there in differences(ours, theirs):
        if name.startswith("environment."):
            remarks.append(
                f"{name} is {shortened(here)} in {first.folder} and {shortened(there)} in "
                f"{other.folder}; figures agree within the solvers' accuracy, not bit for bit"
            )
        if name.startswith(_OWN) or (copies and name.endswith(_TIME)):
            continue
        hint = ""
        if name.endswith(_TIME):
            hint = "; the file was written again in between, unless these are copies (--copies)"
        raise IncomparableRunsError(
            f"{other.folder}: is a part of another run than {first.folder}: {name} is "
            f"{shortened(there)} there and {shortened(here)} here{hint}"
        )
    return remarks


def _joined(parts: Sequence[PartRun]) -> Joined:
    plan = read_part(parts[0].folder)[0]
    if fingerprint(plan) != parts[0].record["whole"]["names_sha256"]:
        raise RunFolderError(f"{parts[0].folder}: its plan is broken; analyze the part again")
    joined = Joined(plan, [], {}, {}, {}, [])
    for part in parts:
        run, ranks = load_run(part.folder), read_part(part.folder)[1]
        joined.entries.extend(
            Evaluated(row, ranks.get(name, 0), run.details.get(name, {}))
            for row in run.rows
            for name in [str(row["name"])]
        )
        names = {str(row["name"]) for row in run.rows}
        if len(ranks) != run.summary["planned"] or not names.issuperset(ranks):
            raise RunFolderError(f"{part.folder}: is broken; analyze the part again")
        joined.ranks.update(ranks)
        joined.spectra.update(run.spectra())
        joined.lines.update(measured_lines(part.folder))
        joined.summaries.append(run.summary)
    return joined


def _together(parts: Sequence[PartRun]) -> Share:
    indices = sorted(index for part in parts for index in part.share.indices)
    return Share(tuple(indices), parts[0].share.count)


def _others(share: Share) -> Share:
    """The parts that are not in a share."""
    missing = set(range(1, share.count + 1)) - set(share.indices)
    return Share(tuple(sorted(missing)), share.count)


def _without_the_others(share: Share, joined: Joined, how: Merging) -> str:
    """A remark that parts are missing, where they may.

    Raises:
        MissingPartsError: They may not.
    """
    found = {str(entry.row["name"]) for entry in joined.entries}
    missing = tuple(name for name in joined.plan if name not in found)
    others = _others(share)
    shown = ", ".join(map(shortened, missing[:_SHOWN])) + (", ..." if missing[_SHOWN:] else "")
    text = f"missing: {others.label} with {count_of(len(missing), 'matrix')}"
    text += f" ({shown})" if missing else ""
    if how.partial:
        return f"{text}; {how.out} is {share.label}"
    raise MissingPartsError(
        f"{text}; analyze with --shard {others}, or join what is there with --partial", missing
    )


def _run(parts: Sequence[PartRun], joined: Joined, share: Share | None) -> Run:
    """The run of all entries, its figures about the whole model computed anew."""
    first = parts[0].record
    settings = settings_from({**first["settings"], "shard": str(share) if share else None})
    entries = sorted(joined.entries, key=lambda entry: natural_key(str(entry.row["name"])))
    fitted = complete(entries, joined.spectra, settings)
    rows = tuple(entry.row for entry in entries)
    counts = joined.summaries[0]
    selection = Selection(
        (),
        (),
        counts["vectors"],
        counts["integer_tensors"],
        counts["filtered"],
        counts["params_total"],
        counts["undrawn"],
    )
    planned = sum(one["planned"] for one in joined.summaries)
    summary = {**summarise(rows, selection, fitted), "planned": planned, "stopped": None}
    details = {str(e.row["name"]): e.details for e in entries if e.details}
    provenance = _provenance(parts, share, joined.spectra.values())
    return Run(provenance, rows, summary, details=details, load_spectra=lambda: joined.spectra)


def _provenance(
    parts: Sequence[PartRun], share: Share | None, spectra: Iterable[Spectrum]
) -> dict[str, Any]:
    """The record of the first part as that of the whole, with what made each part."""
    first = parts[0].record
    dropped = {"finished", "summary", "solvers", "parts", *(() if share else ("whole",))}
    settings = {**first["settings"], "shard": str(share) if share else None}
    record = {key: value for key, value in first.items() if key not in dropped}
    made = [one for part in parts for one in part.record.get("parts") or [_maker(part)]]
    return {
        **record,
        "command": command_line(),
        "settings": settings,
        "solvers": solver_counts(spectra),
        "parts": made,
    }


def _maker(part: PartRun) -> dict[str, Any]:
    """What made a part, as far as parts may differ in it."""
    settings = part.record["settings"]
    return {
        "shard": str(part.share),
        "command": part.record["command"],
        "device": settings["device"],
        "threads": settings["threads"],
        "environment": part.record["environment"],
    }


def _write(run: Run, joined: Joined, how: Merging) -> None:
    """Write the folder whole or not at all."""
    lines = (joined.lines[name] + b"\n" for name in joined.plan if name in joined.lines)
    with _made_whole(how.out) as folder:
        (folder / ROWS).write_bytes(b"".join(lines))
        write_finished(folder, run, part_record(joined.plan, joined.ranks) if run.share else None)
        if how.out.exists():
            clear_run(how.out)


@contextmanager
def _made_whole(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place at the end, or is gone.

    Raises:
        RunFolderError: It cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
        folder = scratch / "run"
        folder.mkdir()  # with the mode of any folder, which a temporary one has not
        try:
            yield folder
            folder.rename(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise RunFolderError(
            f"{out}: cannot be written ({error.strerror}); choose another place with --out"
        ) from None
