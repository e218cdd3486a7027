"""A run becomes a report: which figures are shown, in which order, in which words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from weightscope.evaluate import Row
from weightscope.layouts.roles import ROLES
from weightscope.report import Block, Cell, Paragraph, Report, Style, Table
from weightscope.run import Run
from weightscope.sampling import statement
from weightscope.settings import QUANT_BITS
from weightscope.share import Share
from weightscope.summary import ANALYSED
from weightscope.text import count_of, short, shortened

BAND_STYLES: dict[str, Style] = {"very-heavy": "extreme", "heavy": "good", "weak": "warn"}


def run_report(run: Run, sort: str | None = None, top: int | None = None) -> Report:
    """The table of all matrices and the summary.

    Args:
        run: What to show.
        sort: Column to sort by, largest first, ``-column`` for smallest first; None groups by
            role and block.
        top: Show at most so many rows.
    """
    rows = sorted_rows(run.rows, sort)
    shown = rows if top is None else rows[:top]
    if top is None and len(rows) > MOST_ROWS:
        shown = rows[:MOST_ROWS]
    blocks: list[Block] = [grouped_table(shown) if sort is None else _flat(shown, sort)]
    if len(shown) < len(rows):
        text = f"{len(rows) - len(shown)} of {len(rows)} rows not shown; --top, --csv show more."
        blocks.append(Paragraph(text, "dim"))
    title = f"{run.label}: {count_of(len(rows), 'matrix')}"
    return Report(title, (*blocks, *summary_blocks(run)))


MOST_ROWS = 2000
"""A table of more rows is cut unless ``--top`` asks for more."""


def sorted_rows(rows: Sequence[Row], sort: str | None) -> list[Row]:
    """Rows by a column that they have: largest first, texts in order, undefined cells last."""
    if sort is None:
        return list(rows)
    column = sort.removeprefix("-")
    defined = [row for row in rows if row[column] is not None]
    text = any(isinstance(row[column], str) for row in defined)
    key: Callable[[Row], Any] = lambda row: row[column]  # noqa: E731
    ordered = sorted(defined, key=key, reverse=sort[0] != "-" and not text)
    return ordered + [row for row in rows if row[column] is None]


def _figure(column: str) -> Callable[[Row], Cell]:
    """A cell of a column as it is, to two digits."""
    return lambda row: Cell(short(row[column], 2))


Figure = tuple[str, Callable[[Row], Cell]]
"""A heading, and what stands below it."""
_FIGURES: tuple[Figure, ...] = (
    ("shape", lambda row: Cell(_shape(row))),
    ("alpha", lambda row: _alpha(row)),
    ("ks", lambda row: Cell(short(row["alpha_ks"], 2))),
    ("tail", lambda row: Cell(short(row["alpha_n_tail"]))),
    ("farms", lambda row: Cell(short(row["alpha_farms"]))),
    ("erg gap", lambda row: Cell(short(row["erg_gap"]))),
    ("cond", lambda row: _condition(row)),
    ("eff rank", lambda row: Cell(_of(row["effective_rank"], row))),
    ("welore", lambda row: _welore(row)),
    ("spikes", lambda row: Cell(short(row["mp_spikes"]))),
)
_ON_REQUEST: tuple[tuple[str, str, Callable[[Row], Cell]], ...] = (
    ("interval", "alpha_lo", lambda row: Cell(_interval(row))),
    ("traps", "traps", lambda row: Cell(_traps(row))),
    *(
        (f"q{bits} err", f"quant_error_{bits}", _figure(f"quant_error_{bits}"))
        for bits in QUANT_BITS
    ),
)
"""Heading, the column that says whether it was asked for, and the figure."""


def _figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """What a table of these rows shows of each: the usual figures, and those asked for."""
    asked = [(name, show) for name, key, show in _ON_REQUEST if any(row[key] for row in rows)]
    return (*_FIGURES, *asked, ("remarks", _remarks))


def _interval(row: Row) -> str:
    low, high = row["alpha_lo"], row["alpha_hi"]
    return "" if low is None else f"{short(low)} to {short(high)}"


def _traps(row: Row) -> str:
    return f"{short(row['traps'])} {row['trap_cause'] or ''}".strip()


_DROPPABLE = ("spikes", "tail", "eff rank", "erg gap", "ks", "shape", "farms", "cond")
"""Figures that a narrow terminal does without, in this order."""


def _shape(row: Row) -> str:
    slices = f" x{row['slices']}" if row["slices"] != 1 else ""
    return f"{row['rows']}x{row['cols']}{slices}"


def _alpha(row: Row) -> Cell:
    if row["alpha"] is None:
        return Cell("")
    style = BAND_STYLES.get(str(row["alpha_band"]), "")
    return Cell(f"{short(row['alpha'])} ±{short(row['alpha_stderr'], 2)}", style)


def _condition(row: Row) -> Cell:
    below = "below_floor" in str(row["warnings"] or "")
    return Cell(short(row["condition_number"]), "dim" if below else "")


def _of(value: Any, row: Row) -> str:
    """A count and the share of all directions that it is."""
    whole = int(row["M"] or 0) * int(row["slices"] or 1)
    return f"{value:.0f} {100 * value / whole:.0f}%" if value is not None and whole else ""


def _welore(row: Row) -> Cell:
    ratio = row["welore_rank_ratio"]
    if row["welore_class"] is None or not isinstance(ratio, int | float):
        return Cell("")
    low = row["welore_class"] == "LRC"
    return Cell(f"{100 * ratio:.0f}%{' LRC' if low else ''}", "strong" if low else "")


_TELLING = {"random-like", "unresolved"}


def _remarks(row: Row) -> Cell:
    status = str(row["status"])
    words = ([] if status == "ok" else [status]) + str(row["warnings"] or "").split(";")
    if row["reading"] in _TELLING:  # which says more than that the tail is small
        words = [str(row["reading"]), *(word for word in words if not word.startswith("tail_"))]
    bad = status in {"nonfinite", "failed", "zero", "unsupported"}
    return Cell(" ".join(word for word in words if word), "bad" if bad else "dim")


def grouped_table(rows: Sequence[Row], first: Sequence[Figure] = ()) -> Table:
    """Roles in their usual order, a line with the pattern above each group.

    Args:
        rows: Of a run.
        first: Figures to show before the usual ones.
    """

    def place(row: Row) -> tuple[int, str, int, int]:
        block, expert = row["block"], row["expert"]
        return (
            ROLES.index(str(row["role"])),
            str(row["module"]),
            block if isinstance(block, int) else -1,
            expert if isinstance(expert, int) else -1,
        )

    lines: list[tuple[Cell, ...]] = []
    figures = (*first, *_figures(rows))
    empty = (Cell(""),) * len(figures)
    for (role, module), group in groupby(
        sorted(rows, key=place), key=lambda row: (str(row["role"]), str(row["module"]))
    ):
        inside = module.partition("#.")[2] or module
        lines.append((Cell(f"{role}  {inside}", "strong"), *empty))
        lines += [(Cell(_index(row)), *(figure(row) for _, figure in figures)) for row in group]
    return _table("block", lines, figures)


def _index(row: Row) -> str:
    block = "" if row["block"] is None else str(row["block"])
    return "  " + block + (f"[{row['expert']}]" if row["expert"] is not None else "")


def _flat(rows: Sequence[Row], sort: str) -> Table:
    column = sort.removeprefix("-")
    figures = _figures(rows)
    if column != "alpha":
        figures = ((column, lambda row: Cell(short(row[column]), "strong")), *figures)
    lines = [(Cell(str(row["name"])), *(figure(row) for _, figure in figures)) for row in rows]
    return _table("name", lines, figures)


def _table(
    first: str,
    lines: Sequence[tuple[Cell, ...]],
    figures: Sequence[Figure],
) -> Table:
    headers = (first, *(name for name, _ in figures))
    left = {first, "band", "remarks", "traps"}
    numeric = tuple(name not in left for name in headers)
    return Table("", headers, tuple(lines), numeric, _DROPPABLE)


def summary_blocks(run: Run) -> list[Block]:
    """One line that characterises the model, coverage, medians, and what to do next."""
    summary = run.summary
    first = headline(summary)
    warned = (*partial(run), *untrained(run))
    blocks: list[Block] = [Paragraph(text, "warn") for text in warned]
    blocks += [Paragraph(first, "strong")] if first else []
    blocks.append(Paragraph(_coverage(summary)))
    if summary["welore"]:
        blocks.append(Paragraph(_welore_sentence(summary["welore"])))
    medians = _medians(summary["medians"])
    if len(medians.headers) > 2:
        blocks.append(medians)
    if summary["worth_a_look"]:
        blocks += _worth(summary["worth_a_look"])
    if summary["bands"]:
        blocks.append(_BANDS)
    return blocks


def partial(run: Run) -> list[str]:
    """That the figures speak for a part of the model only."""
    summary, settings = run.summary, run.provenance["settings"]
    texts = []
    planned = summary["planned"]
    if run.share is not None:
        whole = run.provenance["whole"]["matrices"]
        texts.append(portion_statement(run.share, planned, whole))
        planned = whole
    if summary["undrawn"]:
        total = planned + summary["undrawn"]
        texts.append(statement(total, planned, settings["sample"], settings["seed"]))
    if summary["stopped"] is not None:
        texts.append(f"Stopped after {summary['stopped']} of {summary['planned']} matrices.")
    return texts


def untrained(run: Run) -> list[str]:
    """That updates of an adapter are zero: loudly, since nothing else about it looks wrong."""
    names = [
        str(row["name"]).removesuffix(".weight")
        for row in run.rows
        if row["status"] == "zero" and row["adapter_rank"] is not None
    ]
    if not names:
        return []
    which = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [
        f"{count_of(len(names), 'update')} of the adapter "
        f"{'is' if len(names) == 1 else 'are'} zero (B = 0), as if never trained: {which}."
    ]


def unanalysed(run: Run) -> str:
    """Why a run says nothing about its model; empty where it does.

    Degenerate matrices are findings. A part of a model is judged with the whole, and a run that
    was stopped when it is continued.
    """
    if run.share is not None or run.summary["stopped"] is not None:
        return ""
    if not run.rows:
        only = _left_out(run.summary)
        only = f", only {only}" if only else ""
        return f"no matrix to analyse{only}; name a file that holds weights"
    statuses = set(run.summary["status"])
    if statuses & {"ok", "fused"} or statuses <= ANALYSED:
        return ""
    example = next(row for row in run.rows if row["status"] not in ANALYSED)
    reason = str(example["reason"]).removesuffix(".")
    return (
        f"no matrix could be analysed ({_not_ok(run.summary)}), as {shortened(example['name'])}: "
        f"{reason}; check what wrote it"
    )


def portion_statement(share: Share, planned: int, whole: int) -> str:
    """What every output of a part of a model has to say."""
    label = share.label[0].upper() + share.label[1:]
    return (
        f"{label} of the model: {planned} of {count_of(whole, 'matrix')}. Figures about the whole "
        "model are those of the part; WeLore, which needs all of it, waits for weightscope merge."
    )


_BANDS = Paragraph(
    "Bands (very-heavy < 2, heavy 2 to 6, weak > 6) are HTSR's heuristics for the ks fit; "
    "weightscope explain tells what each figure means and when not to believe it.",
    "dim",
)


def headline(summary: Any) -> str:
    """Mean and median exponent, readings and low-rank share, in one line; empty without any."""
    parts = []
    if summary["alpha_mean"] is not None:
        parts.append(
            f"alpha mean {summary['alpha_mean']:.2f}, median {summary['alpha_median']:.2f}"
        )
    if summary["alpha_hat_mean"] is not None:
        parts.append(f"alpha-hat mean {summary['alpha_hat_mean']:.2f}")
    if found := summary["readings"] or summary["bands"]:
        counted = ", ".join(f"{n} {word}" for word, n in sorted(found.items(), key=_commonest))
        parts.append(f"of {sum(found.values())} outside embeddings and heads: {counted}")
    if summary["welore"]:
        share = summary["welore"]["lrc"] / max(1, summary["welore"]["matrices"])
        parts.append(f"{100 * share:.0f}% LRC")
    return "; ".join(parts)


def _commonest(counted: tuple[str, int]) -> tuple[int, str]:
    return -counted[1], counted[0]


_FILTERED = "tensor left out by --include and --exclude"


def _coverage(summary: Any) -> str:
    total = summary["params_total"]
    share = 100 * summary["params_analysed"] / total if total else 0.0
    text = ""
    if unsupported := summary["status"].get("unsupported"):
        text = f"{count_of(unsupported, 'tensor')} could not be read as weights (quantised?). "
    text += (
        f"{summary['analysed']} of {count_of(summary['matrices'], 'matrix')} analysed, "
        f"{share:.1f}% of {total:,} parameters"
    )
    left, status = _left_out(summary), _not_ok(summary)
    text += f"; not analysed: {left}" if left else ""
    return text + (f"; not ok: {status}." if status else ".")


def _left_out(summary: Any) -> str:
    """Tensors that have no row."""
    left = [
        (summary["vectors"], "vector or scalar", "vectors and scalars"),
        (summary["integer_tensors"], "integer tensor", ""),
        (summary["filtered"], _FILTERED, _FILTERED.replace("tensor", "tensors")),
    ]
    return ", ".join(count_of(n, one, many) for n, one, many in left if n)


def _not_ok(summary: Any) -> str:
    return ", ".join(f"{n} {code}" for code, n in summary["status"].items() if code != "ok")


def _welore_sentence(fit: Any) -> str:
    return (
        f"WeLore at a target reduction of {100 * fit['target']:.0f}%: threshold "
        f"{fit['threshold']:.4f}, {100 * fit['attempted']:.1f}% attempted, "
        f"{100 * fit['effective']:.1f}% effective "
        f"({fit['lrc']} of {fit['matrices']} matrices LRC), "
        f"{100 * fit['parameter_ratio']:.0f}% of the parameters left."
    )


def _medians(entries: Sequence[Any]) -> Table:
    """Medians per role, without columns that are empty for all."""
    keys = [key for key in (entries[0] if entries else {}) if key != "role"]
    shown = [key for key in keys if any(entry[key] is not None for entry in entries)]
    rows = tuple(
        (Cell(entry["role"]), *(Cell(short(entry[key])) for key in shown)) for entry in entries
    )
    names = tuple(key.replace("_", " ") for key in shown)
    numeric = (False, *(True,) * len(names))
    return Table("Medians per role", ("role", *names), rows, numeric, _LEAST)


_LEAST = ("mp softrank", "effective rank", "stable rank", "alpha ks", "erg gap", "alpha farms")


def _worth(entries: Sequence[Any]) -> list[Block]:
    """A paragraph per topic: how many, why, and the first of them."""
    blocks: list[Block] = [Paragraph("Worth a look", "strong")]
    for entry in entries:
        count = "" if entry["count"] is None else f" ({entry['count']})"
        names = ", ".join(name.removesuffix(".weight") for name in entry["names"])
        more = ", ..." if (entry["count"] or 0) > len(entry["names"]) else ""
        blocks.append(Paragraph(f"{entry['topic']}{count}: {entry['why']}: {names}{more}"))
    return blocks
