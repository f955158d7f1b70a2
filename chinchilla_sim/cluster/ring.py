"""In which order a ring passes through device slots."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_sim.cluster.topology import Cluster

GREEDY = 8
"""Larger rings go through a tree's islands, which is the same there; going to the nearest slot looks at every pair."""


def ring_order(cluster: Cluster, slots: Sequence[int]) -> list[int]:
    """Slots in an order that crosses few and short links: from each to the nearest that is left.

    On a tree of switches every uplink is crossed once each way; an order that jumps between racks crosses it with every hop.
    """
    if len(slots) > GREEDY and cluster.is_tree:
        return _through_islands(cluster, slots)
    return _to_the_nearest(cluster, slots)


def _to_the_nearest(cluster: Cluster, slots: Sequence[int]) -> list[int]:
    left = list(slots[1:])
    order = [slots[0]]
    while left:
        here = order[-1]
        nearest = min(left, key=lambda slot: (len(cluster.route(here, slot)), cluster.latency_s(here, slot), slot))
        left.remove(nearest)
        order.append(nearest)
    return order


def _through_islands(cluster: Cluster, slots: Sequence[int]) -> list[int]:
    """The first slot's islands first, from the widest to the narrowest; the others whole, in the order of the cluster."""
    levels, first = cluster.islands[::-1], slots[0]

    def place(slot: int) -> list[tuple[bool, int]]:
        return [*((level[slot] != level[first], level[slot]) for level in levels), (slot != first, slot)]

    return sorted(slots, key=place)
