"""The arguments in a shell script or text: every `--key value ...`, with the variables that the text itself sets.

Arguments may stand in arrays, in quoted variables, over several lines, or behind a launcher. Nothing is run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

_ASSIGNMENT = re.compile(r"(?:(?:export|declare|local)\s+)?([A-Za-z_]\w*)\+?=(.*)", re.DOTALL)
_KEY = re.compile(r"--([A-Za-z][\w.-]*)(?:=(.*))?", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-([^{}]*))?\}|(\w+))")
_BREAKS = frozenset(";|&<>()\n")


@dataclass
class Arguments:
    """Keys without dashes (`_` as `-`) with their values; a key given twice has the last values, as in argparse."""

    values: dict[str, tuple[str, ...]] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)
    contradictions: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)

    def add(self, key: str, values: tuple[str, ...]) -> None:
        """A key with its values; other values than before are a contradiction."""
        if self.values.get(key, values) != values:
            self.contradictions.setdefault(key, {self.values[key]}).add(values)
        self.values[key] = values


def parse_arguments(text: str) -> Arguments:
    """All arguments of a text; ValueError where a quotation does not end."""
    found = Arguments()
    _collect(text, {}, found)
    return found


def _collect(text: str, variables: dict[str, str], found: Arguments) -> None:
    key: str | None = None
    values: list[str] = []
    for token in [*_tokens(text.replace("\\\r\n", " ").replace("\\\n", " ")), "\n;"]:
        option, assignment = _KEY.fullmatch(token), _ASSIGNMENT.fullmatch(token)
        is_break = set(token) <= _BREAKS and bool(token)
        ends_line = is_break and set(token) == {"\n"}
        if ends_line and key is not None and not values:
            continue  # one word per line
        is_script = token.endswith(".py")
        if key is not None and (option or is_break or is_script):
            found.add(key, _without_variables(values))
            key, values = None, []
        if option:
            key, first = option[1].replace("_", "-"), option[2]
            values = [] if first is None else [_resolve(first, variables)]
        elif is_break or is_script:
            found.scripts += [token.rpartition("/")[2]] * is_script
        elif assignment and not values:
            variables[assignment[1]] = _resolve(assignment[2], variables)
            if "--" in assignment[2]:
                _collect(assignment[2], variables, found)
        elif key is not None:
            values.append(_resolve(token, variables))
        elif "--" in token and any(mark in token for mark in " \n"):
            _collect(token, variables, found)


def _tokens(text: str) -> Iterator[str]:
    """Words, and runs of characters that end a command; comments are left out."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="".join(sorted(_BREAKS)))
    lexer.whitespace, lexer.whitespace_split = " \t\r", True
    yield from lexer


def _resolve(word: str, variables: dict[str, str]) -> str:
    """A word with the variables put in that the text sets, or else their defaults."""

    def value(match: re.Match[str]) -> str:
        name, default, bare = match.groups()
        known = variables.get(name or bare)
        return known if known is not None else match[0] if default is None else default

    return _VARIABLE.sub(value, word)


def _without_variables(values: list[str]) -> tuple[str, ...]:
    """Values without the further arguments that variables stand for behind the first."""
    return tuple(value for index, value in enumerate(values) if not index or (value and not value.startswith("$") and "--" not in value))
