"""A TOML file, or tables from a plan.json, to a checked Scenario: every mistake at once, each with its place and cure."""

import json
import logging
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.scenario.check import find_mistakes
from chinchilla_sim.scenario.overrides import apply_overrides
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.scenario.translate import translate

logger = logging.getLogger(__name__)

_LINE = re.compile(r"(?P<what>.*) \(at (?P<where>.*)\)", re.DOTALL)


def load_scenario(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario file; an override such as "job.global_batch_size=128" replaces one value of it.

    Paths inside the file, and inside overrides, start at the file's folder. Raises ScenarioError.
    """
    source = os.fspath(path)
    text = _read_text(source)
    logger.info("scenario: %s%s", source, f", with {', '.join(overrides)}" if overrides else "")
    with _refuse_what_no_file_can_hold(source):
        _check_characters(list(overrides))
        data, mistakes = apply_overrides(_parse_toml(text, source), overrides)
        return _parse(_resolve_paths(data, Path(source).parent), source, mistakes)


def parse_scenario(data: dict[str, Any], source: str) -> Scenario:
    """Check the tables of a scenario, for example those made by `Scenario.to_dict`; `source` names them in errors.

    Paths are taken as they are. Raises ScenarioError.
    """
    if not isinstance(data, dict):
        raise ScenarioError([Mistake("", "is no table of a scenario", "write [model], [job] and [cluster]")], source)
    with _refuse_what_no_file_can_hold(source):
        _check_characters(data)
        return _parse(data, source, [])


@cache
def json_schema() -> dict[str, Any]:
    """JSON schema of scenario files, for completion in editors: a quantity is a string with examples and its units."""
    schema = Scenario.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_polish(schema)}


def _parse(data: dict[str, Any], source: str, mistakes: Sequence[Mistake]) -> Scenario:
    """Scenario of complete tables; `mistakes` were found earlier and are reported together with the rest."""
    complete = _fill_in(data, source)
    checked = _validate(complete)
    wrong_shape = checked if isinstance(checked, list) else []
    found = [*mistakes, *wrong_shape, *find_mistakes(complete)]
    if found or isinstance(checked, list):
        raise ScenarioError(found, source)
    return checked


def _validate(tables: dict[str, Any]) -> Scenario | list[Mistake]:
    try:
        return Scenario.model_validate(tables)
    except ValidationError as error:
        return translate(error, json_schema())


def _check_characters(data: object) -> None:
    """UnicodeEncodeError for half characters, which escapes in JSON and broken command lines can smuggle in."""
    json.dumps(data, ensure_ascii=False, default=str, skipkeys=True).encode()


@contextmanager
def _refuse_what_no_file_can_hold(source: str) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        mistake = Mistake("", "is nested too deeply", "write tables inside tables at most three deep")
    except UnicodeEncodeError as error:
        mistake = Mistake("", f"holds {error.object[error.start]!a}, which is half a character", "write whole Unicode characters")
    else:
        return
    raise ScenarioError([mistake], source)


def _read_text(source: str) -> str:
    try:
        return Path(source).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ScenarioError([Mistake(f"line {line}", "is not UTF-8 text", "save the file as UTF-8")], source) from None
    except FileNotFoundError:
        raise ScenarioError([Mistake("", "there is no such file", "check the path")], source) from None
    except IsADirectoryError:
        raise ScenarioError([Mistake("", "is a folder, not a file", "name the TOML file in it")], source) from None
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise ScenarioError([Mistake("", f"cannot be read: {what}", "check the path")], source) from None


def _parse_toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        match = _LINE.fullmatch(str(error))
        where, what = (match["where"], match["what"]) if match else ("", str(error))
        is_bare = what.startswith("Invalid value")
        cure = 'texts and quantities stand in quotes, for example bandwidth = "10 Gbit/s"' if is_bare else ""
        if text.lstrip().startswith("{"):
            cure = "give a scenario, a TOML file; plans (JSON) are read by simulate, explain, run and validate run"
        raise ScenarioError([Mistake(where, f"is not TOML: {what}", cure)], source) from None


def _resolve_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy with absolute paths."""

    def resolve(path: str) -> str:
        return os.path.abspath(folder / path) if path else path

    model, job, search = data.get("model"), data.get("job"), data.get("search")
    if isinstance(model, dict):
        paths = {key: resolve(path) for key in ("graph", "weights") if isinstance(path := model.get(key), str)}
        if isinstance(factory := model.get("factory"), str) and (file := factory.rpartition(":")[0]).endswith(".py"):
            paths["factory"] = resolve(file) + factory[len(file) :]
        data = {**data, "model": {**model, **paths}}
    if isinstance(job, dict) and isinstance(path := job.get("data"), str) and path != "digits":
        data = {**data, "job": {**job, "data": resolve(path)}}
    if isinstance(search, dict) and isinstance(path := search.get("accuracy_table"), str):
        data = {**data, "search": {**search, "accuracy_table": resolve(path)}}
    return data


def _fill_in(data: dict[str, Any], source: str) -> dict[str, Any]:
    """A copy with the two defaults that depend on other things: the name, and topology "links" when nothing but links is given."""
    filled = {"name": Path(source).stem or "scenario", **data}
    cluster = filled.get("cluster")
    if isinstance(cluster, dict) and cluster.get("links"):
        network = cluster.get("network", {})
        if isinstance(network, dict) and not network.keys() & {"topology", "bandwidth", "latency", "link"}:
            filled["cluster"] = {**cluster, "network": {**network, "topology": "links"}}
    return filled


def _polish(schema: Any) -> Any:
    """Leave out null, which TOML cannot say, and tell the units of each quantity in its description."""
    if isinstance(schema, list):
        return [_polish(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "anyOf" in schema:
        given = next(choice for choice in schema["anyOf"] if choice != {"type": "null"})
        schema = {**given, **{key: value for key, value in schema.items() if key not in ("anyOf", "default")}}
    polished = {key: _polish(value) for key, value in schema.items()}
    if "x-units" in polished:
        units = ", ".join(polished.pop("x-units"))
        more = ", more than 0" if polished.pop("x-above-zero") else ""
        polished["description"] = f"{polished.get('description', 'A quantity.')} Text with one of the units {units}{more}."
    return polished
