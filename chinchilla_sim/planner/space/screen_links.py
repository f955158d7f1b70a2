"""Links in the screen of a space: what no cut, placement or codec can avoid to send, and what idle exchanges and transfers take."""

from __future__ import annotations

from functools import cached_property
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.cluster.topology import Link
from chinchilla_sim.cost.codec import CODECS, exchange_kind
from chinchilla_sim.cost.collective import collective_s, sent_bytes
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.space.configuration import Sharding, Space
from chinchilla_sim.planner.space.partition import allowed_cuts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ALL_PAIRS = 64


class ScreenLinks:
    """Seconds on the links of a cluster, by configuration; d are replicas, p pipeline ranks."""

    def __init__(self, pricer: Pricer, space: Space) -> None:
        self.pricer, self.space = pricer, space
        self.cluster, self.search = pricer.cluster, space.search

    @cached_property
    def _fastest_link(self) -> Link:
        """Least latency and largest bandwidth between any two devices; of a large cluster, of any single link."""
        cluster, slots = self.cluster, range(self.cluster.rank_count)
        if cluster.rank_count <= ALL_PAIRS:
            links = [cluster.idle_link(a, b) for a, b in permutations(slots, 2)]
        else:
            links = [cluster.link(edge) for edge in cluster.graph.edges]
        return Link(min(link.latency_s for link in links), max(link.bandwidth_bytes_per_s for link in links))

    @cached_property
    def _narrowest_cut_bytes(self) -> tuple[float, float]:
        """Least bytes per batch of the graph that any cut sends on, and back."""
        graph = self.pricer.graph
        cuts = allowed_cuts(graph, self.space.training)
        ends = [task for task, cut in zip(graph.compute_tasks, cuts, strict=True) if cut][:-1]
        live = [graph.live_after(graph.position[task.name]) for task in ends]
        on = [sum(producer.output_bytes for producer in row) for row in live]
        back = [sum(producer.output_bytes for producer in row if producer.needs_gradient) for row in live]
        return min(on, default=0.0), min(back, default=0.0)

    def crossing_s(self, sharding: Sharding, size: Ints) -> Floats:
        """Seconds of the narrowest cut there and, in training, back, at least."""
        if self.cluster.rank_count < 2:
            return np.zeros(len(size))
        link, scale = self._fastest_link, self.pricer.scale(1) * size / sharding.group_width
        # A codec takes at least the share of its bytes per value; scales and headers come on top.
        share = min(1.0, min(CODECS[codec].value_bytes for codec in self.search.activation_codecs) / self.pricer.value_bytes)
        on_bytes, back_bytes = self._narrowest_cut_bytes
        seconds: Floats = link.latency_s + scale * share * on_bytes / link.bandwidth_bytes_per_s
        if self.space.training:
            seconds = seconds + link.latency_s + scale * share * back_bytes / link.bandwidth_bytes_per_s
        return seconds

    def sent_s(self, sharding: Sharding, d: Ints, payloads: Floats) -> Floats:
        """Seconds of a mean step that a device's link is busy with the gradients of the whole model, at least.

        `payloads` are by codec and weight.
        """
        hidden = sharding.hides_exchange or not self.space.training
        if hidden or self.cluster.node_collectives or not len(d) or self.cluster.rank_count < 2:
            return np.zeros(len(d))
        degrees, index = np.unique(d * sharding.context_parallel_degree, return_inverse=True)
        sent = []
        for degree in degrees.tolist():
            by_codec = []
            for codec, payload in zip(self.search.gradient_codecs, payloads, strict=True):
                kind = exchange_kind(codec, sharding.zero_stage)
                by_codec.append(sent_bytes(kind, 1.0, degree) * payload)
            # Each stage may have a codec of its own.
            sent.append(float(np.minimum.reduce(by_codec).sum()) if degree > 1 else 0.0)
        seconds: Floats = np.array(sent)[index] / self._fastest_link.bandwidth_bytes_per_s / sharding.local_steps
        return seconds

    def transfers_s(self, sharding: Sharding, d: Ints, p: Ints, parameter_bytes: Floats, boundary_bytes: Floats) -> tuple[Floats, Floats]:
        """Idle exchange of the gradients of a stage in a mean step, and all transfers that one microbatch waits for."""
        if not len(d):
            return np.zeros(0), np.zeros(0)
        width, last = sharding.group_width, self.cluster.rank_count - 1
        pairs, index = np.unique(np.column_stack([d, p]), axis=0, return_inverse=True)
        hidden = sharding.hides_exchange or not self.space.training
        parameters = float(parameter_bytes.max())
        exchange_s = []
        for replicas, ranks in pairs.tolist():
            degree = replicas * sharding.context_parallel_degree
            other = min(width * ranks if replicas > 1 else sharding.tensor_parallel_degree, last)
            lanes = 1 if self.cluster.node_of(0) == self.cluster.node_of(other) else sharding.tensor_parallel_degree
            kind = "reduce_scatter" if sharding.zero_stage else "all_reduce"
            payload = lanes * parameters / ranks
            idle_s = (
                0.0
                if degree == 1 or hidden
                else collective_s(kind, payload, degree, self.cluster.idle_link(0, other), self.cluster.backend)
            )
            exchange_s.append(idle_s)
        link = self.cluster.idle_link(0, min(width, last)) if last else None
        byte_s, latency_s = (1 / link.bandwidth_bytes_per_s, link.latency_s) if link else (0.0, 0.0)
        hop_s = (1 + self.space.training) * (p - 1) * (latency_s + boundary_bytes / width * byte_s)
        return np.array(exchange_s)[index.reshape(-1)] / sharding.local_steps, hop_s
