"""How fast are the evaluators? Every figure is measured here and now, beside one of bare SimPy for comparison."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import networkx as nx
import numpy as np
import simpy

from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import NO_EXCHANGE, Exchange, Pricing, StagePrice
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.space.estimate import ESTIMATED, PlanBatch, estimates_s
from chinchilla_sim.simulator.activities import ActivityGraph, makespan_s
from chinchilla_sim.simulator.engine import play_events
from chinchilla_sim.simulator.fast import CompiledReplay, is_available
from chinchilla_sim.simulator.lowering import activities_of
from chinchilla_sim.simulator.network import FairNetwork
from chinchilla_sim.simulator.pause import no_collection
from chinchilla_sim.simulator.replay import columns_of, play, replay

REPEATS = 3
EVENTS = 200_000


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured speed; `target` is what this project set itself (None: for comparison only), more is better unless `at_most`."""

    name: str
    value: float
    unit: str
    target: float | None = None
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the target is met."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


def measure_simulator() -> Iterator[Figure]:
    """Every figure of the table, one after the other."""
    bare = _rate(EVENTS, _bare_timeouts)
    yield Figure("bare env.timeout", bare, "events/s")
    quiet_graph, quiet = _pipeline(16, 512, float("inf"))
    engine = _rate(len(quiet_graph.records), lambda: play_events(quiet_graph, quiet))
    yield Figure("engine, free links", engine, "spans/s", 300_000)
    yield Figure("engine, spans per bare timeout", engine / bare, "")
    busy_graph, busy = _pipeline(16, 512, 1000.0)
    yield Figure("engine, shared links", _rate(len(busy_graph.records), lambda: play_events(busy_graph, busy)), "spans/s")
    actions = sum(map(len, lower(_pipeline_plan(16, 512)).actions))
    columns = columns_of(busy_graph)
    yield Figure("replay, plain Python", _rate(actions, lambda: play(columns)), "actions/s", 5e6)
    if is_available():
        compiled = CompiledReplay(columns)
        compiled.play()
        yield Figure("replay, numba (extra fast)", _rate(actions, compiled.play), "actions/s", 50e6)
    batch = random_batch(20_000, 16)
    yield Figure("closed form", _rate(20_000, lambda: estimates_s(batch)), "plans/s", 100_000)
    for hosts, rounds, target in ((100, 400, 185_000), (1000, 40, 90_000)):
        flows = hosts * rounds
        yield Figure(f"flows, {hosts} hosts in step", flows / play_permutations(hosts, rounds), "flows/s", target)
        yield Figure(f"flows, {hosts} hosts out of step", flows / play_permutations(hosts, rounds, pauses=True), "flows/s")
    seconds, megabytes = step_of_3072_gpus()
    yield Figure("one step of 3,072 GPUs, replicas folded", seconds, "s", 3.0, at_most=True)
    yield Figure("memory of that process", megabytes, "MB", 300.0, at_most=True)


def _rate(count: int, work: Callable[[], object]) -> float:
    """Units per second, median of some runs."""
    seconds = []
    for _ in range(REPEATS):
        start_s = perf_counter()
        work()
        seconds.append(perf_counter() - start_s)
    return count / median(seconds)


def _bare_timeouts() -> None:
    env = simpy.Environment()

    def again(event: simpy.Event) -> None:
        if event.value:
            simpy.Timeout(env, 1.0, event.value - 1).callbacks.append(again)

    simpy.Timeout(env, 1.0, EVENTS).callbacks.append(again)
    env.run()


def star(hosts: int, link: Link) -> Cluster:
    """Hosts around one switch."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    names = tuple(f"host-{index}/0" for index in range(hosts))
    for name in names:
        graph.add_edge(name, "switch", link=link)
        graph.add_edge("switch", name, link=link)
    return Cluster(graph, names, (Device("device", 1.0, 1.0),) * hosts, Backend("plain"))


def _pipeline_plan(ranks: int, microbatches: int) -> Plan:
    stages = tuple((f"task{stage}",) for stage in range(ranks))
    none = ("none",) * ranks
    return Plan(stages, tuple((rank,) for rank in range(ranks)), tuple(range(ranks)), microbatches, microbatches, "1f1b", none, none[1:])


def _pipeline(ranks: int, microbatches: int, bandwidth: float) -> tuple[ActivityGraph, Cluster]:
    """Equal stages, messages of 8 B, 1F1B."""
    plan, cluster = _pipeline_plan(ranks, microbatches), star(ranks, Link(0.01, bandwidth))
    price = StagePrice({Op.F: 1.0, Op.B: 2.0, Op.OPTIM: 0.1}, 0.0, {"weights": 100.0}, 10.0)
    pricing = Pricing(((price,),) * ranks, (8.0,) * (ranks - 1), (8.0,) * (ranks - 1), (NO_EXCHANGE,) * ranks)
    return activities_of(lower(plan), pricing, cluster), cluster


def random_batch(plans: int, stages: int, seed: int = 0) -> PlanBatch:
    """Plans of up to so many stages with random seconds."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, stages + 1, plans)
    exists = np.arange(stages)[None, :] < counts[:, None]
    inner = np.arange(stages)[None, :] < counts[:, None] - 1

    def seconds(where: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.where(where, random.random((plans, stages)), 0.0)

    backward, busy = seconds(exists), (seconds(inner), seconds(inner))
    schedules = random.integers(0, len(ESTIMATED), plans)
    link = (busy[0] + 0.01 * inner, busy[1] + 0.01 * inner)
    return PlanBatch(
        counts,
        random.integers(1, 64, plans),
        schedules,
        seconds(exists),
        backward,
        backward / 3,
        seconds(exists),
        np.zeros(exists.shape),
        link,
        busy,
    )


def play_permutations(hosts: int, rounds: int, pauses: bool = False, seed: int = 0) -> float:
    """Wall seconds in which every host sends `rounds` equal messages to the hosts of random permutations, each when its last has arrived.

    With `pauses` a host that draws itself sits a round out, and nobody stays in step.
    """
    cluster, random, env = star(hosts, Link(1e-5, 1.25e9)), np.random.default_rng(seed), simpy.Environment()
    targets = [_permutation(hosts, random, pauses) for _ in range(rounds)]
    sent = [0] * hosts

    def send(host: int) -> None:
        target = targets[sent[host]][host]
        sent[host] += 1
        delay = simpy.Timeout(env, 2e-5, (host, target))
        delay.callbacks.append(move)

    def move(event: simpy.Event) -> None:
        host, target = event.value  # type: ignore[misc]
        if host == target:
            arrive(host)
        else:
            network.start(host, target, 1e6, host)

    def arrive(host: int) -> None:
        if sent[host] < rounds:
            send(host)

    network = FairNetwork(env, cluster, arrive)
    cluster.route(0, 1)
    start_s = perf_counter()
    with no_collection():
        for host in range(hosts):
            send(host)
        env.run()
    return perf_counter() - start_s


def _permutation(hosts: int, random: np.random.Generator, fixed_points: bool) -> list[int]:
    while True:
        drawn = random.permutation(hosts)
        if fixed_points or not (drawn == np.arange(hosts)).any():
            return list(map(int, drawn))


def step_of_3072_gpus() -> tuple[float, float]:
    """Wall seconds and peak megabytes of a process of its own, for tp 8, pp 64, dp 6, 512 microbatches; like replicas are folded."""
    code = "from chinchilla_sim.simulator.benchmark import play_folded; print(*play_folded())"
    seconds, megabytes = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return float(seconds), float(megabytes)


def play_folded() -> tuple[float, float]:
    """What `step_of_3072_gpus` runs: wall seconds and peak megabytes of this process."""
    start_s = perf_counter()
    graph = folded_pipeline(tensor=8, ranks=64, replicas=6, microbatches=512)
    assert makespan_s(replay(graph)) > 0
    return perf_counter() - start_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def folded_pipeline(tensor: int, ranks: int, replicas: int, microbatches: int) -> ActivityGraph:
    """Equal stages on groups of devices in nodes around a switch; the first replica stands for all."""
    groups, none = ranks * replicas, ("none",) * ranks
    plan = Plan(
        stages=tuple((f"task{stage}",) for stage in range(ranks)),
        placement=tuple(tuple(replica * ranks + stage for replica in range(replicas)) for stage in range(ranks)),
        slots=tuple(range(groups * tensor)),
        global_batch_size=microbatches * replicas,
        microbatch_count=microbatches,
        schedule="1f1b",
        gradient_codecs=none,
        activation_codecs=none[1:],
        tensor_parallel_degree=tensor,
    )
    cluster = star(groups * tensor, Link(1e-5, 2.5e10))
    seconds = {Op.F: 0.01, Op.B: 0.02, Op.OPTIM: 0.05, Op.ENCODE_GRAD: 0.001}
    price = StagePrice(seconds, 0.0, {"weights": 1e10}, 1e7, blocking_s={Op.F: 0.002, Op.B: 0.002})
    exchange = Exchange("all_reduce", 1e9 / tensor, 0.1, 2e9 / tensor * (replicas - 1) / replicas)
    boundary = (2e6,) * (ranks - 1)
    pricing = Pricing(((price,) * replicas,) * ranks, boundary, boundary, (exchange,) * ranks)
    return activities_of(lower(plan, folded=True), pricing, cluster)
