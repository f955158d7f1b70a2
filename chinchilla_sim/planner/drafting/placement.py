"""Which devices a plan uses, which rank runs which stage of which replica, and how many microbatches a replica gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapify, heapreplace

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.slots import SlotChooser


def share_out(total: int, seconds: Sequence[float]) -> list[int]:
    """How many of `total` microbatches each replica gets, at least one, so that the last to finish is as early as can be.

    The next one goes where it would be done first, which is optimal for equal pieces of work.

    >>> share_out(6, [1.0, 2.0])
    [4, 2]
    """
    counts = [1] * len(seconds)
    done = [(2 * one, replica) for replica, one in enumerate(seconds)]
    heapify(done)
    for _ in range(total - len(seconds)):
        _, replica = done[0]
        counts[replica] += 1
        heapreplace(done, ((counts[replica] + 1) * seconds[replica], replica))
    return counts


def distinct_replicas(plan: Plan, pricing: Pricing, cluster: Cluster) -> list[int]:
    """One replica of each kind: with the same prices, microbatches and memory."""
    kinds: dict[tuple[object, ...], int] = {}
    for replica in range(plan.data_parallel_degree):
        prices = tuple(id(row[replica]) for row in pricing.stages)
        limits = tuple(cluster.device(plan.slots_of(rank)[0]).usable_memory_bytes for rank in plan.pipeline(replica))
        kinds.setdefault((prices, plan.microbatches_of(replica), limits), replica)
    return list(kinds.values())


def slot_choices(cluster: Cluster, count: int) -> list[tuple[int, ...]]:
    """Devices worth using when so many are, in the order of the ranks, and like choices once (see `slots.py`)."""
    return SlotChooser(cluster, [device.usd_per_s for device in cluster.devices]).choices(count)


def placements(replicas: int, stages: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Ranks by [stage][replica]: stages of a replica side by side, and, where it differs, replicas of a stage side by side."""
    yield tuple(tuple(replica * stages + stage for replica in range(replicas)) for stage in range(stages))
    if replicas > 1 and stages > 1:
        yield tuple(tuple(stage * replicas + replica for replica in range(replicas)) for stage in range(stages))
