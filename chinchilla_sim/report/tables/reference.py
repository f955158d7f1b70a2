"""The reference of scenario files as a page of Markdown, from their schema: a section for each table, a row for each key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chinchilla_sim.scenario.check import show_toml
from chinchilla_sim.scenario.cluster import CLUSTER_KEYS
from chinchilla_sim.scenario.model import FORMULAS, MODEL_KEYS
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.units import KINDS, QuantityKind, plain_number

Schema = Mapping[str, Any]
_QUANTITIES = "Quantities"
_TOP = "The file"
_KEYS_OF = {"model": MODEL_KEYS, "cluster": CLUSTER_KEYS}
_INTRODUCTION = """\
# The scenario file

A scenario is a [TOML](https://toml.io) file that asks one question: how should this job of this model run on these machines? The smallest:

```toml
model = { builtin = "mnist_mlp" }
job = { global_batch_size = 64 }
cluster = { kind = "this-machine" }
```

`chinchilla plan S.toml` answers it. A key that is not listed here is a mistake. All mistakes are told at once, each with its cure;
rules that join several keys (a deadline needs the number of steps) are among them. Paths start at the folder of the file.
`--set job.global_batch_size=128` replaces a value from the command line. Editors complete from `chinchilla schema`.

This page is what `chinchilla schema --markdown` prints; it is generated from the code that reads scenarios, and a test compares the two.
"""


@dataclass(frozen=True, slots=True)
class _Section:
    """A table of the file: where it stands, `[model]` or `[[cluster.nodes]]`, and its schema."""

    path: str
    title: str
    schema: Schema

    @property
    def link(self) -> str:
        return f"[`{self.title}`](#{slug(self.title)})"


def reference_page(examples: Iterable[tuple[str, str]]) -> str:
    """The page; `examples` are the files or folders beside it, each with a line on what it is about."""
    schema = Scenario.model_json_schema(by_alias=True)
    sections = list(_sections(schema))
    links = {section.schema["title"]: section.link for section in sections}
    titles = [_TOP, *(section.title for section in sections[1:]), _QUANTITIES, "Example scenarios"]
    contents = " · ".join(f"[{title.strip('[]')}](#{slug(title)})" for title in titles)
    parts = [_INTRODUCTION, contents + "\n", *(_section(section, links) for section in sections), _quantities(), _examples(examples)]
    return "\n".join(parts)


def slug(title: str) -> str:
    """The anchor that web pages make of a heading.

    >>> slug("[[cluster.nodes]]"), slug("The file")
    ('clusternodes', 'the-file')
    """
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _sections(schema: Schema) -> Iterator[_Section]:
    """Every table once, in the order in which a file would have them; one that stands in two places where it stands first."""
    seen: set[str] = set()

    def walk(path: str, title: str, table: Schema) -> Iterator[_Section]:
        if table["title"] in seen:
            return
        seen.add(table["title"])
        yield _Section(path, title, table)
        for key, field in table["properties"].items():
            name, is_list = _table_of(field)
            if name:
                inner = f"{path}.{key}" if path else key
                yield from walk(inner, f"[[{inner}]]" if is_list else f"[{inner}]", schema["$defs"][name])

    yield from walk("", _TOP, schema)


def _given(field: Schema) -> Schema:
    """A field without the null that TOML cannot say."""
    choice: Schema = next((choice for choice in field.get("anyOf", ()) if choice != {"type": "null"}), field)
    return choice


def _table_of(field: Schema) -> tuple[str, bool]:
    """Name of the table that a field holds, and whether it is a list of them; empty for a plain value."""
    given = _given(field)
    inner = given.get("items", given)
    return str(inner.get("$ref", "")).rpartition("/")[2], "items" in given


def _section(section: _Section, links: Mapping[str, str]) -> str:
    lines = [f"## {section.title}", "", _cell(section.schema["description"]), ""]
    lines += ["| key | value | default | what | example |", "|---|---|---|---|---|"]
    needed = section.schema.get("required", ())
    lines += [_row(key, field, key in needed, links) for key, field in section.schema["properties"].items()]
    return "\n".join([*lines, *_belonging(section.path), ""])


def _row(key: str, field: Schema, needed: bool, links: Mapping[str, str]) -> str:
    examples = field.get("examples") or []
    example = _code(f"{key} = {show_toml(examples[0])}") if examples else ""
    cells = [
        _code(key),
        _value(_given(field), links),
        "needed" if needed else _default(field),
        _cell(field.get("description", "")),
        example,
    ]
    return f"| {' | '.join(cells)} |"


def _value(field: Schema, links: Mapping[str, str]) -> str:
    """The kind of a value in plain words."""
    if "$ref" in field:
        return f"table {links[field['$ref'].rpartition('/')[2]]}"
    if "x-units" in field:
        return f"[{_kind(field).name}](#{slug(_QUANTITIES)})" + (", more than 0" if field["x-above-zero"] else "")
    if "enum" in field:
        return f"one of {', '.join(_code(show_toml(value)) for value in field['enum'])}"
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])} texts"
    if field["type"] == "array":
        return f"list: {_value(field['items'], links)}" + (", at least one" if field.get("minItems") else "")
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`", "object": "table of options"}
    return ", ".join([words[field["type"]], *_limits(field)])


def _limits(field: Schema) -> Iterator[str]:
    """The bounds of a number."""
    words = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}
    yield from (f"{word} {field[key]:,}" for key, word in words.items() if key in field and abs(field[key]) < 2**62)


def _kind(field: Schema) -> QuantityKind:
    return next(kind for kind in KINDS if list(kind.factors) == field["x-units"])


def _default(field: Schema) -> str:
    """What stands for a key that is not given; empty where that is nothing."""
    value, given = field.get("default"), _given(field)
    if value in (None, "", [], {}):
        return ""
    if "x-units" in given:
        kind = _kind(given)
        number, _, unit = kind.format(float(value)).partition(" ")
        value = f"{plain_number(float(number))} {unit}"
    return _code(show_toml(value))


def _belonging(path: str) -> list[str]:
    """Which keys go with each of the kinds that a table can be of."""
    keys_of = _KEYS_OF.get(path)
    if not keys_of:
        return []
    kinds: dict[tuple[str, ...], list[str]] = {}
    for kind, keys in keys_of.items():
        own = "formula" if path == "model" and kind in FORMULAS else kind if path == "model" else "kind"
        names = kinds.setdefault(tuple(sorted(keys - {own})), [])
        names.append(_code(own if own == kind else f'"{kind}"' if names else f'{own} = "{kind}"'))
    rows = [f"| {', '.join(names)} | {', '.join(map(_code, keys))} |" for keys, names in kinds.items()]
    return ["", "Which keys go together; those of another row are refused:", "", "| with | keys |", "|---|---|", *rows]


def _quantities() -> str:
    lines = [
        f"## {_QUANTITIES}",
        "",
        "A quantity is a text of a number and a unit: a number alone is a mistake, and so is a unit of another",
    ]
    lines += ["kind. b is a bit and B a byte, m is milli and M is mega; elsewhere capitals do not count. GB is 1e9 bytes, GiB is 2^30.", ""]
    lines += ["| quantity | units | example |", "|---|---|---|"]
    used = [kind for kind in KINDS if kind.name != "energy"]
    lines += [f"| {kind.name} | {', '.join(kind.factors)} | {_code(show_toml(kind.example))} |" for kind in used]
    return "\n".join([*lines, ""])


def _examples(examples: Iterable[tuple[str, str]]) -> str:
    lines = ["## Example scenarios", "", "Each is planned by a test, and what must come out is in `reports/NAME/summary.txt`.", ""]
    return "\n".join([*lines, *(f"- [{place}]({place}): {_cell(line)}." for place, line in examples), ""])


def _cell(text: str) -> str:
    """Text in one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{_cell(text)}`"
