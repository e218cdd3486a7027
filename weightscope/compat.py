"""Peers' conventions as data: what ``--compat`` changes, so that a disagreement can be explained.

A convention is a choice that reasonable people make differently; a defect is not, and is not
reproduced: see ``left_out`` of each peer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import sqrt
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from weightscope.errors import OptionError
from weightscope.recipe import EvalFloor

if TYPE_CHECKING:
    from weightscope.measurement import Measurement

_WELORE_THRESHOLDS = MappingProxyType(
    {10: 0.0225, 20: 0.084, 30: 0.115, 40: 0.145, 50: 0.175, 60: 0.215, 70: 0.26}
)


@dataclass(frozen=True)
class Conventions:
    """Choices in which tools differ and that are no options; the defaults are weightscope's.

    Attributes:
        conv_scale: Factor on the entries of a two-dimensional convolution.
        rank_eps: The rank counts the singular values above ``N rank_eps s_1``.
        storage_floor: Only those above the rounding of the stored dtype count, too.
        erg_within_rank: The ERG cut of a rank-deficient matrix is sought among the rank largest.
        entropy_offset: Added to every share, and to their number, in ``entropy``.
        welore_thresholds: WeLore's threshold by percentage of ranks to remove; empty where it is
            found from the model.
        welore_pruned: WeLore's class is LRC where more than this share of the singular values is
            pruned; None where fewer than half of the numerical rank are kept.
    """

    conv_scale: float = 1.0
    rank_eps: float = 2.0**-23
    storage_floor: bool = True
    erg_within_rank: bool = True
    entropy_offset: float = 0.0
    welore_thresholds: Mapping[int, float] = field(default_factory=dict)
    welore_pruned: float | None = None

    def welore_threshold(self, target: float) -> float | None:
        """Threshold on the normalised singular values; None where it is to be found.

        Args:
            target: Share of the ranks to remove.

        Raises:
            OptionError: The peer has none for this target.
        """
        if not self.welore_thresholds:
            return None
        for percentage, threshold in self.welore_thresholds.items():
            if abs(100 * target - percentage) < 1e-9:
                return threshold
        known = ", ".join(f"{percentage / 100:g}" for percentage in self.welore_thresholds)
        raise OptionError(
            f"--welore-target {target:g}: WeLore looks its threshold up in a table, which has only "
            f"{known}; choose one of them, or leave --compat out"
        )


@dataclass(frozen=True)
class Peer:
    """A tool whose figures are to be met.

    Attributes:
        version: What the figures were compared with.
        columns: Our columns that are the peer's figures then.
        settings: Fields of the settings that it fixes, each with the values it allows; the first
            holds where nothing is said.
        conventions: What else changes.
        left_out: Its defects in these columns, which are not reproduced.
    """

    version: str
    columns: tuple[str, ...]
    settings: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    conventions: Conventions = Conventions()
    left_out: tuple[str, ...] = ()


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "weightwatcher": Peer(
            "weightwatcher 0.7.7 on the CPU, analyze(ERG=True)",
            (
                *("alpha", "alpha_ks", "alpha_xmin", "alpha_stderr", "alpha_n_tail", "alpha_hat"),
                *("log_alpha_norm", "erg_n_tail", "erg_xmin", "erg_gap", "rank", "stable_rank"),
                *("entropy", "frobenius_norm", "spectral_norm", "log_norm", "log_spectral_norm"),
            ),
            {
                "eval_floor": (EvalFloor("abs", 1e-5),),
                "xmin": ("ks",),
                "fit": ("pl",),
                "conv": ("slices",),
            },
            Conventions(
                conv_scale=sqrt(0.5),
                rank_eps=2.0**-52,
                storage_floor=False,
                erg_within_rank=False,
                entropy_offset=1e-10,
            ),
            (
                "the product of the ERG search underflows and stops early (large layers)",
                "equal eigenvalues each start a tail of their own that leaves out their equals",
                "constant spectra have an exponent, and failed fits alpha = -1",
                "the smallest singular value of a convolution is the largest of its slices'",
                "N and M of convolutions with an even number of positions are swapped",
                "fewer than 8 eigenvalues are fitted with min_evals=1",
            ),
        ),
        "farms": Peer(
            "FARMS 8e07c3f, LLaMA pruning",
            ("alpha_farms", "alpha_farms_ks", "alpha_farms_n_tail"),
            {"farms": ("paper-llm", "paper-cnn"), "farms_embeddings": (False,)},
            left_out=(
                "zero eigenvalues end the fit",
                "a window wider than the matrix starts before it and inverts the aspect ratio",
                "windows are solved in float32, which moves the edges of the peak's histogram",
            ),
        ),
        "welore": Peer(
            "WeLore f69f015, continual and downstream fine-tuning",
            ("welore_rank", "welore_rank_ratio", "welore_class"),
            {},
            Conventions(welore_thresholds=_WELORE_THRESHOLDS, welore_pruned=0.4999),
            ("equal singular values divide by zero",),
        ),
        "kappatune": Peer(
            "KappaTune 3ce5a7e, selective_fine_tuning",
            ("condition_number",),
            {"conv": ("flatten",)},
            left_out=(
                "singular values in float32, and kappa where the smallest is their rounding",
                "tensors of more than two dimensions and bf16 on the CPU are skipped",
                "the other kappa of its experiments, s_1 / (s_M + 1e-8), depends on the scale",
            ),
        ),
        "spectrum": Peer(
            "Spectrum 0ed1756",
            ("snr",),
            left_out=(
                "norms score 1, tensors of more than two dimensions nothing",
                "ranking happens among matrices of one module column, in the peer's own selection",
            ),
        ),
    }
)
"""Every peer by the name that ``--compat`` takes."""


def conventions(compat: str | None) -> Conventions:
    """Conventions of a peer; weightscope's own for None."""
    return Conventions() if compat is None else PEERS[compat].conventions


def check(compat: str, given: Mapping[str, Any]) -> None:
    """Refuse settings that contradict a peer's conventions.

    Args:
        compat: Name of the peer.
        given: Settings by field name, as many as were chosen.

    Raises:
        OptionError: Naming the option and what the peer does.
    """
    for name, allowed in PEERS[compat].settings.items():
        if name in given and given[name] not in allowed:
            option = "--" + name.replace("_", "-")
            raise OptionError(
                f"{option} {given[name]} contradicts --compat {compat}, which means {option} "
                f"{' or '.join(map(str, allowed))}"
            )
    if "welore_target" in given:
        conventions(compat).welore_threshold(given["welore_target"])


def record(compat: str) -> dict[str, Any]:
    """What a peer's name changes, as plain values for provenance and help."""
    peer, ours = PEERS[compat], Conventions()
    theirs = {f.name: getattr(peer.conventions, f.name) for f in fields(ours)}
    changed = {key: value for key, value in theirs.items() if value != getattr(ours, key)}
    return {
        "peer": peer.version,
        "columns": list(peer.columns),
        "settings": {name: str(allowed[0]) for name, allowed in peer.settings.items()},
        "conventions": {k: dict(v) if isinstance(v, Mapping) else v for k, v in changed.items()},
        "left_out": list(peer.left_out),
    }


def in_units_of(measured: Measurement, rules: Conventions) -> Measurement:
    """A measurement whose spectra are those of a two-dimensional convolution times ``conv_scale``.

    Statistics of the entries and FARMS windows stay those of the stored weights.
    """
    from weightscope.measurement import Shuffled  # here, because help texts need no arrays

    spectrum, stats, shuffled = measured.spectrum, measured.stats, measured.shuffled
    factor = rules.conv_scale
    if factor == 1.0 or len(measured.matrix.tensor.shape) != 4 or spectrum is None:
        return measured
    if stats is not None and stats.sv_floor is not None:
        stats = replace(stats, sv_floor=stats.sv_floor * factor)
    if isinstance(shuffled, Shuffled):
        values = tuple(value * factor for value in shuffled.singular_values)
        shuffled = replace(shuffled, largest=shuffled.largest * factor, singular_values=values)
    scaled = replace(
        spectrum,
        singular_values=spectrum.singular_values * factor,
        resolution=spectrum.resolution * factor,
    )
    return replace(measured, spectrum=scaled, stats=stats, shuffled=shuffled)
