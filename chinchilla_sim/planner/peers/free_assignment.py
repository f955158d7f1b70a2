"""Units on processors without contiguity: annealing for a good plan, exact improvement of some processors at a time, then a proof.

1. Annealing (Kirkpatrick et al. 1983) runs CHAINS copies at once from the contiguous plan; a move takes one unit to another processor
   and is judged by the 24-norm of the loads, which sees the second busiest too.
2. The busiest processor and two others share their units anew, exactly (`assignment_programme`), until no three can do better.
3. The whole programme with what is left of the budget: a better plan, or the proof that there is none.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from chinchilla_sim.planner.peers.assignment import AssignmentProblem, AssignmentResult, Ints, assign_contiguous, least_load_s
from chinchilla_sim.planner.peers.assignment_programme import AssignmentProgramme, crossing_outputs
from chinchilla_sim.planner.peers.ideals import Bools, Floats

CHAINS = 64
MOVES = 8_000
FIRST_TEMPERATURE = 0.01
LAST_TEMPERATURE = 0.0002
NORM = 24
SHARING = 3
LEAST_GAIN = 1e-4
MOST_NODES = 2_000
PROVEN_GAP = 1e-3


def assign_freely(problem: AssignmentProblem, budget_s: float, seed: int = 0) -> AssignmentResult | None:
    """The best plan found, contiguous or not, or None where nothing fits; `optimal` where it is proven to PROVEN_GAP.

    Annealing takes as many moves on any machine; the other two are given up after `budget_s` CPU seconds in all.
    """
    until = time.process_time() + budget_s
    if not problem.cpus and not np.isfinite(problem.accelerator_s).all():
        return None
    contiguous = assign_contiguous(problem)
    first = contiguous.processor if contiguous else ()
    found = _Annealing(problem, first or _packed(problem), seed).run()
    plans = [plan for plan in (first, found) if plan and problem.fits(plan)]
    best = min(plans, key=lambda plan: max(problem.loads(plan)), default=None)
    programme = AssignmentProgramme(problem)
    if best is not None:
        best = share_anew(programme, best, until)
    return _prove(programme, best, until - time.process_time())


def _packed(problem: AssignmentProblem) -> tuple[int, ...]:
    """Units where most bytes are free, large ones first: a start where no contiguous plan exists."""
    sizes, processors = problem.unit_totals(problem.held_bytes), problem.accelerators + problem.cpus
    possible = np.isfinite(problem.unit_totals(problem.accelerator_s))
    held, chosen = np.zeros(processors), np.zeros(len(sizes), dtype=np.int64)
    for unit in np.argsort(-sizes, kind="stable"):
        allowed = np.arange(processors) >= (0 if possible[unit] else problem.accelerators)
        chosen[unit] = np.where(allowed, held, np.inf).argmin()
        held[chosen[unit]] += sizes[unit]
    return tuple(chosen.tolist())


def share_anew(programme: AssignmentProgramme, plan: tuple[int, ...], until: float = np.inf, nodes: int = MOST_NODES) -> tuple[int, ...]:
    """The plan improved until no SHARING processors with the busiest among them can divide their units better.

    `until` is a time of the process's CPU clock; without it only `nodes` of every programme are counted, the same on any machine.
    """
    problem = programme.problem
    while (left_s := until - time.process_time()) > 0:
        loads = problem.loads(plan)
        busiest, *others = sorted(range(len(loads)), key=lambda processor: -loads[processor])
        limit_s = loads[busiest] * (1 - LEAST_GAIN)
        groups = combinations(others, min(SHARING - 1, len(others)))
        for group in sorted(groups, key=lambda group: sum(loads[processor] for processor in group)):
            shared = programme.solve(plan, sorted((busiest, *group)), limit_s, 0.0, LEAST_GAIN, left_s, nodes).processor
            if shared and problem.fits(shared) and max(problem.loads(shared)) < loads[busiest]:
                plan = shared
                break
            left_s = until - time.process_time()
            if left_s <= 0:
                return plan
        else:
            return plan
    return plan


def _prove(programme: AssignmentProgramme, best: tuple[int, ...] | None, budget_s: float) -> AssignmentResult | None:
    """The best plan with a bound from the whole programme."""
    problem = programme.problem
    slowest_s, bound_s = max(problem.loads(best)) if best else np.inf, least_load_s(problem)
    if budget_s > 0:
        everywhere = range(problem.accelerators + problem.cpus)
        limit_s = slowest_s if best else problem.finite_work_s
        start = best or (0,) * len(problem.units)
        solved = programme.solve(start, everywhere, limit_s, bound_s, PROVEN_GAP, budget_s)
        bound_s = max(bound_s, min(solved.bound_s, slowest_s))
        if solved.processor and problem.fits(solved.processor) and max(problem.loads(solved.processor)) < slowest_s:
            best, slowest_s = solved.processor, max(problem.loads(solved.processor))
        if solved.finished and not best:
            return None
    if best is None:
        return AssignmentResult(np.inf, (), bound_s, optimal=False)
    return AssignmentResult(slowest_s, best, bound_s, optimal=bound_s >= slowest_s * (1 - PROVEN_GAP))


@dataclass(frozen=True)
class _Outputs:
    """Outputs that may cross processors: owner, seconds, readers, and by unit the outputs it owns or reads (-1: none)."""

    owner: Ints
    seconds: Floats
    reads: Bools
    touched: Ints

    @staticmethod
    def of(problem: AssignmentProblem) -> _Outputs:
        outputs = crossing_outputs(problem)
        reads = np.zeros((len(outputs), len(problem.units)), dtype=np.bool_)
        for index, (_, readers, _) in enumerate(outputs):
            reads[index, list(readers)] = True
        owner = np.array([unit for unit, _, _ in outputs], dtype=np.int64)
        own = owner[:, None] == np.arange(len(problem.units))
        lists = [np.flatnonzero(column) for column in (reads | own).T]
        touched = np.full((len(lists), max([1, *(len(row) for row in lists)])), -1, dtype=np.int64)
        for unit, row in enumerate(lists):
            touched[unit, : len(row)] = row
        # One output more that nobody makes or reads stands for "none".
        seconds = np.array([*(seconds for _, _, seconds in outputs), 0.0])
        return _Outputs(np.append(owner, 0), seconds, np.vstack([reads, np.zeros((1, len(problem.units)), dtype=np.bool_)]), touched)


class _Annealing:
    """Copies of a plan that move units at random, worse ones with falling probability."""

    def __init__(self, problem: AssignmentProblem, start: tuple[int, ...], seed: int) -> None:
        self.problem, self.random = problem, np.random.default_rng(seed)
        self.count = problem.accelerators + problem.cpus
        self.is_accelerator = np.arange(self.count) < problem.accelerators
        on_accelerator, on_cpu = problem.unit_totals(problem.accelerator_s), problem.unit_totals(problem.cpu_s)
        work_s = np.where(self.is_accelerator, on_accelerator[:, None], on_cpu[:, None])
        self.possible = np.isfinite(work_s)
        self.work_s = np.where(self.possible, work_s, 0.0)
        self.size = problem.unit_totals(problem.held_bytes)
        self.room = np.where(self.is_accelerator, problem.memory_bytes, np.inf)
        self.outputs = _Outputs.of(problem)
        self.processor: Ints = np.tile(np.array(start, dtype=np.int64), (CHAINS, 1))
        places = np.eye(self.count, dtype=np.int64)[list(start)]
        self.readers = np.tile(self.outputs.reads.astype(np.int64) @ places, (CHAINS, 1, 1))
        self.loads = np.tile(np.array(problem.loads(start)), (CHAINS, 1))
        self.held = np.tile(self.size @ places, (CHAINS, 1))

    def run(self) -> tuple[int, ...]:
        """Processors of the best plan seen."""
        chains = np.arange(CHAINS)
        energy, best_s, best = self._energy(self.loads), np.inf, self.processor[0]
        scale = float(self.loads.max()) or 1.0
        for temperature in scale * np.geomspace(FIRST_TEMPERATURE, LAST_TEMPERATURE, MOVES):
            units, targets = self._moves(chains)
            change, before, after = self._change(chains, units, targets)
            energies = self._energy(self.loads + change)
            allowed = self.possible[units, targets] & (self.held[chains, targets] + self.size[units] <= self.room[targets])
            worse = np.maximum(energies - energy, 0.0) / temperature
            taken = np.flatnonzero(allowed & (after != before) & (self.random.random(CHAINS) < np.exp(-worse)))
            if not len(taken):
                continue
            self._take(taken, units[taken], targets[taken], change[taken])
            energy[taken] = energies[taken]
            slowest = self.loads[taken].max(axis=1)
            if slowest.min() < best_s * (1 - 1e-12):
                best_s, best = float(slowest.min()), self.processor[taken[slowest.argmin()]].copy()
        return tuple(best.tolist())

    def _moves(self, chains: Ints) -> tuple[Ints, Ints]:
        """A unit and a target per chain; half of them from the busiest processor."""
        units = self.random.integers(len(self.size), size=CHAINS)
        busiest = self.loads.argmax(axis=1)
        ranks = np.where(self.processor == busiest[:, None], self.random.random(self.processor.shape), -1.0)
        units = np.where(chains % 2 == 0, ranks.argmax(axis=1), units)
        return units, self.random.integers(self.count, size=CHAINS)

    def _change(self, chains: Ints, units: Ints, targets: Ints) -> tuple[Floats, Ints, Ints]:
        """What the moves add to every load, and the processors before and after."""
        outputs, before = self.outputs, self.processor[chains, units]
        touched = outputs.touched[units]
        seconds = np.where(touched >= 0, outputs.seconds[touched], 0.0)
        owner = outputs.owner[touched]
        owning = owner == units[:, None]
        places = np.eye(self.count, dtype=np.int64)
        readers = self.readers[chains[:, None], touched]
        moved = readers + (places[targets] - places[before])[:, None, :] * ~owning[:, :, None]
        at = np.take_along_axis(self.processor, owner, axis=1)
        moved_at = np.where(owning, targets[:, None], at)
        sums = _transfers(moved, places[moved_at], seconds) - _transfers(readers, places[at], seconds)
        change = np.where(self.is_accelerator, sums, 0.0)
        np.add.at(change, (chains, before), -self.work_s[units, before])
        np.add.at(change, (chains, targets), self.work_s[units, targets])
        return change, before, targets

    def _take(self, chains: Ints, units: Ints, targets: Ints, change: Floats) -> None:
        before = self.processor[chains, units]
        touched = self.outputs.touched[units]
        row, column = np.nonzero((touched >= 0) & (self.outputs.owner[touched] != units[:, None]))
        np.subtract.at(self.readers, (chains[row], touched[row, column], before[row]), 1)
        np.add.at(self.readers, (chains[row], touched[row, column], targets[row]), 1)
        self.processor[chains, units] = targets
        self.loads[chains] += change
        self.held[chains, before] -= self.size[units]
        self.held[chains, targets] += self.size[units]

    @staticmethod
    def _energy(loads: Floats) -> Floats:
        top = np.maximum(loads.max(axis=1, keepdims=True), np.finfo(float).tiny)
        energy: Floats = top[:, 0] * ((np.maximum(loads, 0.0) / top) ** NORM).sum(axis=1) ** (1 / NORM)
        return energy


def _transfers(readers: Ints, own: Ints, seconds: Floats) -> Floats:
    """Seconds by processor of outputs with so many readers on each and their owner's place."""
    elsewhere = (readers > 0) & (own == 0)
    crossing = elsewhere | ((own > 0) & elsewhere.any(axis=2, keepdims=True))
    total: Floats = (crossing * seconds[:, :, None]).sum(axis=1)
    return total
