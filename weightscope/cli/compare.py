"""``weightscope compare``: what changed, layer by layer."""

from __future__ import annotations

from typing import Any

from weightscope.cli import options as o
from weightscope.cli.explained import explained, say


def compare(
    runs: o.RunsArgument,
    weights: o.WeightsOption = None,
    maps: o.MapOption = None,
    by: o.ByOption = o.By.name,
    device: o.DeviceOption = "auto",
    threads: o.ThreadsOption = 0,
    no_save: o.NoSaveOption = False,
    format: o.FormatOption = None,
    csv: o.CsvOption = None,
    json: o.JsonOption = None,
    html: o.HtmlOption = None,
    excel: o.ExcelOption = None,
    png: o.PngOption = None,
    svg: o.SvgOption = None,
    sort: o.SortOption = None,
    top: o.TopOption = None,
    fail_on: o.FailOnOption = None,
    bom: o.BomOption = False,
    force: o.ForceComparisonOption = False,
    quiet: o.QuietOption = False,
    revision: o.RevisionOption = "",
    fetch: o.FetchOption = "auto",
    token: o.TokenOption = None,
    mmap: o.MmapOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Compare two runs or checkpoints, or several with the first.

    Each argument is a run folder or anything that analyze takes; a checkpoint is analysed first,
    or its existing run is used again. With two checkpoints their weights are compared too:
    the spectrum of the difference, how far the leading directions turned, and one word for what
    happened: identical, bf16-rounding, low-rank-update, full-rank-update, scaled, re-initialised,
    transposed, permuted, resized or renamed.

    [bold]Examples[/]

      weightscope compare base-model fine-tuned-model

      weightscope compare a.weightscope b.weightscope --sort spectrum_w1 --top 20

      weightscope compare base-model fine-tuned-model --html changes.html

      weightscope compare base merged --fail-on 'rel_change > 0.5' --format csv
    """
    with explained(debug, "The runs analysed so far are kept."):
        from weightscope.alignment import parse_prefix_map
        from weightscope.checkpoint import Access
        from weightscope.cli.emit import Output
        from weightscope.comparing import Comparing
        from weightscope.errors import OptionError
        from weightscope.settings import Settings

        if len(runs) < 2:
            raise OptionError("compare needs at least two runs or checkpoints")
        prefixes = tuple(parse_prefix_map(text) for text in maps or ())
        settings = Settings(device=device, threads=threads)
        access = Access(fetch, revision, token, mmap)  # type: ignore[arg-type]
        how = Comparing(weights, prefixes, force, not no_save, settings, access)
        output = Output(format, csv, json, sort, top, bom, force, excel, png, svg, html, quiet)
        (_two if len(runs) == 2 else _many)(runs, how, output, (by, fail_on), quiet)


def _two(runs: list[str], how: Any, output: Any, shape: tuple[Any, Any], quiet: bool) -> None:
    from weightscope.cli.emit import emit
    from weightscope.cli.gating import apply_gates, check_computed, read_gates
    from weightscope.cli.progress import Talk
    from weightscope.comparing import compare_models, left_empty
    from weightscope.comparison import comparison_columns
    from weightscope.errors import OptionError

    by, rules = shape
    if by is not o.By.name and (output.sort is not None or output.top is not None):
        raise OptionError("--sort and --top order matrices, not the groups of --by")
    output.check(comparison_columns())
    gates = read_gates(rules, comparison_columns())
    with Talk(quiet) as talk:
        found, hint = compare_models(runs, how, talk)
    check_computed(gates, left_empty(found.provenance, "ab", found.weights))
    if hint and not quiet:
        say(hint)
    emit(_emission(found, output, by), output)
    apply_gates(gates, found.rows)


def _emission(found: Any, output: Any, by: o.By) -> Any:
    from weightscope.cli.emit import Emission
    from weightscope.comparison import comparison_columns, group_columns, grouped
    from weightscope.evaluate import all_columns
    from weightscope.glossary import COMPARED
    from weightscope.present.comparison import comparison_report, groups_table
    from weightscope.present.page_comparison import comparison_page
    from weightscope.present.provenance import provenance_of_all
    from weightscope.report import Report

    facts = {"a": found.provenance[0], "b": found.provenance[1], "summary": found.summary}
    origin = provenance_of_all(found.provenance)
    page = lambda: comparison_page(found)  # noqa: E731
    glossary = (*COMPARED, *all_columns())
    if by is o.By.name:
        columns, rows = comparison_columns(), found.rows
        build = lambda: comparison_report(found, output.sort, output.top)  # noqa: E731
        return Emission(columns, rows, facts, build, origin, glossary, page=page)
    groups = grouped(found.rows, by.value)
    table = groups_table("", by.value, groups)
    title = f"{found.names[0]} -> {found.names[1]}, medians per {by.value}"
    build = lambda: Report(title, (table,))  # noqa: E731
    return Emission(group_columns(by.value), groups, facts, build, origin, glossary, page=page)


def _many(runs: list[str], how: Any, output: Any, shape: tuple[Any, Any], quiet: bool) -> None:
    from weightscope.cli.emit import Emission, emit
    from weightscope.cli.gating import apply_gates, check_computed, read_gates
    from weightscope.cli.progress import Talk
    from weightscope.comparing import compare_many, left_empty, wide_columns
    from weightscope.errors import OptionError
    from weightscope.evaluate import all_columns
    from weightscope.glossary import COMPARED
    from weightscope.present.comparison import wide_report
    from weightscope.present.page_comparison import wide_page
    from weightscope.present.provenance import provenance_of_all

    if shape[0] is not o.By.name:
        raise OptionError("--by compares two models, not more")
    columns = wide_columns(len(runs))
    output.check(columns)
    gates = read_gates(shape[1], columns)
    with Talk(quiet) as talk:
        found = compare_many(runs, how, talk)
    check_computed(gates, left_empty(found.provenance, found.letters, weights=False))
    facts = {"runs": list(found.provenance)}
    origin = provenance_of_all(found.provenance)
    build = lambda: wide_report(found, output.sort, output.top)  # noqa: E731
    glossary = (*COMPARED, *all_columns())
    page = lambda: wide_page(found)  # noqa: E731
    emit(Emission(found.columns, found.rows, facts, build, origin, glossary, page=page), output)
    apply_gates(gates, found.rows)
