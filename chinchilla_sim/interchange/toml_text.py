"""Tables as TOML with a comment behind every value, for people to go on with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")
Comments = Mapping[str, str]


def write_toml(tables: Mapping[str, Any], comments: Comments, heading: Sequence[str] = ()) -> str:
    """TOML text; `comments` are by dotted place, such as `job.precision`, and `heading` stands first.

    >>> print(write_toml({"job": {"epochs": 2}}, {"job.epochs": "two"}), end="")
    <BLANKLINE>
    [job]
    epochs = 2  # two
    """
    lines = [f"# {_plain(line)}" for line in heading]
    lines += [*_lines(tables, (), comments)]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...], comments: Comments) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if _is_table(value) or _are_tables(value)}
    for key, value in table.items():
        if key not in inner:
            comment = comments.get(".".join((*path, key)))
            yield f"{_key(key)} = {_value(value)}" + (f"  # {_plain(comment)}" if comment else "")
    for key, value in inner.items():
        here = (*path, key)
        title = ".".join(map(_key, here))
        comment = comments.get(".".join(here))
        for one in value if isinstance(value, list) else [value]:
            yield ""
            if comment:
                yield f"# {_plain(comment)}"
            yield f"[[{title}]]" if isinstance(value, list) else f"[{title}]"
            yield from _lines(one, here, comments)


def _plain(text: str) -> str:
    """A comment's one line, without characters that TOML forbids."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_table, value))


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {_value(item)}' for key, item in value.items())} }}" if value else "{}"
    return repr(value)
