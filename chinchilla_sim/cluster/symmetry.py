"""Which device slots are alike, and which of them lie close together.

Both look at the network without the trees that hang from it. Leaves are taken off layer by layer until only a core is left: one vertex
or two of a tree, the meshed part of any other network.

`slot_classes` is colour refinement (Weisfeiler & Leman 1968; on trees Aho, Hopcroft & Ullman 1974, where it is exact): a vertex is what
it is, what its links are and what hangs from it, then by what its neighbours in the core are, then by what it hangs from. Equal classes
mean that no link and no neighbour tells two slots apart. O(edges) for trees; in a core O(edges), to ROUNDS hops.

`find_islands` joins vertices by rising t, the seconds in which all devices of the smaller side send MESSAGE_BYTES across an edge:

    t = latency + MESSAGE_BYTES * n / bandwidth       n = slots on the smaller side of the edge

so that an oversubscribed uplink is slow however wide it is, and so is a distant site. Within the core of a mesh n counts the slots that
hang from the lesser end. Edges with equal t are joined by rising n, so that a rack comes before the whole even without oversubscription.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby
from typing import Any, Protocol, TypeAlias

import networkx as nx

Graph: TypeAlias = "nx.DiGraph[str]"

MESSAGE_BYTES = 1e6
"""Between the messages of a pipeline and the buckets of gradients: latency counts as much as bandwidth at 1 GB/s and 1 ms."""

ROUNDS = 32
"""What is further away in a core tells no vertices apart."""


class _Link(Protocol):
    @property
    def latency_s(self) -> float: ...
    @property
    def bandwidth_bytes_per_s(self) -> float: ...
    @property
    def medium(self) -> str: ...
    @property
    def fat_pipe(self) -> bool: ...


class _Numbers(dict[Hashable, int]):
    """Numbers of things in the order in which they are first seen."""

    def __missing__(self, key: Hashable) -> int:
        self[key] = len(self)
        return self[key]


class Peeled:
    """A graph without its hanging trees: `order` lists (vertex, parent) as they are taken off, `core` is what is left."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.succ: dict[str, dict[str, Any]] = dict(graph.adjacency())
        self.neighbours = self.succ
        one_way = [(one, other) for one, near in self.succ.items() for other in near if one not in self.succ[other]]
        if one_way:
            self.neighbours = {vertex: dict(near) for vertex, near in self.succ.items()}
            for one, other in one_way:
                self.neighbours[other][one] = None
        degree = {vertex: len(near) for vertex, near in self.neighbours.items()}
        self.order: list[tuple[str, str]] = []
        parents: dict[str, str] = {}
        layer = [vertex for vertex in graph if degree[vertex] == 1]
        while layer and len(degree) - len(self.order) > 2:
            following = []
            for vertex in layer:
                parent = next(near for near in self.neighbours[vertex] if near not in parents)
                parents[vertex] = parent
                self.order.append((vertex, parent))
                degree[parent] -= 1
                if degree[parent] == 1:
                    following.append(parent)
            layer = following
        self.core = [vertex for vertex in graph if vertex not in parents]
        self._inside = set(self.core)

    def links(self, one: str, other: str) -> tuple[_Link | None, _Link | None]:
        """The link there and the link back."""
        there, back = self.succ[one].get(other), self.succ[other].get(one)
        return there and there["link"], back and back["link"]

    def within_core(self, vertex: str) -> list[str]:
        """Neighbours of a vertex of the core that are in it too."""
        return [near for near in self.neighbours[vertex] if near in self._inside]


def slot_classes(peeled: Peeled, slots: Sequence[str], labels: Sequence[Hashable]) -> tuple[int, ...]:
    """Class of every slot, numbered in the order of the slots; `labels` say what is in them."""
    if len(slots) < 2:
        return (0,) * len(slots)
    numbers = _Numbers()
    own: dict[str, Hashable] = dict(zip(slots, labels, strict=True))
    hanging: dict[str, list[tuple[int, int]]] = {}
    code: dict[str, int] = {}
    for vertex, parent in peeled.order:
        code[vertex] = numbers["tree", own.get(vertex), tuple(sorted(hanging.pop(vertex, ())))]
        hanging.setdefault(parent, []).append((numbers[_kind(peeled, vertex, parent)], code[vertex]))
    colour = {vertex: numbers["tree", own.get(vertex), tuple(sorted(hanging.pop(vertex, ())))] for vertex in peeled.core}
    colour = _refine(peeled, colour, numbers)
    for vertex, parent in reversed(peeled.order):
        colour[vertex] = numbers["below", colour[parent], numbers[_kind(peeled, vertex, parent)], code[vertex]]
    classes = _Numbers()
    return tuple(classes[colour[slot]] for slot in slots)


def _refine(peeled: Peeled, colour: dict[str, int], numbers: _Numbers) -> dict[str, int]:
    """Colours of the core until another round finds no more of them."""
    kinds = {vertex: [(numbers[_kind(peeled, vertex, near)], near) for near in peeled.within_core(vertex)] for vertex in peeled.core}
    count = 0
    for _ in range(ROUNDS):
        if len(set(colour.values())) == count:
            break
        count = len(set(colour.values()))
        colour = {
            vertex: numbers["core", colour[vertex], tuple(sorted((kind, colour[near]) for kind, near in near_by))]
            for vertex, near_by in kinds.items()
        }
    return colour


def _kind(peeled: Peeled, one: str, other: str) -> Hashable:
    there, back = peeled.links(one, other)
    return _figures(there) if there == back else (_figures(there), _figures(back))


def _figures(link: _Link | None) -> Hashable:
    return (link.latency_s, link.bandwidth_bytes_per_s, link.medium != "", link.fat_pipe) if link else None


def find_islands(peeled: Peeled, slots: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Nested islands, narrowest first: on each level the island of every slot, numbered in the order of the slots; last the whole."""
    whole = (0,) * len(slots)
    if len(slots) < 2:
        return (whole,)
    edges = sorted(_distances(peeled, frozenset(slots)))
    home = {vertex: vertex for vertex in peeled.graph}

    def find(vertex: str) -> str:
        while home[vertex] != vertex:
            home[vertex] = home[home[vertex]]
            vertex = home[vertex]
        return vertex

    levels: list[tuple[int, ...]] = []
    for _, group in groupby(edges, key=lambda edge: edge[:2]):
        for *_, one, other in group:
            home[find(one)] = find(other)
        numbers = _Numbers()
        level = tuple(numbers[find(slot)] for slot in slots)
        if 1 < len(numbers) < len(slots) and (not levels or level != levels[-1]):
            levels.append(level)
    return (*levels, whole)


def _distances(peeled: Peeled, slots: frozenset[str]) -> Iterator[tuple[float, int, str, str]]:
    """(t, n, one end, other end) of every edge."""
    below = dict.fromkeys(peeled.graph, 0) | dict.fromkeys(slots, 1)
    for vertex, parent in peeled.order:
        below[parent] += below[vertex]
        side = max(1, min(below[vertex], len(slots) - below[vertex]))
        yield _across_s(peeled, vertex, parent, side), side, vertex, parent
    core = nx.Graph((vertex, near) for vertex in peeled.core for near in peeled.within_core(vertex))
    bridges = dict(_bridge_sides(core, below, len(slots)))
    for one, other in core.edges:
        side = bridges.get(frozenset((one, other))) or min(filter(None, (below[one], below[other])), default=1)
        yield _across_s(peeled, one, other, side), side, one, other


def _bridge_sides(core: nx.Graph[str], below: dict[str, int], count: int) -> Iterator[tuple[frozenset[str], int]]:
    """Slots on the smaller side of every bridge of the core, such as the only link between two sites."""
    for one, other in list(nx.bridges(core)):
        core.remove_edge(one, other)
        side = sum(below[vertex] for vertex in nx.node_connected_component(core, one))
        core.add_edge(one, other)
        yield frozenset((one, other)), max(1, min(side, count - side))


def _across_s(peeled: Peeled, one: str, other: str, side: int) -> float:
    there, back = peeled.links(one, other)
    return max(_message_s(there, side), _message_s(back, side) if back is not there else 0.0)


def _message_s(link: _Link | None, side: int) -> float:
    return link.latency_s + MESSAGE_BYTES * side / link.bandwidth_bytes_per_s if link else float("inf")
