"""What a second of useful work costs on rented devices, some of them at spot prices that can end at any time.

A node at its spot price is taken away every M_i on average, and any interruption stops the whole job: with several such nodes in use one
comes every M = 1 / sum(1 / M_i). Work since the last checkpoint is lost, checkpoints take delta, a restart R (Young 1974, Daly 2006):

    usd_per_work_s = W(M) * sum of prices        W(M) = seconds per second of useful work      failure.wall_s_per_work_s
                                                 at Daly's interval between checkpoints        failure.daly_interval_s

W(inf) = 1; without a checkpoint's delay W = e^(R/M). All devices are paid for the lost time, those at full price too. `rent` takes the
subset of offers with the least product; of more than EXACT offers those come first that save most per interruption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp, inf

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.failure import daly_interval_s, wall_s_per_work_s
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec

EXACT = 8


@dataclass(frozen=True, slots=True)
class Rent:
    """Prices of the devices in use together, and what interruptions make of them; `on_spot` are entries of the scenario."""

    usd_per_s: float
    full_usd_per_s: float
    on_spot: tuple[str, ...] = ()
    between_interruptions_s: float = inf
    interval_s: float = inf
    wall_s_per_work_s: float = 1.0

    @property
    def usd_per_work_s(self) -> float:
        """Expected USD per second of useful work."""
        return self.usd_per_s * self.wall_s_per_work_s


@dataclass(frozen=True, slots=True)
class _Saving:
    """What an entry's spot price saves, and how often it interrupts."""

    entry: str
    usd_per_s: float
    interruptions_per_s: float


def rent(cluster: Cluster, slots: Sequence[int], job: JobSpec, search: SearchSpec) -> Rent:
    """The way to rent these slots that `search.spot` asks for: all offers, none, or what costs least."""
    full_usd_per_s = sum(cluster.device(slot).usd_per_s for slot in slots)
    savings = _savings(cluster, slots) if cluster.spot_offers and search.spot != "never" else []
    if not savings:
        return Rent(full_usd_per_s, full_usd_per_s)
    subsets = [tuple(savings)] if search.spot == "always" else _subsets(savings)
    found = [_rent(full_usd_per_s, subset, job.checkpoint_s or 0.0, job.restart_s or 0.0) for subset in subsets]
    return min(found, key=lambda one: (one.usd_per_work_s, len(one.on_spot), one.on_spot))


def least_prices(cluster: Cluster, search: SearchSpec) -> list[float]:
    """USD per second of every slot at the least price that may be used."""
    offers = cluster.spot_offers if search.spot != "never" else {}
    prices = []
    for slot in range(cluster.rank_count):
        full, offer = cluster.device(slot).usd_per_s, offers.get(cluster.node_of(slot)) if offers else None
        prices.append(full if offer is None else offer.usd_per_s if search.spot == "always" else min(full, offer.usd_per_s))
    return prices


def _savings(cluster: Cluster, slots: Sequence[int]) -> list[_Saving]:
    saved: dict[str, float] = {}
    nodes: dict[str, set[str]] = {}
    between: dict[str, float] = {}
    for slot in slots:
        node = cluster.node_of(slot)
        offer = cluster.spot_offers.get(node)
        if offer:
            saved[offer.entry] = saved.get(offer.entry, 0.0) + cluster.device(slot).usd_per_s - offer.usd_per_s
            nodes.setdefault(offer.entry, set()).add(node)
            between[offer.entry] = offer.between_interruptions_s
    found = [_Saving(entry, saved[entry], len(nodes[entry]) / between[entry]) for entry in saved]
    return sorted(found, key=lambda saving: (-saving.usd_per_s / saving.interruptions_per_s, saving.entry))


def _subsets(savings: list[_Saving]) -> Iterator[tuple[_Saving, ...]]:
    for count in range(len(savings) + 1):
        yield from combinations(savings, count) if len(savings) <= EXACT else [tuple(savings[:count])]


def _rent(full_usd_per_s: float, subset: Sequence[_Saving], checkpoint_s: float, restart_s: float) -> Rent:
    entries = tuple(sorted(saving.entry for saving in subset))
    usd_per_s = full_usd_per_s - sum(saving.usd_per_s for saving in subset)
    if not subset:
        return Rent(usd_per_s, full_usd_per_s)
    between_s = 1.0 / sum(saving.interruptions_per_s for saving in subset)
    interval_s = daly_interval_s(checkpoint_s, between_s)
    exponent = restart_s / between_s
    if checkpoint_s:
        # Beyond e^700 nothing is ever finished.
        wall = wall_s_per_work_s(interval_s, checkpoint_s, restart_s, between_s) if exponent < 700.0 else inf
    else:
        wall = exp(exponent) if exponent < 700.0 else inf
    return Rent(usd_per_s, full_usd_per_s, entries, between_s, interval_s, wall)
