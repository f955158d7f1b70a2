"""Units on processors as an integer programme, solved by HiGHS, whole or with some processors only.

Over units u, processors p (accelerators a), outputs t of unit u(t) with readers R(t), and the load L of the busiest:

    minimise L
    sum over p of x[u,p] = 1                                                                        _places
    sum over u of held_bytes[u] x[u,a] <= memory_bytes                                              _memory
    sum over u of seconds[u,p] x[u,p] + sum over t of output_s[t] (in[t,a] + out[t,a]) <= L         _loads
    in[t,a]  >= x[r,a] - x[u(t),a]   for r in R(t), a reads t from elsewhere                        _transfers
    out[t,a] >= x[u(t),a] - x[r,a]   for r in R(t), a sends t                                       _transfers

A unit that moves between some processors changes no other processor's load, so that these are a programme of their own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.planner.peers.assignment import AssignmentProblem, Ints


@dataclass(frozen=True, slots=True)
class Solved:
    """Processors of all units and the load of the busiest free processor (None where none was found in time), and a bound on it."""

    processor: tuple[int, ...] | None
    bound_s: float
    finished: bool


class AssignmentProgramme:
    """The programme of one problem; rows are built once."""

    def __init__(self, problem: AssignmentProblem) -> None:
        self.problem = problem
        self.accelerators, self.processors = problem.accelerators, problem.accelerators + problem.cpus
        on_accelerator, on_cpu = problem.unit_totals(problem.accelerator_s), problem.unit_totals(problem.cpu_s)
        self.possible = np.isfinite(on_accelerator)
        self.seconds = np.column_stack(
            [np.where(self.possible, on_accelerator, 0.0)] * problem.accelerators + [on_cpu] * problem.cpus
        ).reshape(len(problem.units), self.processors)
        self.outputs = crossing_outputs(problem)
        self._rows: list[NDArray[np.int64]] = []
        self._columns: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float64]] = []
        self._upper: list[float] = []
        self._row_count = 0
        self._loads()
        self._memory()
        self._transfers()
        self._places()

    @property
    def _load_column(self) -> int:
        return self.seconds.size + 2 * len(self.outputs) * self.accelerators

    def _x(self, unit: int | Ints, processor: int | Ints) -> Any:
        return unit * self.processors + processor

    def _moved(self, output: int | Ints, accelerator: int | Ints, sent: bool) -> Any:
        return self.seconds.size + (len(self.outputs) * sent + output) * self.accelerators + accelerator

    def _add(self, columns: Sequence[int] | Ints, values: Sequence[float] | NDArray[np.float64], upper: float = 0.0) -> None:
        self._columns.append(np.asarray(columns, dtype=np.int64))
        self._values.append(np.asarray(values, dtype=np.float64))
        self._rows.append(np.full(len(self._columns[-1]), self._row_count, dtype=np.int64))
        self._upper.append(upper)
        self._row_count += 1

    def _loads(self) -> None:
        units, outputs = np.arange(len(self.seconds)), np.arange(len(self.outputs))
        output_s = np.array([seconds for _, _, seconds in self.outputs])
        for processor in range(self.processors):
            columns, values = [self._x(units, processor)], [self.seconds[:, processor]]
            for sent in (False, True) if processor < self.accelerators and len(outputs) else ():
                columns.append(self._moved(outputs, processor, sent))
                values.append(output_s)
            self._add(np.concatenate([*columns, [self._load_column]]), np.concatenate([*values, [-1.0]]))

    def _memory(self) -> None:
        units, size = np.arange(len(self.seconds)), self.problem.unit_totals(self.problem.held_bytes)
        scale = size.max(initial=0.0) or 1.0
        size, limit = size / scale, self.problem.memory_bytes / scale
        for accelerator in range(self.accelerators) if size.sum() > limit else ():
            self._add(self._x(units, accelerator), size, limit)

    def _transfers(self) -> None:
        for output, (owner, readers, _) in enumerate(self.outputs):
            for accelerator in range(self.accelerators):
                for reader in readers:
                    here, there = self._x(owner, accelerator), self._x(reader, accelerator)
                    self._add([there, here, self._moved(output, accelerator, False)], [1, -1, -1])
                    self._add([here, there, self._moved(output, accelerator, True)], [1, -1, -1])

    def _places(self) -> None:
        """One processor for each unit, as two inequalities."""
        processors = np.arange(self.processors)
        for unit in range(len(self.seconds)):
            self._add(self._x(unit, processors), np.ones(self.processors), 1.0)
            self._add(self._x(unit, processors), -np.ones(self.processors), -1.0)

    def solve(
        self,
        current: Sequence[int],
        free: Sequence[int],
        below_s: float,
        floor_s: float,
        gap: float,
        budget_s: float,
        nodes: int | None = None,
    ) -> Solved:
        """Best places of the units that are now on `free` processors, among these, with their busiest below a limit."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        width = self._load_column + 1
        lower, upper = np.zeros(width), np.ones(width)
        self._fix(current, free, upper)
        lower[-1], upper[-1] = min(floor_s, below_s), below_s
        rows, columns, values = (np.concatenate(parts) for parts in (self._rows, self._columns, self._values))
        limits = np.array(self._upper)
        busy = [processor for processor in range(self.processors) if processor not in free]
        limits[busy] = np.inf
        matrix = csr_array((values, (rows, columns)), shape=(self._row_count, width))
        cost, integral = np.zeros(width), np.zeros(width)
        cost[-1], integral[: self.seconds.size] = 1.0, 1
        options: dict[str, Any] = {"time_limit": budget_s, "mip_rel_gap": gap} | ({"node_limit": nodes} if nodes else {})
        constraints = LinearConstraint(matrix, -np.inf, limits)
        with _quiet_library():
            found = milp(cost, integrality=integral, bounds=Bounds(lower, upper), constraints=constraints, options=options)
        bound_s = float(found.mip_dual_bound) if found.mip_dual_bound is not None and np.isfinite(found.mip_dual_bound) else floor_s
        if found.x is None:
            return Solved(None, below_s if found.status == 2 else bound_s, finished=found.status == 2)
        places = found.x[: self.seconds.size].reshape(self.seconds.shape).argmax(axis=1)
        return Solved(tuple(int(place) for place in places), bound_s, finished=found.status == 0)

    def _fix(self, current: Sequence[int], free: Sequence[int], upper: NDArray[np.float64]) -> None:
        """Places that are not allowed: of units on other processors, and of alike accelerators for the first units."""
        alike = [processor for processor in free if processor < self.accelerators]
        moving = 0
        for unit, place in enumerate(current):
            allowed = list(free) if place in free else [place]
            if place in free:
                allowed = [processor for processor in allowed if processor not in alike[moving + 1 :]]
                moving += 1
            if not self.possible[unit]:
                allowed = [processor for processor in allowed if processor >= self.accelerators]
            columns = self._x(unit, np.arange(self.processors))
            upper[columns] = 0.0
            upper[columns[allowed]] = 1.0


@contextmanager
def _quiet_library() -> Iterator[None]:
    """HiGHS writes some remarks to the process's standard output, where results are expected: they go to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def crossing_outputs(problem: AssignmentProblem) -> list[tuple[int, tuple[int, ...], float]]:
    """(unit, other units that read, seconds) of outputs that may cross processors; alike ones of one unit together."""
    merged: dict[tuple[int, tuple[int, ...]], float] = {}
    for task, unit in enumerate(problem.unit_of):
        readers = tuple(reader for reader in problem.readers[task] if reader != unit)
        if readers and problem.output_s[task]:
            merged[unit, readers] = merged.get((unit, readers), 0.0) + problem.output_s[task]
    return [(unit, readers, seconds) for (unit, readers), seconds in merged.items()]
