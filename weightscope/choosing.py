"""Which weights to choose by a criterion, and what noise of the same shapes would have chosen.

Within a module type weights are in order of their value. Over the types they are in order of their
place within their own type, so that any number of them takes an even share of every type; with
``across`` they are in order of the value alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from weightscope.addresses import Weight, weights_of
from weightscope.criteria import Criterion, criterion_named, noise_values, require
from weightscope.errors import OptionError
from weightscope.evaluate import Row
from weightscope.layouts.roles import OUTSIDE_BLOCKS, TAILLESS
from weightscope.run import Run
from weightscope.text import count_of


@dataclass(frozen=True)
class Choice:
    """How to choose.

    Attributes:
        by: Name of a criterion.
        modules: Most weights to choose; None for no limit.
        top: Per cent of each module type to choose, of all with ``across``; None for no limit.
        budget: Most parameters that the choice may cost; None for no limit.
        across: Compare weights of different module types with each other.
        include_embeddings: Consider embeddings and heads too.
        prefix: What the model in memory has before the names in the file.
    """

    by: str = "kappa"
    modules: int | None = None
    top: float | None = None
    budget: int | None = None
    across: bool = False
    include_embeddings: bool = False
    prefix: str = ""

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: Naming the option and what it takes.
        """
        criterion_named(self.by)
        if self.modules is not None and self.modules < 1:
            raise OptionError(f"--modules {self.modules}: give a number of modules, 1 or more")
        if self.top is not None and not 0 < self.top <= 100:
            raise OptionError(f"--top {self.top:g}%: give a share above 0 and up to 100%")
        if self.top is not None and self.modules is not None:
            raise OptionError("--top and --modules both say how many: give one of them")
        if self.budget is not None and self.budget < 1:
            raise OptionError(f"--budget {self.budget}: give a number of parameters, 1 or more")


@dataclass(frozen=True)
class Candidate:
    """A weight that can be chosen.

    Attributes:
        weight: The weight.
        row: The row whose value counts: of a fused weight the part that would come last.
        value: What it is judged by.
        noise: What noise of its shape would get; None where that is unknown.
        place: Its place within its group, from 0 (first) to 1.
    """

    weight: Weight
    row: Row
    value: float
    noise: float | None
    place: float = 0.0


@dataclass(frozen=True)
class Chosen:
    """The result of choosing.

    Attributes:
        how: How it was chosen.
        criterion: By what.
        candidates: All that could be chosen, best first; the chosen ones come first.
        count: How many of them are chosen.
        cost: What the chosen ones cost, in parameters.
        left: What the next one would have cost; None where there is no next.
        remarks: What was left out of consideration, and why.
    """

    how: Choice
    criterion: Criterion
    candidates: tuple[Candidate, ...]
    count: int
    cost: int
    left: int | None
    remarks: tuple[str, ...]

    @property
    def chosen(self) -> tuple[Candidate, ...]:
        """Those that are chosen, best first."""
        return self.candidates[: self.count]


Cost = Callable[[Weight], int]
Fit = Callable[[Weight], str]
"""Why a tool cannot take a weight, as a plural noun; empty where it can."""


def choose(run: Run, how: Choice, cost: Cost, fit: Fit = lambda _: "") -> Chosen:
    """Choose weights.

    Args:
        run: A run.
        how: How.
        cost: What choosing a weight costs, in parameters.
        fit: Why the tool cannot take a weight.

    Raises:
        OptionError: The run lacks what the criterion needs, or nothing can be chosen.
    """
    criterion = criterion_named(how.by)
    require(run, criterion.column, criterion.family)
    candidates, remarks = _candidates(run, how, criterion, fit)
    ordered = _ordered(candidates, criterion, how.across)
    if how.top is not None:
        ordered, wanted = _top(ordered, how.top, how.across)
    else:
        wanted = min(how.modules or len(ordered), len(ordered))
    count, spent = 0, 0
    while count < wanted:
        price = cost(ordered[count].weight)
        if how.budget is not None and spent + price > how.budget:
            break
        count, spent = count + 1, spent + price
    if not count:
        first = ordered[0].weight
        raise OptionError(
            f"--budget {how.budget}: the first choice, {first.name}, alone costs {cost(first):,}"
        )
    left = cost(ordered[count].weight) if count < wanted else None
    return Chosen(how, criterion, tuple(ordered), count, spent, left, tuple(remarks))


def _candidates(
    run: Run, how: Choice, criterion: Criterion, fit: Fit
) -> tuple[list[Candidate], list[str]]:
    """Weights with a value that the tool can take, and a sentence about the others."""
    noise = dict(
        zip(
            (str(row["name"]) for row in run.rows),
            noise_values(criterion, run, run.rows),
            strict=True,
        )
    )
    found, why = [], Counter[str]()
    for weight in weights_of(run, how.prefix):
        reason = left_out(weight, how.include_embeddings) or fit(weight)
        values = [(criterion.of(row), row) for row in weight.rows]
        if not reason and any(value is None for value, _ in values):
            reason = f"no {criterion.column} (the column reason of the run says why)"
        if reason:
            why[reason] += 1
            continue
        judged = [(value, row) for value, row in values if value is not None]
        value, row = max(judged, key=lambda pair: criterion.sign * pair[0])
        found.append(Candidate(weight, row, value, noise[str(row["name"])]))
    remarks = [f"Left out, {reason}: {n}." for reason, n in sorted(why.items())]
    if not found:
        raise OptionError(f"{run.name}: nothing to choose from. {' '.join(remarks)}".strip())
    told = of_several_rows([c.weight for c in found], "judged by the row that comes last")
    return found, [*remarks, *told]


def of_several_rows(weights: Sequence[Weight], treatment: str) -> tuple[str, ...]:
    """A sentence where weights have several rows but can only be planned whole."""
    count = sum(len(weight.rows) > 1 for weight in weights)
    if not count:
        return ()
    return (
        f"{count_of(count, 'weight')} of several rows (fused parts, stacked experts) can only be "
        f"planned whole: each is {treatment}.",
    )


def left_out(weight: Weight, embeddings: bool) -> str:
    """Why no plan considers a weight, as a plural noun; empty where plans do."""
    if weight.role in TAILLESS:
        return "routers"
    if weight.role in {"norm", "position"}:
        return "norms and tables of positions"
    if weight.role in OUTSIDE_BLOCKS and not embeddings:
        return "embeddings and heads (--include-embeddings takes them)"
    return ""


def group_of(candidate: Candidate, across: bool) -> str:
    return "" if across else candidate.weight.kind


def _ordered(
    candidates: Sequence[Candidate], criterion: Criterion, across: bool
) -> list[Candidate]:
    """Best first: by place within the group, then value, then name."""

    def key(c: Candidate) -> tuple[float, int]:
        return criterion.sign * c.value, c.weight.position

    placed = []
    by_group = sorted(candidates, key=lambda c: (group_of(c, across), *key(c)))
    for _, members in groupby(by_group, key=lambda c: group_of(c, across)):
        group = list(members)
        for i, c in enumerate(group):
            place = (i + 0.5) / len(group)
            placed.append(Candidate(c.weight, c.row, c.value, c.noise, place))
    return sorted(placed, key=lambda c: (c.place, *key(c)))


def _top(ordered: list[Candidate], top: float, across: bool) -> tuple[list[Candidate], int]:
    """Put the given per cent of each group first, and count them.

    Raises:
        OptionError: That is none of any group.
    """
    sizes = Counter(group_of(c, across) for c in ordered)
    quota = {group: int(n * top / 100) for group, n in sizes.items()}
    taken: Counter[str] = Counter()
    first: list[Candidate] = []
    later: list[Candidate] = []
    for c in ordered:
        group = group_of(c, across)
        taken[group] += 1
        (first if taken[group] <= quota[group] else later).append(c)
    if not first:
        raise OptionError(
            f"--top {top:g}%: of at most {max(sizes.values())} weights of one type that is none; "
            "give more, or --across"
        )
    return first + later, len(first)
