"""WeLore: which matrices become two factors, and of what rank (arXiv 2407.11239).

One threshold k on the normalised singular values decides for the whole model, as in
``metrics.welore``: matrix i keeps ``r_i = #{d >= k}`` ranks. A matrix becomes two factors where its
class says so: by the break-even rule where they hold fewer parameters than it, by the paper's
where r_i is below half of its numerical rank. The others stay whole, so less is removed than the
threshold attempts; a target can be asked for on either basis, or in parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weightscope.errors import OptionError, PlanError
from weightscope.factorable import Candidate, candidates
from weightscope.metrics import welore
from weightscope.outcome import Value
from weightscope.proposal import Proposal, json_text
from weightscope.rank_plan import PlannedMatrix, RankPlan, break_even, budget, parameters_of
from weightscope.run import Run
from weightscope.spectrum import FloatArray
from weightscope.text import count_of

MEANING = "ranks at a target reduction: JSON for weightscope compress"
SOURCE = "WeLore, arXiv 2407.11239"
BASES = ("attempted", "effective", "parameters")
HOLLOW = 0.5
"""Relative error from which on a plan warns of a matrix."""
RULES = ("breakeven", "half", "ratio:X")


@dataclass(frozen=True)
class Options:
    """What is to be removed, and which matrices may be factorised for it.

    Attributes:
        target: Share to remove, in (0, 1).
        basis: Share of what: ``attempted``, ranks that the threshold cuts, as in the paper;
            ``effective``, ranks that go once the others stay whole; ``parameters``, entries.
        rule: ``breakeven``, ``half`` (the paper's) or ``ratio:X`` (more than the share X of the
            singular values goes, its code's). None factorises beyond break-even.
    """

    target: float = 0.5
    basis: str = "attempted"
    rule: str = "breakeven"

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: Naming the option and what it takes.
        """
        if not 0 < self.target < 1:
            raise OptionError(f"--target {self.target:g}: choose a share between 0 and 1")
        if self.basis not in BASES:
            raise OptionError(f"--basis {self.basis!r}: choose from {', '.join(BASES)}")
        if self.rule not in RULES[:2] and not 0 <= self.share < 1:
            raise OptionError(f"--rule {self.rule!r}: choose from {', '.join(RULES)}, X in [0, 1)")

    @property
    def share(self) -> float:
        """X of ``ratio:X``; negative where the rule is another."""
        name, _, value = self.rule.partition(":")
        try:
            return float(value) if name == "ratio" else -1.0
        except ValueError:
            return -1.0

    def largest_rank(self, candidate: Candidate) -> int:
        """The largest rank at which a matrix is still factorised; 0 where none is."""
        rows, cols, n = candidate.rows, candidate.cols, candidate.count
        saving = (rows * cols - 1) // (rows + cols)
        if self.rule == "breakeven":
            return saving
        if self.rule == "half":
            return min(saving, (candidate.numerical_rank - 1) // 2)
        kept = next((r for r in range(n, 0, -1) if (n - r) / n > self.share), 0)
        return min(saving, kept)


@dataclass(frozen=True)
class Ranks:
    """What a criterion chose.

    Attributes:
        threshold: k, on the normalised singular values.
        kept: Ranks that every candidate keeps.
        factorised: Whether it becomes two factors.
    """

    threshold: float
    kept: tuple[int, ...]
    factorised: tuple[bool, ...]


def propose(run: Run, options: Options) -> Proposal:
    """Ranks for the linear layers inside the blocks.

    Raises:
        PlanError: The run is of a difference, a part or a sample, or holds nothing to factorise.
        OptionError: The rule needs a column that the run lacks.
    """
    return proposal(plan(run, options))


def plan(run: Run, options: Options) -> RankPlan:
    """Choose ranks for a model from the spectra of its run; no weight is read.

    Raises:
        PlanError: The run is of a difference, a part or a sample, or holds nothing to factorise.
        OptionError: The rule needs a column that the run lacks.
    """
    found, kept = candidates(run)
    if options.rule == "half" and any(each.numerical_rank < 0 for each in found):
        raise OptionError("--rule half needs the column rank: analyze with --metrics rank too")
    ranks = choose(found, options)
    noise = choose([each.as_noise() for each in found], options)
    matrices = tuple(
        replace(
            _planned(each, ranks.kept[i], ranks.factorised[i]),
            noise_rank=noise.kept[i],
            noise_factorised=noise.factorised[i],
        )
        for i, each in enumerate(found)
    )
    record = criterion_record(options, ranks.threshold)
    return _assembled(run, record, matrices, kept, noise.threshold)


def uniform(run: Run, size: RankPlan) -> RankPlan:
    """The control: every matrix gives up the same share of its parameters, as many as a plan does.

    Ranks are rounded down from that share; those cut most get one rank back while the total stays
    within that of the plan.

    Args:
        run: The run that the plan was made of.
        size: The plan whose total size is wanted.
    """
    found, kept = candidates(run)
    now, wanted = parameters_of(size.matrices)
    ranks = [each.count for each in found] if wanted == now else _equal_shares(found, wanted)
    matrices = tuple(
        _planned(each, rank, wanted < now) for each, rank in zip(found, ranks, strict=True)
    )
    record = {
        "source": "the control of WeLore's evaluation, by parameters instead of ranks",
        "share": wanted / now,
        "rank": "r = floor(share rows cols / (rows + cols)), one more where cut most",
    }
    return _assembled(run, record, matrices, kept, None)


def _equal_shares(found: Sequence[Candidate], wanted: int) -> list[int]:
    """Ranks that keep the same share of the parameters of each, ``wanted`` in all."""
    share = wanted / sum(each.rows * each.cols for each in found)
    costs = [each.rows + each.cols for each in found]
    exact = [share * each.rows * each.cols / cost for each, cost in zip(found, costs, strict=True)]
    ranks = [max(1, int(rank)) for rank in exact]
    left = wanted - sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))
    for i in sorted(range(len(found)), key=lambda i: (ranks[i] - exact[i], i)):
        if costs[i] <= left and ranks[i] < found[i].count:
            ranks[i] += 1
            left -= costs[i]
    return ranks


def _planned(each: Candidate, rank: int, factorised: bool) -> PlannedMatrix:
    s = each.spectrum.singular_values / each.spectrum.largest
    energy = float(np.sum(s**2))
    return PlannedMatrix(
        name=each.name,
        rows=each.rows,
        cols=each.cols,
        dtype=each.dtype,
        count=each.count,
        rank=rank,
        factorised=factorised,
        relative_error=(float(np.sum(s[rank:] ** 2)) / energy) ** 0.5,
        frobenius_norm=each.spectrum.largest * energy**0.5,
    )


def _assembled(
    run: Run,
    criterion: Mapping[str, Any],
    matrices: tuple[PlannedMatrix, ...],
    kept: Mapping[str, str],
    noise_threshold: float | None,
) -> RankPlan:
    provenance, source = run.provenance, run.provenance["source"]
    # copies have other times
    files = [
        {key: file[key] for key in ("name", "size", "header_sha256")} for file in source["files"]
    ]
    return RankPlan(
        source={"model": provenance["model"], **source, "files": files},
        made_by={
            "weightscope": provenance["weightscope"],
            "schema": provenance["schema"],
            "run": provenance["command"],
        },
        criterion=criterion,
        matrices=matrices,
        kept=kept,
        budget=budget(matrices, run.summary["params_total"], noise_threshold),
    )


def choose(found: Sequence[Candidate], options: Options) -> Ranks:
    """Find the threshold nearest to the target, and what it does to every candidate.

    Raises:
        PlanError: The singular values of every matrix are equal.
    """
    parts = [_removals(each, options) for each in found]
    known = [part for part in parts if part is not None]
    if not known:
        raise PlanError("the singular values of every matrix are equal: no rank goes before others")
    total = sum(
        each.rows * each.cols if options.basis == "parameters" else each.count for each in found
    )
    k, _ = welore.nearest_cut(
        np.concatenate([d for d, _ in known]),
        np.concatenate([gains for _, gains in known]),
        options.target * total,
    )
    kept = tuple(each.count - welore.pruned_rank(each.spectrum, k) for each in found)
    factorised = (r <= options.largest_rank(c) for r, c in zip(kept, found, strict=True))
    return Ranks(k, kept, tuple(factorised))


def _removals(each: Candidate, options: Options) -> tuple[FloatArray, FloatArray] | None:
    """Normalised singular values, ascending, and what the removal of each one gains."""
    d = welore.normalised(each.spectrum)
    if d is None:
        return None
    gains = np.ones(each.count)
    if options.basis != "attempted":
        # nothing is gained until the matrix is factorised, and then all of it at once
        first = each.count - options.largest_rank(each)
        per_rank, whole = 1, 0
        if options.basis == "parameters":
            per_rank = each.rows + each.cols
            whole = each.rows * each.cols - each.count * per_rank
        gains *= per_rank
        gains[:first] = 0
        gains[first - 1] = whole + first * per_rank
    return d[::-1], gains


def criterion_record(options: Options, threshold: float) -> dict[str, Any]:
    """The record of what chose the ranks, with formulas and what departs from the paper."""
    rules = {
        "breakeven": "r (rows + cols) < rows cols",
        "half": "r < rank / 2 and r (rows + cols) < rows cols",
    }
    ratio = f"1 - r / n > {options.share:g} and r (rows + cols) < rows cols"
    departs = [
        "the threshold is found exactly among the model's own singular values, not looked up.",
        *(["the class rule is break-even; the paper's is half."] if options.rule != "half" else []),
        *(["the basis of the target is not the paper's."] if options.basis != "attempted" else []),
    ]
    return {
        "source": SOURCE,
        "target": options.target,
        "basis": options.basis,
        "rule": options.rule,
        "threshold": threshold,
        "rank": "r = #{(s_i - s_min) / (s_max - s_min) >= threshold}",
        "factorised_where": rules.get(options.rule, ratio),
        "factors": "W = left right; left = U_r sqrt(S_r), right = sqrt(S_r) V_r^T",
        "departs_from_paper": departs,
    }


def proposal(found: RankPlan) -> Proposal:
    """The plan as what is handed over: the file, its rows, and sentences about it."""
    b: Mapping[str, Any] = found.budget
    c = found.criterion
    return Proposal(
        body=json_text(found.record()),
        records=tuple(map(_shown, found.matrices)),
        criterion=f"WeLore keeps {c['rank']}, threshold {c['threshold']:.4g}, for a target of "
        f"{100 * c['target']:.3g}% ({c['basis']}); a matrix becomes two factors where "
        f"{c['factorised_where']}.",
        budget=f"Budget: {100 * b['attempted']:.1f}% of the ranks fall below the threshold, "
        f"{100 * b['effective']:.1f}% go, in the {b['factorised']} of {b['matrices']} matrices "
        f"that are factorised; the others stay whole. {b['parameters']:,} parameters become "
        f"{b['planned_parameters']:,} ({100 * b['parameter_ratio']:.1f}%), those of the model "
        f"{b['model_parameters']:,} become {b['planned_model_parameters']:,}; relative error of "
        f"the weights {b['relative_error']:.3f}.",
        noise=_noise_sentence(b["noise"]),
        deviations=tuple(c["departs_from_paper"]),
        remarks=_remarks(found),
        facts=b,
    )


def _remarks(found: RankPlan) -> tuple[str, ...]:
    if not found.factorised:
        return ("No matrix is factorised: nothing would change.",)
    hollow = [matrix for matrix in found.factorised if matrix.relative_error > HOLLOW]
    if not hollow:
        return ()
    worst = max(hollow, key=lambda matrix: matrix.relative_error)
    return (
        f"{count_of(len(hollow), 'matrix')} would lose more than half of the Frobenius norm, most "
        f"of all {worst.name} ({worst.relative_error:.2f}): the scale is set by the largest "
        "singular value alone, so one outlier makes any matrix low-rank.",
    )


def _shown(matrix: PlannedMatrix) -> Mapping[str, Value]:
    return {
        "name": matrix.name,
        "chosen": "yes" if matrix.factorised else "no",
        "rows": matrix.rows,
        "cols": matrix.cols,
        "rank": matrix.rank,
        "break_even_rank": break_even(matrix.rows, matrix.cols),
        "parameters": matrix.parameters,
        "planned_parameters": matrix.planned_parameters,
        "relative_error": matrix.relative_error,
        "noise_rank": matrix.noise_rank,
    }


def _noise_sentence(noise: Mapping[str, Any]) -> str:
    if noise["follows_shape"]:
        what = "the same as here: which ones are chosen follows from their shapes alone"
    else:
        what = f"{noise['in_both'] or 'none'} of them also here"
    return (
        f"On Gaussian noise of the same shapes it would factorise {noise['factorised']} matrices, "
        f"{what}; {100 * noise['effective']:.1f}% of the ranks would go."
    )
