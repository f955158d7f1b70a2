"""Stages of a plan: where the line of tasks is cut, and what every stage computes again, for given degrees, devices and codecs.

Each stage has a menu of (time, memory) points, one for every kind of recompute that [search] allows. For every run of tasks j..i-1 and
every position the fastest point that fits into its memory is taken; `space/partition.py` then cuts the line exactly over these seconds.
Bytes of a run are sums over its distinct tensors and weights (`pricing/holdings.py`, `pricing/recompute.py`), kept for all runs at once as
matrices [j, i].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from chinchilla_sim.cluster.topology import Device, Link
from chinchilla_sim.cost.codec import payload_bytes
from chinchilla_sim.graph.task import Task
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.sharing import with_sharing
from chinchilla_sim.planner.schedules.registry import microbatches_in_flight
from chinchilla_sim.planner.space.configuration import RECOMPUTE
from chinchilla_sim.planner.space.partition import Cut, Floats, Line, allowed_cuts, best_cuts


@dataclass(frozen=True, slots=True)
class _Runs:
    """Of every run of tasks j..i-1, for the graph's batch: bytes of weights, and per kind of recompute those kept and those beside them."""

    trained_bytes: Floats
    untrained_bytes: Floats
    saved_bytes: Floats
    transient_bytes: Floats


class Cutter:
    """Cuts plans of one pricer; what runs of tasks hold and take is kept between plans."""

    def __init__(self, pricer: Pricer, recompute: Sequence[str]) -> None:
        self.pricer, self.graph, self.cluster = pricer, pricer.graph, pricer.cluster
        self.training = pricer.job.kind == "training"
        self.menu = [kind for kind in RECOMPUTE if kind in recompute] if self.training else ["none"]
        self.can_end = allowed_cuts(self.graph, self.training)
        self.crossing_bytes = np.array(
            [0.0, *(sum(row.output_bytes for row in self.graph.live_after(self.graph.position[task.name])) for task in self.tasks)]
        )
        self.crossing_bytes[-1] = 0.0
        self._runs: dict[tuple[int, str], _Runs] = {}
        self._seconds: dict[tuple[int, int, Device, int], dict[str, Floats]] = {}
        self._held: dict[tuple[object, ...], Floats] = {}

    @cached_property
    def tasks(self) -> Sequence[Task]:
        """Compute tasks in the order of the line."""
        return self.graph.compute_tasks

    def cut(self, whole: Plan) -> list[Plan]:
        """The plans of a plan of one stage whose `placement` has a row per stage: best cut first, then the balanced one.

        Where nothing fits the cut without a limit on memory says how far the closest plan is off; empty where no cut is allowed.
        """
        several = len(whole.placement) > whole.pipeline_parallel_degree
        found: dict[Plan, None] = {}
        # A rank with several stages has a share of its memory for each; all of it for each may fit where they are unequal.
        for shared in (True, False) if several else (False,):
            line, chosen = self._line(whole, self._limits(whole, shared))
            found |= dict.fromkeys(self._plan(whole, cut, chosen) for cut in best_cuts(line, whole.microbatch_count))
        if not found:
            line, chosen = self._line(whole, [np.inf] * len(whole.placement))
            found |= dict.fromkeys(self._plan(whole, cut, chosen) for cut in best_cuts(line, whole.microbatch_count))
        return list(found)

    def _limits(self, plan: Plan, shared: bool) -> list[float]:
        """Bytes for every stage: all of its rank's memory, or a share as its average need is of that of all stages of the rank."""
        whole = [min(self.cluster.device(plan.slots_of(rank)[0]).usable_memory_bytes for rank in row) for row in plan.placement]
        if not shared:
            return whole
        pricer = self.pricer.for_devices(plan)
        needs = [float(self._needed_bytes(plan, pricer, self.menu[0], self._in_flight(plan, s))[0, -1]) for s in range(len(whole))]
        of_rank: dict[int, float] = {}
        for need, row in zip(needs, plan.placement, strict=True):
            of_rank[row[0]] = of_rank.get(row[0], 0.0) + need
        # What needs nothing has all it needs.
        return [limit * need / of_rank[row[0]] if need else limit for limit, need, row in zip(whole, needs, plan.placement, strict=True)]

    def _plan(self, whole: Plan, cut: Cut, chosen: Sequence[Floats]) -> Plan:
        names = [name for stage in whole.stages for name in stage]
        ends = [0, *np.cumsum(cut.sizes).tolist()]
        stages = tuple(tuple(names[first:end]) for first, end in pairwise(ends))
        kinds = tuple(self.menu[int(chosen[d][first, end])] for d, (first, end) in enumerate(pairwise(ends)))
        return with_sharing(replace(whole, stages=stages, recompute=() if set(kinds) == {"none"} else kinds), self.graph)

    # Seconds

    def _line(self, plan: Plan, limits: Sequence[float]) -> tuple[Line, list[Floats]]:
        """The line with so many bytes for each stage, and the menu's point that each run of tasks takes."""
        count, pricer = plan.microbatch_count, self.pricer.for_devices(plan)
        once: list[Floats] = []
        busy: list[Floats] = []
        points: list[Floats] = []
        trained = self._runs_of(pricer, self.menu[0]).trained_bytes
        made: dict[tuple[frozenset[Device], int, float, float], tuple[Floats, Floats, Floats]] = {}
        for stage, row in enumerate(plan.placement):
            devices = frozenset(self.pricer.device_of(plan, rank) for rank in row)
            exchange = pricer.exchange_s_per_byte(plan, stage)
            key = devices, self._in_flight(plan, stage), limits[stage], exchange
            if key not in made:
                seconds, point = self._fastest(plan, pricer, devices, key[1], limits[stage])
                made[key] = seconds, count * seconds + exchange * trained, point
            for column, matrix in zip((once, busy, points), made[key], strict=True):
                column.append(matrix)
        link_once, link_busy = self._links(plan)
        return Line(once, busy, link_once, link_busy, self.can_end), points

    def _fastest(self, plan: Plan, pricer: Pricer, devices: frozenset[Device], in_flight: int, limit: float) -> tuple[Floats, Floats]:
        """Seconds of a microbatch through every run of tasks on its fastest point of the menu that fits; infinite where none does.

        The slowest of several devices counts.
        """
        best = np.full((len(self.can_end) + 1,) * 2, np.inf)
        point = np.zeros(best.shape)
        # Without a limit nothing fits anyway: the leanest point says how much is missing.
        for number, kind in list(enumerate(self.menu))[-1 if np.isinf(limit) else 0 :]:
            open_runs = np.isinf(best) & np.triu(np.ones(best.shape, dtype=np.bool_), 1)
            if not open_runs.any():
                break
            fits = open_runs if np.isinf(limit) else open_runs & (self._needed_bytes(plan, pricer, kind, in_flight) <= limit)
            best[fits] = np.maximum.reduce([self._pass_s(plan, pricer, device, kind) for device in devices])[fits]
            point[fits] = number
        return best, point

    def _pass_s(self, plan: Plan, pricer: Pricer, device: Device, kind: str) -> Floats:
        """Forward and backward seconds of one microbatch through every run of tasks."""
        size, busy = plan.microbatch_size, len(plan.slots)
        key = id(pricer), size, device, busy
        found = self._seconds.setdefault(key, {})
        if kind not in found:
            tasks = pricer.graph.compute_tasks
            seconds = np.array([sum(pricer.task_s(task, size, device, busy)[:2]) for task in tasks])
            if kind != "none":
                seconds = seconds + [pricer.again_s([task], kind, size, device, busy) for task in tasks]
            sums = np.concatenate([[0.0], np.cumsum(seconds)])
            found[kind] = sums[None, :] - sums[:, None]
        return found[kind]

    def _links(self, plan: Plan) -> tuple[list[Floats], list[Floats]]:
        """Of the link into every position, behind every task: seconds there and back once, and seconds of a step one way."""
        free = np.zeros(len(self.crossing_bytes))
        once, busy = [free], [free]
        scale, value_bytes = self.pricer.scale(plan.microbatch_size), self.pricer.value_bytes
        made: dict[tuple[Link, str], tuple[Floats, Floats]] = {}
        for boundary, (lower, upper) in enumerate(pairwise(plan.placement)):
            links = {self.cluster.idle_link(plan.slots_of(a)[0], plan.slots_of(b)[0]) for a, b in zip(lower, upper, strict=True)}
            link = max(links, key=lambda link: (1 / link.bandwidth_bytes_per_s, link.latency_s))
            codec = plan.activation_codecs[boundary]
            if (link, codec) not in made:
                payload = np.array([payload_bytes(codec, scale * size, value_bytes) for size in self.crossing_bytes])
                sent = payload / plan.group_width / link.bandwidth_bytes_per_s
                there = 1 + self.training
                made[link, codec] = there * (link.latency_s + sent), plan.microbatch_count * sent
            once.append(made[link, codec][0])
            busy.append(made[link, codec][1])
        return once, busy

    # Memory

    def run_bytes(self, plan: Plan, first: int, end: int, in_flight: int) -> float:
        """Peak bytes of tasks first..end-1 as a stage, without recompute."""
        return float(self._needed_bytes(plan, self.pricer.for_devices(plan), self.menu[0], in_flight)[first, end])

    @staticmethod
    def _in_flight(plan: Plan, stage: int) -> int:
        ranks, stages = plan.pipeline_parallel_degree, len(plan.placement)
        return microbatches_in_flight(plan.schedule, stage, ranks, stages, plan.microbatch_count)

    def _needed_bytes(self, plan: Plan, pricer: Pricer, kind: str, in_flight: int) -> Floats:
        """Peak bytes of every run of tasks as a stage."""
        runs = self._runs_of(pricer, kind)
        held, scale = self._held_bytes(plan, pricer), pricer.scale(plan.microbatch_size)
        crossing = (self.crossing_bytes[:, None] + self.crossing_bytes[None, :]) * scale / plan.group_width
        buffers = min(plan.receives_in_flight, plan.microbatch_count) * crossing
        needed: Floats = held + buffers + scale * (in_flight * runs.saved_bytes + runs.transient_bytes)
        return needed

    def _held_bytes(self, plan: Plan, pricer: Pricer) -> Floats:
        """What every run of tasks holds all the time: weights, gradients, optimizer state, exchange buffers."""
        key = id(pricer), plan.exchange_degree, plan.zero_stage, plan.gradient_buckets, plan.gradient_codecs[0]
        if key not in self._held:
            self._held[key] = self._new_held_bytes(plan, pricer, self._runs_of(pricer, self.menu[0]))
        return self._held[key]

    @staticmethod
    def _new_held_bytes(plan: Plan, pricer: Pricer, runs: _Runs) -> Floats:
        """By pairs of bytes where those decide; the payload of low-rank factors depends on which weights a run has."""
        tasks, held = pricer.graph.compute_tasks, np.zeros(runs.trained_bytes.shape)
        known: dict[tuple[float, ...], float] = {}
        for first, end in zip(*np.triu_indices(len(held), 1), strict=True):
            pair = float(runs.trained_bytes[first, end]), float(runs.untrained_bytes[first, end])
            key = (*pair, float(first), float(end)) if plan.gradient_codecs[0] == "low-rank" else pair
            if key not in known:
                known[key] = sum(pricer.held_parts(plan, 0, tasks[first:end], *pair).values())
            held[first, end] = known[key]
        return held

    def _runs_of(self, pricer: Pricer, kind: str) -> _Runs:
        """Matrices [j, i] of one kind of recompute; zero where j >= i."""
        key = id(pricer), kind
        if key not in self._runs:
            count = len(self.can_end) + 1
            columns = np.zeros((4, count, count))
            for first in range(count - 1):
                for length, holding in enumerate(pricer.holdings(first, kind), start=1):
                    saved = holding.saved_bytes if self.training else pricer.graph.compute_tasks[first + length - 1].output_bytes
                    transient = holding.transient_bytes if self.training else 0.0
                    columns[:, first, first + length] = holding.trained_bytes, holding.untrained_bytes, saved, transient
            self._runs[key] = _Runs(*columns)
        return self._runs[key]
