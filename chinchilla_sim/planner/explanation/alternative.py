"""Another configuration in a few words, "dp=8,pp=1", as the search that finds its best plan."""

from __future__ import annotations

import sys
from typing import Any, get_args

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.scenario.search import SearchSpec

FIELDS = {
    "dp": "data_parallel_degrees",
    "pp": "pipeline_parallel_degrees",
    "tp": "tensor_parallel_degrees",
    "cp": "context_parallel_degrees",
    "ep": "expert_parallel_degrees",
    "m": "microbatch_counts",
    "zero": "zero_stages",
    "buckets": "gradient_buckets",
    "local": "local_steps",
    "delay": "gradient_delays",
    "schedule": "schedules",
    "recompute": "recompute",
    "gradients": "gradient_codecs",
    "activations": "activation_codecs",
}
_NUMBERS = {"zero": range(4), "delay": range(2)}
_TEXTS = ("schedule", "recompute", "gradients", "activations")


def search_instead(search: SearchSpec, text: str) -> SearchSpec:
    """The search with one value for each field named, on as many ranks as that takes; ScenarioError names all that is wrong.

    >>> search_instead(SearchSpec(), "dp=8,pp=1").data_parallel_degrees
    (8,)
    """
    mistakes: list[Mistake] = []
    changed: dict[str, Any] = {"executable": False, "minimum_ranks": 1, "maximum_ranks": None, "stage_replicas": "equal"}
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        mistakes.append(
            Mistake("--instead", "names nothing that would be different", f"write pairs such as dp=8,pp=1 of {', '.join(FIELDS)}")
        )
    for part in parts:
        key, _, value = (side.strip() for side in part.partition("="))
        if FIELDS.get(key) in changed:
            mistakes.append(Mistake("--instead", f"{part!r} is the second value for {key}", "name each key once"))
        elif key not in FIELDS:
            mistakes.append(Mistake("--instead", f"{part!r} is not understood", f"write pairs such as dp=8,pp=1 of {', '.join(FIELDS)}"))
        elif key in _TEXTS:
            allowed = _choices(FIELDS[key])
            if value not in allowed:
                mistakes.append(Mistake("--instead", f"{part!r} names no {key}", f"known are {', '.join(allowed)}"))
            changed[FIELDS[key]] = (value,)
        elif not (value.isascii() and value.isdigit() and int(value) in _NUMBERS.get(key, range(1, sys.maxsize))):
            what = {"zero": "stage 0 to 3", "delay": "number of steps, 0 or 1"}.get(key, "number above 0")
            mistakes.append(Mistake("--instead", f"{part!r} has no {what}", f"write {key}=1"))
        else:
            changed[FIELDS[key]] = (int(value),)
    if mistakes:
        raise ScenarioError(mistakes)
    return search.model_copy(update=changed)


def _choices(field: str) -> tuple[str, ...]:
    """Values that a list of the search may have."""
    annotation = get_args(SearchSpec.model_fields[field].annotation)[0]
    while not all(isinstance(value, str) for value in get_args(annotation)):
        annotation = getattr(annotation, "__value__", None) or get_args(annotation)[0]
    return get_args(annotation)
