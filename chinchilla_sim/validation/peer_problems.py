"""Graph files of other planners as the problems of our solvers, with the numbers of a row of known answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from chinchilla_sim.graph.importers.dnn_partitioning import CPU, TRANSFER_BYTES_PER_S
from chinchilla_sim.graph.importers.reading import Fields, is_amount, is_count
from chinchilla_sim.graph.profile import ACCELERATOR, Profile
from chinchilla_sim.graph.task import INPUT_OP, Task, TaskGraph
from chinchilla_sim.planner.peers.assignment import AssignmentProblem, assign_contiguous, units_of
from chinchilla_sim.planner.peers.free_assignment import assign_freely
from chinchilla_sim.planner.peers.replicated_stages import MachineLevel, ReplicationProblem, replicate_stages
from chinchilla_sim.planner.peers.stage_choices import TensorProblem
from chinchilla_sim.planner.peers.tensor_stages import split_tensor_stages


@dataclass(frozen=True, slots=True)
class Solved:
    """Objective of the best plan in the unit of the row, None where there is none; `proven` where nothing better exists."""

    objective: float | None
    proven: bool


def solve_pipedream(graph: TaskGraph, profile: Profile, row: Fields, _limits: Fields, _budget_s: float) -> Solved:
    """Stages and replicas over levels of machines; seconds per minibatch."""
    tasks = [task for task in graph.tasks if task.op != INPUT_OP]
    ratio = row.data.get("activation_compression_ratio")
    problem = ReplicationProblem(
        compute_s=[sum(profile.seconds(task.name, 1) or (0.0, 0.0)) for task in tasks],
        parameter_bytes=[sum(graph.weights[name].bytes for name in task.parameters) for task in tasks],
        output_bytes=[task.output_bytes for task in tasks],
        edges=_edges(graph, tasks),
        levels=_levels(row),
        activation_compression_ratio=None if ratio is None else row.amount("activation_compression_ratio"),
        straight=bool(row.data.get("straight_pipeline")) and row.flag("straight_pipeline"),
    )
    if ratio == 0:
        row.report.add(row.at("activation_compression_ratio"), "is 0", "write a number > 0, or null where cuts cost nothing")
    row.report.stop_if_wrong()
    result = replicate_stages(problem)
    return Solved(None, proven=True) if result is None else Solved(result.slowest_s, result.optimal)


def _levels(row: Fields) -> list[MachineLevel]:
    machines, bandwidths = (row.data.get(key) for key in ("num_machines_per_level", "bandwidth_bytes_per_s_per_level"))
    if not (isinstance(machines, list) and machines and all(is_count(count, 1) for count in machines)):
        row.wrong("num_machines_per_level", "a list of whole numbers >= 1, innermost level first")
        machines = []
    if not (isinstance(bandwidths, list) and all(is_amount(size) and size > 0 for size in bandwidths)):
        row.wrong("bandwidth_bytes_per_s_per_level", "a list of numbers > 0, innermost level first")
        bandwidths = []
    if machines and bandwidths and len(machines) != len(bandwidths):
        what = f"has {len(bandwidths)} entries for {len(machines)} levels of machines"
        row.report.add(row.at("bandwidth_bytes_per_s_per_level"), what, "give one per level")
    return [MachineLevel(count, size) for count, size in zip(machines, bandwidths, strict=False)]


def solve_piper(graph: TaskGraph, profile: Profile, row: Fields, limits: Fields, _budget_s: float) -> Solved:
    """Stages with replicas, tensor-parallel degrees and recompute; seconds per sample."""
    tasks = list(graph.tasks)
    output_bytes = {task.name: task.output_bytes for task in tasks}
    problem = TensorProblem(
        layers=[task.name for task in tasks],
        variants=[profile.variants[task.name] for task in tasks],
        edge_bytes={(a, b): output_bytes[tasks[a].name] for a, b in _edges(graph, tasks)},
        devices=_whole(row, limits, "devices", "maxDevices"),
        memory_bytes=_number(row, limits, "memory_bytes", "maxMemoryPerDevice"),
        bandwidth_bytes_per_s=_number(row, limits, "bandwidth_bytes_per_s", "bandwidth"),
        microbatches=_whole(row, limits, "microbatches", "mbsInBatch"),
    )
    if not problem.bandwidth_bytes_per_s:
        row.report.add(row.at("bandwidth_bytes_per_s"), "is 0", "write a number > 0")
    row.report.stop_if_wrong()
    limits.report.stop_if_wrong()
    result = split_tensor_stages(problem)
    return Solved(None, proven=True) if result is None else Solved(result.slowest_s, result.optimal)


def solve_dnn_partitioning(graph: TaskGraph, profile: Profile, row: Fields, limits: Fields, budget_s: float) -> Solved:
    """Accelerators and CPUs with contiguous parts or free ones; milliseconds."""
    tasks = list(graph.tasks)
    contiguous = row.flag("contiguous")
    edges = _edges(graph, tasks)
    units, order = units_of(
        len(tasks), edges, [profile.colocated.get(task.name) for task in tasks], [task.op == "backward" for task in tasks]
    )
    problem = AssignmentProblem(
        accelerator_s=[(profile.seconds(task.name, 1, ACCELERATOR) or (inf, 0.0))[0] for task in tasks],
        cpu_s=[(profile.seconds(task.name, 1, CPU) or (0.0, 0.0))[0] for task in tasks],
        output_s=[task.output_bytes / TRANSFER_BYTES_PER_S for task in tasks],
        held_bytes=[profile.memory_bytes[task.name] for task in tasks],
        edges=edges,
        units=units,
        order=order,
        accelerators=_whole(row, limits, "accelerators", "maxFPGAs", least=0),
        cpus=_whole(row, limits, "cpus", "maxCPUs", least=0),
        memory_bytes=_number(row, limits, "memory_bytes", "maxSizePerFPGA"),
    )
    if not problem.accelerators + problem.cpus:
        row.report.add(row.at("accelerators"), "and cpus are 0", "give at least one processor")
    row.report.stop_if_wrong()
    limits.report.stop_if_wrong()
    result = assign_contiguous(problem) if contiguous else assign_freely(problem, budget_s)
    if result is None:
        return Solved(None, proven=True)
    return Solved(None if result.slowest_s == inf else result.slowest_s * 1e3, result.optimal)


def _edges(graph: TaskGraph, tasks: list[Task]) -> list[tuple[int, int]]:
    """Edges between the positions of some tasks."""
    position = {task.name: index for index, task in enumerate(tasks)}
    return [(position[a], position[b]) for a, b in graph.edges if a in position and b in position]


def _number(row: Fields, limits: Fields, key: str, file_key: str) -> float:
    """A number of the row, or the file's where the row has none."""
    return limits.amount(file_key) if row.data.get(key) is None and file_key in limits.data else row.amount(key)


def _whole(row: Fields, limits: Fields, key: str, file_key: str, least: int = 1) -> int:
    return limits.count(file_key, least) if row.data.get(key) is None and file_key in limits.data else row.count(key, least)


FORMATS: Mapping[str, Callable[[TaskGraph, Profile, Fields, Fields, float], Solved]] = {
    "pipedream": solve_pipedream,
    "piper": solve_piper,
    "dnn-partitioning": solve_dnn_partitioning,
}
