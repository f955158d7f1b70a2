"""Max-min fair sharing of links by flows, without a clock of its own (Bertsekas & Gallager 1992, progressive filling).

Raise the rates of all flows together, each in proportion to its weight; freeze those on a link that is full, or
that have reached their own limit; go on with the rest. Flows of one route, limit and weight have one rate: they
are one group. The filling of n groups with r links each takes O(n r log(n r)).

A change touches only the groups that share links with it, directly or through others: its connected component.
The bytes of a group are brought up to date only when its rate changes: `service` counts the bytes that each of
its flows has had since the group was last idle, so a flow that starts now ends at `service + bytes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

INFINITE = float("inf")
SAME_INSTANT = 1e-14  # Relative: some units in the last place of the clock, for completions that are equal on paper.


@dataclass(frozen=True, slots=True)
class Route:
    """The links that a flow shares, by number, what it may take at most (its narrowest link that is not shared), and its ends."""

    links: tuple[int, ...]
    limit_bytes_per_s: float = INFINITE
    ends_at: tuple[int, int] = (-1, -1)


class Group:
    """Equal flows: same route, same weight. `ends` is a heap of (service at the end, number, payload)."""

    __slots__ = ("count", "due_s", "ends", "ends_at", "limit", "links", "rate", "service", "updated_s", "weight")

    def __init__(self, route: Route, weight: float) -> None:
        self.links, self.limit, self.weight = route.links, route.limit_bytes_per_s, weight
        self.ends_at = route.ends_at
        self.rate = self.service = self.updated_s = 0.0
        self.due_s = INFINITE
        self.count = 0.0  # what the shares are computed with; `ends` may be ahead of it until the next `share`
        self.ends: list[tuple[float, int, Any]] = []


class FairSharing:
    """Flows under way on links of given capacities. Times must not decrease from call to call.

    Use: `start` flows, `finish` those that are due, then `share(now_s)` once for all changes of an instant;
    `next_s` is when the next flow ends. A payload is handed back when its flow has ended.
    """

    def __init__(self, capacities_bytes_per_s: Sequence[float]) -> None:
        self.capacity = list(capacities_bytes_per_s)
        self.users: list[dict[Group, None]] = [{} for _ in self.capacity]
        self._groups: dict[tuple[Route, float], Group] = {}
        self._changed: dict[Group, None] = {}
        self._touched: dict[Group, None] = {}
        self._alarms: list[tuple[float, int, Group]] = []
        self._number = 0

    def group(self, route: Route, weight: float = 1.0) -> Group:
        """The group that flows of this route and weight belong to."""
        key = (route, weight)
        if key not in self._groups:
            self._groups[key] = Group(route, weight)
        return self._groups[key]

    def start(self, group: Group, flow_bytes: float, now_s: float, payload: Any = None) -> None:
        """A flow enters its group; it moves from the next `share` on."""
        ends = group.ends
        if not ends:
            group.service, group.updated_s = 0.0, now_s
        elif group.updated_s < now_s:
            group.service += group.rate * (now_s - group.updated_s)
            group.updated_s = now_s
        self._number += 1
        heappush(ends, (group.service + flow_bytes, self._number, payload))
        self._changed[group] = None

    def finish(self, now_s: float) -> list[Any]:
        """Payloads of the flows that end now, in the order in which they started."""
        alarms, done = self._alarms, []
        horizon_s = now_s * (1 + SAME_INSTANT)
        while alarms and alarms[0][0] <= horizon_s:
            due_s, _, group = heappop(alarms)
            if due_s != group.due_s:
                continue  # the rate has changed since this alarm was set
            ends = group.ends
            last = ends[0][0]
            group.service, group.updated_s, group.due_s = last, now_s, INFINITE
            reach = last * (1 + SAME_INSTANT)
            while ends and ends[0][0] <= reach:
                _, number, payload = heappop(ends)
                done.append((number, payload))
            self._changed[group] = None
        done.sort(key=_number_of)
        return [payload for _, payload in done]

    def next_s(self) -> float:
        """When the next flow ends at the present rates; infinite when none is under way."""
        alarms = self._alarms
        while alarms and alarms[0][0] != alarms[0][2].due_s:
            heappop(alarms)
        return alarms[0][0] if alarms else INFINITE

    def set_capacity(self, link: int, capacity_bytes_per_s: float) -> None:
        """A link is slower or faster from the next `share` on."""
        self.capacity[link] = capacity_bytes_per_s
        self._changed.update(self.users[link])

    def share(self, now_s: float) -> list[Group]:
        """New rates after all changes of this instant; returns the groups whose rate or number of flows is new."""
        changed, users = self._changed, self.users
        if not changed:
            return []
        self._changed = {}
        self._touched = dict(changed)
        for group in changed:
            self._enter(group)
        crowded: dict[int, None] = {}
        for group in changed:
            for link in group.links:
                if len(users[link]) > 1 or (users[link] and not group.count):
                    crowded.update(dict.fromkeys(group.links))
                    break
            else:
                if group.count:  # alone on all its links
                    total = group.count * group.weight
                    self._set_rate(group, min([group.limit, *[self.capacity[link] / total * group.weight for link in group.links]]), now_s)
        if crowded:
            self._fill(crowded, changed, now_s)
        return list(self._touched)

    def _enter(self, group: Group) -> None:
        """Bring the links' lists of users up to date with a group's flows."""
        count = len(group.ends)
        if bool(count) != bool(group.count):
            for link in group.links:
                if count:
                    self.users[link][group] = None
                else:
                    del self.users[link][group]
            group.rate = 0.0
        group.count = count

    def _fill(self, seeds: Iterable[int], changed: dict[Group, None], now_s: float) -> None:
        links, groups = self._component(seeds)
        for group, level in fill_levels(groups, {link: self.capacity[link] for link in links}, self.users).items():
            rate = level * group.weight
            if rate != group.rate or group in changed:
                self._set_rate(group, rate, now_s)

    def _component(self, seeds: Iterable[int]) -> tuple[list[int], list[Group]]:
        """Links and groups that can be reached from some links, over groups under way."""
        users = self.users
        links = list(seeds)
        seen = set(links)
        groups: dict[Group, None] = {}
        for link in links:  # grows while it is read
            for group in users[link]:
                if group not in groups:
                    groups[group] = None
                    for other in group.links:
                        if other not in seen:
                            seen.add(other)
                            links.append(other)
        return links, list(groups)

    def _set_rate(self, group: Group, rate: float, now_s: float) -> None:
        if group.updated_s != now_s:
            group.service += group.rate * (now_s - group.updated_s)
            group.updated_s = now_s
        group.rate = rate
        self._touched[group] = None
        due_s = now_s + max(0.0, group.ends[0][0] - group.service) / rate if rate else INFINITE
        if due_s != group.due_s:
            group.due_s = due_s
            self._number += 1
            heappush(self._alarms, (due_s, self._number, group))


def _number_of(entry: tuple[int, Any]) -> int:
    return entry[0]


def fill_levels(groups: Sequence[Group], left: dict[int, float], users: Sequence[Iterable[Group]]) -> dict[Group, float]:
    """Rate per weight of every group: the tightest link or limit first. `left` holds the capacities and is used up.

    The share of a link can only grow while others freeze, so a link whose share has grown is put back in the heap.
    A share that rounding made smaller than the level already reached counts as that level.
    """
    level_of: dict[Group, float] = {}
    weight = dict.fromkeys(left, 0.0)
    heap: list[tuple[float, int, int]] = []
    for number, group in enumerate(groups):
        total = group.count * group.weight
        for link in group.links:
            weight[link] += total
        if group.limit < INFINITE:
            heap.append((group.limit / group.weight, 1, number))
    heap += [(left[link] / weight[link], 0, link) for link in left if weight[link]]
    heapify(heap)
    open_users = {link: sum(1 for _ in users[link]) for link in left}
    level = 0.0
    while len(level_of) < len(groups):
        share, is_limit, number = heappop(heap)
        if is_limit:
            frozen: Iterable[Group] = () if groups[number] in level_of else (groups[number],)
        elif not open_users[number]:
            continue
        else:
            fresh = left[number] / weight[number]
            if fresh > share and heap and fresh > heap[0][0]:
                heappush(heap, (fresh, 0, number))
                continue
            share, frozen = fresh, users[number]
        level = max(level, share)
        for group in frozen:
            if group not in level_of:
                level_of[group] = level
                _freeze(group, level, left, weight, open_users)
    return level_of


def _freeze(group: Group, level: float, left: dict[int, float], weight: dict[int, float], open_users: dict[int, int]) -> None:
    """Take a frozen group's rates and weights from its links."""
    total = group.count * group.weight
    for link in group.links:
        left[link] -= total * level
        weight[link] -= total
        open_users[link] -= 1
