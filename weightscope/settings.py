"""Every choice that an analysis can be made with, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from weightscope import compat as peers
from weightscope.errors import OptionError
from weightscope.recipe import FARMS_PRESETS, FIT_METHODS, EvalFloor, FitMethod
from weightscope.share import Share, parse_share

FAMILIES = (
    "alpha",
    "farms",
    "erg",
    "condition",
    "rank",
    "welore",
    "mp",
    "norms",
    "stats",
    "null",
    "noise",
    "shuffled",
    "bootstrap",
    "tails",
    "second",
    "snr",
    "solver",
    "quant",
    "reading",
    "adapter",
    "encoding",
)
"""Metric families, in the order of their columns."""
TAIL_LAWS = ("pl", "tpl", "etpl")
QUANT_BITS = (8, 6, 5, 4, 3, 2)
FEWEST_REPLICATES = 20
THRESHOLDS: Mapping[str, float] = {
    "alpha_over": 2.0,
    "alpha_under": 6.0,
    "tail_small": 50,
    "tail_unresolved": 20,
    "tail_short_decades": 0.5,
    "rank_deficient": 0.9,
    "random_like_p": 0.05,
    "poor_fit_ks": 0.1,
}
"""Every threshold that a word or a warning hangs on, by name; recorded with each run."""
MOST_REPLICAS = 100


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
        fused: Keep fused tensors whole instead of dividing them.
        sample: Matrices per module type, drawn with the seed; 0 takes all.
        welore_target: Share of ranks that WeLore is to remove.
        eval_floor: Which eigenvalues enter a power-law fit.
        fit: Law of the tail: a power law, a truncated one, or a truncated one near the peak.
        bootstrap: Replicates of the bootstrap of alpha; 0 for none.
        shuffled: Replicas of the shuffled null; 0 chooses by size, None computes none.
        quant_error: Bit widths whose rounding error is measured.
        compat: Peer whose conventions to follow; None for ours.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, several of them with commas, or ``mps``.
        threads: Threads to use; 0 means all that this process may use.
        seed: Seed of everything random.
        base: Model to subtract, or that an adapter belongs to; None for none.
        merged: Put an adapter into the base instead of analysing its update.
        shard: Which part of the matrices, where several processes divide them; None for all.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    metrics: tuple[str, ...] = FAMILIES
    xmin: FitMethod = "ks"
    farms: str = "auto"
    farms_embeddings: bool = False
    conv: Literal["slices", "flatten"] = "slices"
    fused: bool = False
    sample: int = 0
    welore_target: float = 0.5
    eval_floor: EvalFloor = field(default_factory=EvalFloor)
    fit: Literal["pl", "tpl", "etpl"] = "pl"
    bootstrap: int = 0
    shuffled: int | None = None
    quant_error: tuple[int, ...] = ()
    compat: str | None = None
    device: str = "auto"
    threads: int = 0
    seed: int = 0
    base: str | None = None
    merged: bool = False
    shard: Share | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: Naming the option and what it takes.
        """
        if not self.metrics:
            raise OptionError(f"--metrics: name at least one of {', '.join(FAMILIES)}")
        for name in self.metrics:
            _one_of("--metrics", name, FAMILIES)
        asked = {
            "bootstrap": self.bootstrap > 0,
            "shuffled": self.shuffled is not None,
            "quant": bool(self.quant_error),
        }
        wanted = {*self.metrics, *(name for name, given in asked.items() if given)}
        object.__setattr__(self, "metrics", tuple(name for name in FAMILIES if name in wanted))
        _one_of("--xmin", self.xmin, FIT_METHODS)
        _one_of("--farms", self.farms, FARMS_PRESETS)
        _one_of("--conv", self.conv, ("slices", "flatten"))
        if not 0 < self.welore_target < 1:
            raise OptionError(
                f"--welore-target {self.welore_target}: give a share of the ranks between 0 and 1"
            )
        _one_of("--fit", self.fit, TAIL_LAWS)
        if self.fit != "pl" and self.xmin != "ks":
            raise OptionError(f"--fit {self.fit} searches xmin itself: leave --xmin out")
        if self.bootstrap and self.bootstrap < FEWEST_REPLICATES:
            raise OptionError(
                f"--bootstrap {self.bootstrap}: give at least {FEWEST_REPLICATES} replicates"
            )
        if self.shuffled is not None and not 0 <= self.shuffled <= MOST_REPLICAS:
            raise OptionError(f"--shuffled {self.shuffled}: give 1 to {MOST_REPLICAS} replicas")
        for bits in self.quant_error:
            if bits not in QUANT_BITS:
                allowed = ", ".join(map(str, QUANT_BITS))
                raise OptionError(f"--quant-error {bits}: choose from {allowed}")
        if self.sample < 0:
            raise OptionError(f"--sample {self.sample}: give a number of matrices per module type")
        if self.merged and self.base is None:
            raise OptionError("--merged needs the base model: name it with --base")
        if self.compat is not None:
            _one_of("--compat", self.compat, tuple(peers.PEERS))
            self._adopt(self.compat)
        if self.threads < 0:
            raise OptionError(f"--threads {self.threads}: give 0 for all, or a positive number")

    def _adopt(self, compat: str) -> None:
        """Take what the peer's conventions fix where nothing else was chosen.

        Raises:
            OptionError: Something else was.
        """
        defaults = {f.name: f.default for f in fields(self)} | {"eval_floor": EvalFloor()}
        for name, allowed in peers.PEERS[compat].settings.items():
            if getattr(self, name) == defaults[name]:
                object.__setattr__(self, name, allowed[0])
        peers.check(compat, vars(self))

    def as_record(self) -> dict[str, Any]:
        """Plain values for a run file; which one of several equal devices is no part of them."""
        record = asdict(self)
        record["device"] = self.device.partition(":")[0]
        record["eval_floor"] = str(self.eval_floor)
        record["shard"] = str(self.shard) if self.shard else None
        record["metrics"] = [name for name in FAMILIES if name in self.metrics]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in record.items()}


def settings_from(record: Mapping[str, Any]) -> Settings:
    """The inverse of ``Settings.as_record``.

    Raises:
        OptionError: They make no sense.
        KeyError: One is missing.
    """
    plain = {f.name: record[f.name] for f in fields(Settings) if f.name in record}
    tuples = ("include", "exclude", "metrics", "quant_error")
    read = {name: tuple(record[name]) for name in tuples}
    shard = record.get("shard")
    floor = parse_floor(record["eval_floor"])
    return Settings(
        **plain | read | {"eval_floor": floor, "shard": parse_share(shard) if shard else None}
    )


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{option} {value!r}: choose from {', '.join(allowed)}")


def parse_duration(text: str | None) -> float | None:
    """Seconds of a duration such as ``90s``, ``10m`` or ``2h``; a bare number is in seconds.

    Raises:
        OptionError: Anything else.
    """
    if text is None:
        return None
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, factor = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    if not number.replace(".", "", 1).isdecimal() or not float(number):
        raise OptionError(f"--max-time {text!r}: give a duration, such as 90s, 10m or 2h")
    return float(number) * factor


def parse_replicas(text: str | None) -> int | None:
    """Read ``auto`` or a number of replicas.

    Raises:
        OptionError: Anything else.
    """
    if text is None:
        return None
    if text == "auto":
        return 0
    if not text.isdecimal() or not int(text):
        raise OptionError(f"--shuffled {text!r}: give a number of replicas, or nothing")
    return int(text)


def parse_bits(text: str | None) -> tuple[int, ...]:
    """Read bit widths such as ``8,4,3``.

    Raises:
        OptionError: One of them is no number.
    """
    found = [part.strip() for part in (text or "").split(",") if part.strip()]
    for part in found:
        if not part.isdecimal():
            raise OptionError(f"--quant-error {part!r}: give bit widths, such as 8,4,3")
    return tuple(sorted({int(part) for part in found}, reverse=True))


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
