"""Zero-bubble schedules found for given seconds and memory: ZB-1p and ZB-2p (Qi et al. 2023, section 3).

Each rank greedily takes, whenever it is free, the first of: an input gradient that can start; a forward that can start
and fits into memory; a weight gradient that ends
before something else can start. What is not clear beforehand is left to trial (`_Trial`), and the best of all trials wins, with
ZB-H1 and ZB-H2 among the candidates where they fit. O(trials * ranks * microbatches).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from chinchilla_sim.planner.action import Action, Op
from chinchilla_sim.planner.schedules.alternating import interleaved_zero_bubble, zb_h2

NEVER_S = float("inf")


@dataclass(frozen=True, slots=True)
class PassSeconds:
    """What one microbatch costs on one rank: forward, input gradient, weight gradient."""

    forward_s: float
    input_s: float
    weight_s: float

    def of(self, op: Op) -> float:
        """Seconds of one pass."""
        return {Op.F: self.forward_s, Op.I: self.input_s, Op.W: self.weight_s}[op]


def find_rows(seconds: Sequence[PassSeconds], transfer_s: float, microbatches: int, limit: float, kept: float = 1.0) -> list[list[Action]]:
    """Rows of all ranks with the shortest longest row that hold the activations of at most `limit` microbatches at once.

    `kept` is the share of a microbatch's activations that stays from its I until its W.

    A row lasts from its first to its last pass: without a meeting of all ranks between steps (no global gradient norm,
    or the paper's validation after the update) steps follow each other at that distance, not at the makespan's.

    >>> rows = find_rows([PassSeconds(1, 1, 1)] * 2, 0.0, 3, limit=4)
    >>> " ".join(map(str, rows[1]))
    '1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2'
    """
    ranks = len(seconds)
    candidates = []
    for row_of in (interleaved_zero_bubble, zb_h2):
        rows = [list(row_of(rank, ranks, 1, microbatches)) for rank in range(ranks)]
        if all(most_held(row, kept) <= limit for row in rows):
            candidates.append(rows)
    for choices in product((2, 0), (0.5, 1.0), (0.0, 1.0), (0.0, 0.5, 1.0), (False, True)):
        candidates.append(_Greedy(seconds, transfer_s, microbatches, limit, kept, _Trial(*choices)).run())
    return min(candidates, key=lambda rows: row_seconds(rows, seconds, transfer_s))


def most_held(row: Sequence[Action], kept: float = 1.0) -> float:
    """Most activations that a rank holds at once, in microbatches of one stage; `kept` of one stays from I until W.

    >>> most_held([Action(0, Op.F, 0), Action(0, Op.I, 0), Action(0, Op.F, 1)], kept=0.25)
    1.25
    """
    change = {Op.F: 1.0, Op.B: -1.0, Op.I: kept - 1.0, Op.W: -kept}
    most = held = 0.0
    for action in row:
        held += change[action.op]
        most = max(most, held)
    return most


def row_seconds(rows: Sequence[Sequence[Action]], seconds: Sequence[PassSeconds], transfer_s: float) -> tuple[float, float]:
    """Seconds of the longest row and of all together, with one stage per rank and free links of a fixed delay."""
    finished: dict[Action, float] = {}
    clock = [0.0] * len(rows)
    begin = [NEVER_S] * len(rows)
    at = [0] * len(rows)
    progress = True
    while progress:
        progress = False
        for rank, row in enumerate(rows):
            while at[rank] < len(row):
                action = row[at[rank]]
                needed = _needed(action, len(rows))
                if needed is not None and needed not in finished:
                    break
                ready_s = 0.0 if needed is None else finished[needed] + (transfer_s if needed.stage != rank else 0.0)
                start_s = max(clock[rank], ready_s)
                begin[rank] = min(begin[rank], start_s)
                clock[rank] = finished[action] = start_s + seconds[rank].of(action.op)
                at[rank] += 1
                progress = True
    assert all(at[rank] == len(row) for rank, row in enumerate(rows)), "the rows deadlock"
    return max(end - start for start, end in zip(begin, clock, strict=True)), max(clock)


def _needed(action: Action, ranks: int) -> Action | None:
    """The pass of another rank, or the forward of the last, that an action waits for."""
    stage, op, microbatch = action
    if op is Op.F:
        return Action(stage - 1, Op.F, microbatch) if stage else None
    if op is Op.I:
        return Action(stage + 1, Op.I, microbatch) if stage < ranks - 1 else Action(stage, Op.F, microbatch)
    return None


@dataclass(frozen=True, slots=True)
class _Trial:
    """What one greedy run decides alike everywhere; fractions are of the seconds of the pass in question.

    Rank r runs at most `warm_up(ranks behind r)` forwards before its first input gradient, each delaying that by at most
    `1 - first_patience` of a forward, later ones by `1 - patience`. A weight gradient may reach `reach` of its seconds
    into what could start. With `in_turn` a forward goes before the next input gradient, even if a W must make room.
    """

    hops: int
    first_patience: float
    patience: float
    reach: float
    in_turn: bool

    def warm_up(self, behind: int) -> float:
        return self.hops * behind + 1 if self.hops else NEVER_S


class _Greedy:
    """One trial: every rank decides when it becomes free or when what it may wait for becomes known."""

    def __init__(
        self, seconds: Sequence[PassSeconds], transfer_s: float, microbatches: int, limit: float, kept: float, trial: _Trial
    ) -> None:
        self.seconds, self.transfer_s, self.limit, self.kept, self.trial = seconds, transfer_s, limit, kept, trial
        ranks = len(seconds)
        self.rows: list[list[Action]] = [[] for _ in seconds]
        self.free_s = [0.0] * ranks
        self.done = [dict.fromkeys((Op.F, Op.I, Op.W), 0) for _ in seconds]
        # When the next forward and input gradient of each rank can start, by microbatch.
        self.ready_s: list[dict[Op, list[float]]] = [{Op.F: [], Op.I: []} for _ in seconds]
        self.ready_s[0][Op.F] = [0.0] * microbatches
        self.forward_is_next = [False] * ranks
        self.queue = [(0.0, rank) for rank in range(ranks)]

    def run(self) -> list[list[Action]]:
        while self.queue:
            now_s, rank = heapq.heappop(self.queue)
            if now_s >= self.free_s[rank]:
                self._decide(rank, now_s)
        return self.rows

    def _next_s(self, rank: int, op: Op) -> float:
        done = self.done[rank][op]
        return self.ready_s[rank][op][done] if done < len(self.ready_s[rank][op]) else NEVER_S

    def _decide(self, rank: int, now_s: float) -> None:
        done, seconds, trial = self.done[rank], self.seconds[rank], self.trial
        forward_s, input_s = self._next_s(rank, Op.F), self._next_s(rank, Op.I)
        pending = done[Op.W] < done[Op.I]
        if done[Op.I] == 0 and done[Op.F] >= trial.warm_up(len(self.seconds) - 1 - rank):
            forward_s = NEVER_S
        held = done[Op.F] - done[Op.I] + self.kept * (done[Op.I] - done[Op.W])
        full = held + 1.0 > self.limit + 1e-9
        if forward_s <= now_s and self.forward_is_next[rank] and (pending or not full):
            return self._take(rank, Op.W if full else Op.F, now_s)
        if full:
            forward_s = NEVER_S
        patience = trial.patience if done[Op.I] else trial.first_patience
        if input_s <= now_s:
            self._take(rank, Op.I, now_s)
        elif forward_s <= now_s and input_s >= now_s + patience * seconds.forward_s:
            self._take(rank, Op.F, now_s)
        elif pending and min(input_s, max(forward_s, now_s)) >= now_s + (1.0 - trial.reach) * seconds.weight_s:
            self._take(rank, Op.W, now_s)
        else:
            soonest_s = min(input_s, forward_s if forward_s > now_s else NEVER_S)
            if soonest_s < NEVER_S:
                heapq.heappush(self.queue, (soonest_s, rank))

    def _take(self, rank: int, op: Op, now_s: float) -> None:
        microbatch = self.done[rank][op]
        self.done[rank][op] += 1
        self.rows[rank].append(Action(rank, op, microbatch))
        if op is not Op.W:
            self.forward_is_next[rank] = self.trial.in_turn and op is Op.I
        end_s = self.free_s[rank] = now_s + self.seconds[rank].of(op)
        heapq.heappush(self.queue, (end_s, rank))
        if op is Op.F:
            if rank == len(self.seconds) - 1:
                self.ready_s[rank][Op.I].append(end_s)
            else:
                self._hand_over(rank + 1, Op.F, end_s)
        elif op is Op.I and rank:
            self._hand_over(rank - 1, Op.I, end_s)

    def _hand_over(self, rank: int, op: Op, end_s: float) -> None:
        arrival_s = end_s + self.transfer_s
        self.ready_s[rank][op].append(arrival_s)
        # The rank may be idle: let it see what is on its way, now and when it is there.
        heapq.heappush(self.queue, (max(end_s, self.free_s[rank]), rank))
        heapq.heappush(self.queue, (max(arrival_s, self.free_s[rank]), rank))
