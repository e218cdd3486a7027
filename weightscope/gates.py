"""Rules such as ``alpha > 6 and role == mlp_up`` on the columns of a table, for pipelines.

    rule       := conjunction ("or" conjunction)*
    conjunction := term ("and" term)*
    term       := "not" term | "(" rule ")" | comparison
    comparison := COLUMN ("<" | "<=" | ">" | ">=" | "==" | "=" | "!=") VALUE
                | COLUMN "is" ["not"] "empty"

A value is a number, a bare word or a quoted text. An empty cell never matches a comparison. Rules
are parsed here and never evaluated as code.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from weightscope.errors import OptionError
from weightscope.outcome import Value

Cells = Mapping[str, Value]
Test = Callable[[Cells], bool]

_TOKEN = re.compile(
    r"""\s*(?:(?P<op><=|>=|==|!=|<|>|=|\(|\))|(?P<quoted>'[^']*'|"[^"]*")|(?P<word>[^\s()<>=!]+))"""
)
_COMPARE: dict[str, Callable[[float | str, float | str], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
}
_MAX_LENGTH = 2000
_MAX_DEPTH = 40
_RESERVED = frozenset({"and", "or", "not", "is"})


@dataclass(frozen=True)
class Gate:
    """A rule.

    Attributes:
        text: As it was written.
        columns: Columns that it mentions.
        test: Whether a row breaks it.
    """

    text: str
    columns: tuple[str, ...]
    test: Test


def hits(gates: Iterable[Gate], rows: Sequence[Cells]) -> list[tuple[Gate, list[Cells]]]:
    """Rules that rows break, with those rows."""
    found = [(gate, [row for row in rows if gate.test(row)]) for gate in gates]
    return [(gate, broken) for gate, broken in found if broken]


def parse_gate(text: str, columns: Mapping[str, bool]) -> Gate:
    """Read a rule.

    Args:
        text: The rule.
        columns: Columns of the table, and whether each holds numbers.

    Raises:
        OptionError: It cannot be read, names a column that the table does not have, or compares a
            number with a text.
    """
    parser = _Parser(text, columns)
    return Gate(text, *parser.parse())


class _Parser:
    """Recursive descent over the tokens of one rule."""

    def __init__(self, text: str, columns: Mapping[str, bool]) -> None:
        self._text = text
        self._depth = 0
        self._columns = columns
        self._used: list[str] = []
        self._tokens = self._split()

    def parse(self) -> tuple[tuple[str, ...], Test]:
        test = self._any()
        if self._tokens:
            raise self._error(f"did not expect {self._tokens[0]!r}")
        return tuple(dict.fromkeys(self._used)), test

    def _split(self) -> list[str]:
        text, position, tokens = self._text.strip(), 0, []
        if len(text) > _MAX_LENGTH:
            raise OptionError(f"--fail-on: a rule may have at most {_MAX_LENGTH} characters")
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error(f"cannot read {text[position:]!r}")
            tokens.append(match[0].strip())
            position = match.end()
        return tokens

    def _error(self, why: str) -> OptionError:
        return OptionError(
            f"--fail-on {self._text!r}: {why}; write for example 'alpha > 6', "
            "'alpha_ks > 0.1 and alpha_n_tail >= 50' or 'alpha is empty'"
        )

    def _next(self) -> str:
        if not self._tokens:
            raise self._error("it ends too early")
        return self._tokens.pop(0)

    def _takes(self, word: str) -> bool:
        found = bool(self._tokens) and self._tokens[0].lower() == word
        if found:
            self._tokens.pop(0)
        return found

    def _any(self) -> Test:
        tests = [self._all()]
        while self._takes("or"):
            tests.append(self._all())
        return tests[0] if len(tests) == 1 else lambda row: any(test(row) for test in tests)

    def _all(self) -> Test:
        tests = [self._term()]
        while self._takes("and"):
            tests.append(self._term())
        return tests[0] if len(tests) == 1 else lambda row: all(test(row) for test in tests)

    def _term(self) -> Test:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error("it is nested too deeply")
        test = self._deeper()
        self._depth -= 1
        return test

    def _deeper(self) -> Test:
        if self._takes("not"):
            inner = self._term()
            return lambda row: not inner(row)
        if self._takes("("):
            inner = self._any()
            if not self._takes(")"):
                raise self._error("a closing parenthesis is missing")
            return inner
        return self._comparison()

    def _comparison(self) -> Test:
        column = self._next()
        if column not in self._columns:
            raise self._error(f"there is no column {column!r}")
        self._used.append(column)
        if self._takes("is"):
            negated = self._takes("not")
            if not self._takes("empty"):
                raise self._error("after 'is' comes 'empty' or 'not empty'")
            return lambda row: (row[column] is None) != negated
        sign = self._next()
        if sign not in _COMPARE:
            raise self._error(f"{sign!r} is no comparison")
        return _comparing(column, _COMPARE[sign], self._literal(column, self._next()))

    def _literal(self, column: str, token: str) -> float | str:
        quoted = token[0] in "'\"" and len(token) > 1 and token[0] == token[-1]
        if not quoted and (token in _RESERVED or set(token) & set("'\"()<>=!")):
            raise self._error(f"{token!r} is no value")
        if not self._columns[column]:
            return token[1:-1] if quoted else token
        try:
            value = float("nan" if quoted else token)
        except ValueError:
            value = float("nan")
        if value != value:
            raise self._error(f"{column} holds numbers, and {token} is none")
        return value


def _comparing(
    column: str, compare: Callable[[float | str, float | str], bool], wanted: float | str
) -> Test:
    def test(row: Cells) -> bool:
        value = row[column]
        if value is None or isinstance(value, str) != isinstance(wanted, str):
            return False
        return compare(value, wanted)

    return test
