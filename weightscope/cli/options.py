"""Options that several verbs share, with the help that teaches them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from weightscope.settings import FAMILIES


class Format(StrEnum):
    """What goes to standard output."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"


class By(StrEnum):
    """What a row of a comparison stands for."""

    name = "name"
    module = "module"
    block = "block"


_OUTPUT = "Output"

FormatOption = Annotated[
    Optional[Format],  # noqa: UP045 - typer reads the annotation
    typer.Option(
        "--format",
        help="What to print: a table on a terminal and CSV into a pipe, unless said otherwise.",
        rich_help_panel=_OUTPUT,
        show_default=False,
    ),
]
CsvOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--csv",
        metavar="FILE",
        help="Write CSV to FILE ('-' is standard output), and the run's facts to FILE.run.json.",
        rich_help_panel=_OUTPUT,
    ),
]
JsonOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write JSON with provenance to FILE ('-' is standard output).",
        rich_help_panel=_OUTPUT,
    ),
]
HtmlOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write one self-contained page with charts, spectra and table to FILE; it opens from "
        "disk and loads nothing.",
        rich_help_panel=_OUTPUT,
    ),
]
ExcelOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--excel",
        metavar="FILE",
        help="Write an Excel workbook to FILE: the table, what its columns mean, and what produced "
        "it (needs weightscope\\[excel]).",
        rich_help_panel=_OUTPUT,
    ),
]
PngOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--png",
        metavar="DIR",
        help="Draw the charts, and the spectrum of every matrix, as PNG files into DIR (needs "
        "weightscope\\[plots]).",
        rich_help_panel=_OUTPUT,
    ),
]
SvgOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--svg", metavar="DIR", help="The same as SVG files.", rich_help_panel=_OUTPUT),
]
SortOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--sort",
        metavar="COLUMN",
        help="Sort the table by a column, largest first; -COLUMN for smallest first "
        "(--sort=-alpha).",
        rich_help_panel=_OUTPUT,
    ),
]
TopOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--top",
        metavar="N",
        min=0,
        help="Show at most N rows in the table.",
        rich_help_panel=_OUTPUT,
    ),
]
WwOption = Annotated[
    bool,
    typer.Option(
        "--ww-names",
        help="Use WeightWatcher's column names, units and words in CSV and JSON.",
        rich_help_panel=_OUTPUT,
    ),
]
BomOption = Annotated[
    bool,
    typer.Option(
        "--bom",
        help="Begin CSV with a byte-order mark, for Excel with non-ASCII names.",
        rich_help_panel=_OUTPUT,
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Replace existing output.", rich_help_panel=_OUTPUT),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no remarks on standard error.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A file of weights (safetensors, PyTorch, GGUF), an index of shards, a folder of "
        "such, of an adapter, a pipeline or a training; or a model on the hub: "
        "org/name, org/name@revision, hf://org/name/part, or the URL of its page.",
        show_default=False,
    ),
]
_REACHING = "Models on the hub, and reading"

RevisionOption = Annotated[
    str,
    typer.Option(
        "--revision",
        metavar="REV",
        help="Branch, tag or commit of a model on the hub; org/name@REV says the same.",
        rich_help_panel=_REACHING,
        show_default=False,
    ),
]
FetchOption = Annotated[
    str,
    typer.Option(
        "--fetch",
        metavar="auto|stream|shard|cache",
        help="How the weights of a hub model come: byte ranges that are kept nowhere, files one by "
        "one through a temporary folder, or the hub's ordinary cache. auto: the cache up to 8 GiB "
        "where the disk has room for twice that, else stream; what is cached is used in any case.",
        rich_help_panel=_REACHING,
    ),
]
TokenOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--token",
        metavar="TOKEN",
        help="Token for the hub; by default HF_TOKEN or what hf auth login has stored, which other "
        "users of this machine cannot see in the list of processes.",
        rich_help_panel=_REACHING,
        show_default=False,
    ),
]
MmapOption = Annotated[
    bool,
    typer.Option(
        "--mmap",
        help="Map local files into memory instead of reading them; a file that is cut meanwhile "
        "ends the program.",
        rich_help_panel=_REACHING,
    ),
]
RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run folder (NAME.weightscope).", show_default=False),
]
IncludeOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--include",
        metavar="GLOB",
        help="Analyse only tensors whose name matches (repeatable).",
    ),
]
ExcludeOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--exclude", metavar="GLOB", help="Leave out tensors (repeatable)."),
]
ConvOption = Annotated[
    str,
    typer.Option(
        "--conv",
        metavar="slices|flatten",
        help="A convolution kernel as one matrix per position, pooled, or as one flat matrix.",
    ),
]
FusedOption = Annotated[
    bool,
    typer.Option(
        "--fused",
        help="Keep fused tensors (qkv, gate_up, ...) whole instead of dividing them.",
    ),
]
_SAVE = "Saving and resuming"

ShardOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--shard",
        metavar="I/N|auto",
        help="Only part I of N of the matrices, of about equal cost, for as many processes on any "
        "machines; auto: as a Slurm array or RANK and WORLD_SIZE say. weightscope merge joins the "
        "parts.",
        show_default=False,
    ),
]

MetricsOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--metrics",
        metavar="FAMILY",
        help=f"Families to compute (repeatable or comma-separated): {' '.join(FAMILIES)}. "
        "All by default; the others' columns stay empty.",
    ),
]
XminOption = Annotated[
    str,
    typer.Option(
        "--xmin",
        metavar="ks|mid|peak|peak-fixed",
        help="Where the tail of alpha starts: smallest KS distance, the median, or near the "
        "peak of the density (as published code does it, or as it was meant).",
    ),
]
FarmsOption = Annotated[
    str,
    typer.Option(
        "--farms",
        metavar="auto|paper-llm|paper-cnn",
        help="FARMS windows: chosen by shape, or the paper's settings (slow).",
    ),
]
FarmsEmbeddingsOption = Annotated[
    bool, typer.Option("--farms-embeddings", help="FARMS for embeddings and heads too.")
]
WeloreTargetOption = Annotated[
    str,
    typer.Option(
        "--welore-target", metavar="SHARE", help="Ranks that WeLore is to remove: 0.5 or 50%."
    ),
]
EvalFloorOption = Annotated[
    str,
    typer.Option(
        "--eval-floor",
        metavar="rank|abs:X|rel:X",
        help="Eigenvalues at or below it are not fitted: float32 rank tolerance, an absolute "
        "value (WeightWatcher's is abs:1e-5), or a share of the largest.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N,...|mps",
        help="Where to compute; cuda takes all CUDA devices of one model, mps has no float64 and "
        "means the CPU.",
    ),
]
ThreadsOption = Annotated[
    int, typer.Option("--threads", help="Cores to use; 0 means all this process may use.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
OutOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--out",
        metavar="RUN",
        help="Run folder; default ./NAME.weightscope, numbered where that is another run.",
        rich_help_panel=_SAVE,
        show_default=False,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel=_SAVE),
]
NoSaveOption = Annotated[
    bool, typer.Option("--no-save", help="Keep no run folder.", rich_help_panel=_SAVE)
]
MetricArgument = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(
        metavar="[METRIC]",
        help="A column or a family; without it, all columns.",
        show_default=False,
    ),
]

FailOnOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--fail-on",
        metavar="RULE",
        help="Exit with 4 where a row fits the rule, for pipelines (repeatable): 'alpha > 6', "
        "'alpha_ks > 0.1 and alpha_n_tail >= 50', 'alpha is empty'. An empty cell never fits a "
        "comparison.",
        rich_help_panel=_OUTPUT,
    ),
]
RunsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="A B...",
        help="Run folders, or anything that analyze takes.",
        show_default=False,
    ),
]
WeightsOption = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--weights/--no-weights",
        help="Compare the weights themselves; by default where both are checkpoints.",
        show_default=False,
    ),
]
MapOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--map",
        metavar="FROM=TO",
        help="Read names that begin with FROM as beginning with TO (repeatable). Training wrappers "
        "(module., _orig_mod., base_model.model., ...) are known.",
    ),
]
ByOption = Annotated[By, typer.Option("--by", help="One row per matrix, or medians per group.")]
ForceComparisonOption = Annotated[
    bool,
    typer.Option(
        "--force", help="Compare runs of different settings, and replace existing output."
    ),
]
TrackedArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN_OR_GLOB...",
        help="Runs or checkpoints, a quoted glob, or a training folder with checkpoint-* in it.",
        show_default=False,
    ),
]
TrackedMetricOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--metric",
        metavar="COLUMN",
        help="Metrics of the CSV (repeatable; all by default); the table shows the first, else "
        "alpha.",
    ),
]
