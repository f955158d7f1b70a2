"""Rows for stages that lie on ranks in any order and number: list scheduling, as for jobs with precedence (Graham 1969).

A rank that is free takes, of the passes that can start, a backward pass before a forward pass, the earliest microbatch first, and of one
microbatch the latest stage. A microbatch enters only while fewer than `in_flight` are between their first forward and last backward pass.
O(passes log passes).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from chinchilla_sim.planner.action import Action, Op


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Seconds of one microbatch through a stage, and over the boundary behind it one way (0 where the next stage is on the same rank)."""

    forward_s: float
    backward_s: float
    transfer_s: float = 0.0


def list_rows(ranks: Sequence[int], seconds: Sequence[StageSeconds], microbatches: int, in_flight: int) -> tuple[list[list[Action]], float]:
    """F and B of every rank in order, and the seconds until the last of them ends; `ranks[s]` runs stage s.

    >>> rows, step_s = list_rows([0, 1, 0], [StageSeconds(1, 1)] * 3, 1, 1)
    >>> " ".join(map(str, rows[0])), step_s
    ('0F0 2F0 2B0 0B0', 6.0)
    """
    return _Lister(ranks, seconds, microbatches, in_flight).run()


@dataclass(slots=True)
class _Lister:
    ranks: Sequence[int]
    seconds: Sequence[StageSeconds]
    microbatches: int
    in_flight: int
    events: list[tuple[float, int, int, Action | None]] = field(default_factory=list)
    """(when, running number, rank, pass that can start then on the rank; None: the rank is free)."""

    ready: list[list[tuple[tuple[int, int, int], Action]]] = field(default_factory=list)
    rows: list[list[Action]] = field(default_factory=list)
    free: list[bool] = field(default_factory=list)
    entered: int = 0
    number: int = 0
    end_s: float = 0.0

    def run(self) -> tuple[list[list[Action]], float]:
        count = max(self.ranks) + 1
        self.ready, self.rows, self.free = [[] for _ in range(count)], [[] for _ in range(count)], [True] * count
        while self.entered < min(self.in_flight, self.microbatches):
            self._enter(0.0)
        while self.events:
            now_s = self.events[0][0]
            touched: set[int] = set()
            while self.events and self.events[0][0] == now_s:
                _, _, rank, action = heapq.heappop(self.events)
                touched.add(rank)
                if action is None:
                    self.free[rank] = True
                else:
                    heapq.heappush(self.ready[rank], (self._priority(action), action))
            for rank in sorted(touched):
                if self.free[rank] and self.ready[rank]:
                    self._start(now_s, rank, heapq.heappop(self.ready[rank])[1])
        return self.rows, self.end_s

    @staticmethod
    def _priority(action: Action) -> tuple[int, int, int]:
        assert action.microbatch is not None
        return action.op is Op.F, action.microbatch, -action.stage

    def _enter(self, now_s: float) -> None:
        self._pass_on(now_s, Action(0, Op.F, self.entered))
        self.entered += 1

    def _start(self, now_s: float, rank: int, action: Action) -> None:
        stage, op, microbatch = action
        cost, last = self.seconds[stage], len(self.ranks) - 1
        done_s = now_s + (cost.forward_s if op is Op.F else cost.backward_s)
        self.rows[rank].append(action)
        self.free[rank] = False
        self.end_s = max(self.end_s, done_s)
        self._later(done_s, rank, None)
        if op is Op.F and stage < last:
            self._pass_on(done_s + cost.transfer_s, Action(stage + 1, Op.F, microbatch))
        elif op is Op.F:
            self._pass_on(done_s, Action(stage, Op.B, microbatch))
        elif stage:
            self._pass_on(done_s + self.seconds[stage - 1].transfer_s, Action(stage - 1, Op.B, microbatch))
        elif self.entered < self.microbatches:
            self._enter(done_s)

    def _pass_on(self, when_s: float, action: Action) -> None:
        self._later(when_s, self.ranks[action.stage], action)

    def _later(self, when_s: float, rank: int, action: Action | None) -> None:
        self.number += 1
        heapq.heappush(self.events, (when_s, self.number, rank, action))
