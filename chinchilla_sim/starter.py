"""A first scenario as commented text: for this machine, or for devices of the catalogue.

What is wished is checked as a scenario file is, before anything is written. The comments are the descriptions of the schema, so that
they cannot say anything else than `chinchilla schema`.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.calibration import core_count
from chinchilla_sim.cluster.catalogue import device_names, entries, find_device
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.zoo import PRESETS
from chinchilla_sim.scenario.check import suggest
from chinchilla_sim.scenario.cluster import THIS_MACHINE, ClusterSpec, NetworkSpec, NodeSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.model import Builtin, ModelSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.wish import Wish

HUGGING_FACE = "huggingface"
BUILTINS = tuple(name for name in get_args(Builtin) if name != HUGGING_FACE)
ARCHITECTURE = re.compile(r"[A-Z]\w*(For[A-Z]\w*|Model)")
TRANSFORMERS = ("gpt", "llama", "mpt", "mixture_of_experts", "bert", "t5", "transformer_xl", "vit")
NODE_DEVICES = 8
"""Devices of a node, where nobody says how many: GPUs are sold by eights."""

BATCH_SIZE = 64
LATENCY = "10 us"
WIDTH = 138


@dataclass(frozen=True)
class Draft:
    """The text of a scenario, and what its user should know."""

    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Line:
    """One key: `active` ones count, others stand there as a suggestion."""

    key: str
    value: Any
    why: str
    active: bool = True


def draft_scenario(wish: Wish, name: str, folder: Path) -> Draft:
    """A scenario that `chinchilla plan` accepts, to be written to `folder`; ScenarioError with everything that is wrong."""
    if wish.here and wish.network is not None:
        raise ScenarioError([Mistake("--network", "joins nodes of a cluster, and this is one machine", "name a --device, or leave it out")])
    model, device = wish.model or "mnist_mlp", None if wish.here else resolve_device(str(wish.device))
    precision = None if device is None else _precision_of(device)
    parts = {
        "model": _model_lines(model, wish.here, folder),
        "job": _job_lines(wish, model, precision),
        **(_machine_lines(wish) if device is None else _node_lines(wish, device)),
        "search": _search_lines(wish, model),
    }
    text = _header(wish, model, device) + "".join(_table(title, lines) for title, lines in parts.items())
    scenario = parse_scenario({"name": name, **tomllib.loads(text)}, name)
    cluster = build_cluster(scenario.cluster, scenario.job.precision)
    _check_rates(wish, [cluster.device(slot) for slot in range(cluster.rank_count)])
    return Draft(text, tuple(_notes(wish, model, device)))


def resolve_device(text: str) -> str:
    """The catalogue's name of a device: itself, or the first of its family ("H100" is h100-sxm-80gb); ScenarioError with the nearest."""
    family = family_of(text)
    if not family:
        raise ScenarioError([Mistake("--device", f"{text!r} is not in the catalogue", suggest(text, device_names()))])
    return family[0]


def family_of(text: str) -> list[str]:
    """Devices of the catalogue with that name, or whose names begin with it, in the catalogue's order."""
    names, wanted = list(entries("devices")), text.strip().lower().replace(" ", "-").replace("_", "-")
    return [wanted] if wanted in names else [name for name in names if name.startswith(f"{wanted}-")]


def resolve_model(text: str) -> str:
    """Which kind of model a name means: factory, builtin, formula or huggingface; ScenarioError with the nearest name."""
    if ":" in text:
        return "factory"
    if text in BUILTINS:
        return "builtin"
    if text in PRESETS:
        return "formula"
    if ARCHITECTURE.fullmatch(text):
        return HUGGING_FACE
    known = [*BUILTINS, *PRESETS]
    cure = f"{suggest(text, known)} (or a class of transformers such as LlamaForCausalLM, or your own path/to/file.py:build)"
    raise ScenarioError([Mistake("--model", f"{text!r} is no model that comes with chinchilla_sim", cure)])


def _model_lines(model: str, here: bool, folder: Path) -> list[_Line]:
    kind = resolve_model(model)
    if kind == "factory":
        return [_line(ModelSpec, "factory", _seen_from(folder, model)), _line(ModelSpec, "options", {"layers": 4}, active=False)]
    if kind == "formula":
        preset = PRESETS[model]
        return [_line(ModelSpec, "formula", preset.formula), _line(ModelSpec, "options", {"preset": model})]
    if kind == HUGGING_FACE:
        why = "Any model of transformers from its configuration, nothing is downloaded; `config` replaces values of its class."
        return [_Line("builtin", HUGGING_FACE, why), _line(ModelSpec, "options", {"architecture": model, "config": {}, "tokens": 128})]
    # The full sizes of these are for larger machines.
    options = {"shift_pixels": 1} if model == "mnist_mlp" else {"preset": "small"} if here else {}
    return [_line(ModelSpec, "builtin", model), *([_line(ModelSpec, "options", options)] if options else [])]


def _seen_from(folder: Path, factory: str) -> str:
    """A factory in a file as it is named from the folder of the scenario; ScenarioError where there is no such file."""
    file, _, function = factory.rpartition(":")
    if not file.endswith(".py"):
        return factory
    if not Path(file).is_file():
        raise ScenarioError([Mistake("--model", f"there is no file {file}", "name a file with a function, such as job.py:build")])
    return f"{Path(os.path.relpath(file, folder)).as_posix()}:{function}"


def _job_lines(wish: Wish, model: str, precision: str | None) -> list[_Line]:
    kind, count = wish.kind or "training", wish.count or 1
    lines = [_line(JobSpec, "kind", kind), _line(JobSpec, "global_batch_size", wish.batch or max(BATCH_SIZE, 8 * count))]
    if precision:
        lines.append(_line(JobSpec, "precision", precision))
    if kind == "inference":
        rate = wish.arrival_rate
        return [*lines, _line(JobSpec, "arrival_rate", rate or "200 requests/s", active=rate is not None)]
    lines.append(_line(JobSpec, "optimizer", "adam"))
    if resolve_model(model) in ("builtin", "factory"):  # those that run
        lines += [_line(JobSpec, "epochs", 3), _line(JobSpec, "learning_rate", 0.001), _line(JobSpec, "seed", 0)]
    return [*lines, _line(JobSpec, "target_samples", 1_000_000, active=False)]


def _machine_lines(wish: Wish) -> dict[str, list[_Line]]:
    lines = [_line(ClusterSpec, "kind", THIS_MACHINE), _line(ClusterSpec, "ranks", wish.count or core_count())]
    lines.append(_line(ClusterSpec, "power", wish.power or "65 W", active=wish.power is not None))
    return {"cluster": [*lines, _line(ClusterSpec, "price", wish.price or "0.2 USD/h", active=wish.price is not None)]}


def _node_lines(wish: Wish, device: str) -> dict[str, list[_Line]]:
    count = wish.count or 1
    per_node = gcd(count, NODE_DEVICES) if count > NODE_DEVICES else count
    lines = [_Line("name", "node", ""), _line(NodeSpec, "count", count // per_node), _line(NodeSpec, "devices", per_node)]
    lines.append(_line(NodeSpec, "device", device))
    lines.append(_line(NodeSpec, "price", wish.price or "2 USD/h", active=wish.price is not None))
    lines += [_line(NodeSpec, "power", wish.power)] if wish.power is not None else []
    return {"[cluster.nodes]": lines, "cluster.network": list(_network_lines(wish, device, count > per_node))}


def _network_lines(wish: Wish, device: str, several: bool) -> Iterator[_Line]:
    text = wish.network or "100 Gbit/s"
    if text in entries("links"):
        yield _line(NetworkSpec, "link", text, active=several)
    else:
        yield _line(NetworkSpec, "bandwidth", text, active=several)
        yield _Line("latency", LATENCY, "One way, from node to node (assumed).", several)
    joined = str(entries("devices")[device].get("node_link", ""))
    nvidia = joined.startswith(("nvlink", "pcie")) and not device.startswith(("mi", "apple"))
    yield _line(NetworkSpec, "backend", "nccl", active=nvidia)


def _search_lines(wish: Wish, model: str) -> list[_Line]:
    lines = [_line(SearchSpec, "objective", wish.objective or "step_time")]
    if wish.here:
        why = "Use at least so many ranks; small networks are fastest on one, and `plan` says so."
        return [*lines, _Line("minimum_ranks", 2, why, active=False)]
    kind, count = resolve_model(model), wish.count or 1
    has_blocks = kind == HUGGING_FACE or (kind == "formula" and PRESETS[model].formula in TRANSFORMERS)
    if has_blocks and count > 1:
        degrees = [degree for degree in (1, 2, 4, 8) if count % degree == 0]
        lines.append(_line(SearchSpec, "tensor_parallel_degrees", degrees))
    if wish.kind != "inference":
        lines += [_line(SearchSpec, "zero_stages", [0, 1, 3])] if count > 1 else []
        lines.append(_line(SearchSpec, "recompute", ["none", "selective", "full"] if has_blocks else ["none", "full"]))
    lines.append(_line(SearchSpec, "deadline", "7 d", active=False))
    return lines


def _check_rates(wish: Wish, devices: Sequence[Any]) -> None:
    """What is minimised must be known; a calibration of this machine tells neither price nor power."""
    fields = {"cost": ("price", "usd_per_s", "0.2 USD/h"), "energy": ("power", "power_watt", "65 W")}
    option, field, example = fields.get(str(wish.objective), ("", "", ""))
    if option and not (getattr(wish, option) if wish.here else any(getattr(device, field) for device in devices)):
        cure = f'add --{option} "{example}"'
        raise ScenarioError([Mistake("--objective", f"{wish.objective} is to be minimised, but the {option} is not known", cure)])


def _precision_of(device: str) -> str:
    """bf16 where the device has it, else what it computes in."""
    peak = entries("devices")[device]["peak"]
    precision = next((one for one in ("bf16", "fp16", "fp32") if one in peak), "fp32")
    find_device(device, precision, "--device")
    return precision


def _notes(wish: Wish, model: str, device: str | None) -> Iterator[str]:
    kind = resolve_model(model)
    if kind == "formula":
        yield f"{model} is a formula: it is planned and simulated; to run, name a builtin ({', '.join(BUILTINS)}) or your own function"
    if kind == HUGGING_FACE:
        yield "models of transformers are planned and simulated (pip install 'chinchilla-sim[huggingface]'); they have no data to run on"
    if device and (others := family_of(str(wish.device))[1:]):
        yield f"{wish.device} is taken as {device}; the catalogue also has {', '.join(others)}"
    if device and (wish.count or 1) > NODE_DEVICES and wish.network is None:
        yield "the network between the nodes is assumed: see [cluster.network]"


def _header(wish: Wish, model: str, device: str | None) -> str:
    count = wish.count or (core_count() if device is None else 1)
    place = f"{count} ranks of this machine" if device is None else f"{count} {device}"
    verb = "does {} train" if wish.kind != "inference" else "does {} answer"
    goals = {"cost": "at the least cost", "energy": "with the least energy", "latency": "with the least latency"}
    question = f"How {verb.format(model)} {goals.get(str(wish.objective), 'fastest')} on {place}?"
    comment = (
        f"Written by `chinchilla init`: {model} on {place}. `chinchilla plan` reads it as it is; lines behind a # are suggestions. All "
        "keys with their units: `chinchilla schema`; devices and links: `chinchilla catalogue`; more scenarios: `chinchilla examples`."
    )
    return f"{_comment(comment)}question = {_toml(question)}\n"


def _line(spec: type[BaseModel], key: str, value: Any, active: bool = True) -> _Line:
    """A key with the schema's description of it."""
    found = [info for name, info in spec.model_fields.items() if key in (name, info.alias)]
    return _Line(key, value, str(found[0].description or ""), active)


def _table(title: str, lines: Iterable[_Line]) -> str:
    written = []
    for line in lines:
        written.append(_comment(line.why) if line.why else "")
        written.append(f"{'' if line.active else '# '}{line.key} = {_toml(line.value)}\n")
    return f"\n[{title}]\n{''.join(written)}"


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))


def _toml(value: object) -> str:
    """A value as TOML.

    >>> _toml({"preset": "small", "on": True, "widths": [1, 2]})
    '{ preset = "small", on = true, widths = [1, 2] }'
    """
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value.items())} }}" if value else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
