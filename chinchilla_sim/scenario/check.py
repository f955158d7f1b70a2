"""Rules that join several keys of a scenario.

They read the tables as written, not the checked values, so that a mistake in one key hides no mistake in another. A value of the wrong
type is skipped here: `schema.py` reports it.
"""

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from chinchilla_sim.errors import Mistake
from chinchilla_sim.scenario.cluster import CLUSTER_KEYS, THIS_MACHINE, IntraNodeSpec, LinkSpec, NetworkSpec, NodeSpec, expand_name
from chinchilla_sim.scenario.fields import show_value
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.model import FORMULAS, MODEL_KEYS, MODEL_KINDS, ModelSpec

_NEEDED = {"mlp": ("widths",), "chain": ("task_count", "parameter_count", "work", "output"), "graph": ("format",)}
_MOST_NODES = 100_000

Table = Mapping[str, Any]


def find_mistakes(scenario: Table) -> Iterator[Mistake]:
    """Every broken rule, in the order of the tables."""
    checks = {"model": _check_model, "job": _check_job, "cluster": _check_cluster, "search": _check_search}
    for key, check in checks.items():
        if isinstance(scenario.get(key), dict):
            yield from check(scenario[key])
    yield from _check_limits(scenario)
    yield from _check_load(scenario)
    yield from _check_accuracy(_table(scenario, "job"), _table(scenario, "search"))
    yield from _check_quotas(_table(scenario, "cluster"), _table(scenario, "search"))
    yield from _check_spot(_table(scenario, "cluster"), _table(scenario, "job"), _table(scenario, "search"))
    yield from _check_variants(_table(scenario, "model"), _table(scenario, "search"))


def suggest(name: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """Cure of an unknown name: the nearest known one, or all of them when none is as similar as `cutoff`.

    >>> suggest("bandwith", ["bandwidth", "latency"]), suggest("speed", ["bandwidth", "latency"])
    ("did you mean 'bandwidth'?", 'known are bandwidth, latency')
    """
    without_case = {choice.lower(): choice for choice in known}
    nearest = get_close_matches(name.lower(), without_case, n=1, cutoff=cutoff)
    if nearest:
        return f"did you mean '{without_case[nearest[0]]}'?"
    some = ", ".join(list(known)[:20])
    return f"known are {some}{', ...' if len(known) > 20 else ''}" if known else ""


def write_example(key: str, value: object) -> str:
    """Cure of a missing or wrong value, as a line of TOML.

    >>> write_example("widths", [784, 10])
    'write for example widths = [784, 10]'
    >>> write_example("variants", [{"prune": 0.5}])
    'write for example variants = [{ prune = 0.5 }]'
    """
    return f"write for example {key} = {show_toml(value)}"


def show_toml(value: object) -> str:
    """A value as it stands in a file, on one line.

    >>> show_toml(["1f1b", 2, {"prune": 0.5}])
    '["1f1b", 2, { prune = 0.5 }]'
    """
    if isinstance(value, list):
        return f"[{', '.join(map(show_toml, value))}]"
    if isinstance(value, dict) and value:
        return f"{{ {', '.join(f'{key} = {show_toml(item)}' for key, item in value.items())} }}"
    return show_value(value)


def _check_model(model: Table) -> Iterator[Mistake]:
    given = [kind for kind in MODEL_KINDS if _has(model, kind)]
    if len(given) != 1:
        what = f"names {len(given)} models: {', '.join(given)}" if given else "names no model"
        yield Mistake("model", what, f"write exactly one of {', '.join(MODEL_KINDS)}")
        return
    kind = model["formula"] if given == ["formula"] else given[0]
    if given == ["formula"] and kind not in FORMULAS:
        return
    yield from _check_foreign_keys("model", model, kind, MODEL_KEYS)
    for key in _NEEDED.get(kind, ()):
        if not _has(model, key):
            yield Mistake(f"model.{key}", f"is missing for {_model_title(kind)}", _example(ModelSpec, key))
    widths = model.get("widths")
    if kind == "mlp" and isinstance(widths, list) and len(widths) == 1:
        yield Mistake("model.widths", "needs at least 2 entries, has 1", _example(ModelSpec, "widths"))


def _check_job(job: Table) -> Iterator[Mistake]:
    if job.get("momentum") and job.get("optimizer", "adam") == "adam":
        yield Mistake("job.momentum", "is not used by optimizer adam", 'write optimizer = "sgd", or leave momentum out')


def _check_limits(scenario: Table) -> Iterator[Mistake]:
    """A limit on the whole job needs its length."""
    job, search = _table(scenario, "job"), _table(scenario, "search")
    if _has(job, "steps") or _has(job, "target_samples"):
        return
    for key in ("deadline", "budget"):
        if _has(search, key):
            cure = "write job.target_samples = 1000000, or job.steps, or limit one step by search.maximum_step_time"
            yield Mistake(f"search.{key}", "is for the whole job, whose steps are not stated", cure)


def _check_accuracy(job: Table, search: Table) -> Iterator[Mistake]:
    """Training alone has steps to a target, of which there is one."""
    if search.get("objective") == "time_to_accuracy" and job.get("kind", "training") == "inference":
        yield Mistake("search.objective", "is about training, and the job is inference", 'write objective = "latency" or "step_time"')
    if _has(job, "target_accuracy") and _has(job, "target_loss"):
        yield Mistake("job.target_loss", "is given beside target_accuracy", "leave one out")


def _check_load(scenario: Table) -> Iterator[Mistake]:
    """Requests arrive in inference; a latency is that of requests."""
    job, search = _table(scenario, "job"), _table(scenario, "search")
    demands = [key for key in ("arrival_rate", "concurrency") if _has(job, key)]
    if len(demands) > 1:
        yield Mistake("job.concurrency", "is given beside arrival_rate: requests arrive at random, or in a closed loop", "leave one out")
    for key in demands:
        if job.get("kind", "training") == "training":
            yield Mistake(f"job.{key}", "is for inference; nobody waits for a step of training", 'write kind = "inference"')
        if search.get("stage_replicas") == "free":
            what = 'is "free", but requests go through replicas of the whole model'
            yield Mistake("search.stage_replicas", what, 'leave it out, or write stage_replicas = "equal"')
            break
    if "arrival_rate" in demands:
        return
    asks = {"objective": search.get("objective") == "latency", "maximum_latency": _has(search, "maximum_latency")}
    for key in [key for key, asked in asks.items() if asked]:
        yield Mistake(f"search.{key}", "is about requests, and job.arrival_rate is missing", _example(JobSpec, "arrival_rate"))


def _check_cluster(cluster: Table) -> Iterator[Mistake]:
    kind = cluster.get("kind", "nodes")
    if kind not in list(CLUSTER_KEYS):
        return
    yield from _check_foreign_keys("cluster", cluster, kind, CLUSTER_KEYS)
    if kind == "this-machine":
        return
    if not _has(cluster, "nodes"):
        yield Mistake("cluster", "has no nodes", 'add [[cluster.nodes]], or write kind = "this-machine"')
    for place, node in _tables(cluster, "nodes"):
        yield from _check_node(f"cluster.{place}", node)
    yield from _check_names(cluster)
    yield from _check_network(cluster)
    yield from _check_links(cluster)


def _check_node(where: str, node: Table) -> Iterator[Mistake]:
    if _has(node, "device"):
        if _has(node, "peak"):
            yield Mistake(f"{where}.peak", "is given twice, here and by device", "leave out device or peak")
    elif not _has(node, "peak"):
        yield Mistake(where, "has neither device nor peak", 'write a device of the catalogue, or peak = "10 Tflop/s" and memory = "16 GiB"')
    elif not _has(node, "memory"):
        yield Mistake(f"{where}.memory", "is missing for a node with peak", _example(NodeSpec, "memory"))
    if node.get("cpu_share", 1.0) not in (None, 1.0) and node.get("device") != THIS_MACHINE:
        cure = f'leave it out, or write device = "{THIS_MACHINE}"'
        yield Mistake(f"{where}.cpu_share", "is for nodes that are emulated on this machine", cure)


def _check_quotas(cluster: Table, search: Table) -> Iterator[Mistake]:
    """A quota limits something, and all of them leave enough."""
    usable = listed = 0
    for place, node in _tables(cluster, "nodes"):
        count, devices, quota = node.get("count", 1), node.get("devices", 1), node.get("quota")
        if not (_is_count(count) and _is_count(devices)):
            return
        if _is_count(quota) and quota > count * devices:
            what = f"is {quota}, more than the {count * devices} devices that the entry lists"
            yield Mistake(f"cluster.{place}.quota", what, "write a smaller quota, or leave it out")
        listed += count * devices
        usable += min(quota, count * devices) if _is_count(quota) else count * devices
    fewest = search.get("minimum_ranks", 1)
    if _is_count(fewest) and usable < listed and fewest > usable:
        what = f"is {fewest}, but the quotas leave {usable} of {listed} devices"
        yield Mistake("search.minimum_ranks", what, f"write at most {usable}, or raise a quota")


def _check_spot(cluster: Table, job: Table, search: Table) -> Iterator[Mistake]:
    """A spot price goes with how often it ends, and with what an interruption costs."""
    both = ("spot_price", "time_between_interruptions")
    offered = False
    if search.get("spot") == "always" and not any(_has(node, both[0]) for _, node in _tables(cluster, "nodes")):
        cure = 'give a node spot_price = "0.9 USD/h" and time_between_interruptions = "6 h", or leave spot out'
        yield Mistake("search.spot", 'is "always", but no node has a spot price', cure)
    for place, node in _tables(cluster, "nodes"):
        given = [_has(node, key) for key in both]
        offered |= all(given)
        for key, other, has in zip(both, reversed(both), given, strict=True):
            if any(given) and not has:
                yield Mistake(f"cluster.{place}.{key}", f"is missing for a node with {other}", _example(NodeSpec, key))
    for key in ("checkpoint", "restart") if offered else ():
        if not _has(job, key):
            yield Mistake(f"job.{key}", "is missing for nodes with a spot price", _example(JobSpec, key))


def _check_variants(model: Table, search: Table) -> Iterator[Mistake]:
    """Only a model whose tasks say their shapes can be made smaller; replicas that differ do not agree on which weights are zero."""
    shapeless = model.get("formula") == "chain" or (
        _has(model, "graph") and model.get("format") in ("pipedream", "dnn-partitioning", "piper")
    )
    if shapeless and _has(search, "variants"):
        title = 'formula "chain"' if model.get("formula") == "chain" else f"a graph file of format {show_value(model['format'])}"
        what = f"makes smaller variants, but {title} does not say the shapes of its tasks"
        yield Mistake("search.variants", what, "leave it out, or give the model as a builtin, factory or another formula")
    variants = [
        ("model.compression", _table(model, "compression")),
        *((f"search.{place}", one) for place, one in _tables(search, "variants")),
    ]
    listed = search.get("local_steps")
    local = isinstance(listed, list | tuple) and any(isinstance(steps, int) and steps > 1 for steps in listed)
    for place, variant in variants:
        if local and variant.get("sparsity"):
            what = "has zeros that all replicas train around, but with search.local_steps each has weights of its own"
            yield Mistake(f"{place}.sparsity", what, "leave one of the two out")


def _check_names(cluster: Table) -> Iterator[Mistake]:
    """Names of nodes and switches are different, also after the numbering of equal nodes."""
    seen = set()
    for name, places in _places_of_names(cluster).items():
        for place in places[1:]:
            if place not in seen:
                yield Mistake(place, f"{show_value(name)} is already given by {places[0]}", "give each its own name")
            seen.add(place)


def _check_network(cluster: Table) -> Iterator[Mistake]:
    network = _table(cluster, "network")
    has_links = _has(cluster, "links")
    if network.get("topology") == "links":
        if not has_links:
            yield Mistake("cluster.links", 'is missing for topology "links"', "add [[cluster.links]], or choose another topology")
        for key in ("bandwidth", "latency", "link"):
            if _has(network, key):
                yield Mistake(f"cluster.network.{key}", 'is not used by topology "links"', "leave it out, or choose another topology")
    elif _is_numerous(cluster):
        yield from _check_link("cluster.network", network, NetworkSpec, "is missing for more than one node")
    if _has(cluster, "intra_node"):
        yield from _check_link("cluster.intra_node", _table(cluster, "intra_node"), IntraNodeSpec)


def _check_link(where: str, table: Table, spec: type[BaseModel], what: str = "is missing") -> Iterator[Mistake]:
    """A link class of the catalogue says both figures."""
    if not _has(table, "link"):
        for key in ("bandwidth", "latency"):
            if not _has(table, key):
                yield Mistake(f"{where}.{key}", what, _example(spec, key))


def _check_links(cluster: Table) -> Iterator[Mistake]:
    known = _places_of_names(cluster)
    for place, link in _tables(cluster, "links"):
        yield from _check_link(f"cluster.{place}", link, LinkSpec)
        where = f"cluster.{place}.between"
        between = link.get("between")
        ends = between if isinstance(between, list | tuple) else ()
        for index, end in enumerate(ends):
            if isinstance(end, str) and end not in known:
                yield Mistake(f"{where}.{index}", f"{show_value(end)} is no node or switch", suggest(end, known, cutoff=0.0))
        if len(ends) == 2 and ends[0] == ends[1]:
            yield Mistake(where, f"joins {show_value(ends[0])} with itself", "write two different names")


def _check_search(search: Table) -> Iterator[Mistake]:
    fewest, most = search.get("minimum_ranks", 1), search.get("maximum_ranks")
    if _is_count(fewest) and _is_count(most) and fewest > most:
        cure = "write a maximum_ranks that is at least minimum_ranks"
        yield Mistake("search.minimum_ranks", f"is {show_value(fewest)}, more than maximum_ranks = {show_value(most)}", cure)
    schedules = search.get("schedules", ["1f1b"])
    if search.get("stage_replicas") == "free" and isinstance(schedules, list) and not {"1f1b", "gpipe"} & set(map(str, schedules)):
        cure = 'add one of them, or write stage_replicas = "equal"'
        yield Mistake("search.stage_replicas", 'is "free", but schedules has neither 1f1b nor gpipe', cure)


def _check_foreign_keys(where: str, table: Table, kind: str, keys_of: Mapping[str, frozenset[str]]) -> Iterator[Mistake]:
    every_key = frozenset[str]().union(*keys_of.values())
    for key in table:
        if _has(table, key) and key in every_key - keys_of[kind]:
            owners = " or ".join(_model_title(owner) if where == "model" else owner for owner, keys in keys_of.items() if key in keys)
            title = _model_title(kind) if where == "model" else kind
            yield Mistake(f"{where}.{key}", f"does not belong to {title}", f"leave it out; it is for {owners}")


def _model_title(kind: str) -> str:
    return f'formula "{kind}"' if kind in FORMULAS else kind


def _example(spec: type[BaseModel], key: str) -> str:
    field = next(field for name, field in spec.model_fields.items() if key == (field.alias or name))
    return write_example(key, (field.examples or [""])[0])


def _places_of_names(cluster: Table) -> Mapping[str, list[str]]:
    places: dict[str, list[str]] = {}
    for place, node in _tables(cluster, "nodes"):
        name, count = node.get("name"), node.get("count", 1)
        if isinstance(name, str) and _is_count(count) and count <= _MOST_NODES:
            for full_name in expand_name(name, count):
                places.setdefault(full_name, []).append(f"cluster.{place}.name")
    switches = cluster.get("switches")
    for index, switch in enumerate(switches if isinstance(switches, list | tuple) else ()):
        if isinstance(switch, str):
            places.setdefault(switch, []).append(f"cluster.switches.{index}")
    return places


def _is_numerous(cluster: Table) -> bool:
    counts = [node.get("count", 1) for _, node in _tables(cluster, "nodes")]
    return len(counts) > 1 or any(_is_count(count) and count > 1 for count in counts)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _has(table: Table, key: str) -> bool:
    """The key is given, and not empty: an empty list or table says no more than no list or table."""
    return table.get(key) not in (None, [], {}, ())


def _table(parent: Table, key: str) -> Table:
    table = parent.get(key)
    return table if isinstance(table, dict) else {}


def _tables(parent: Table, key: str) -> list[tuple[str, Table]]:
    tables = parent.get(key)
    return [(f"{key}.{index}", table) for index, table in enumerate(tables) if isinstance(table, dict)] if isinstance(tables, list) else []
