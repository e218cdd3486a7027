"""The house rules, held by a test: layers, start-up promise, sizes, columns."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from weightscope.cli import verbs

PACKAGE = Path(__file__).parent.parent / "weightscope"
FILES = sorted(PACKAGE.rglob("*.py"))

GROUND = {
    "columns",
    "errors",
    "json_text",
    "once",
    "outcome",
    "plugins",
    "recipe",
    "resources",
    "tensor",
    "text",
    "version",
}
VALUES = {
    "checkpoint",
    "compat",
    "compressed",
    "difference",
    "distances",
    "drawings",
    "encoded",
    "gates",
    "glossary",
    "laws",
    "matrix",
    "measurement",
    "placement",
    "proposal",
    "rank_plan",
    "report",
    "settings",
    "share",
    "spectrum",
}
DRAWERS = {
    "decompositions",
    "encodings",
    "executors",
    "formats",
    "layouts",
    "metrics",
    "plans",
    "sinks",
    "sources",
}
# what a drawer may use beside ground and values, each for a stated reason
ALSO = {
    "sources": {"formats"},  # where the bytes are, and what their header says
    "executors": {"plan"},  # runs one
    "sinks": {"run", "evaluate", "outputs"},  # a run is what CSV and JSON are made of
    "plans": {"run", "evaluate", "addresses", "criteria", "choosing", "reasons"}
    | {"metrics", "factorable"},  # WeLore's threshold is found by its metric
}
ACTS = {
    "adapters",
    "addresses",
    "alignment",
    "assignment",
    "bases",
    "changes",
    "charting",
    "choosing",
    "compress",
    "criteria",
    "evaluate",
    "expressions",
    "factorable",
    "folders",
    "frames",
    "measure",
    "observer",
    "outputs",
    "plan",
    "planted",
    "provenance",
    "quantised",
    "reasons",
    "run",
    "sampling",
    "select",
    "summary",
    "ties",
    "window_fits",
}
SENTENCES = {
    "analysis",
    "comparing",
    "comparison",
    "doctor",
    "explain",
    "farms_settings",
    "gallery",
    "inspection",
    "keywords",
    "planning",
    "merging",
    "present",
    "selftest",
    "tracing",
    "trajectory",
}
RANKS = {**dict.fromkeys(GROUND, 0), **dict.fromkeys(VALUES, 1), **dict.fromkeys(DRAWERS, 2)}
RANKS |= {**dict.fromkeys(ACTS, 3), **dict.fromkeys(SENTENCES, 4), "integrations": 5, "cli": 5}
MAY_IMPORT = {
    "torch": {
        "changes",
        "compress",
        "decompositions",
        "doctor",
        "encodings",
        "executors",
        "expressions",
        "formats",
        "integrations",
        "measure",
        "planted",
        "provenance",
        "quantised",
        "ties",
        "window_fits",
    },
    "transformers": {"layouts", "integrations"},
    "lightning": {"integrations"},
    "pytorch_lightning": {"integrations"},
    "rich": {"sinks", "cli"},
    "typer": {"cli"},
    "pandas": {"frames"},
    "huggingface_hub": {"sources"},
    "safetensors": {"folders"},
    "scipy": set(),
    "matplotlib": {"sinks"},
    "openpyxl": {"sinks"},
    "gguf": {"formats", "encodings"},
    "jinja2": set(),
    "ray": {"executors"},
}


def room(path: Path) -> str:
    """Top-level name of the room that a file is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, but for type checking only."""
    tree = ast.parse(path.read_text())
    hidden = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    here = room(path)
    if here in {"__init__", "__main__"}:
        return
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "weightscope":
            there = rest.partition(".")[0]
            if there == here or there in ALSO.get(here, set()) or there == "__version__":
                continue
            assert there in RANKS, f"{path.name} imports {name}, a room without a place"
            if here in DRAWERS:
                assert RANKS[there] < 2, f"{path.name} imports {name}: drawers never sideways"
            assert RANKS[there] <= RANKS[here], f"{path.name} imports {name}, which is above it"
        elif top in MAY_IMPORT:
            assert here in MAY_IMPORT[top], f"{path.name} imports {name}"


def test_there_are_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        known = {n.rpartition(".")[0] for n in imports(path)} | set(imports(path))
        graph[name.removesuffix(".__init__")] = {n for n in known if n.startswith("weightscope.")}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        for there in graph.get(name, ()):
            if there in graph and there != name:
                visit(there, (*trail, name))

    for name in graph:
        if name not in {"weightscope", "weightscope.__main__"}:
            visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert (node.end_lineno or 0) - node.lineno < 200, node.name
        if isinstance(node, ast.FunctionDef):
            options = room(path) == "cli" and "o.DebugOption" in ast.unparse(node.args)
            length = (node.end_lineno or 0) - node.lineno + 1
            # the signature of a verb is its list of options
            assert length - (len(node.args.args) if options else 0) <= 60, node.name
            assert options or len(node.args.args) - _is_method(node) <= 6, node.name


def _is_method(node: ast.FunctionDef) -> bool:
    return bool(node.args.args) and node.args.args[0].arg in {"self", "cls"}


def _loaded(code: str) -> set[str]:
    """Heavy modules in memory after running code in a fresh interpreter."""
    heavy = (
        "torch", "transformers", "pandas", "scipy", "matplotlib", "huggingface_hub", "numpy",
        "openpyxl",
    )  # fmt: skip
    code += f"\nimport sys; print(*[m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.splitlines()[-1].split()) if result.stdout.split() else set()


def test_import_and_help_load_nothing_heavy() -> None:
    assert _loaded("import weightscope") == set()
    help_code = "import sys\nfrom weightscope.cli.main import app\n"
    for verb in ([], *([name] for name in verbs.SENTENCES)):
        run = help_code + f"try: app({[*verb, '--help']!r})\nexcept SystemExit: pass"
        assert _loaded(run) == set(), verb


def test_every_column_explains_itself() -> None:
    from weightscope.evaluate import all_columns

    columns = all_columns()
    assert len({column.name for column in columns}) == len(columns)
    for column in columns:
        assert column.meaning
        assert not column.meaning.endswith("."), column.name
