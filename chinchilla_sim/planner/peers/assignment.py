"""Tasks on accelerators and CPUs so that the busiest processor is as fast as can be (Tarnawski et al. 2020).

A unit is a set of tasks that stay together (a layer's forward and backward pass). A processor's load is

    accelerator    sum of accelerator_s of its tasks  +  sum of output_s of each task elsewhere that one of them reads
                                                      +  sum of output_s of each of them that is read elsewhere
    CPU            sum of cpu_s of its tasks

and what an accelerator holds is limited. `assign_contiguous` gives every processor a part of the graph between two nested ideals (of the
forward pass; the backward pass follows), which a pipeline can play in order. `planner/peers/free_assignment.py` gives that up.

    best[a, c, j] = min over ideals i within j of  max(best[a-1, c, i], accelerator(i, j)),  max(best[a, c-1, i], cpu(j) - cpu(i))

is exact over a accelerators, c CPUs and ideal j. Two prunings keep it fast: no value above the best plan over one linear order counts,
and what is left behind j has to fit on the processors that are left. A part's transfers are found from those of its outer ideal alone,
corrected for the few outputs that cross its inner ideal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.planner.peers.ideals import Bools, Floats, Ideals, list_ideals, product_of

MOST_IDEALS = 40_000
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class AssignmentProblem:
    """Seconds and bytes by task; `units` holds the tasks of each unit, `edges` are (producer, consumer) of tasks.

    `accelerator_s` is infinite where a task cannot run there, `cpu_s` is finite;
    `order` are edges between units that a pipeline has to respect.
    """

    accelerator_s: Sequence[float]
    cpu_s: Sequence[float]
    output_s: Sequence[float]
    held_bytes: Sequence[float]
    edges: Sequence[tuple[int, int]]
    units: Sequence[Sequence[int]]
    order: Sequence[tuple[int, int]]
    accelerators: int
    cpus: int
    memory_bytes: float

    @cached_property
    def unit_of(self) -> list[int]:
        """Unit of each task."""
        found = [0] * len(self.accelerator_s)
        for unit, tasks in enumerate(self.units):
            for task in tasks:
                found[task] = unit
        return found

    @cached_property
    def readers(self) -> list[list[int]]:
        """Units that read each task's output, each once."""
        found: list[set[int]] = [set() for _ in self.accelerator_s]
        for producer, consumer in self.edges:
            found[producer].add(self.unit_of[consumer])
        return [sorted(units) for units in found]

    @property
    def finite_work_s(self) -> float:
        """Work on either kind of processor and all transfers: no plan takes longer."""
        return sum(seconds for seconds in (*self.accelerator_s, *self.cpu_s) if seconds < np.inf) + 2 * sum(self.output_s)

    def unit_totals(self, amounts: Sequence[float]) -> Floats:
        """Sum of an amount per task over each unit."""
        return np.array([sum(amounts[task] for task in tasks) for tasks in self.units])

    def loads(self, processor: Sequence[int]) -> list[float]:
        """Load of every processor (accelerators first) by the processor of each unit, as the objective says it."""
        loads = [0.0] * (self.accelerators + self.cpus)
        for task, unit in enumerate(self.unit_of):
            own = processor[unit]
            loads[own] += self.accelerator_s[task] if own < self.accelerators else self.cpu_s[task]
            elsewhere = {processor[reader] for reader in self.readers[task]} - {own}
            for touched in {own, *elsewhere} if elsewhere else ():
                loads[touched] += self.output_s[task] if touched < self.accelerators else 0.0
        return loads

    def fits(self, processor: Sequence[int]) -> bool:
        """Whether every accelerator holds its units."""
        held = [0.0] * (self.accelerators + self.cpus)
        for unit, size in enumerate(self.unit_totals(self.held_bytes)):
            held[processor[unit]] += size
        return all(size <= self.memory_bytes for size in held[: self.accelerators])


@dataclass(frozen=True, slots=True)
class AssignmentResult:
    """The busiest processor's load, the processor of each unit (accelerators first), and a load that no plan is below."""

    slowest_s: float
    processor: tuple[int, ...]
    lower_bound_s: float
    optimal: bool


def units_of(
    task_count: int, edges: Sequence[tuple[int, int]], classes: Sequence[str | None], backward: Sequence[bool]
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Units (tasks of one class, and those that a cycle through classes ties together) and the order of the forward pass between them.

    A backward task is ordered by its forward partner; one without a partner by its own edges.

    >>> units_of(4, [(0, 1), (1, 2), (2, 3)], ["a", "b", "b", "a"], [False, False, True, True])
    ([[0, 3], [1, 2]], [(0, 1)])
    """
    names: dict[str, int] = {}
    label = [names.setdefault(f"class {name}" if name is not None else f"task {task}", len(names)) for task, name in enumerate(classes)]
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(names)))
    forward = {label[task] for task in range(task_count) if not backward[task]}
    ordering = [not backward[task] or label[task] not in forward for task in range(task_count)]
    graph.add_edges_from((label[a], label[b]) for a, b in edges if ordering[a] and ordering[b] and label[a] != label[b])
    merged = nx.condensation(graph)
    members = merged.graph["mapping"]
    first = {part: min(task for task in range(task_count) if members[label[task]] == part) for part in merged}
    position = {part: index for index, part in enumerate(nx.lexicographical_topological_sort(merged, key=first.__getitem__))}
    units: list[list[int]] = [[] for _ in position]
    for task in range(task_count):
        units[position[members[label[task]]]].append(task)
    return units, sorted((position[a], position[b]) for a, b in merged.edges)


def assign_contiguous(problem: AssignmentProblem, most_ideals: int = MOST_IDEALS) -> AssignmentResult | None:
    """The best plan whose parts lie between nested ideals, or None where nothing fits.

    Optimal unless there are more than `most_ideals` ideals; then it is the best over one linear order, or no plan (an empty
    `processor`) where none of that order fits.

    >>> line = AssignmentProblem([2, 1, 1], [9, 9, 9], [0, 0, 0], [1, 1, 1], [(0, 1), (1, 2)], [[0], [1], [2]], [(0, 1), (1, 2)], 2, 0, 9)
    >>> assign_contiguous(line).processor
    (0, 1, 1)
    """
    # Without the bytes of units that cost no time this is a bound; where the plan holds them after all, it is the optimum.
    small = _merge_free_units(problem)
    best = _over_ideals(small, most_ideals)
    if best is None or not best.processor:
        return best
    own = _own_units(problem, small, best)
    return own if problem.fits(own.processor) else _over_ideals(problem, most_ideals)


def _over_ideals(problem: AssignmentProblem, most_ideals: int) -> AssignmentResult | None:
    """The best over all ideals, or one order of the units; of what is not proven impossible a result without a plan."""
    count = len(problem.units)
    best = _Contiguous(problem, list_ideals(count, problem.order, 0), np.inf).solve()
    ideals = list_ideals(count, problem.order, most_ideals)
    if ideals.complete and len(ideals) > count + 1 and not (best and best.slowest_s == 0):
        best = _Contiguous(problem, ideals, best.slowest_s if best else np.inf).solve() or best
    if best is None:
        return None if ideals.complete else AssignmentResult(np.inf, (), least_load_s(problem), optimal=False)
    bound_s = best.slowest_s if ideals.complete else least_load_s(problem)
    return replace(best, lower_bound_s=bound_s, optimal=ideals.complete)


def least_load_s(problem: AssignmentProblem) -> float:
    """Work that the processors cannot share better than evenly, each task where it is fastest."""
    seconds = np.minimum(problem.accelerator_s, problem.cpu_s) if problem.cpus else np.asarray(problem.accelerator_s)
    return float(seconds.sum() / (problem.accelerators + problem.cpus))


def _merge_free_units(problem: AssignmentProblem) -> AssignmentProblem:
    """The problem with units that take no time joined to their only producer, or to the first of their consumers.

    That adds no transfer to any plan, and takes some away. Their bytes do not count.
    """
    graph = nx.DiGraph(problem.order)
    graph.add_nodes_from(range(len(problem.units)))
    total_s = problem.unit_totals(problem.accelerator_s) + problem.unit_totals(problem.cpu_s)
    joins: dict[int, int] = {}
    for unit in np.flatnonzero(total_s == 0).tolist():
        neighbours = _touching(problem, unit)
        sends = sum(problem.output_s[task] for task in problem.units[unit])
        if graph.out_degree(unit) == 0 and len(neighbours) == 1:
            joins[unit] = neighbours[0]
        elif graph.in_degree(unit) == 0 and not sends and neighbours and neighbours == sorted(graph.successors(unit)):
            first = next((other for other in neighbours if nx.descendants(graph, other) >= set(neighbours) - {other}), None)
            joins |= {unit: first} if first is not None else {}
    joins = {unit: into for unit, into in joins.items() if into not in joins}
    kept = [unit for unit in range(len(problem.units)) if unit not in joins]
    number = {unit: index for index, unit in enumerate(kept)} | {unit: kept.index(into) for unit, into in joins.items()}
    units: list[list[int]] = [[] for _ in kept]
    for unit, tasks in enumerate(problem.units):
        units[number[unit]] += tasks
    free = {task for unit in joins for task in problem.units[unit]}
    sizes = [0.0 if task in free else size for task, size in enumerate(problem.held_bytes)]
    order = sorted({(number[a], number[b]) for a, b in problem.order if number[a] != number[b]})
    return replace(problem, units=units, order=order, held_bytes=sizes)


def _touching(problem: AssignmentProblem, unit: int) -> list[int]:
    """Units that send to this one or read from it."""
    found = {reader for task in problem.units[unit] for reader in problem.readers[task]}
    found |= {problem.unit_of[a] for a, b in problem.edges if problem.unit_of[b] == unit}
    return sorted(found - {unit})


def _own_units(problem: AssignmentProblem, small: AssignmentProblem, result: AssignmentResult) -> AssignmentResult:
    """The plan of merged units in the problem's own."""
    return replace(result, processor=tuple(result.processor[small.unit_of[tasks[0]]] for tasks in problem.units))


class _Contiguous:
    """The programme over one list of ideals; plans not below `limit_s` do not count."""

    def __init__(self, problem: AssignmentProblem, ideals: Ideals, limit_s: float) -> None:
        self.problem, self.ideals, self.limit_s = problem, ideals, limit_s
        accelerator_s = problem.unit_totals(problem.accelerator_s)
        possible = np.isfinite(accelerator_s)
        self.accelerator_s = ideals.totals(np.where(possible, accelerator_s, 0.0).tolist())
        self.refused = ideals.totals((~possible).astype(np.float64).tolist())
        self.cpu_s = ideals.totals(problem.unit_totals(problem.cpu_s).tolist())
        self.held_bytes = ideals.totals(problem.unit_totals(problem.held_bytes).tolist())
        words = np.packbits(ideals.inside, axis=1, bitorder="little")
        self.words = np.pad(words, ((0, 0), (0, -words.shape[1] % 8))).view(np.uint64)
        self.transfers = _Transfers(problem, ideals)

    def solve(self) -> AssignmentResult | None:
        """Best plan below the limit."""
        problem, last = self.problem, len(self.ideals) - 1
        best: dict[tuple[int, int], Floats] = {}
        came: dict[tuple[int, int], Ints] = {}
        for used in self._states():
            values, origin = np.full(last + 1, np.inf), np.full(last + 1, -1, dtype=np.int64)
            if used == (0, 0):
                values[0] = 0.0
            for on_cpu, before in enumerate(((used[0] - 1, used[1]), (used[0], used[1] - 1))):
                if before in best:
                    self._extend(best[before], values, origin, bool(on_cpu), self._worth_keeping(used))
            best[used], came[used] = values, origin
        used = min(best, key=lambda state: (best[state][last], state))
        if not best[used][last] < min(self.limit_s, np.inf):
            return None
        return AssignmentResult(float(best[used][last]), self._trace(used, came), 0.0, optimal=False) if problem.units else None

    def _states(self) -> Iterator[tuple[int, int]]:
        for cpus in range(self.problem.cpus + 1):
            for accelerators in range(self.problem.accelerators + 1):
                yield accelerators, cpus

    def _worth_keeping(self, used: tuple[int, int]) -> Bools:
        """Ideals behind which the processors that are left can do the rest in time."""
        if not np.isfinite(self.limit_s):
            return np.ones(len(self.ideals), dtype=np.bool_)
        problem = self.problem
        left_s = (problem.accelerators - used[0]) * self.limit_s
        rest_s = self.accelerator_s[-1] - self.accelerator_s
        if problem.cpus > used[1]:
            accelerator_s, cpu_s = problem.unit_totals(problem.accelerator_s), problem.unit_totals(problem.cpu_s)
            usual = np.isfinite(accelerator_s) & (accelerator_s > 0)
            with np.errstate(divide="ignore"):
                left_s += (problem.cpus - used[1]) * self.limit_s * float((accelerator_s[usual] / cpu_s[usual]).max(initial=0.0))
        keep: Bools = rest_s <= left_s * (1 + 1e-12)
        return keep

    def _extend(self, before: Floats, values: Floats, origin: Ints, on_cpu: bool, keep: Bools) -> None:
        """Lower `values` by one more part on a processor of one kind."""
        kept = np.flatnonzero(keep)
        for start in np.flatnonzero(before < self.limit_s):
            ends = kept[np.searchsorted(kept, start, side="right") :]
            work_s = self.cpu_s[ends] - self.cpu_s[start] if on_cpu else self.accelerator_s[ends] - self.accelerator_s[start]
            usable = (work_s < self.limit_s) & (before[start] < values[ends])
            if not on_cpu:
                usable &= self.held_bytes[ends] - self.held_bytes[start] <= self.problem.memory_bytes
                usable &= self.refused[ends] == self.refused[start]
            ends, work_s = ends[usable], work_s[usable]
            nested = ~(self.words[start] & ~self.words[ends]).any(axis=1)
            ends, work_s = ends[nested], work_s[nested]
            if not len(ends):
                continue
            load_s = work_s if on_cpu else work_s + self.transfers.between(int(start), ends)
            slowest = np.maximum(before[start], load_s)
            better = (slowest < values[ends]) & (slowest < self.limit_s)
            values[ends[better]], origin[ends[better]] = slowest[better], start + len(self.ideals) * on_cpu

    def _trace(self, used: tuple[int, int], came: dict[tuple[int, int], Ints]) -> tuple[int, ...]:
        processor = [0] * len(self.problem.units)
        end, (accelerators, cpus) = len(self.ideals) - 1, used
        while (accelerators, cpus) != (0, 0):
            on_cpu, start = divmod(int(came[accelerators, cpus][end]), len(self.ideals))
            accelerators, cpus = accelerators - (not on_cpu), cpus - on_cpu
            for unit in self.ideals.tasks_between(start, end):
                processor[unit] = self.problem.accelerators + cpus if on_cpu else accelerators
            end = start
        return tuple(processor)


class _Transfers:
    """Seconds of what a part between two ideals receives and sends.

    With m[i] readers of an output inside ideal i, an output made within j costs the part (empty, j) where a reader is outside j,
    one made outside j where a reader is inside. For the part (i, j) only outputs with m[i] > 0 or made inside i differ from that.
    """

    def __init__(self, problem: AssignmentProblem, ideals: Ideals) -> None:
        counts = np.array([len(units) for units in problem.readers])
        kept = np.flatnonzero((counts > 0) & (np.asarray(problem.output_s) > 0))
        matrix = np.zeros((len(problem.units), len(kept)))
        for column, task in enumerate(kept):
            matrix[problem.readers[task], column] = 1
        self.seconds = np.asarray(problem.output_s, dtype=np.float64)[kept]
        self.made: Bools = ideals.inside[:, [problem.unit_of[task] for task in kept]]
        self.read = product_of(ideals.inside, matrix).astype(np.int16)
        self.all_read = counts[kept].astype(np.int16)
        self.from_start: Bools = np.where(self.made, self.read < self.all_read, self.read > 0)
        self.whole_s = product_of(self.from_start, self.seconds)

    def between(self, start: int, ends: Ints) -> Floats:
        """Transfers of the parts from one ideal to several."""
        made, read = self.made[start], self.read[start]
        differing = np.flatnonzero((made & (read < self.all_read)) | (~made & (read > 0)))
        if not len(differing):
            return self.whole_s[ends]
        grid = np.ix_(ends, differing)
        crosses = self.read[grid] > read[differing]
        crosses |= self.made[grid] & ~made[differing]
        change = crosses.astype(np.int8) - self.from_start[grid]
        seconds: Floats = self.whole_s[ends] + change @ self.seconds[differing]
        return seconds
