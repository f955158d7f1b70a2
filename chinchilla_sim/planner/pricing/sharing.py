"""Weights that several stages train, such as a head tied to its embedding, or blocks that share all theirs.

Every stage that uses a weight holds a copy with its own gradient and optimizer state. Once a step the gradients of all copies are summed
over the stages that hold it; equal copies with equal gradients stay equal (Shoeybi et al. 2019, Narayanan et al. 2021: Megatron does so
with embeddings). The sum comes after that of the replicas, in every replica for itself: an all-reduce of

    n = b                 bytes of each device, b of the weights in the precision of the job (its part under tensor parallelism)
    n = b / replicas      with ZeRO 1 to 3: replica d owns the same piece of a weight in each stage, and sums that piece alone

Where stages have replica counts of their own all their ranks take part in one all-reduce of b, each with its share of its stage's sum.
No codec touches it. Stages of one rank add theirs without a message, which costs nothing here. A set of weights is what exactly the same
stages use: it travels in one exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.exchanges import exchange_among
from chinchilla_sim.planner.pricing.prices import Exchange

Ring = Callable[[Plan, tuple[int, ...]], tuple[int, ...]]


def with_sharing(plan: Plan, graph: TaskGraph) -> Plan:
    """The plan with the sets of stages that train the same weights."""
    found = tuple(sorted(shared_bytes(graph, plan.stages))) if plan.training else ()
    return plan if found == plan.shared_stages else replace(plan, shared_stages=found)


def shared_names(graph: TaskGraph, stages: Sequence[Sequence[str]]) -> dict[tuple[int, ...], list[str]]:
    """Names of trained weights by the stages that use them, where those are several."""
    users: dict[str, list[int]] = {}
    for stage, names in enumerate(stages):
        for name in dict.fromkeys(weight for task in names for weight in graph.tasks[graph.position[task]].parameters):
            users.setdefault(name, []).append(stage)
    found: dict[tuple[int, ...], list[str]] = {}
    for name, held in users.items():
        if len(held) > 1 and graph.weights[name].trained:
            found.setdefault(tuple(held), []).append(name)
    return found


def shared_bytes(graph: TaskGraph, stages: Sequence[Sequence[str]]) -> dict[tuple[int, ...], float]:
    """Bytes of trained weights by the stages that use them, where those are several."""
    return {held: sum(graph.weights[name].bytes for name in names) for held, names in shared_names(graph, stages).items()}


def shared_exchanges(plan: Plan, graph: TaskGraph, cluster: Cluster, ring: Ring) -> tuple[tuple[Exchange, ...], ...]:
    """Exchanges by set of shared weights and replica; `graph` has the amounts of one device of a rank."""
    if not plan.shared_stages:
        return ()
    sizes = shared_bytes(graph, plan.stages)
    shards = plan.exchange_degree if plan.zero_stage and not plan.free_replicas else 1
    return tuple(
        tuple(
            _exchange_of(plan, plan.sharing_ranks(number, replica), sizes[group] / shards, cluster, ring)
            for replica in range(plan.data_parallel_degree)
        )
        for number, group in enumerate(plan.shared_stages)
    )


NORM_BYTES = 4.0
"""A sum of squares in fp32."""


def norm_exchanges(plan: Plan, cluster: Cluster, ring: Ring) -> tuple[Exchange, ...]:
    """Sums of squared gradients over all devices, by replica where each holds them all; none where gradients are not clipped."""
    if not plan.clips_gradients:
        return ()
    rows = dict.fromkeys(plan.norm_ranks(replica) for replica in range(plan.data_parallel_degree))
    slots = [tuple(slot for rank in ranks for slot in plan.slots_of(rank)) for ranks in rows]
    return tuple(_all_reduce(cluster, NORM_BYTES, (ring(plan, row),)) for row in slots)


def _exchange_of(plan: Plan, ranks: tuple[int, ...], payload: float, cluster: Cluster, ring: Ring) -> Exchange:
    """Each device of a rank with those in its place on the other ranks."""
    rows = zip(*(plan.slots_of(rank) for rank in ranks), strict=True)
    return _all_reduce(cluster, payload, tuple(ring(plan, slots) for slots in rows))


def _all_reduce(cluster: Cluster, payload: float, orders: tuple[tuple[int, ...], ...]) -> Exchange:
    return exchange_among(cluster, "all_reduce", payload, orders) if len(orders[0]) > 1 else Exchange("all_reduce")
