"""The SimPy reference: activities start when what they wait for has finished, flows share the links.

Event callbacks on a graph that counts its dependencies; no process per rank. Computation that runs while its rank
communicates is slowed (`streams.py`) where a device says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import simpy

from chinchilla_sim.cluster.topology import Cluster, Device
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.program import Program
from chinchilla_sim.simulator.activities import ActivityGraph, Times, timeline_of
from chinchilla_sim.simulator.causes import with_causes
from chinchilla_sim.simulator.lowering import activities_of
from chinchilla_sim.simulator.network import Disturbed, FairNetwork
from chinchilla_sim.simulator.pause import no_collection
from chinchilla_sim.simulator.streams import SlowedStreams
from chinchilla_sim.timeline import Timeline


def simulate(program: Program, pricing: Pricing, cluster: Cluster, causes: bool = False) -> Timeline:
    """Play one step of a program; raises RunError that tells a cycle of waiting actions when it deadlocks.

    With `causes` idle time is explained and the critical path marked. Where only every H-th step exchanges, one of the others is played
    too: `step_s` of the timeline is the mean over H steps.
    """
    local = simulate(program.local, pricing, cluster) if program.local else None
    graph = activities_of(program, pricing, cluster)
    times = play_events(graph, cluster, devices_of(program.plan, cluster))
    timeline = replace(
        timeline_of(graph, times), local_steps=program.plan.local_steps if local else 1, local=local, stand_ins=program.stand_ins
    )
    return with_causes(graph, times, timeline) if causes else timeline


def play_events(graph: ActivityGraph, cluster: Cluster, devices: Sequence[Device] = (), disturbed: Disturbed | None = None) -> Times:
    """When each activity starts and finishes; `devices` of the ranks tell whether communication slows computation."""
    with no_collection():
        return _Engine(graph, cluster, devices, disturbed).run()


def devices_of(plan: Plan, cluster: Cluster) -> list[Device]:
    """The device of every rank while all ranks of the plan are busy."""
    return [cluster.device(plan.slots_of(rank)[0], len(plan.slots)) for rank in range(plan.rank_count)]


class _Engine:
    def __init__(self, graph: ActivityGraph, cluster: Cluster, devices: Sequence[Device], disturbed: Disturbed | None) -> None:
        self.graph, self.env = graph, simpy.Environment()
        self.starts, self.others, self.lags_s = graph.successors()
        self.waits = graph.waits()
        self.earliest_s = [0.0] * len(graph)
        self.start_s = [0.0] * len(graph)
        self.finish_s = [-1.0] * len(graph)
        slowed = any(device.overlap_slowdown or device.communication_s_per_byte or device.core_share < 1.0 for device in devices)
        shared = cluster.hosts_of([slot for slots in graph.slots for slot in slots]) if devices else ()
        self.streams = SlowedStreams(self.env, graph, devices, self._finish, shared) if slowed or shared else None
        rates_changed = self.streams.rates_changed if self.streams else None
        self.network = FairNetwork(self.env, cluster, self._arrived, rates_changed)
        if disturbed:
            self.network.disturb(disturbed)

    def run(self) -> Times:
        count = len(self.graph)
        for number in [number for number in range(count) if not self.waits[number]]:
            self._begin(number)
        self._release(count)
        self.env.run()
        if min(self.finish_s, default=0.0) < 0:
            raise self.graph.deadlock({number for number, end_s in enumerate(self.finish_s) if end_s >= 0})
        return Times(self.start_s, self.finish_s)

    def _release(self, number: int) -> None:
        """Whoever waited for this alone can start."""
        now_s, waits, earliest_s, others, lags_s = self.env.now, self.waits, self.earliest_s, self.others, self.lags_s
        for at in range(self.starts[number], self.starts[number + 1]):
            other = others[at]
            ready_s = now_s + lags_s[at]
            if ready_s > earliest_s[other]:
                earliest_s[other] = ready_s
            waits[other] -= 1
            if not waits[other]:
                if earliest_s[other] > now_s:
                    simpy.Timeout(self.env, earliest_s[other] - now_s, other).callbacks.append(self._lag_is_over)
                else:
                    self._begin(other)

    def _lag_is_over(self, event: simpy.Event) -> None:
        self._begin(event.value)  # type: ignore[arg-type]

    def _begin(self, number: int) -> None:
        flow = self.graph.flows.get(number)
        if flow:
            self._when_possible(flow.source_rank, flow.source, flow.messages, number, self._send)
            return
        self.start_s[number] = self.env.now
        if self.streams and self.graph.ranks[number] >= 0:
            self.streams.compute(number)
        else:
            simpy.Timeout(self.env, self.graph.seconds[number], number).callbacks.append(self._time_is_over)

    def _when_possible(self, rank: int, slot: int, messages: int, number: int, then: Callable[[int], None]) -> None:
        """Go on with a flow when one end's rank may run, and its host has handled messages that came before."""
        if self.streams is None:
            then(number)
        elif held_s := self.streams.held_s(rank):
            held = simpy.Timeout(self.env, held_s)
            held.callbacks.append(lambda _: self._when_possible(rank, slot, messages, number, then))
        elif turn_s := self.streams.queue_s(rank, slot, messages):
            simpy.Timeout(self.env, turn_s).callbacks.append(lambda _: then(number))
        else:
            then(number)

    def _send(self, number: int) -> None:
        flow = self.graph.flows[number]
        self.start_s[number] = self.env.now
        self.network.start(flow.source, flow.target, flow.wire_bytes, number, flow.weight)
        if self.streams:
            self.streams.communicate(flow.source_rank, flow.target_rank)

    def _time_is_over(self, event: simpy.Event) -> None:
        self._finish(event.value)  # type: ignore[arg-type]

    def _arrived(self, number: int) -> None:
        """The last byte of a flow is there; its rank takes it in when it can."""
        flow = self.graph.flows[number]
        if self.streams:
            self.streams.fall_silent(flow.source_rank, flow.target_rank)
        self._when_possible(flow.target_rank, flow.target, flow.messages, number, self._finish)

    def _finish(self, number: int) -> None:
        self.finish_s[number] = self.env.now
        self._release(number)
