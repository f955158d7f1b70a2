"""Pydantic's errors in our own words: what is wrong, and what to write instead."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from chinchilla_sim.errors import Mistake
from chinchilla_sim.scenario.check import suggest, write_example
from chinchilla_sim.scenario.fields import show_value

_EXPECTED = {
    "string_type": "a text in quotes",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "tuple_type": "a list",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
}
_TABLES = ("dict_type", "model_type", "model_attributes_type")


def translate(error: ValidationError, schema: Mapping[str, Any]) -> list[Mistake]:
    """The mistakes that pydantic found; `schema` is the JSON schema, where known keys and examples are looked up."""
    found = [mistake for details in error.errors() for mistake in _translate_one(details, schema)]
    return list(dict.fromkeys(found))


def _translate_one(details: ErrorDetails, schema: Mapping[str, Any]) -> Iterator[Mistake]:
    kind, path, context, value = details["type"], details["loc"], details.get("ctx", {}), details["input"]
    where = ".".join(map(str, path))
    if kind == "value_error":
        yield from (_place(_with_own_example(mistake, schema, path), where) for mistake in context["error"].args)
    elif kind == "extra_forbidden":
        known = list(_look_up(schema, path[:-1]).get("properties", {}))
        yield Mistake(where, f"unknown key '{path[-1]}'", suggest(str(path[-1]), known))
    elif kind == "missing" and isinstance(path[-1], int):
        yield Mistake(".".join(map(str, path[:-1])), f"needs 2 entries, has {len(value)}", _cure(schema, path[:-1], ""))
    elif kind == "missing":
        yield Mistake(where, "is missing", _cure(schema, path, _table_cure(path)))
    elif kind in ("too_short", "too_long"):
        yield from _translate_length(where, context, value, _cure(schema, path, ""))
    elif kind == "string_too_short":
        yield Mistake(where, "is empty", _cure(schema, path, ""))
    elif kind == "literal_error":
        yield Mistake(where, _expectation(kind, context, value), _nearest(schema, path, value))
    elif kind in _EXPECTED:
        cure = _table_cure(path) if kind in _TABLES else _cure(schema, path, "")
        yield Mistake(where, _expectation(kind, context, value), cure)
    else:
        yield Mistake(where, f"{details['msg']}, not {show_value(value)}", _cure(schema, path, ""))


def _with_own_example(mistake: object, schema: Mapping[str, Any], path: tuple[int | str, ...]) -> object:
    """A quantity's cure shows what the key is about: days for a deadline, not microseconds."""
    examples = _look_up(schema, path).get("examples")
    if isinstance(mistake, Mistake) and examples and mistake.cure.startswith('write for example "'):
        return Mistake(mistake.where, mistake.what, f"write for example {show_value(examples[0])}")
    return mistake


def _place(mistake: object, where: str) -> Mistake:
    if not isinstance(mistake, Mistake):
        return Mistake(where, str(mistake))
    return Mistake(f"{where}.{mistake.where}" if mistake.where else where, mistake.what, mistake.cure)


def _translate_length(where: str, context: Mapping[str, Any], value: Any, cure: str) -> Iterator[Mistake]:
    """A list whose entries are wrong seems too short to pydantic: only the length as written counts."""
    fewest, most = context.get("min_length"), context.get("max_length")
    if fewest is not None and len(value) < fewest:
        yield Mistake(where, f"needs at least {fewest} entr{'y' if fewest == 1 else 'ies'}, has {len(value)}", cure)
    if most is not None and len(value) > most:
        yield Mistake(where, f"needs at most {most} entries, has {len(value)}", cure)


def _expectation(kind: str, context: Mapping[str, Any], value: object) -> str:
    expected = _EXPECTED[kind].format(**context).replace("'", '"')
    return f"must be {expected}, not {show_value(value)}"


def _table_cure(path: tuple[int | str, ...]) -> str:
    title = ".".join(part for part in path if isinstance(part, str))
    return f"write [[{title}]]" if path and isinstance(path[-1], int) else f"write a table [{title}]"


def _nearest(schema: Mapping[str, Any], path: tuple[int | str, ...], value: object) -> str:
    found = _look_up(schema, path)
    allowed = [str(name) for name in found.get("enum", [found["const"]] if "const" in found else [])]
    cure = suggest(value, allowed) if isinstance(value, str) else ""
    return cure if cure.startswith("did") else ""


def _cure(schema: Mapping[str, Any], path: tuple[int | str, ...], otherwise: str) -> str:
    """A line of TOML made of the example of the nearest key on the path."""
    keys = [index for index, part in enumerate(path) if isinstance(part, str)]
    if not keys:
        return otherwise
    examples = _look_up(schema, path[: keys[-1] + 1]).get("examples")
    return write_example(str(path[keys[-1]]), examples[0]) if examples else otherwise


def _look_up(schema: Mapping[str, Any], path: tuple[int | str, ...]) -> Mapping[str, Any]:
    """What the JSON schema says about a key; empty when it says nothing."""
    found: Mapping[str, Any] = schema
    for part in path:
        found = _resolve(found, schema)
        found = found.get("items", {}) if isinstance(part, int) else found.get("properties", {}).get(part, {})
    return _resolve(found, schema)


def _resolve(found: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return schema["$defs"][found["$ref"].rpartition("/")[2]] if "$ref" in found else found
