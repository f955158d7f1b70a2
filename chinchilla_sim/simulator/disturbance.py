"""What makes steps differ: jitter, stragglers, links that slow down for a while, traffic of others. All seeded.

A computation takes its seconds times a log-normal factor of mean 1 and the stated variation; a rank is a straggler
for a whole step with the stated chance. Many steps are drawn at once: the engine plays the step once with the
disturbed network, and its transfer times hold for every sample of the replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.cluster.topology import Cluster, Device
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.scenario.disturbances import DisturbanceSpec
from chinchilla_sim.simulator.activities import ActivityGraph
from chinchilla_sim.simulator.engine import play_events
from chinchilla_sim.simulator.fast import CompiledReplay
from chinchilla_sim.simulator.network import Disturbed, LinkChange, Traffic
from chinchilla_sim.simulator.replay import columns_of

SAMPLES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Disturbances:
    """`jitter` is the standard deviation of a computation's seconds over their mean; a straggler takes `straggler_factor` times as long."""

    jitter: float = 0.0
    straggler_chance: float = 0.0
    straggler_factor: float = 1.0
    link_changes: tuple[LinkChange, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    samples: int = 200
    seed: int = 0

    @property
    def network(self) -> Disturbed:
        """The part that the network plays."""
        return Disturbed(self.link_changes, self.traffic)


@dataclass(frozen=True, slots=True)
class Spread:
    """Step times of many disturbed steps."""

    steps_s: tuple[float, ...] = field(repr=False)

    def quantile_s(self, share: float) -> float:
        """The step time that this share of steps does not exceed."""
        return float(np.quantile(self.steps_s, share))

    @property
    def percentiles_s(self) -> tuple[float, float, float]:
        """p5, p50 and p95."""
        return self.quantile_s(0.05), self.quantile_s(0.5), self.quantile_s(0.95)


def draw_steps(graph: ActivityGraph, cluster: Cluster, devices: Sequence[Device], disturbances: Disturbances) -> Spread:
    """Step times of `samples` disturbed steps: Monte Carlo over computations, transfers as one disturbed playing has them."""
    times = play_events(graph, cluster, devices, disturbances.network)
    columns = columns_of(graph)
    seconds = np.asarray(columns.seconds)
    rank_of = np.full(len(seconds), -1)
    for activity, row in enumerate(columns.row_of):
        rank_of[row] = graph.ranks[activity]
        if activity in graph.flows or graph.ranks[activity] >= 0:
            # With overlap slowdown computations, too, last as long as they were played.
            seconds[row] = times.finish_s[activity] - times.start_s[activity]
    replay, random = CompiledReplay(columns), np.random.default_rng(disturbances.seed)
    makespans: list[float] = []
    while len(makespans) < disturbances.samples:
        count = min(SAMPLES_AT_ONCE, disturbances.samples - len(makespans))
        makespans += replay.makespans_s(_draw(seconds, rank_of, graph.rank_count, count, disturbances, random)).tolist()
    return Spread(tuple(makespans))


def mean_of_steps(exchanging: Spread, local: Spread, local_steps: int) -> Spread:
    """Mean step times from one exchange to the next: of one step that exchanges and local_steps - 1 that do not, drawn apart.

    >>> mean_of_steps(Spread((4.0, 4.0, 4.0)), Spread((1.0, 4.0, 1.0)), 3).steps_s
    (3.0, 2.0, 3.0)
    """
    if local_steps == 1:
        return exchanging
    drawn = np.array([np.roll(local.steps_s, -shift) for shift in range(1, local_steps)])
    return Spread(tuple(((np.array(exchanging.steps_s) + drawn.sum(axis=0)) / local_steps).tolist()))


def _draw(
    seconds: NDArray[np.float64],
    rank_of: NDArray[np.int64],
    rank_count: int,
    count: int,
    disturbances: Disturbances,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """Seconds of every row in `count` samples, shape (rows, samples)."""
    samples = np.repeat(seconds[:, None], count, axis=1)
    computes = rank_of >= 0
    if disturbances.jitter:
        sigma = np.sqrt(np.log1p(disturbances.jitter**2))
        samples[computes] *= random.lognormal(-(sigma**2) / 2, sigma, size=(int(computes.sum()), count))
    if disturbances.straggler_chance:
        slow = random.random((rank_count, count)) < disturbances.straggler_chance
        samples[computes] *= np.where(slow, disturbances.straggler_factor, 1.0)[rank_of[computes]]
    return samples


def disturbances_of(spec: DisturbanceSpec, cluster: Cluster, seed: int) -> Disturbances:
    """The scenario's [disturbances] on the links and slots of its cluster."""
    mistakes: list[Mistake] = []

    def slots_of(where: str, names: tuple[str, str]) -> tuple[int, int]:
        found = [cluster.first_slot(name) for name in names]
        for name, slot in zip(names, found, strict=True):
            if slot is None:
                known = ", ".join(sorted({cluster.node_of(slot) for slot in range(cluster.rank_count)})[:20])
                mistakes.append(Mistake(f"disturbances.{where}.between", f"there is no node {name!r}", f"known are {known}"))
        return found[0] or 0, found[1] or 0

    changes = []
    for index, change in enumerate(spec.links):
        pair = slots_of(f"links.{index}", change.between)
        changes += [LinkChange(edge, change.start_s, change.end_s, change.factor) for edge in cluster.route(*pair)]
    traffic = [Traffic(*slots_of(f"traffic.{i}", other.between), other.bandwidth_bytes_per_s) for i, other in enumerate(spec.traffic)]
    if mistakes:
        raise ScenarioError(mistakes)
    return Disturbances(spec.jitter, spec.straggler_chance, spec.straggler_factor, tuple(changes), tuple(traffic), spec.samples, seed)
