"""Which device slots a plan of so many devices may use, and in which order: a few choices, one of each symmetry class.

Slots are counted by class and place, not by name (`cluster/symmetry.py`). Sets of n slots that are tried, at most MOST of them with
their orders, where they differ:

    fastest     the n fastest
    islands     the n fastest of the smallest island that holds n, for each kind of island
    roomiest    the n with most memory
    cheapest    the n with the least USD per flop, and the n with the least USD per second (where prices are given)
    packed      whole islands, wide ones first, as long as they fit

An order is a way through the islands, one after the other, each whole before the next begins: by falling speed, memory, rising speed, or
as listed. Among equals whole islands come before parts. Ranks take slots in that order, and `placement.placements` gives either the
stages of a replica or the replicas of a stage neighbouring slots: both ways round a narrow link between islands is crossed least.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from chinchilla_sim.cluster.topology import Cluster

MOST = 8
FEW = 64
"""Up to so many slots, where cables form no tree, choices also differ by the links between neighbours."""

Slots = tuple[int, ...]
Rate = Callable[[int], float]


def usable_by_speed(cluster: Cluster) -> list[int]:
    """Slots that the quotas allow together, the fastest first."""
    ranked = sorted(range(cluster.rank_count), key=lambda slot: (-cluster.devices[slot].flop_per_s, slot))
    return take(cluster, ranked, cluster.rank_count)


def take(cluster: Cluster, ranking: Iterable[int], count: int, taken: Sequence[int] = ()) -> list[int]:
    """The first `count` slots of a ranking that the quotas allow beside those `taken`."""
    limited = cluster.quota_of_slot
    used = Counter(limited[slot] for slot in taken if slot in limited) if limited else Counter()
    chosen: list[int] = []
    for slot in ranking:
        if len(chosen) == count:
            break
        quota = limited.get(slot)
        if quota is None or used[quota] < quota.limit:
            chosen.append(slot)
            used.update([quota] if quota else [])
    return chosen


class SlotChooser:
    """Choices of slots in a cluster, kept by their number; `usd_per_s` are the prices of all slots, if they matter."""

    def __init__(self, cluster: Cluster, usd_per_s: Sequence[float] = ()) -> None:
        self.cluster = cluster
        self.levels = cluster.islands
        self.classes = cluster.slot_classes
        self._choices: dict[int, list[Slots]] = {}
        devices, slots = cluster.devices, range(cluster.rank_count)
        place = {slot: rank for rank, slot in enumerate(sorted(slots, key=lambda slot: (*self._place(slot), slot)))}

        def ranked(rate: Rate) -> list[int]:
            return sorted(slots, key=lambda slot: (rate(slot), -devices[slot].flop_per_s, place[slot]))

        self.by_speed = ranked(lambda slot: -devices[slot].flop_per_s)
        self._rankings = [ranked(lambda slot: -devices[slot].memory_bytes)]
        if len(set(usd_per_s)) > 1 or len({(price, devices[slot].flop_per_s) for slot, price in enumerate(usd_per_s)}) > 1:
            self._rankings += [ranked(lambda slot: usd_per_s[slot] / devices[slot].flop_per_s), ranked(lambda slot: usd_per_s[slot])]
        self._members: list[dict[int, list[int]]] = []
        for level in self.levels:
            members: dict[int, list[int]] = defaultdict(list)
            for slot in self.by_speed:
                members[level[slot]].append(slot)
            self._members.append(dict(sorted(members.items())))
        self._alike = len(set(self.classes)) <= 1 and not cluster.quotas and all(list(level) == sorted(level) for level in self.levels)

    def choices(self, count: int) -> list[Slots]:
        """Slots worth using when so many are, best guess first; none where the quotas leave fewer."""
        if count not in self._choices:
            found: dict[object, Slots] = {}
            for slots in self._candidates(count) if count <= self.cluster.usable_count else ():
                found.setdefault(self._signature(slots), slots)
                if len(found) == MOST:
                    break
            self._choices[count] = list(found.values())
        return self._choices[count]

    def _candidates(self, count: int) -> Iterator[Slots]:
        if self._alike:
            # Any other choice of the same shape is this one, seen from elsewhere.
            yield tuple(range(count))
            return
        devices = self.cluster.devices
        fastest = self._take(self.by_speed, count)
        sets = [fastest, *self._island_sets(count), *(self._take(ranking, count) for ranking in self._rankings), self._packed(count)]
        by_speed: Rate = lambda slot: -devices[slot].flop_per_s  # noqa: E731
        by_memory: Rate = lambda slot: -devices[slot].memory_bytes  # noqa: E731
        slow_first: Rate = lambda slot: devices[slot].flop_per_s  # noqa: E731
        as_listed: Rate = lambda _slot: 0.0  # noqa: E731
        yield from (self._arranged(slots, by_speed) for slots in sets)
        for slots in dict.fromkeys(map(frozenset, sets)):
            yield from (self._arranged(slots, rate) for rate in (by_memory, slow_first, as_listed))

    def _place(self, slot: int) -> Iterator[int]:
        return (level[slot] for level in reversed(self.levels))

    def _take(self, ranking: Iterable[int], count: int, taken: Sequence[int] = ()) -> list[int]:
        return take(self.cluster, ranking, count, taken)

    def _island_sets(self, count: int) -> list[list[int]]:
        """The fastest slots of the islands that hold so many while none within them does; the first of each kind."""
        holding: set[int] = set()
        kinds: dict[object, list[int]] = {}
        for members in self._members:
            for slots in members.values():
                if len(slots) < count or not holding.isdisjoint(slots):
                    continue
                chosen = self._take(slots, count)
                if len(chosen) == count:
                    holding.update(slots)
                    kinds.setdefault(tuple(sorted(Counter(self.classes[slot] for slot in slots).items())), chosen)
        devices = self.cluster.devices
        return sorted(kinds.values(), key=lambda slots: (-sum(devices[slot].flop_per_s for slot in slots), min(slots)))

    def _packed(self, count: int) -> list[int]:
        """Islands whole, from wide to narrow and fast to slow, as long as they fit; single slots fill the rest."""
        devices, chosen = self.cluster.devices, dict[int, None]()
        for members in reversed(self._members):
            ranked = sorted(members.values(), key=lambda slots: (-devices[slots[0]].flop_per_s, -len(slots), min(slots)))
            for slots in ranked:
                if len(slots) <= count - len(chosen) and chosen.keys().isdisjoint(slots):
                    whole = self._take(slots, len(slots), tuple(chosen))
                    chosen |= dict.fromkeys(whole)
        rest = [slot for slot in self.by_speed if slot not in chosen]
        return [*chosen, *self._take(rest, count - len(chosen), tuple(chosen))]

    def _arranged(self, slots: Iterable[int], rate: Rate) -> Slots:
        """Slots island by island; islands and slots by their mean rate, whole islands before parts of them."""
        keys: dict[int, list[float]] = {slot: [] for slot in sorted(slots)}
        for members, level in zip(reversed(self._members[:-1]), reversed(self.levels[:-1]), strict=True):
            rates: dict[int, list[float]] = defaultdict(list)
            for slot in keys:
                rates[level[slot]].append(rate(slot))
            # Rounded, so that islands of equal devices are equal whatever their number.
            ranks = {island: float(f"{sum(values) / len(values):.9g}") for island, values in rates.items()}
            for slot, key in keys.items():
                island = level[slot]
                key += (ranks[island], len(members[island]) - len(rates[island]), island)
        return tuple(sorted(keys, key=lambda slot: (keys[slot], rate(slot), slot)))

    def _signature(self, slots: Slots) -> object:
        """What stays the same when slots change places with others of their class: their classes, and which share an island."""
        shapes = []
        for level in self.levels[:-1]:
            first: dict[int, int] = {}
            shapes.append(tuple(first.setdefault(level[slot], len(first)) for slot in slots))
        links: tuple[object, ...] = ()
        if len(slots) <= FEW and not self.cluster.is_tree:
            links = tuple(self.cluster.idle_link(a, b) for a, b in pairwise(slots))
        return tuple(self.classes[slot] for slot in slots), tuple(shapes), links
