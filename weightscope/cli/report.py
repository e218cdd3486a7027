"""``weightscope report``: any output again, from a saved run."""

from __future__ import annotations

from weightscope.cli import options as o
from weightscope.cli.explained import explained


def report(
    run: o.RunArgument,
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
    ww_names: o.WwOption = False,
    bom: o.BomOption = False,
    force: o.ForceOption = False,
    quiet: o.QuietOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Print a saved run again, in any format. Needs neither the weights nor torch.

    [bold]Examples[/]

      weightscope report my-model.weightscope

      weightscope report my-model.weightscope --format markdown > spectra.md

      weightscope report my-model.weightscope --html my-model.html

      weightscope report my-model.weightscope --sort condition_number --top 10 --format table
    """
    with explained(debug):
        from weightscope.cli.emit import Output, emit, run_emission
        from weightscope.cli.gating import apply_gates, check_computed, read_gates
        from weightscope.evaluate import all_columns, left_out
        from weightscope.folders.storage import load_run
        from weightscope.settings import settings_from

        names = [column.name for column in all_columns()]
        output = Output(format, csv, json, sort, top, bom, force, excel, png, svg, html, quiet)
        output.check(names)
        gates = read_gates(fail_on, names)
        found = load_run(run)
        check_computed(gates, left_out(settings_from(found.provenance["settings"])))
        emit(run_emission(found, output, ww_names), output)
        apply_gates(gates, found.rows)
