"""Requests that arrive at random, wait for a replica, and pass its stations in batches.

One line of waiting requests, first come first served. A batch leaves it as soon as a replica is free and a request waits: it takes all that
wait, up to the full size, and waits for no more. Of several free replicas the one that has been free longest takes it. A replica is free
when its first station is, and it holds fewer batches than keep its busiest station busy (`Tandem.window`).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.planner.serving import ClosedLoop, Load, Serving, Tandem, serving_of
from chinchilla_sim.simulator.pause import no_collection

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST, MOST = 20_000, 200_000
"""Requests that are simulated: more near saturation, where the line forgets its past only after some 1 / (1 - load)^2 services."""
MEMORY = 50


@dataclass(frozen=True)
class Batches:
    """All batches in the order in which they left the line: requests in each, its replica, and when it started and was answered."""

    sizes: Ints
    replicas: Ints
    start_s: Floats
    end_s: Floats


def simulate_requests(tandems: Sequence[Tandem], load: Load) -> Serving:
    """Latencies of Poisson arrivals at these replicas; `saturated` where they are more than full batches can answer."""
    rate = load.arrivals_per_s
    serving = Serving(rate, sum(tandem.capacity_per_s for tandem in tandems))
    if serving.saturated:
        return serving
    count = int(min(MOST, max(FEWEST, MEMORY * tandems[0].most / (1 - serving.load) ** 2)))
    return serve_load(tandems, load, count)


def serve_load(tandems: Sequence[Tandem], load: Load, count: int) -> Serving:
    """Latencies of the first `count` requests, whether or not they are more than full batches can answer in the long run."""
    arrivals = load.arrivals_s(count)
    return _told(tandems, load.arrivals_per_s, arrivals, serve_arrivals(tandems, arrivals))


def serve_closed_loop(tandems: Sequence[Tandem], loop: ClosedLoop, count: int = FEWEST) -> Serving:
    """Latencies of the first `count` requests in a closed loop."""
    arrivals, batches = circulate(tandems, loop.concurrency, count)
    return replace(_told(tandems, None, arrivals, batches), concurrency=loop.concurrency)


def _told(tandems: Sequence[Tandem], rate: float | None, arrivals: Floats, batches: Batches) -> Serving:
    capacity = sum(tandem.capacity_per_s for tandem in tandems)
    busy = _busiest_s(tandems, batches) / len(tandems)
    return serving_of(rate, capacity, arrivals, batches.sizes.tolist(), batches.end_s.tolist(), busy)


def serve_arrivals(tandems: Sequence[Tandem], arrivals: Sequence[float] | Floats) -> Batches:
    """Every batch that these arrivals (ascending seconds) make."""
    with no_collection():
        return _serve(tandems, np.asarray(arrivals, dtype=np.float64).tolist())


def circulate(tandems: Sequence[Tandem], concurrency: int, count: int) -> tuple[Floats, Batches]:
    """Arrivals and batches of `count` requests of which `concurrency` are always under way, all of those at 0 s at first."""
    arrivals = [0.0] * concurrency
    with no_collection():
        batches = _serve(tandems, arrivals, count)
    return np.array(arrivals[:count]), batches


def _serve(tandems: Sequence[Tandem], arrivals: list[float], looped: int | None = None) -> Batches:
    """All arrivals, or the first `looped` requests of a closed loop, where each answer adds an arrival to the list."""
    lines = [[(station.busy_s, station.delay_s) for station in tandem.stations] for tandem in tandems]
    free_s = [[0.0] * len(line) for line in lines]
    most, windows = tandems[0].most, [tandem.window for tandem in tandems]
    exits: list[list[float]] = [[0.0] * window for window in windows]
    handled = [0] * len(tandems)
    ready = [(0.0, number) for number in range(len(tandems))]
    heapify(ready)
    batches: list[tuple[int, int, float, float]] = []
    first, count = 0, len(arrivals) if looped is None else looped
    while first < count:
        ready_s, replica = ready[0]
        start_s = now_s = max(ready_s, arrivals[first])
        end, limit = first + 1, min(first + most, count, len(arrivals))
        while end < limit and arrivals[end] <= start_s:
            end += 1
        size, free = end - first, free_s[replica]
        for number, (busy_s, delay_s) in enumerate(lines[replica]):
            if free[number] > now_s:
                now_s = free[number]
            free[number] = now_s = now_s + busy_s[size - 1]
            now_s += delay_s
        batches.append((size, replica, start_s, now_s))
        # The oldest batch in the window makes room for the next one.
        place = handled[replica] % windows[replica]
        exits[replica][place] = now_s
        handled[replica] += 1
        oldest_s = exits[replica][handled[replica] % windows[replica]] if handled[replica] >= windows[replica] else 0.0
        heapreplace(ready, (max(free[0], oldest_s), replica))
        first = end
        if looped is not None:
            for _ in range(size):
                insort(arrivals, now_s, lo=first)
    sizes, replicas, starts, ends = zip(*batches, strict=True) if batches else ((), (), (), ())
    return Batches(np.array(sizes, np.int64), np.array(replicas, np.int64), np.array(starts, np.float64), np.array(ends, np.float64))


def _busiest_s(tandems: Sequence[Tandem], batches: Batches) -> float:
    """Seconds that the busiest stations of all replicas are busy, together."""
    total = 0.0
    for number, tandem in enumerate(tandems):
        sizes = batches.sizes[batches.replicas == number] - 1
        total += max(float(np.asarray(station.busy_s)[sizes].sum()) for station in tandem.stations)
    return total
