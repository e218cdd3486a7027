"""Every choice that an analysis can be made with, as one value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from weightscope.errors import OptionError
from weightscope.recipe import FARMS_PRESETS, FIT_METHODS, EvalFloor, FitMethod

FAMILIES = ("alpha", "farms", "erg", "condition", "rank", "welore", "mp", "norms", "stats")
"""Metric families, in the order of their columns."""


@dataclass(frozen=True)
class Settings:
    """What to analyse and how.

    Attributes:
        include: Glob patterns on tensor names; none means all.
        exclude: Glob patterns on tensor names.
        metrics: Families to fill; the columns of the others stay empty.
        xmin: How the tail of the whole spectrum is found.
        farms: FARMS preset.
        farms_embeddings: Cut windows from embeddings and heads too.
        conv: How a convolution kernel becomes matrices.
        welore_target: Share of ranks that WeLore is to remove.
        eval_floor: Which eigenvalues enter a power-law fit.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        threads: Threads to use; 0 means all that this process may use.
        seed: Seed of everything random.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    metrics: tuple[str, ...] = FAMILIES
    xmin: FitMethod = "ks"
    farms: str = "auto"
    farms_embeddings: bool = False
    conv: Literal["slices", "flatten"] = "slices"
    welore_target: float = 0.5
    eval_floor: EvalFloor = field(default_factory=EvalFloor)
    device: str = "auto"
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: Naming the option and what it takes.
        """
        if not self.metrics:
            raise OptionError(f"--metrics: name at least one of {', '.join(FAMILIES)}")
        for name in self.metrics:
            _one_of("--metrics", name, FAMILIES)
        _one_of("--xmin", self.xmin, FIT_METHODS)
        _one_of("--farms", self.farms, FARMS_PRESETS)
        _one_of("--conv", self.conv, ("slices", "flatten"))
        if not 0 < self.welore_target < 1:
            raise OptionError(
                f"--welore-target {self.welore_target}: give a share of the ranks between 0 and 1"
            )
        if self.threads < 0:
            raise OptionError(f"--threads {self.threads}: give 0 for all, or a positive number")

    def as_record(self) -> dict[str, Any]:
        """Plain values for a run file."""
        record = asdict(self)
        record["eval_floor"] = str(self.eval_floor)
        record["metrics"] = [name for name in FAMILIES if name in self.metrics]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in record.items()}


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{option} {value!r}: choose from {', '.join(allowed)}")


def parse_floor(text: str) -> EvalFloor:
    """Read ``rank``, ``abs:1e-5`` or ``rel:1e-12``.

    Raises:
        OptionError: Anything else.
    """
    kind, _, number = text.partition(":")
    if text == "rank":
        return EvalFloor()
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if kind not in {"abs", "rel"} or not 0 <= value < float("inf"):
        raise OptionError(
            f"--eval-floor {text!r}: give rank, or abs:NUMBER (WeightWatcher's is abs:1e-5), "
            "or rel:NUMBER times the largest eigenvalue"
        )
    return EvalFloor("abs" if kind == "abs" else "rel", value)
