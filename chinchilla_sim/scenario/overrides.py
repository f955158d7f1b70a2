"""Single values from the command line: "job.global_batch_size=128" replaces what the file says."""

import copy
import tomllib
from collections.abc import Sequence
from typing import Any

from chinchilla_sim.errors import Mistake
from chinchilla_sim.scenario.fields import show_value

_OPENING = ('"', "'", "[", "{")


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[Mistake]]:
    """A copy of the tables with the overrides, and a mistake for each override that could not be applied.

    >>> apply_overrides({"job": {"epochs": 1}}, ["job.epochs=3", "cluster.network.latency=50 us"])
    ({'job': {'epochs': 3}, 'cluster': {'network': {'latency': '50 us'}}}, [])
    """
    result = copy.deepcopy(data)
    mistakes: list[Mistake] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        try:
            if not equals:
                raise ValueError(Mistake("", f"override {show_value(override)} has no =", 'write for example "job.epochs=3"'))
            _replace(result, path.strip(), _parse_value(path.strip(), text.strip()))
        except ValueError as error:
            mistakes += error.args
    return result, mistakes


def _parse_value(path: str, text: str) -> object:
    """The value of a piece of TOML; what is no TOML is a bare word, a text without its quotes."""
    try:
        tables = tomllib.loads(f"value = {text}")
        if len(tables) == 1:
            return tables["value"]
    except (ValueError, RecursionError):
        if text.startswith(_OPENING):
            cure = 'write it as in the file, for example "search.microbatch_counts=[1, 4]"'
            raise ValueError(Mistake(path, f"override {show_value(text)} is not TOML", cure)) from None
    return text


def _replace(data: dict[str, Any], path: str, value: object) -> None:
    """Set the value at a dotted path; tables that are missing on the way are made."""
    *way, last = path.split(".")
    place: Any = data
    walked: list[str] = []
    for part in way:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[_index(place, part, walked)]
        walked.append(part)
    if isinstance(place, dict):
        place[last] = value
    else:
        place[_index(place, last, walked)] = value


def _index(place: object, part: str, walked: Sequence[str]) -> int:
    where = ".".join([*walked, part])
    if not isinstance(place, list):
        raise ValueError(Mistake(where, f"override goes into {'.'.join(walked)}, which is {show_value(place)}", "override the whole value"))
    if part not in map(str, range(len(place))):
        owner = ".".join(walked)
        if not place:
            raise ValueError(Mistake(where, f"override needs an entry of {owner}, which is empty", "override the whole list"))
        entries = "is 0: there is one entry" if len(place) == 1 else f"runs from 0 to {len(place) - 1}"
        raise ValueError(Mistake(where, f"override needs an index of {owner}, which {entries}", f"write for example {owner}.0"))
    return int(part)
