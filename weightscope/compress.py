"""The act of compressing: a checkpoint and a rank plan become a checkpoint of factors.

One matrix is in memory at a time, and the folder appears when everything is in it.
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from weightscope.checkpoint import Checkpoint
from weightscope.compressed import BESIDE, INDEX, RECORD, Compressed, compression_record
from weightscope.decompositions.truncated import Factors, truncated
from weightscope.errors import CheckpointError, IncomparableRunsError, OutputError, PlanError
from weightscope.folders.storage import dumps
from weightscope.formats.safetensors import read_header, read_tensor
from weightscope.formats.safetensors_writer import copied, header_of, stored_bytes, write_stream
from weightscope.outputs import replace_file, whole_folder
from weightscope.rank_plan import PlannedMatrix, RankPlan
from weightscope.settings import Settings
from weightscope.tensor import TensorRef
from weightscope.text import scaled, shortened

SAME = 1e-5
"""Difference of a norm (relative) or an error from the planned one that rounding explains: values
that a Gram matrix cannot tell from zero are off by 3e-8 of the largest, thousands of them by 2e-6.
Another step of the same training differs by far more."""


class Observer(Protocol):
    """Who is told how the work goes on."""

    def note(self, text: str) -> None:
        """A remark for the user."""

    def begin(self, total: float) -> None:
        """Work of so many operations begins."""

    def advance(self, name: str, operations: float) -> None:
        """A tensor is written."""


@dataclass(frozen=True)
class Shard:
    """One file to write.

    Attributes:
        name: Its name.
        stored: Tensors of the file that it is made from, in their order.
    """

    name: str
    stored: tuple[TensorRef, ...]


def factor_refs(ref: TensorRef, rank: int) -> tuple[TensorRef, TensorRef]:
    """What a weight is stored as: left (rows, rank) and right (rank, cols)."""
    stem = ref.name.removesuffix(".weight")
    rows, cols = ref.shape
    return (
        replace(ref, name=f"{stem}.left.weight", shape=(rows, rank)),
        replace(ref, name=f"{stem}.right.weight", shape=(rank, cols)),
    )


def check_plan(plan: RankPlan, checkpoint: Checkpoint) -> None:
    """Refuse a plan that was made of another model, and a model that has no factors.

    Raises:
        CheckpointError: The checkpoint is not in one folder of safetensors files on this machine.
        IncomparableRunsError: The plan is of another model; what differs is named.
        PlanError: The plan asks for something that a checkpoint of factors cannot be.
    """
    if checkpoint.format != "safetensors" or checkpoint.remote or not checkpoint.files:
        raise CheckpointError(
            f"{checkpoint.name}: compress reads safetensors files on this machine, and this is a "
            f"{'remote' if checkpoint.remote else checkpoint.format} checkpoint; save it as "
            "safetensors first"
        )
    if len({Path(ref.file).parent for ref in checkpoint.tensors}) > 1:
        raise CheckpointError(
            f"{checkpoint.name}: is a pipeline of several models; name the folder of one"
        )
    if (Path(checkpoint.tensors[0].file).parent / RECORD).exists():
        raise CheckpointError(
            f"{checkpoint.name}: is compressed already; compress the model that it was made from"
        )
    _check_source(plan.source, checkpoint)
    tensors = {ref.name: ref for ref in checkpoint.tensors}
    for matrix in plan.factorised:
        ref = tensors.get(matrix.name)
        label = shortened(matrix.name)
        if ref is None or (ref.shape, ref.dtype) != ((matrix.rows, matrix.cols), matrix.dtype):
            found = "has no such tensor" if ref is None else f"has {list(ref.shape)} {ref.dtype}"
            raise IncomparableRunsError(
                f"{checkpoint.name}: the plan has {label} of {[matrix.rows, matrix.cols]} "
                f"{matrix.dtype}, but the model {found}"
            )
        if not matrix.name.endswith(".weight"):
            raise PlanError(f"{label}: is not called .weight; only weights of modules have factors")
        taken = [new.name for new in factor_refs(ref, matrix.rank) if new.name in tensors]
        if taken:
            raise PlanError(f"{shortened(taken[0])}: exists in the model and would be a factor")


def _check_source(source: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    there = source.get("files")
    if not isinstance(there, list) or not there:
        raise PlanError(
            f"the plan was made of weights in memory ({shortened(source.get('model'))}), so "
            "nothing tells whether it fits; analyze the saved checkpoint and plan again"
        )
    planned = {f["name"]: f for f in there if isinstance(f, dict) and "name" in f}
    here = {file.name: file for file in checkpoint.files}
    of = f"{checkpoint.name}: the plan was made of {shortened(source.get('model'))}"
    for name in sorted({*planned, *here}):
        if name not in here or name not in planned:
            where = "the plan's model" if name not in here else "this one"
            raise IncomparableRunsError(f"{of}, another model: only {where} has {shortened(name)}")
        for key in ("size", "header_sha256"):
            theirs, ours = planned[name].get(key), getattr(here[name], key)
            if theirs != ours:
                raise IncomparableRunsError(
                    f"{of}, another model: {key} of {shortened(name)} is {shortened(theirs)} in "
                    f"the plan and {shortened(ours)} here"
                )


def compress(
    checkpoint: Checkpoint, plan: RankPlan, out: Path, settings: Settings, observer: Observer
) -> list[Compressed]:
    """Write a checkpoint in which the planned matrices are two factors each.

    Args:
        checkpoint: Safetensors files in one folder of this machine.
        plan: Made of a run of this very checkpoint.
        out: Folder to create or replace; the caller has checked that it may be.
        settings: Device and threads of the linear algebra, both filled in.
        observer: Who is told about progress.

    Returns:
        What became of every planned matrix, in the order of the plan.

    Raises:
        CheckpointError: The checkpoint cannot be read, or is none that can be compressed.
        IncomparableRunsError: The plan was made of other weights.
        PlanError: The plan asks for something that a checkpoint of factors cannot be.
        OutputError: The folder cannot be written, or the disk has no room.
    """
    check_plan(plan, checkpoint)
    shards = shards_of(checkpoint)
    ranks = {matrix.name: matrix for matrix in plan.factorised}
    folder = Path(checkpoint.tensors[0].file).parent
    beside, left = _beside(folder)
    headers = [header_of(_new_refs(shard, ranks), checkpoint.metadata) for shard in shards]
    size = sum(ref.nbytes for shard in shards for ref in _new_refs(shard, ranks))
    needed = size + sum(map(len, headers)) + sum(path.stat().st_size for path in beside)
    _check_room(out, needed)
    if left:
        observer.note(f"not copied: {', '.join(left)}")
    observer.begin(sum(_operations(ref, ranks) for ref in checkpoint.tensors))
    done: list[Compressed] = []
    factors = _Factoring(ranks, settings.device, checkpoint.name)
    torch.set_num_threads(settings.threads)
    with whole_folder(out) as building:
        for shard, header in zip(shards, headers, strict=True):
            pieces = _pieces(shard, factors, done, observer)
            write_stream(building / shard.name, header, pieces)
        for path in beside:
            shutil.copyfile(path, building / path.name)
        index = _index(shards, ranks, size)
        replace_file(building / INDEX, (dumps(index, indent=2) + "\n").encode())
        place = {matrix.name: index for index, matrix in enumerate(plan.matrices)}
        done.sort(key=lambda each: place[each.planned.name])
        record = compression_record(plan, done)
        replace_file(building / RECORD, (dumps(record, indent=1) + "\n").encode())
        _check_written(building, shards, plan, checkpoint)
    return done


def shards_of(checkpoint: Checkpoint) -> list[Shard]:
    """One file for each file of the checkpoint."""
    files = list(dict.fromkeys(ref.file for ref in checkpoint.tensors))
    return [
        Shard(
            f"factorised-{number:05d}-of-{len(files):05d}.safetensors",
            tuple(ref for ref in checkpoint.tensors if ref.file == file),
        )
        for number, file in enumerate(files, 1)
    ]


def _new_refs(shard: Shard, ranks: Mapping[str, PlannedMatrix]) -> list[TensorRef]:
    found: list[TensorRef] = []
    for ref in shard.stored:
        matrix = ranks.get(ref.name)
        found += [ref] if matrix is None else factor_refs(ref, matrix.rank)
    return found


def _operations(ref: TensorRef, ranks: Mapping[str, PlannedMatrix]) -> float:
    """Work that a tensor is: a copy, or about as much as its eigenvectors take."""
    if ref.name not in ranks:
        return float(ref.nbytes)
    rows, cols = ref.shape
    M = float(min(rows, cols))
    return M * M * (2 * max(rows, cols) + 10 * M)


@dataclass(frozen=True)
class _Factoring:
    """How planned tensors become factors."""

    ranks: Mapping[str, PlannedMatrix]
    device: str
    model: str

    def __call__(self, ref: TensorRef) -> tuple[Factors, Compressed] | None:
        """The factors of a planned tensor; None for any other."""
        planned = self.ranks.get(ref.name)
        if planned is None:
            return None
        matrix = read_tensor(ref).to(self.device)
        if not bool(torch.isfinite(matrix).all()):
            raise self._other(planned, "some of its entries are not finite")
        try:
            factors = truncated(matrix, planned.rank)
        except RuntimeError as error:  # no convergence, or no room on the device
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"{shortened(ref.name)}: cannot be factorised on {self.device} ({why}); try "
                "another --device"
            ) from None
        norm, dropped = planned.frobenius_norm, planned.relative_error
        for what, found, wanted, allowed in (
            ("Frobenius norm", factors.frobenius_norm, norm, SAME * norm),
            ("relative error", factors.relative_error, dropped, SAME),
        ):
            if not abs(found - wanted) <= allowed:
                raise self._other(planned, f"its {what} is {found:.9g}, not {wanted:.9g}")
        return factors, Compressed(planned, factors.relative_error, factors.stored_error)

    def _other(self, planned: PlannedMatrix, why: str) -> IncomparableRunsError:
        return IncomparableRunsError(
            f"{self.model}: the plan was made of other weights: {shortened(planned.name)}: {why}; "
            "analyze this checkpoint and plan again"
        )


def _pieces(
    shard: Shard,
    factoring: Callable[[TensorRef], tuple[Factors, Compressed] | None],
    done: list[Compressed],
    observer: Observer,
) -> Iterator[bytes | memoryview]:
    """The bytes of a file after its header; what became of its matrices goes to ``done``."""
    for ref in shard.stored:
        found = factoring(ref)
        if found is None:
            yield from copied(ref)
            observer.advance(ref.name, float(ref.nbytes))
            continue
        factors, compressed = found
        done.append(compressed)
        yield stored_bytes(factors.left)
        yield stored_bytes(factors.right)
        observer.advance(ref.name, _operations(ref, {ref.name: compressed.planned}))


def _index(
    shards: Sequence[Shard], ranks: Mapping[str, PlannedMatrix], size: int
) -> dict[str, Any]:
    weight_map = {ref.name: shard.name for shard in shards for ref in _new_refs(shard, ranks)}
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}


def _check_written(
    building: Path, shards: Sequence[Shard], plan: RankPlan, checkpoint: Checkpoint
) -> None:
    """What lies on the disk has exactly the parameters and bytes that were planned."""
    written = [ref for shard in shards for ref in read_header(building / shard.name).tensors]
    saved = sum(m.parameters - m.planned_parameters for m in plan.matrices)
    saved_bytes = sum((m.parameters - m.planned_parameters) * m.width for m in plan.matrices)
    for what, now, before, wanted in (
        ("parameters", sum(r.size for r in written), _size(checkpoint), saved),
        ("bytes", sum(r.nbytes for r in written), _nbytes(checkpoint), saved_bytes),
    ):
        if before - now != wanted:
            raise OutputError(f"wrote {now} {what}, {before - wanted} were planned: a defect")


def _size(checkpoint: Checkpoint) -> int:
    return sum(ref.size for ref in checkpoint.tensors)


def _nbytes(checkpoint: Checkpoint) -> int:
    return sum(ref.nbytes for ref in checkpoint.tensors)


def _beside(folder: Path) -> tuple[list[Path], list[str]]:
    """Files beside the weights that are copied, and names of those that are not."""
    taken, left = [], []
    for path in sorted(folder.iterdir()):
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in BESIDE) and path.is_file():
            taken.append(path)
        elif not path.name.endswith((".safetensors", ".safetensors.index.json")):
            left.append(path.name)
    return taken, left


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.resolve().parent).free
    if needed > free:
        raise OutputError(
            f"{out}: needs {scaled(needed, 'B', 1024)} and the disk has {scaled(free, 'B', 1024)} "
            "left; make room, or choose another place"
        )
