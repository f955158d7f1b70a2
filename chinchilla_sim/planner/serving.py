"""A plan that answers requests: each replica as a line of stations, and what a load makes of it.

A request is one sample. A replica takes up to `microbatch_size` waiting requests as one batch, which passes its stages in order: a stage
and the link behind it are stations, each busy with one batch at a time. Seconds of a batch of n requests are priced for n = 1, 2, 4, ...
and the full microbatch, and interpolated between. Links are idle but for the replica's own batches, and computing is not slowed by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.scenario.job import JobSpec


@dataclass(frozen=True, slots=True)
class Load:
    """Poisson arrivals of single requests."""

    arrivals_per_s: float
    seed: int = 0

    def arrivals_s(self, count: int) -> NDArray[np.float64]:
        """Seconds at which the first `count` requests arrive."""
        return np.random.default_rng(self.seed).exponential(1 / self.arrivals_per_s, count).cumsum()


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """So many requests are always under way: each answer brings the next one."""

    concurrency: int


@dataclass(frozen=True, slots=True)
class Station:
    """A stage or a link: `busy_s[n - 1]` with a batch of n requests, which is at the next station `delay_s` after that."""

    busy_s: tuple[float, ...]
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Tandem:
    """The stations of one replica, in order; all of them know batches of the same sizes."""

    stations: tuple[Station, ...]

    @property
    def most(self) -> int:
        """Requests of a full batch."""
        return len(self.stations[0].busy_s)

    def traversal_s(self, size: int) -> float:
        """Seconds of a batch that meets no other."""
        return sum(station.busy_s[size - 1] + station.delay_s for station in self.stations)

    def interval_s(self, size: int) -> float:
        """Seconds from batch to batch where they follow each other closely: those of the busiest station."""
        return max(station.busy_s[size - 1] for station in self.stations)

    @property
    def capacity_per_s(self) -> float:
        """Requests per second of full batches without a gap."""
        interval_s = self.interval_s(self.most)
        return self.most / interval_s if interval_s else float("inf")

    @property
    def window(self) -> int:
        """Batches that it holds at once: as many as keep its busiest station busy. More would wait inside it, cut small too early."""
        interval_s = self.interval_s(self.most)
        # Rounding of sums must not make three stages of equal length a line for four.
        return max(1, ceil(self.traversal_s(self.most) / interval_s - 1e-9)) if interval_s else 1


@dataclass(frozen=True, slots=True)
class Serving:
    """What requests meet: quantiles of the time from arrival to answer (infinite where saturated), and how full the replicas are.

    `capacity_per_s` is what full batches would answer; `utilization` the share of time that the busiest station of a replica is
    busy (mean over replicas), `batch_size` the mean batch. Under light load batches are small, and utilization is above `load`.
    In a closed loop (`concurrency`) as many arrive as are answered.
    """

    arrivals_per_s: float
    capacity_per_s: float
    p50_s: float = float("inf")
    p95_s: float = float("inf")
    p99_s: float = float("inf")
    mean_s: float = float("inf")
    throughput_per_s: float = 0.0
    utilization: float = 1.0
    batch_size: float = 0.0
    concurrency: int | None = None

    @property
    def load(self) -> float:
        """Arrivals over capacity."""
        return self.arrivals_per_s / self.capacity_per_s

    @property
    def saturated(self) -> bool:
        """Whether the line of waiting requests would grow without end."""
        return self.load >= 1 and self.concurrency is None

    def to_dict(self) -> dict[str, float | bool]:
        """JSON-ready; what is infinite in a saturated system becomes null there."""
        return asdict(self) | {"load": self.load, "saturated": self.saturated}


Serve = Callable[[Sequence[Tandem], Load], Serving]


def load_of(job: JobSpec) -> Load | None:
    """The arrivals that a job states, or None."""
    return None if job.arrivals_per_s is None else Load(job.arrivals_per_s, job.seed)


def demand_of(job: JobSpec) -> Load | ClosedLoop | None:
    """The requests that a job states, arriving at random or in a closed loop; None where it states none."""
    return ClosedLoop(job.concurrency) if job.concurrency is not None else load_of(job)


WARM_UP = 0.1
"""Share of the requests, the first, that still find an emptier system than later ones; they are not counted."""


def serving_of(
    rate: float | None, capacity_per_s: float, arrivals_s: ArrayLike, sizes: Sequence[int], answered_s: Sequence[float], busy: float
) -> Serving:
    """What requests met, from their arrivals, the batches in the order in which they left the line, and the seconds of their answers.

    `busy` are seconds of the busiest stations, mean over replicas; without a `rate` (a closed loop) as many arrive as are answered.
    """
    arrivals = np.asarray(arrivals_s, dtype=np.float64)
    counted = (np.repeat(answered_s, sizes) - arrivals)[int(WARM_UP * len(arrivals)) :]
    p50, p95, p99 = np.quantile(counted, [0.5, 0.95, 0.99]).tolist()
    elapsed_s = float(max(answered_s) - arrivals[0])
    throughput = len(arrivals) / elapsed_s
    return Serving(
        arrivals_per_s=throughput if rate is None else rate,
        capacity_per_s=capacity_per_s,
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        mean_s=float(counted.mean()),
        throughput_per_s=throughput,
        utilization=busy / elapsed_s,
        batch_size=len(arrivals) / len(sizes),
    )


def tandems_of(plan: Plan, pricer: Pricer) -> tuple[Tandem, ...]:
    """One line of stations for each replica of an inference plan."""
    sizes = priced_sizes(plan.microbatch_size)
    pricings = [pricer.price(with_batch(plan, size)) for size in sizes]
    lines: dict[tuple[tuple[tuple[float, ...], float], ...], Tandem] = {}
    found = []
    for replica in range(plan.data_parallel_degree):
        priced = _stations(plan, pricings, pricer.cluster, replica)
        if priced not in lines:
            lines[priced] = Tandem(tuple(Station(_every_size(sizes, seconds), delay_s) for seconds, delay_s in priced))
        found.append(lines[priced])
    return tuple(found)


def priced_sizes(most: int) -> list[int]:
    """Batch sizes that are priced: powers of two, and the full one.

    >>> priced_sizes(1), priced_sizes(12)
    ([1], [1, 2, 4, 8, 12])
    """
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def with_batch(plan: Plan, size: int) -> Plan:
    """The plan with microbatches of another size."""
    return replace(plan, global_batch_size=plan.global_batch_size // plan.microbatch_size * size)


def _stations(plan: Plan, pricings: Sequence[Pricing], cluster: Cluster, replica: int) -> tuple[tuple[tuple[float, ...], float], ...]:
    """Seconds by priced size, and delay, of stages and the links between them."""
    crowds = [_crowd(plan, cluster, rank) for rank in plan.pipeline(replica)]
    stages = [tuple(crowd * _stage_s(pricing, stage, replica) for pricing in pricings) for stage, crowd in enumerate(crowds)]
    stations = [(stages[0], 0.0)]
    for boundary, (source, target) in enumerate(pairwise(plan.pipeline(replica))):
        link = cluster.idle_link(plan.slots_of(source)[0], plan.slots_of(target)[0])
        factor = cluster.backend.header_factor / plan.group_width
        busy = tuple(pricing.boundary_bytes[boundary] * factor / link.bandwidth_bytes_per_s for pricing in pricings)
        stations += [(busy, link.latency_s), (stages[boundary + 1], 0.0)]
    return tuple(stations)


def _crowd(plan: Plan, cluster: Cluster, rank: int) -> float:
    """How many ranks, all of them busy, share the core of a rank where a machine has fewer than ranks."""
    slots = plan.slots_of(rank)
    hosts = cluster.hosts_of(plan.slots) if cluster.cores else ()
    return max((len(host.slots) / host.cores for host in hosts if not set(slots).isdisjoint(host.slots)), default=1.0)


def _stage_s(pricing: Pricing, stage: int, replica: int) -> float:
    """A stage with its codecs and the collectives that it waits for."""
    price = pricing.stages[stage][replica]
    codecs_s = price.action_s.get(Op.DECODE_F, 0.0) + price.action_s.get(Op.ENCODE_F, 0.0)
    return price.compute_s(Op.F) + price.blocking_s.get(Op.F, 0.0) + codecs_s


def _every_size(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.interp(np.arange(1, sizes[-1] + 1), sizes, seconds).tolist())
