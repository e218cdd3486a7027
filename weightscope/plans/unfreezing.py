"""What plans have in common that name the parameters to train, as Spectrum does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby

from weightscope.addresses import Weight, weights_of
from weightscope.choosing import Choice, Chosen, choose
from weightscope.outcome import Value
from weightscope.proposal import Proposal
from weightscope.reasons import (
    budget_sentence,
    criterion_sentence,
    noise_sentence,
    records_of,
    single_experts,
    unresolved,
)
from weightscope.run import Run

SOURCE = "Hartford et al., Spectrum, arXiv 2406.06623, and the form of its program's lists"
PUBLISHED_TOP = 25.0
_PLAIN = re.compile(r"[A-Za-z0-9_.\-]+")
Pattern = Callable[[str], str]
"""A parameter name, with ``weight`` for its weight and bias together, as a pattern of a tool."""


@dataclass(frozen=True)
class Options(Choice):
    """Options of the lists of parameters to train; ``snr`` by default, as Spectrum."""

    by: str = "snr"

    @property
    def limited(self) -> Options:
        """With the published share where nothing limits the choice."""
        if self.modules is None and self.top is None and self.budget is None:
            return replace(self, top=PUBLISHED_TOP)
        return self


def propose(run: Run, options: Options, key: str, pattern: Pattern) -> Proposal:
    """A YAML list of patterns, best first within each module type.

    Args:
        run: A run.
        options: How to choose.
        key: Line before the list; empty for none.
        pattern: What the tool takes for a parameter name.

    Raises:
        OptionError: The run lacks a column that decides, or nothing can be chosen.
    """
    how = options.limited
    fate = "trained beside the choice" if how.include_embeddings else "--include-embeddings"

    def misfit(weight: Weight) -> str:
        if weight.is_vocabular:
            return f"embeddings and heads ({fate})"
        return "" if _PLAIN.fullmatch(weight.name) else "names that no plain pattern can carry"

    chosen = choose(run, replace(how, include_embeddings=True), lambda w: w.params, misfit)
    weights = weights_of(run, how.prefix)
    beside = [w for w in weights if w.is_vocabular and how.include_embeddings]
    beside = [w for w in beside if _PLAIN.fullmatch(w.name)]
    lines = _lines(chosen, pattern)
    if beside:
        lines += ["# embeddings and heads, as asked", *(f"- {pattern(w.name)}" for w in beside)]
    share = sum(c.weight.params for c in chosen.chosen) + sum(w.params for w in beside)
    total = sum(w.params for w in weights)
    return Proposal(
        "".join(f"{line}\n" for line in ([key] if key else []) + lines),
        records_of(chosen),
        criterion_sentence(chosen),
        f"{budget_sentence(chosen, 'parameters, biases not counted')} {share:,} of {total:,} "
        f"parameters in matrices are trained ({share / total:.1%}).",
        noise_sentence(chosen),
        _deviations(how, chosen),
        (*chosen.remarks, *unresolved(chosen), *single_experts(chosen)),
        comment="#",
        facts={"trained_parameters": share, "all_parameters": total},
    )


def _lines(chosen: Chosen, pattern: Pattern) -> list[str]:
    """Entries grouped by module type; what decided stands above each, as a comment.

    Programs read these lists by their lines, so nothing may follow a pattern on its line.
    """
    criterion = chosen.criterion
    lines = []
    ordered = sorted(chosen.chosen, key=lambda c: c.weight.kind)  # stable: best first within
    for kind, members in groupby(ordered, key=lambda c: c.weight.kind):
        lines.append(f"# {kind}: {criterion.first} {criterion.formula} first")
        for c in members:
            noise = "" if c.noise is None else f", noise {_short(c.noise)}"
            lines.append(f"#   {criterion.formula} {_short(c.value)}{noise}")
            lines.append(f"- {pattern(c.weight.name)}")
    return lines


def _short(value: Value) -> str:
    return f"{value:.4g}"


def with_bias(name: str, escape: Pattern) -> str:
    """A pattern for one name from end to end, and for the bias beside a weight."""
    stem = name.removesuffix(".weight")
    return f"^{escape(stem + '.')}(weight|bias)$" if stem != name else f"^{escape(name)}$"


def _deviations(how: Options, chosen: Chosen) -> tuple[str, ...]:
    told = ["norms are never listed: their score says nothing, and the program gives them 1."]
    if not how.include_embeddings:
        told.append(
            "embeddings and head stay frozen; the program always trains them "
            "(--include-embeddings does)."
        )
    if how.across:
        told.append("module types are compared with each other; the program never does.")
    if how.top != PUBLISHED_TOP:
        told.append(f"another limit than Spectrum-{PUBLISHED_TOP:.0f}'s {PUBLISHED_TOP:.0f} %.")
    if how.by not in {"snr", "snr-spectrum"}:
        told.append(f"{how.by} instead of a signal-to-noise ratio.")
    if chosen.criterion.deviation:
        told.append(chosen.criterion.deviation)
    return tuple(told)
