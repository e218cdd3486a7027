"""The verbs: a table of names and sentences; a module is loaded when its verb is called.

``--help`` is what people call first and most, so it costs no more than typer and the console: no
verb is imported for it, and the page is drawn here, without the library's machinery for Markdown.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

VERBS: dict[str, dict[str, str]] = {
    "Look": {
        "inspect": "Show what a checkpoint holds and what analysing it would cost; reads headers "
        "only.",
        "analyze": "Analyse every weight matrix of a checkpoint.",
        "report": "Print a saved run again, in any format. Needs neither the weights nor torch.",
        "merge": "Join the parts that analyze --shard made to one run; needs neither the weights "
        "nor torch.",
        "plot": "Draw one picture of a saved run. Needs neither the weights nor torch.",
    },
    "Compare": {
        "compare": "Compare two runs or checkpoints, or several with the first.",
        "track": "Follow every matrix over the checkpoints of a training, ordered by step.",
    },
    "Act": {
        "plan": "Turn a saved run into a file that another tool consumes. Needs neither weights "
        "nor torch.",
        "compress": "Write a checkpoint in which the matrices of a plan are two factors each.",
    },
    "Trust": {
        "explain": "Explain a metric: formula, range, how to read it, when not to believe it, "
        "source.",
        "farms": "Try FARMS over a grid of settings: how far does its exponent hang on window and "
        "grid?",
        "selftest": "Measure matrices whose figures are known, on this device; exit with 3 where "
        "one is wrong.",
        "doctor": "Show versions, linear algebra, threads, memory, devices, caches, and what to "
        "mend.",
    },
}
"""What each verb does, in the groups of the help page; ``weightscope.cli.VERB`` holds it."""
SENTENCES = {name: sentence for group in VERBS.values() for name, sentence in group.items()}


class Verbs(TyperGroup):
    """The command group; knows its verbs by name and loads one at a time."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Names of all verbs, in the order of the help page."""
        return list(SENTENCES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Load a verb; None where there is none of that name."""
        if cmd_name not in SENTENCES:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = _load(cmd_name)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb that was typed; typer suggests a similar one among those loaded."""
        if args and args[0] not in SENTENCES:
            for close in get_close_matches(args[0], SENTENCES):
                self.get_command(ctx, close)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Draw the page of all verbs."""
        from rich.console import Console
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        options = [record for p in self.get_params(ctx) if (record := p.get_help_record(ctx))]
        console = Console(highlight=False)
        console.print(Text.assemble("\n Usage: ", ("weightscope VERB [OPTIONS] ...", "bold")))
        for paragraph in (self.help or "").split("\n\n"):
            console.print(Padding(Text(paragraph), (1, 1, 0, 1)))
        width = max(len(name) for name, _ in options)
        sections = [
            *((name, [*group.items()]) for name, group in VERBS.items()),
            ("Options", options),
        ]
        for title, entries in sections:
            console.print(Text(f"\n {title}", style="bold yellow"))
            page = Table.grid(padding=(0, 2, 0, 0), pad_edge=True)
            page.add_column(style="bold cyan", no_wrap=True, min_width=width + 2)
            page.add_column()
            for name, sentence in entries:
                page.add_row(Text(f"  {name}"), Text(sentence))
            console.print(page)
        console.print(Text("\n weightscope VERB --help tells more, with examples.\n"))


def _load(verb: str) -> TyperCommand:
    """The command of a verb, out of the module of its name."""
    module: Any = import_module(f"weightscope.cli.{verb}")
    app = typer.Typer(
        rich_markup_mode="rich",
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    app.command(verb, cls=getattr(module, "COMMAND", TyperCommand))(getattr(module, verb))
    found = typer.main.get_command(app)
    assert isinstance(found, TyperCommand)
    for option in found.get_params(typer.Context(found, **found.context_settings)):
        if getattr(option, "is_flag", False):
            option.metavar = ""  # a flag takes nothing
    return found
