"""Options of ``weightscope plan``; each names the targets it is for."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from weightscope.plans import TARGETS

_CHOOSING = "Choosing (peft, axolotl, trl)"
_RANKS = "Ranks (welore)"
_FILES = "Output"

TargetOption = Annotated[
    str,
    typer.Option("--for", metavar="TARGET", help=f"{', '.join(TARGETS)}.", show_default=False),
]
ByOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation
    typer.Option(
        "--by",
        metavar="CRITERION",
        help="kappa (lowest condition number first), alpha, farms, erg, welore, snr or "
        "snr-spectrum. peft: kappa; axolotl and trl: snr. For sparsity and lr: alpha or farms.",
        rich_help_panel=_CHOOSING,
        show_default=False,
    ),
]
ModulesOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--modules",
        metavar="N",
        help="Choose at most N, an even share of each module type. peft: 50.",
        rich_help_panel=_CHOOSING,
        show_default=False,
    ),
]
TopOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--top",
        metavar="P%",
        help="Choose the first P per cent of each module type. axolotl, trl: 25%.",
        rich_help_panel=_CHOOSING,
        show_default=False,
    ),
]
BudgetOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--budget",
        metavar="PARAMS",
        help="Spend at most so many trainable parameters (500000, 500k, 2M).",
        rich_help_panel=_CHOOSING,
        show_default=False,
    ),
]
AcrossOption = Annotated[
    bool,
    typer.Option(
        "--across",
        help="Compare matrices of all module types with each other.",
        rich_help_panel=_CHOOSING,
    ),
]
EmbeddingsOption = Annotated[
    bool,
    typer.Option(
        "--include-embeddings",
        help="Consider embeddings and heads too.",
    ),
]
PrefixOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--prefix",
        metavar="TEXT",
        help="What the model in memory has before the names in the file, such as 'transformer.'.",
        show_default=False,
    ),
]
RankOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--rank",
        metavar="R|effective",
        help="peft: one rank for all (16), or ranks in proportion to effective_rank that fill the "
        "budget (or, without one, what rank 16 for all would cost).",
        show_default=False,
    ),
]
_FIGURES = "Figures (sparsity, lr, bits)"

GoalOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--target",
        metavar="SHARE",
        help="sparsity: share of all entries to prune (70%). welore: share of the ranks to "
        "remove (50%).",
        rich_help_panel=_FIGURES,
        show_default=False,
    ),
]
SpreadOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--spread",
        metavar="EPS",
        help="sparsity: how far blocks may differ, 1 - EPS to 1 + EPS (alpha: 0.3, farms: 0.2).",
        rich_help_panel=_FIGURES,
        show_default=False,
    ),
]
PerOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--per",
        metavar="block|layer",
        help="sparsity: one figure for a block (default), or for each matrix.",
        rich_help_panel=_FIGURES,
        show_default=False,
    ),
]
CapOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--cap",
        metavar="SHARE",
        help="sparsity: most that is pruned of any matrix (99%); the others take the rest.",
        rich_help_panel=_FIGURES,
        show_default=False,
    ),
]
LowOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--low",
        metavar="X",
        help="lr: multiplier of the smallest exponent (0.5).",
        rich_help_panel=_FIGURES,
        show_default=False,
    ),
]
HighOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--high",
        metavar="X",
        help="lr: multiplier of the largest exponent (1.5).",
        rich_help_panel=_FIGURES,
        show_default=False,
    ),
]
BitsOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--bits",
        metavar="B",
        help="bits: most bits per entry on average (4), of the widths measured with "
        "analyze --quant-error.",
        rich_help_panel=_FIGURES,
        show_default=False,
    ),
]
BasisOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--basis",
        metavar="attempted|effective|parameters",
        help="What the target is a share of: the ranks below the threshold (attempted, as in the "
        "paper), those that go once the other matrices stay whole, or the parameters.",
        rich_help_panel=_RANKS,
        show_default=False,
    ),
]
RuleOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--rule",
        metavar="breakeven|half|ratio:X",
        help="Which matrices become two factors: those that then hold fewer parameters "
        "(breakeven); those that also keep fewer than half of their ranks (the paper's rule); or "
        "lose more than the share X of them.",
        rich_help_panel=_RANKS,
        show_default=False,
    ),
]
OutOption = Annotated[
    str,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Write to FILE instead of standard output; what a format cannot hold of its "
        "explanation goes to FILE.run.json.",
        rich_help_panel=_FILES,
        show_default=False,
    ),
]
ExplainOption = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="Show every matrix that was considered, with the figures that decided, on standard "
        "error.",
        rich_help_panel=_FILES,
    ),
]
