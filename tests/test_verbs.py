"""The command group: every verb is found, told of truthfully, and loaded only when called."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from weightscope.cli import verbs

NAMES = list(verbs.SENTENCES)
CLI = Path(verbs.__file__).parent


def weightscope(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weightscope", *words]
    return subprocess.run(command, capture_output=True, text=True, env={"COLUMNS": "200"})


def first_sentence(verb: str) -> str:
    function = getattr(import_module(f"weightscope.cli.{verb}"), verb)
    return str(function.__doc__).split("\n\n")[0].replace("\n    ", " ")


@pytest.mark.parametrize("verb", NAMES)
def test_the_table_says_what_the_verb_says_of_itself(verb: str) -> None:
    assert verbs.SENTENCES[verb] == first_sentence(verb)


def test_no_verb_is_forgotten() -> None:
    found = {
        path.stem for path in CLI.glob("*.py") if f"\ndef {path.stem}(" in path.read_text()
    } - {"emit", "explained", "main"}
    assert found == set(NAMES)


def test_help_names_every_verb_and_option() -> None:
    shown = weightscope("--help")
    assert shown.returncode == 0
    for verb in NAMES:
        assert f"  {verb} " in shown.stdout
        assert verbs.SENTENCES[verb] in shown.stdout
    assert "--version" in shown.stdout
    assert "--install-completion" in shown.stdout
    assert "130 interrupted" in shown.stdout


def test_without_a_verb_the_help_is_shown() -> None:
    assert "analyze" in weightscope().stdout


def test_a_misspelt_verb_is_a_usage_error_with_a_suggestion() -> None:
    found = weightscope("anlyze", "x")
    assert found.returncode == 2
    assert "Did you mean 'analyze'?" in found.stderr


def test_a_verb_loads_no_other() -> None:
    code = (
        "import sys\nfrom weightscope.cli.main import app\n"
        "try: app(['report', '--help'])\nexcept SystemExit: pass\n"
        "loaded = {m.rpartition('.')[2] for m in sys.modules if m.startswith('weightscope.cli.')}\n"
        f"print(sorted(loaded & {set(NAMES)!r}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "['report']"


def test_completion_knows_the_verbs() -> None:
    env = {
        "_WEIGHTSCOPE_COMPLETE": "complete_bash",
        "COMP_WORDS": "weightscope sel",
        "COMP_CWORD": "1",
    }
    command = [sys.executable, "-m", "weightscope"]
    found = subprocess.run(command, capture_output=True, text=True, env=env)
    assert found.stdout.split() == ["selftest"]
