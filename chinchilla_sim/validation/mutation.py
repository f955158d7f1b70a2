"""Valid files with a few random changes to their values or to their text; the same generator makes the same file.

What is tried is what people, scripts and disks do: values of another kind or size, keys left out, misspelt or twice, lines lost or doubled,
files cut off, characters that no file should hold.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence
from copy import deepcopy
from random import Random
from typing import Any, Literal

from chinchilla_sim.interchange.toml_text import write_toml

Form = Literal["json", "toml", "text", "binary"]
Place = tuple[str | int, ...]

HOW_MANY_CHANGES = (1, 1, 1, 2, 3)
SHARE_OF_TEXT = 0.35
"""How many of the files that hold values are changed as texts."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 7, 0.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**63, 10**30, 10**400),
    *("", " ", "x", "1", "nan", "10 GB", "10 Gbit/s", "1 h", "-1 s", "none", "\0", "\ud800", "é", "a" * 5000, "0F0", "../..", "/"),
    *([], {}, [[]], [{}], [None], ["x", "x"], [1, 1], {"x": 1}, {"": {}}, [[["x"]]], [0.5, "x", []]),
)
PIECES = (
    *(
        '"',
        "'",
        "\\",
        "{",
        "}",
        "[",
        "]",
        "[[",
        "=",
        ",",
        ":",
        ";",
        "#",
        "\n",
        "\r\n",
        "\t",
        "\0",
        "\x7f",
        "\ufeff",
        "\u202e",
        "é",
        "-",
        "--",
    ),
    *(
        "nan",
        "1e999",
        "9" * 5000,
        "-1",
        "0",
        "true",
        "null",
        " -- ",
        "$X",
        "${X:-1}",
        "$(x)",
        "`x`",
        "<<EOF",
        "0F0",
        "0B99999999",
        "99999999F0",
    ),
    *("[" * 3000, "{" * 3000, '{"a":' * 3000, "a." * 3000),
)


def spoil(content: bytes, form: Form, random: Random) -> bytes:
    """The file with one to three changes."""
    count = random.choice(HOW_MANY_CHANGES)
    if form in ("json", "toml") and random.random() >= SHARE_OF_TEXT:
        text = content.decode()
        tables = json.loads(text) if form == "json" else tomllib.loads(text)
        for _ in range(count):
            _change_value(tables, random)
        return (_json(tables) if form == "json" else _toml(tables)).encode("utf-8", "surrogatepass")
    changes = (_change_bytes,) if form == "binary" else (_change_text, _change_text, _change_lines, _change_bytes)
    for _ in range(count):
        content = random.choice(changes)(content, random)
    return content


def _json(value: Any) -> str:
    return json.dumps(value, indent=1)


def _toml(tables: dict[str, Any]) -> str:
    """What cannot be written as TOML is a mistake of its own."""
    try:
        return write_toml(tables, {})
    except (TypeError, AttributeError, ValueError):
        return _json(tables)


def places(value: Any, path: Place = ()) -> Iterator[Place]:
    """Paths of all values inside tables and lists."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


def _change_value(tables: Any, random: Random) -> None:
    """Change one value somewhere, in place."""
    found = list(places(tables))
    if not found:
        return
    path = random.choice(found)
    holder, last = _at(tables, path[:-1]), path[-1]
    change = random.choice(_VALUE_CHANGES)
    change(holder, last, _at(tables, random.choice(found)), random)


def _at(tables: Any, path: Place) -> Any:
    for key in path:
        tables = tables[key]
    return tables


def _delete(holder: Any, last: Any, other: Any, random: Random) -> None:
    del holder[last]


def _replace(holder: Any, last: Any, other: Any, random: Random) -> None:
    holder[last] = deepcopy(random.choice(VALUES))


def _copy_other(holder: Any, last: Any, other: Any, random: Random) -> None:
    holder[last] = deepcopy(other)


def _scale(holder: Any, last: Any, other: Any, random: Random) -> None:
    """A number of another size; anything else in a list of its own."""
    value = holder[last]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    holder[last] = value * random.choice((-1, 0, 0.5, 2, 1000, 10**9)) if number else [value]


def _misspell(holder: Any, last: Any, other: Any, random: Random) -> None:
    """A key with a letter more or less; in a list, the entry twice."""
    if isinstance(holder, MutableSequence):
        holder.insert(int(last), deepcopy(holder[last]))
    elif isinstance(holder, MutableMapping):
        name = random.choice((last[:-1], f"{last}s", last.upper(), f"{last} "))
        holder[name] = holder.pop(last)


def _as_text(holder: Any, last: Any, other: Any, random: Random) -> None:
    """A number as a text, a text without its last letter."""
    value = holder[last]
    holder[last] = value[:-1] if isinstance(value, str) else str(value)


_ValueChange = Callable[[Any, Any, Any, Random], None]
_VALUE_CHANGES: tuple[_ValueChange, ...] = (_delete, _replace, _replace, _replace, _copy_other, _scale, _misspell, _as_text)


def _change_text(content: bytes, random: Random) -> bytes:
    """Put a piece somewhere, in place of some characters or none."""
    start = random.randint(0, len(content))
    end = min(len(content), start + random.choice((0, 0, 1, 2, 5, 40)))
    return content[:start] + random.choice(PIECES).encode() + content[end:]


def _change_lines(content: bytes, random: Random) -> bytes:
    """Lose, double, move or cut off lines."""
    lines = content.split(b"\n")
    index, other = random.randrange(len(lines)), random.randrange(len(lines))
    kind = random.choice(("lose", "double", "move", "end", "start"))
    if kind in ("end", "start"):
        return b"\n".join(lines[:index] if kind == "end" else lines[index:])
    line = lines.pop(index)
    if kind == "double":
        lines[index:index] = [line, line]
    elif kind == "move":
        lines.insert(other, line)
    return b"\n".join(lines)


def _change_bytes(content: bytes, random: Random) -> bytes:
    """Change a byte, or cut the file off at it."""
    if not content:
        return bytes([random.randrange(256)])
    index = random.randrange(len(content))
    if random.random() < 0.1:
        return content[:index]
    return content[:index] + bytes([random.randrange(256)]) + content[index + 1 :]


def shrink(content: bytes, fails: Callable[[bytes], bool], tries: int = 400) -> bytes:
    """A smaller file that still fails: ever smaller pieces are left out, as long as there are tries.

    >>> shrink(b"some text with an x in it", lambda content: b"x" in content and b"i" in content)
    b'xi'
    """
    size = max(1, len(content) // 2)
    while True:
        start, removed = 0, False
        while start < len(content) and tries:
            tries -= 1
            shorter = content[:start] + content[start + size :]
            if fails(shorter):
                content, removed = shorter, True
            else:
                start += size
        if not tries or (size == 1 and not removed):
            return content
        size = max(1, size // 2)
