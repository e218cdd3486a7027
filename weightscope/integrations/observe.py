"""How a model under training is observed: options, a copy of its weights, figures to log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from weightscope.errors import CheckpointError, OptionError
from weightscope.evaluate import columns_of
from weightscope.run import Run
from weightscope.select import select_for
from weightscope.settings import Settings, parse_floor
from weightscope.sources import open_model
from weightscope.summary import headline_rows, numbers

METRICS = ("alpha", "erg", "rank", "norms")
"""Metric families computed where none are asked for."""
HEADLINES: Mapping[str, tuple[str, ...]] = {
    "alpha": ("alpha", "alpha_ks"),
    "farms": ("alpha_farms",),
    "erg": ("erg_gap",),
    "condition": ("condition_number",),
    "rank": ("stable_rank", "effective_rank"),
    "welore": ("welore_rank_ratio",),
    "mp": ("mp_softrank",),
    "norms": ("spectral_norm", "frobenius_norm"),
    "stats": ("weight_std",),
    "noise": ("noise_w1",),
    "bootstrap": ("alpha_lo", "alpha_hi"),
    "snr": ("snr_mp",),
    "shuffled": ("traps",),
}
"""Columns of each family that are logged where none are asked for."""
LONG_FORM = ("step", "name", "metric", "value")


@dataclass(frozen=True)
class Options:
    """How a model is followed.

    Attributes:
        settings: What is computed. Where nothing is said: ``METRICS``, on the CPU, with one
            thread in the background and else with those of the training.
        every: Steps between analyses; 0 for none but those asked for.
        background: Analyse a copy in a thread beside the training instead of holding it up.
        max_copy_bytes: Largest such copy, in bytes of main memory.
        columns: Numeric columns to log; the ``HEADLINES`` of the families where empty.
        out: Folder that gets a run folder ``step-N`` per analysis; None keeps the rows alone.
        overwrite: Replace a run that ``out`` holds of the same step.
    """

    settings: Settings
    every: int = 0
    background: bool = False
    max_copy_bytes: int = 4 << 30
    columns: tuple[str, ...] = ()
    out: Path | None = None
    overwrite: bool = False

    @classmethod
    def of(cls, every: int, given: Mapping[str, Any]) -> Options:
        """Options from keyword arguments: fields of this class and of ``Settings``.

        Raises:
            OptionError: One of them makes no sense.
            TypeError: One of them does not exist.
        """
        if every < 0:
            raise OptionError(f"every={every}: give a number of steps, or 0")
        names = {entry.name for entry in fields(cls)}
        own = {key: value for key, value in given.items() if key in names}
        threads = 1 if own.get("background") else torch.get_num_threads()
        rest: dict[str, Any] = {"metrics": METRICS, "device": "cpu", "threads": threads}
        rest.update((key, value) for key, value in given.items() if key not in names)
        for key in ("metrics", "include", "exclude"):
            rest[key] = _tuple(rest.get(key, ()))
        if isinstance(rest.get("eval_floor"), str):
            rest["eval_floor"] = parse_floor(rest["eval_floor"])
        settings = Settings(**rest)
        own["columns"] = _logged(settings, _tuple(own.get("columns", ())))
        own["out"] = Path(own["out"]) if own.get("out") is not None else None
        return cls(settings, every, **own)


def _tuple(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _logged(settings: Settings, wanted: tuple[str, ...]) -> tuple[str, ...]:
    possible = [c.name for c in columns_of(settings.metrics) if c.kind != "text"]
    for name in wanted:
        if name not in possible:
            raise OptionError(f"columns {name!r}: choose from {', '.join(possible)}")
    chosen = wanted or [name for family in settings.metrics for name in HEADLINES.get(family, ())]
    return tuple(name for name in possible if name in chosen)


def figures_of(run: Run, columns: Iterable[str]) -> dict[str, float]:
    """What is logged of a run; undefined cells do not count, an undefined figure has no key.

    Args:
        run: An analysis.
        columns: Numeric columns.

    Returns:
        ``weightscope/<column>/mean`` and ``/median`` over all matrices but embeddings and heads,
        and ``weightscope/<column>/<module>``, the median over the blocks, for every module by its
        name without the block index, in the unit of the column.
    """
    modules: dict[str, list[Any]] = {}
    for row in run.rows:
        module = ".".join(part for part in str(row["module"]).split(".") if part != "#")
        module = module or str(row["name"]).removesuffix(".weight")
        modules.setdefault(module, []).append(row)
    figures: dict[str, float] = {}
    for column in columns:
        key = f"weightscope/{column}"
        found = numbers(headline_rows(run.rows), column)
        if found:
            figures[f"{key}/mean"], figures[f"{key}/median"] = fmean(found), median(found)
        for module, rows in modules.items():
            if cells := numbers(rows, column):
                figures[f"{key}/{module}"] = median(cells)
    return figures


def long_form(
    history: Iterable[tuple[int, Run]], columns: Iterable[str]
) -> Iterator[dict[str, Any]]:
    """Cells of several runs as records of ``step, name, metric, value``; undefined ones left out.

    Args:
        history: Steps and their runs, in any order; the records come in order of steps.
        columns: Numeric columns.
    """
    columns = tuple(columns)
    for step, run in sorted(history, key=lambda entry: entry[0]):
        for row in run.rows:
            for column in columns:
                if row[column] is not None:
                    yield dict(
                        zip(LONG_FORM, (step, row["name"], column, row[column]), strict=True)
                    )


def unwrapped(model: Any) -> Any:
    """The module inside the wrappers of ``torch.compile`` and of data parallelism."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif type(model).__name__ in {"DistributedDataParallel", "DataParallel"}:
            model = model.module
        else:
            return model


def refuse_sharded(model: torch.nn.Module) -> None:
    """Make sure that this process holds whole matrices.

    Raises:
        CheckpointError: They are sharded by FSDP, DeepSpeed or tensor parallelism.
    """
    parts = any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in model.parameters())
    if parts or any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise CheckpointError(
            "the weights are sharded over several processes and none holds a whole matrix; "
            "analyze the checkpoints instead"
        )


class Snapshot:
    """What ``analyze`` asks of a module, copied to main memory."""

    def __init__(self, modules: Iterable[tuple[str, Any]], tensors: Mapping[str, Any]) -> None:
        """Keep copies of tensors, and the modules' types, which tell convolutions."""
        self._modules, self._tensors = tuple(modules), dict(tensors)

    def named_modules(self) -> Iterator[tuple[str, Any]]:
        """Names and modules of the original."""
        return iter(self._modules)

    def state_dict(self) -> dict[str, Any]:
        """The copies."""
        return self._tensors


class TooLargeError(CheckpointError):
    """The copy would exceed its bound."""


def snapshot(model: Any, settings: Settings, max_bytes: int) -> Snapshot:
    """Copy what will be analysed, and nothing else, to main memory.

    Args:
        model: A module.
        settings: Whose patterns choose the tensors.
        max_bytes: Bound on the copy.

    Raises:
        TooLargeError: The copy would exceed ``max_bytes``.
        CheckpointError: The model cannot be read.
    """
    checkpoint = open_model(model)
    chosen = select_for(checkpoint, settings)
    names = {m.tensor.name for m in chosen.matrices}
    names |= {e.matrix.tensor.name for e in chosen.exclusions}
    refs = [r for r in checkpoint.tensors if r.name in names or len(r.shape) < 2]
    size = sum(ref.nbytes for ref in refs)
    if size > max_bytes:
        raise TooLargeError(
            f"the copy would take {size:,} bytes, more than max_copy_bytes={max_bytes:,}; raise "
            "it, leave matrices out with exclude, or analyze without background"
        )
    copies = {ref.name: checkpoint.memory[ref.name].detach().to("cpu", copy=True) for ref in refs}
    # the run is named after the model's type
    kind: type[Snapshot] = type(checkpoint.name, (Snapshot,), {})
    return kind(model.named_modules(), copies)
