"""Exchanges: which devices take part in a collective, in what order, and by which algorithm."""

from __future__ import annotations

from chinchilla_sim.cluster.ring import ring_order
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.collective import MOST_IN_PAIRS, choose_algorithm, interpolate_s, measured_table, sent_bytes
from chinchilla_sim.cost.rounds import rounds_lower_bound_s
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Exchange


class Exchanges:
    """Exchanges of plans on one cluster; those of equal groups are kept between plans."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._found: dict[tuple[object, ...], Exchange] = {}
        self._rings: dict[tuple[int, ...], tuple[int, ...]] = {}

    def of_gradients(self, plan: Plan, stage: int, kind: str, payload: float, rounds: int = 1) -> Exchange:
        """The exchange of a stage's gradients, `payload` bytes of each replica; what is gathered is awaited from the start of a step."""
        posted = kind == "all_gather" and self.cluster.backend.rendezvous and plan.exchange_degree_of(stage) <= MOST_IN_PAIRS
        return self._among_replicas(plan, stage, kind, payload, rounds, "posted" if posted else plan.collective_algorithm)

    def of_weights(self, plan: Plan, stage: int, payload: float) -> Exchange:
        """The all-gather of a stage's weights, `payload` bytes in all, of which every replica has its share."""
        share = payload / plan.exchange_degree_of(stage)
        return self._among_replicas(plan, stage, "all_gather", share, 1, plan.collective_algorithm)

    def _among_replicas(self, plan: Plan, stage: int, kind: str, payload: float, rounds: int, algorithm: str) -> Exchange:
        if plan.exchange_degree_of(stage) == 1 or not payload:
            return Exchange(kind)
        group = plan.placement[stage], plan.slots, plan.tensor_parallel_degree, plan.context_parallel_degree
        key = kind, payload, rounds, *group, plan.gradient_buckets, algorithm, plan.ring_order
        if key not in self._found:
            width = plan.tensor_parallel_degree
            # Slots that hold the same part of the weights.
            lanes = [tuple(slot for rank in plan.placement[stage] for slot in plan.slots_of(rank)[lane::width]) for lane in range(width)]
            orders = tuple(self.ring(plan, slots) for slots in lanes)
            self._found[key] = exchange_among(self.cluster, kind, payload, orders, algorithm, plan.gradient_buckets, rounds)
        return self._found[key]

    def ring(self, plan: Plan, slots: tuple[int, ...]) -> tuple[int, ...]:
        """Slots in the order of the ring."""
        if plan.ring_order == "placed":
            return slots
        if slots not in self._rings:
            self._rings[slots] = tuple(ring_order(self.cluster, slots))
        return self._rings[slots]


def exchange_among(
    cluster: Cluster,
    kind: str,
    payload: float,
    orders: tuple[tuple[int, ...], ...],
    algorithm: str = "auto",
    buckets: int = 1,
    rounds: int = 1,
) -> Exchange:
    """A collective of `payload` bytes of each member among the slots of each order; `auto` chooses by the size of a bucket's round."""
    members = len(orders[0])
    sent = sent_bytes(kind, payload, members)
    tables = [measured_table(cluster, kind, order) for order in orders]
    if all(tables):
        # Rings of one stage that lie in different nodes wait for the slowest.
        table = max(tables, key=lambda rows: interpolate_s(rows, payload / rounds))
        return Exchange(kind, payload, rounds * interpolate_s(table, payload / rounds), sent, rounds, table=table, orders=orders)
    if algorithm == "auto":
        algorithm = choose_algorithm(kind, payload / buckets / rounds, members, cluster.slowest_pair(orders[0]), cluster.backend)
    idle_s = 0.0
    if algorithm != "hierarchical":
        idle_s = rounds * rounds_lower_bound_s(cluster, kind, algorithm, orders[0], payload / rounds)
    return Exchange(kind, payload, idle_s, sent, rounds, algorithm=algorithm, orders=orders)
