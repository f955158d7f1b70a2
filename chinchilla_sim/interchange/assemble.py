"""A scenario from what other frameworks' files say: their values, a cluster, and what no file says, each with a comment."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from chinchilla_sim.cluster.catalogue import find_device
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.zoo import FORMULAS
from chinchilla_sim.interchange.keys import Parts, Said
from chinchilla_sim.interchange.reading import combine, read_files
from chinchilla_sim.interchange.toml_text import write_toml
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.overrides import apply_overrides
from chinchilla_sim.scenario.schema import Scenario

DEVICE = "h100-sxm-80gb"
DEVICES = 8
PORT = "infiniband-hdr"
PORT_GBIT_PER_S = 200
PRECISION = "bf16"
MOST_BUCKETS = 64
MOST_LAYERS = 4096
RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True, slots=True)
class Machines:
    """What the person who imports says of the cluster; None where nothing is said."""

    device: str | None = None
    count: int | None = None
    devices_per_node: int | None = None
    network: str | None = None


@dataclass(frozen=True)
class Imported:
    """A scenario as TOML and as values, what it is from, and what no file says and was therefore assumed."""

    text: str
    scenario: Scenario
    parts: tuple[Parts, ...]
    assumed: tuple[str, ...]
    parameter_count: int | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Values that a scenario cannot express."""
        return tuple(f"{parts.source}: {warning}" for parts in self.parts for warning in parts.warnings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        said = {place: one for parts in self.parts for place, one in parts.said.items()}
        return {
            "model": self.scenario.model.formula or self.scenario.model.builtin,
            "parameter_count": self.parameter_count,
            "used": [{"place": place, "value": one.value, "by": one.by} for place, one in said.items() if "." in place],
            "ignored": [{"file": parts.source, "keys": list(parts.ignored)} for parts in self.parts],
            "warnings": list(self.warnings),
            "assumed": list(self.assumed),
        }


def import_files(
    paths: Sequence[Path], machines: Machines, tokens: int | None = None, overrides: Sequence[str] = (), source: str = "scenario.toml"
) -> Imported:
    """The scenario that files of other frameworks describe together; ScenarioError tells everything that is wrong or missing."""
    found = read_files(paths, machines.count, tokens)
    said = combine(found)
    assumed: list[str] = []
    _assume_job(said, assumed)
    _say_cluster(said, found, machines, assumed)
    _say_search(said)
    buckets = said.pop("bucket_values", None)
    tables, mistakes = apply_overrides(_nested(said), overrides)
    count = _parameter_count(tables, mistakes)
    if buckets and count:
        number = min(MOST_BUCKETS, max(1, ceil(count / buckets.value)))
        said["search.gradient_buckets"] = Said([number], buckets.by)
        tables.setdefault("search", {}).setdefault("gradient_buckets", [number])
    _check_batch(tables, found, mistakes)
    mistakes += _device_mistakes(tables)
    if mistakes:
        raise ScenarioError(mistakes)
    comments = {place: one.by if _at(tables, place) == one.value else "--set" for place, one in said.items()}
    text = write_toml(tables, comments, list(_heading(found, assumed, count)))
    return Imported(text, parse_scenario(tomllib.loads(text), source), tuple(found), tuple(assumed), count)


def _assume_job(said: dict[str, Said], assumed: list[str]) -> None:
    if "job.precision" not in said:
        said["job.precision"] = Said(PRECISION, "assumed")
        assumed.append(f"precision {PRECISION}: no file says one; --set job.precision=...")


def _say_cluster(said: dict[str, Said], found: Sequence[Parts], machines: Machines, assumed: list[str]) -> None:
    """Equal nodes around one switch."""
    stated = next((parts.devices for parts in found if parts.devices), None)
    count = machines.count or stated or DEVICES
    if not (machines.count or stated):
        assumed.append(f"{DEVICES} devices: no file says how many; --count N")
    if machines.device is None:
        assumed.append(f"device {DEVICE}: no file says which; --device NAME of the catalogue (`chinchilla catalogue`)")
    width = machines.devices_per_node or next((parts.devices_per_node for parts in found if parts.devices_per_node), None)
    width = min(width or DEVICES, count)
    if count % width:
        what = f"{count} devices do not divide into nodes of {width}"
        raise ScenarioError([Mistake("--devices-per-node", what, "write a divisor of --count")])
    node = {"name": "node", "count": count // width, "devices": width, "device": machines.device or DEVICE}
    said["cluster.nodes"] = Said([node], "--device, --count, --devices-per-node" if machines.device else "assumed: --device says otherwise")
    if count == width:
        return
    network: dict[str, Any] = {"link": machines.network or PORT}
    if machines.network is None:
        network["bandwidth"] = f"{width * PORT_GBIT_PER_S} Gbit/s"
        assumed.append(f"network of {network['bandwidth']} a node: no file says one; --network LINK or BANDWIDTH")
    elif machines.network[:1].isdigit():
        network = {"link": PORT, "bandwidth": machines.network}
    said["cluster.network"] = Said(network | {"backend": "nccl"}, "--network" if machines.network else "assumed: --network says otherwise")


def _say_search(said: dict[str, Said]) -> None:
    """What no file decides is left to the planner, in the usual choices."""
    decided = "search.pipeline_parallel_degrees" in said
    free: dict[str, Any] = {"search.recompute": list(RECOMPUTE)}
    if not decided:
        free |= {"search.schedules": ["1f1b"], "search.zero_stages": [0, 1, 3]}
        heads, node = said.get("model.options.heads"), said["cluster.nodes"].value[0]
        if heads and heads.value and "model.formula" in said:
            widths = [width for width in (1, 2, 4, 8) if width <= node["devices"] and not heads.value % width]
            free |= {"search.tensor_parallel_degrees": widths, "search.sequence_parallel": len(widths) > 1}
    for place, value in free.items():
        said.setdefault(place, Said(value, "no file says: the planner chooses"))
    said["search.executable"] = Said(False, "planned and simulated, not run")


def _nested(said: Mapping[str, Said]) -> dict[str, Any]:
    """Tables of dotted places, in the order of a scenario."""
    tables: dict[str, Any] = {"model": {}, "job": {}, "cluster": {}, "search": {}}
    for place, one in said.items():
        *way, last = place.split(".", 3 if place.startswith("model.options.config.") else 2)
        table = tables
        for part in way:
            table = table.setdefault(part, {})
        table[last] = one.value
    return tables


def _at(tables: Any, place: str) -> Any:
    """The value at a dotted place, or None."""
    for part in place.split(".", 3 if place.startswith("model.options.config.") else 2):
        tables = tables.get(part) if isinstance(tables, dict) else None
    return tables


def _parameter_count(tables: Mapping[str, Any], mistakes: list[Mistake]) -> int | None:
    """Parameters of a formula; its mistakes are told, those of another model are found when it is built."""
    model = tables.get("model")
    formula = FORMULAS.get(str(model.get("formula"))) if isinstance(model, dict) else None
    if formula is None or not isinstance(model, dict):
        return None
    options = model.get("options", {})
    if isinstance(options.get("layers"), int) and options["layers"] > MOST_LAYERS:
        mistakes.append(Mistake("model.options.layers", f"{options['layers']} are too many", f"write at most {MOST_LAYERS}"))
        return None
    try:
        return formula(batch_size=1, **options).parameter_count
    except ScenarioError as error:
        mistakes += error.mistakes
    return None


def _check_batch(tables: Mapping[str, Any], found: Sequence[Parts], mistakes: list[Mistake]) -> None:
    if _at(tables, "job.global_batch_size") is None:
        what = f"is said by none of {', '.join(parts.source for parts in found)}"
        mistakes.append(Mistake("job.global_batch_size", what, "add --set job.global_batch_size=64, or a DeepSpeed JSON that says it"))


def _device_mistakes(tables: Mapping[str, Any]) -> Iterator[Mistake]:
    """A device that the catalogue does not have, or not in this precision."""
    nodes, precision = _at(tables, "cluster.nodes"), _at(tables, "job.precision")
    if not (isinstance(nodes, list) and nodes and isinstance(nodes[0], dict) and precision in ("fp32", "bf16", "fp16")):
        return
    try:
        find_device(str(nodes[0].get("device")), precision, "--device")
    except ScenarioError as error:
        yield from error.mistakes


def _heading(found: Sequence[Parts], assumed: Sequence[str], count: int | None) -> Iterator[str]:
    """What stands above the tables."""
    yield f"Made by `chinchilla import` from {' and '.join(f'{parts.name} ({parts.form})' for parts in found)}."
    if count:
        yield f"The model has {count:,} parameters."
    yield from (f"Assumed: {' '.join(one.split())}" for one in assumed)
    for parts in found:
        yield from (f"Not expressed: {parts.name}: {' '.join(one.split())}" for one in parts.warnings)
        if parts.ignored:
            yield f"Not used of {parts.name}: {', '.join(' '.join(key.split()) for key in parts.ignored)}."
