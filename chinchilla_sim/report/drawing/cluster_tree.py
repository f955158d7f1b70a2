"""The cluster as a tree of rows that a page can hold: nodes under their switches, what each runs and sends, equal ones folded.

Vertices under parents of one row are alike where devices, what their slots run, the network below them and what passes their link (to
LOAD_DIGITS digits) are the same. Where that leaves too many rows the numbers of stages, then loads, no longer tell them apart. A network
that is no tree is drawn as one vertex in the middle; what passes a node's "link" is then the sum over all its cables. Where no node
talks to another one, devices have rows of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.traffic import Traffic

MOST_ROWS = 14
LOAD_DIGITS = 2
MIDDLE = "network"


@dataclass(frozen=True, slots=True)
class Load:
    """Bytes of a step out of a vertex to its parent and back, and the share of the step that they fill the link."""

    out_bytes: float = 0.0
    in_bytes: float = 0.0
    busy_share: float = 0.0


@dataclass(frozen=True)
class Branch:
    """Vertices that are alike: `slots[i]` are the device slots right at vertex i, `load` is that of the busiest."""

    vertices: tuple[str, ...]
    depth: int
    slots: tuple[tuple[int, ...], ...]
    load: Load
    children: tuple[Branch, ...]

    def rows(self) -> list[Branch]:
        """This branch and all below it, from top to bottom."""
        return [self, *(row for child in self.children for row in child.rows())]


class ClusterTree:
    """The tree of one plan on one cluster."""

    def __init__(self, cluster: Cluster, plan: Plan, traffic: Traffic, step_s: float) -> None:
        self.cluster, self.step_s = cluster, step_s
        self.loads = traffic.over_links(cluster)
        self.between = traffic.between()
        # Where nothing leaves its node, who talks to whom is told by devices.
        self.by_device = bool(self.between) and all(cluster.node_of(a) == cluster.node_of(b) for a, b in self.between)
        self.slot_of = {name: number for number, name in enumerate(cluster.slots)}
        self.stages = {slot: stages for rank, (stages, _) in plan.position.items() for slot in plan.slots_of(rank)}

    @cached_property
    def _parents(self) -> dict[str, str]:
        """Vertex -> parent; the root is its own."""
        slots = {slot: self.cluster.node_of(number) for number, slot in enumerate(self.cluster.slots)}
        if not self.cluster.is_tree:
            return slots | dict.fromkeys(dict.fromkeys(slots.values()), MIDDLE) | {MIDDLE: MIDDLE}
        cables = self.cluster.graph.to_undirected(as_view=True)
        root = self._middle(cables)
        return {root: root} | {child: parent for parent, child in nx.bfs_edges(cables, root)}

    def _middle(self, cables: nx.Graph[str]) -> str:
        """The switch (else the node) whose removal leaves the fewest devices together; of several one that joins switches."""
        nodes = {self.cluster.node_of(number) for number in range(self.cluster.rank_count)}
        start = self.cluster.node_of(0)
        edges = list(nx.bfs_edges(cables, start))
        below = dict.fromkeys(self.cluster.graph, 0) | dict.fromkeys(self.slot_of, 1)
        largest = dict.fromkeys(self.cluster.graph, 0)
        for parent, child in reversed(edges):
            below[parent] += below[child]
            largest[parent] = max(largest[parent], below[child])
        places = [vertex for vertex in cables if vertex not in self.slot_of]
        rest = {vertex: max(largest[vertex], self.cluster.rank_count - below[vertex]) for vertex in places}
        middle: str = min(places, key=lambda vertex: (vertex in nodes, rest[vertex], sum(near in nodes for near in cables[vertex])))
        return middle

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for vertex, parent in self._parents.items():
            if vertex != parent:
                children.setdefault(parent, []).append(vertex)
        # As the scenario lists them.
        order = {vertex: at for at, vertex in enumerate(self.cluster.graph)}
        return {parent: sorted(found, key=lambda vertex: order.get(vertex, -1)) for parent, found in children.items()}

    def slots_at(self, vertex: str) -> tuple[int, ...]:
        """Device slots right at a vertex, or the vertex itself where devices have rows of their own."""
        if self.by_device:
            return (self.slot_of[vertex],) if vertex in self.slot_of else ()
        return tuple(self.slot_of[child] for child in self._children.get(vertex, ()) if child in self.slot_of)

    def below(self, vertex: str) -> list[str]:
        """Vertices under a vertex that have rows."""
        return [child for child in self._children.get(vertex, ()) if self.by_device or child not in self.slot_of]

    def load(self, vertex: str) -> Load:
        """What passes the link of a vertex to its parent."""
        parent = self._parents[vertex]
        if parent == vertex:
            return Load()
        graph = self.cluster.graph
        near = [parent] if parent in graph else [other for other in graph.successors(vertex) if other not in self.slot_of]
        away, back = [(vertex, other) for other in near], [(other, vertex) for other in near if graph.has_edge(other, vertex)]
        shares = [self.loads.get(edge, 0.0) / self.cluster.link(edge).bandwidth_bytes_per_s for edge in (*away, *back)]
        out, into = (sum(self.loads.get(edge, 0.0) for edge in edges) for edges in (away, back))
        return Load(out, into, max(shares, default=0.0) / self.step_s if self.step_s else 0.0)

    def branches(self) -> Branch:
        """The whole tree, folded as much as it takes to be readable."""
        (root,) = [vertex for vertex, parent in self._parents.items() if vertex == parent]
        for detail in (2, 1, 0):
            tree = self._branch((root,), 0, detail, {})
            if len(tree.rows()) <= MOST_ROWS:
                break
        return tree

    def _branch(self, vertices: Sequence[str], depth: int, detail: int, known: dict[str, Hashable]) -> Branch:
        groups: dict[Hashable, list[str]] = {}
        for vertex in vertices:
            for child in self.below(vertex):
                groups.setdefault(self._kind(child, detail, known), []).append(child)
        loads = [self.load(vertex) for vertex in vertices]
        return Branch(
            tuple(vertices),
            depth,
            tuple(self.slots_at(vertex) for vertex in vertices),
            max(loads, key=lambda load: (load.busy_share, load.out_bytes + load.in_bytes)),
            tuple(self._branch(members, depth + 1, detail, known) for members in groups.values()),
        )

    def _kind(self, vertex: str, detail: int, known: dict[str, Hashable]) -> Hashable:
        """What vertices that share a row have in common."""
        if vertex not in known:
            runs = [self._runs(slot, detail) for slot in self.slots_at(vertex)]
            below = Counter(self._kind(child, detail, known) for child in self.below(vertex))
            load = self.load(vertex)
            passing = tuple(float(f"{size:.{LOAD_DIGITS - 1}e}") for size in (load.out_bytes, load.in_bytes)) if detail else ()
            known[vertex] = (tuple(sorted(runs)), frozenset(below.items()), passing)
        return known[vertex]

    def _runs(self, slot: int, detail: int) -> tuple[str, tuple[int, ...]]:
        stages = self.stages.get(slot)
        used = () if stages is None else stages if detail == 2 else (-len(stages),)
        return self.cluster.devices[slot].name, used
