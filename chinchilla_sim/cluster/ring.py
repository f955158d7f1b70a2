"""In which order a ring passes through device slots."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_sim.cluster.topology import Cluster


def ring_order(cluster: Cluster, slots: Sequence[int]) -> list[int]:
    """Slots in an order that crosses few and short links: from each to the nearest that is left.

    On a tree of switches every uplink is crossed once each way; an order that jumps between racks crosses it with every hop.
    """
    left = list(slots[1:])
    order = [slots[0]]
    while left:
        here = order[-1]
        nearest = min(left, key=lambda slot: (len(cluster.route(here, slot)), cluster.latency_s(here, slot), slot))
        left.remove(nearest)
        order.append(nearest)
    return order
