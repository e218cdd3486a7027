"""``weightscope track``: trajectories over a training."""

from __future__ import annotations

from weightscope.cli import options as o
from weightscope.cli.explained import explained


def track(
    runs: o.TrackedArgument,
    metric: o.TrackedMetricOption = None,
    maps: o.MapOption = None,
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
    """Follow every matrix over the checkpoints of a training, ordered by step.

    The step comes from trainer_state.json, else from the last number of the name. What is already
    analysed is not analysed again. CSV is in long form: step, name, metric, value. --sort and
    --fail-on know the columns of the table: name, first, last and change, of the first --metric.

    [bold]Examples[/]

      weightscope track my-training/checkpoint-*

      weightscope track my-training --metric spectral_norm

      weightscope track my-training/checkpoint-* --html training.html

      weightscope track my-training --metric spectral_norm --sort change --fail-on 'last > 100'

      weightscope track run-100.weightscope run-500.weightscope --format csv > trajectory.csv
    """
    with explained(debug, "The runs analysed so far are kept."):
        from weightscope import trajectory as t
        from weightscope.alignment import parse_prefix_map
        from weightscope.checkpoint import Access
        from weightscope.cli.emit import Emission, Output, emit
        from weightscope.cli.gating import apply_gates, check_computed, read_gates
        from weightscope.cli.progress import Talk
        from weightscope.comparing import Comparing
        from weightscope.evaluate import all_columns
        from weightscope.glossary import TRACKED
        from weightscope.present.page_steps import trajectory_page
        from weightscope.present.provenance import provenance_of_all
        from weightscope.present.trajectory import trajectory_report
        from weightscope.settings import Settings

        output = Output(format, csv, json, sort, top, bom, force, excel, png, svg, html, quiet)
        output.check(t.CHANGE_COLUMNS)
        gates = read_gates(fail_on, t.CHANGE_COLUMNS, texts={"name"})
        prefixes = tuple(parse_prefix_map(text) for text in maps or ())
        settings = Settings(device=device, threads=threads)
        access = Access(fetch, revision, token, mmap)  # type: ignore[arg-type]
        how = Comparing(False, prefixes, force, not no_save, settings, access)
        with Talk(quiet) as talk:
            found = t.track(t.expand(runs), how, talk, metric or ())
        summary, shown = found.summary, found.metrics[0]
        check_computed(gates, t.never_tracked(found, shown))
        emission = Emission(
            t.LONG_COLUMNS,
            t.long_rows(found, found.metrics),
            {"runs": [run.provenance for run in found.runs], "summary": summary},
            lambda: trajectory_report(found, summary, shown, sort, top),
            provenance_of_all([run.provenance for run in found.runs]),
            (*TRACKED, *all_columns()),
            page=lambda: trajectory_page(found, metric or ()),
        )
        emit(emission, output)
        apply_gates(gates, t.change_rows(found, shown))
