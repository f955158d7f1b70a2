"""Layer graphs of Piper (Tarnawski, Narayanan & Phanishayee 2021, github.com/msr-fiddle/piper), JSON:

    {"maxDevices": 8, "maxMemoryPerDevice": 8e10, "bandwidth": 2.5e10, "mbsInBatch": 1920,
     "nodes": [{"id": 1, "name": "Embedding", "TMPCs": {"1": [{"id": "vanilla", "timePerSample": 0.001, "parameterSize": 2e8,
                "memoryUsageA": 2e6, "memoryUsageB": 4e8, "syncTimeFw": {"0": 0.0}, "syncTimeBw": {"3": 0.0}}, ...], ...}}, ...],
     "edges": [{"sourceId": 0, "destId": 1, "communicationCost": 8192.0}, ...]}

A node is a task `<name>_<id>` of op `<name>`. Each entry under `TMPCs` is a Variant at its tensor-parallel degree; any `id` but
"vanilla" recomputes. Seconds and bytes are per sample, which is Piper's microbatch; memory is
`memoryUsageA * microbatches in flight + memoryUsageB`. The task itself is the vanilla entry of degree 1: `timePerSample` is forward
and backward together, split 1 : 2; `parameterSize` is its weight, counted in fp32 values; `memoryUsageA` is what it saves.

`communicationCost` (bytes) is the producer's output. Where a producer's edges differ, its output is the smallest, and the rest
of an edge is added to `forward_sync_bytes` of the consumer and `backward_sync_bytes` of the producer, in every variant: a cut edge
costs the same sum as in Piper's own objective, 2 (communicationCost + syncTimeFw | syncTimeBw).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chinchilla_sim.graph.importers.reading import Fields, Report, edges_between, read_object, refuse_twice, topological_order
from chinchilla_sim.graph.profile import Profile, TaskTime, Variant
from chinchilla_sim.graph.task import Task, TaskGraph, Weight

VANILLA = "vanilla"
_VALUE_BYTES = 4.0

Edge = tuple[str, str]


def read_piper(path: Path) -> tuple[TaskGraph, Profile]:
    """Graph and profile of a Piper file."""
    report = Report(path)
    file = read_object(report)
    rows = file.tables("nodes")
    if not rows and "nodes" in file.data:
        report.add("nodes", "are none", "give at least one node")
    ids = [row.count("id") for row in rows]
    refuse_twice(((number, row.at("id")) for number, row in zip(ids, rows, strict=True)), report, "the node")
    name_of = {number: f"{row.text('name')}_{number}" for number, row in zip(ids, rows, strict=True)}
    report.stop_if_wrong()
    by_name = dict(zip(name_of.values(), rows, strict=True))
    edges = edges_between(file, name_of)
    cost_bytes = {edge: row.amount("communicationCost") for edge, row in edges.items()}
    output_bytes = dict.fromkeys(by_name, 0.0) | {
        producer: min(size for (other, _), size in cost_bytes.items() if other == producer) for producer, _ in edges
    }
    rest = {edge: size - output_bytes[edge[0]] for edge, size in cost_bytes.items()}
    variants = {name: _variants(name, row, name_of, rest) for name, row in by_name.items()}
    notes = _notes(file, any(rest.values()))
    report.stop_if_wrong()
    plain = {name: _plain_variant(choices, by_name[name]) for name, choices in variants.items()}
    report.stop_if_wrong()
    order = topological_order(list(by_name), {edge: row.path for edge, row in edges.items()}, report)
    graph = TaskGraph(
        name=path.stem,
        batch_size=1,
        tasks=tuple(_task(name, by_name[name].text("name"), plain[name], output_bytes[name]) for name in order),
        edges=tuple(edges),
        weights={f"{name}.weight": _weight(plain[name]) for name in order if plain[name].parameter_bytes},
        source=f"Piper graph {path.name}",
        value_bytes=_VALUE_BYTES,
        notes=notes,
    )
    times = tuple(TaskTime(name, 1, plain[name].seconds / 3, plain[name].seconds * 2 / 3) for name in order)
    return graph, Profile(times, variants=variants, source=graph.source)


def _variants(name: str, row: Fields, name_of: Mapping[int, str], rest: Mapping[Edge, float]) -> tuple[Variant, ...]:
    degrees = row.table("TMPCs")
    choices = []
    for degree in degrees.data:
        if not (degree.isascii() and degree.isdigit() and 0 < int(degree) < 2**31):
            degrees.report.add(degrees.at(degree), "is no degree", "write a whole number >= 1")
            continue
        choices += [_variant(int(degree), entry, name, name_of, rest) for entry in degrees.tables(degree)]
    return tuple(sorted(choices, key=lambda variant: (variant.tensor_parallel_degree, variant.recompute)))


def _variant(degree: int, entry: Fields, name: str, name_of: Mapping[int, str], rest: Mapping[Edge, float]) -> Variant:
    forward = _sync_bytes(entry, "syncTimeFw", name_of, {producer: size for (producer, to), size in rest.items() if to == name})
    backward = _sync_bytes(entry, "syncTimeBw", name_of, {consumer: size for (of, consumer), size in rest.items() if of == name})
    return Variant(
        tensor_parallel_degree=degree,
        recompute=entry.text("id") != VANILLA,
        seconds=entry.amount("timePerSample"),
        parameter_bytes=entry.amount("parameterSize"),
        stash_bytes=entry.amount("memoryUsageA"),
        fixed_bytes=entry.amount("memoryUsageB"),
        forward_sync_bytes=forward,
        backward_sync_bytes=backward,
    )


def _sync_bytes(entry: Fields, key: str, name_of: Mapping[int, str], rest: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Bytes by neighbour, zeros left out, with the rest of the neighbour's edge."""
    total = dict(rest)
    table = entry.table(key)
    names = {str(number): name for number, name in name_of.items()}
    for number in table.data:
        if names.get(number) not in rest:
            table.report.add(table.at(number), "is no neighbour of the node", "name a node that an edge joins with this one")
        else:
            total[names[number]] += table.amount(number)
    return tuple((neighbour, size) for neighbour, size in sorted(total.items()) if size)


def _plain_variant(choices: tuple[Variant, ...], row: Fields) -> Variant:
    """The variant on one device without recompute."""
    for variant in choices:
        if variant.tensor_parallel_degree == 1 and not variant.recompute:
            return variant
    row.report.add(row.at("TMPCs.1"), f'has no "{VANILLA}" entry', "give the node's figures on one device without recompute")
    return Variant(1, False, 0.0, 0.0, 0.0, 0.0)


def _task(name: str, op: str, plain: Variant, output_bytes: float) -> Task:
    parameters = (f"{name}.weight",) if plain.parameter_bytes else ()
    return Task(name, op, output_bytes=output_bytes, parameters=parameters, saved_bytes=plain.stash_bytes)


def _weight(plain: Variant) -> Weight:
    return Weight(plain.parameter_bytes, (round(plain.parameter_bytes / _VALUE_BYTES),))


def _notes(file: Fields, differing: bool) -> tuple[str, ...]:
    limits = [
        f"{key} = {file.amount(key):g}" for key in ("maxDevices", "maxMemoryPerDevice", "bandwidth", "mbsInBatch") if key in file.data
    ]
    notes = [
        "One sample here is one microbatch of the file.",
        "The file gives forward and backward time together: a third is taken as forward.",
        "The file states no flop and no memory traffic: only its times count.",
        "The file states bytes of parameters, not their shapes: values are counted as fp32.",
    ]
    if differing:
        notes.append("Edges of one task differ in bytes in the file: the smallest is its output, the rest stands in its variants.")
    if limits:
        notes.append(f"The file's problem is for {', '.join(limits)}: write that into the cluster.")
    return tuple(notes)
