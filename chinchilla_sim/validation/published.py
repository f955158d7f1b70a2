"""Training steps measured by others, simulated: one row of `measured_training_steps.csv` becomes model, cluster and plan.

What a row does not say is assumed, always alike: 1F1B (interleaved where vpp > 1), microbatches of one sample in pipelines, one
microbatch elsewhere and where no global batch is stated, no recompute, adam, gradients in buckets that overlap with the backward
pass where there is no pipeline. Layers are divided evenly over the stages. Replicas are folded: the first stands for all, and its
exchanges share the node's network interface with the other rings of the node. A row that cannot be expressed says why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import networkx as nx

from chinchilla_sim.cluster.catalogue import find_backend, find_device, find_link, node_collectives, node_link
from chinchilla_sim.cluster.topology import Cluster, Device, Link
from chinchilla_sim.cost.collective import collective_s
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import Exchange, Pricing
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.simulator.activities import makespan_s
from chinchilla_sim.simulator.lowering import activities_of
from chinchilla_sim.simulator.replay import replay
from chinchilla_sim.validation.published_memory import memory_of
from chinchilla_sim.validation.published_model import (
    Model,
    NotPredictedError,
    Row,
    count_of,
    graph_of,
    model_of,
    precision_of,
    stages_of,
)

SPREAD = {True: (0.77, 1.22), False: (0.67, 2.54)}
"""p5 and p95 of measured over simulated steps, for decoders and for all other models: quantiles over the sources of ../shared with 8 rows
or more, each weighted equally (2026-11-24; the same rows that the ledger scores)."""


def spread_class(row: Row) -> str:
    """Which rows err alike: decoders, and all else."""
    return "decoder" if model_of(row).formula in DECODERS else "other"


DECODERS = ("gpt", "mpt", "llama", "mixture_of_experts")

NO_OVERLAP = "use_gradient_bucket false"
"""What the notes of a row say where gradients leave only behind the whole backward pass."""

OVERLAPPED_BUCKETS = 8
INTERNODE_LATENCY_S = 10e-6
RDMA_SHARE, TCP_SHARE = 0.85, 0.6
"""What arrives of a network's nominal bandwidth; like the latency between nodes our assumption, not fitted."""

OMNI_PATH_SHARE = 0.21
"""The same of Omni-Path, where NCCL copies messages through host memory: an all-reduce of 4 GB over 4 nodes of 4 V100 had 10.6 of 50 GB/s
(bigscience-bw in collectives.csv; over 16 nodes 6.8 GB/s)."""


def _word(name: str) -> str:
    """Pattern of a short name that is no part of a longer one; "8x" may stand before it."""
    return rf"(?<![A-WYZ\d]){name}(?![A-Z\d])"


HARDWARE = (
    (r"A100.*PCIe.*40|40 ?GB? PCIe", "a100-pcie-40gb"),
    (r"A100.*PCIe", "a100-pcie-80gb"),
    (r"A100.*40 ?G", "a100-sxm-40gb"),
    (r"A800.*PCIe", "a800-pcie-80gb"),
    (r"A800", "a800-sxm-80gb"),
    (r"A100", "a100-sxm-80gb"),
    (r"GH200", "gh200-96gb"),
    (r"GB200", "gb200"),
    (r"GB300", "gb300"),
    (r"H100.*(500 ?W|9[56] ?Gi?B)|500 ?W.*H100", "h100-sxm-500w"),
    (r"H100.*NVL(?!ink)", "h100-nvl"),
    (r"H100.*PCIe", "h100-pcie"),
    (r"H100", "h100-sxm-80gb"),
    (r"H800", "h800-sxm-80gb"),
    (r"H200.*NVL(?!ink)", "h200-nvl"),
    (r"H200", "h200-sxm"),
    (_word("H20"), "h20-sxm-96gb"),
    (r"B200", "b200-sxm"),
    (r"B300", "b300-sxm"),
    (r"V100S", "v100s-pcie-32gb"),
    (r"V100.*PCIe.*32|V100.*32.*PCIe", "v100-pcie-32gb"),
    (r"V100.*PCIe", "v100-pcie-16gb"),
    (r"V100.*(32 ?G|SXM3|DGX-?2)", "v100-sxm2-32gb"),
    (r"V100", "v100-sxm2-16gb"),
    (r"P100.*PCIe", "p100-pcie-16gb"),
    (r"P100", "p100-sxm2-16gb"),
    (_word("P40"), "p40"),
    (r"K80", "k80-gk210"),
    (r"TITAN.?RTX", "titan-rtx"),
    (r"TITAN.?V\b", "titan-v"),
    (r"TITAN.?Xp?\b", "titan-x-pascal"),
    (r"1080.?Ti", "gtx-1080-ti"),
    (r"2080.?Ti", "rtx-2080-ti"),
    (r"(RTX|GeForce).?2080(?!.?Super)", "rtx-2080"),
    (r"RTX.?3090.?Ti", "rtx-3090-ti"),
    *(
        (rf"(RTX|GeForce).?{number}(?!.?(Ti|Super|D\b))", f"rtx-{number}")
        for number in (3060, 3070, 3080, 3090, 4070, 4080, 4090, 5080, 5090)
    ),
    (r"RTX.?PRO.?6000", "rtx-pro-6000-server"),
    (r"6000.?Ada|Ada.?A?6000", "rtx-6000-ada"),
    (r"5000.?Ada|Ada.?A?5000", "rtx-5000-ada"),
    *((_word(f"A{number}"), f"rtx-a{number}") for number in (4000, 4500, 5000, 6000)),
    (r"RTX.?8000", "quadro-rtx-8000"),
    (r"RTX.?6000", "quadro-rtx-6000"),
    (_word("A10G"), "a10g"),
    (_word("A10"), "a10"),
    (_word("A30"), "a30"),
    (_word("A40"), "a40"),
    (_word("L40S"), "l40s"),
    (_word("L40"), "l40"),
    (_word("L4"), "l4"),
    (_word("T4"), "t4"),
    (r"MI355X?", "mi355x"),
    (r"MI325X?", "mi325x"),
    (r"MI300X?(?!A)", "mi300x"),
    (r"MI250(?!X)", "mi250-gcd"),
    (r"MI250X", "mi250x-gcd"),
    (r"MI210", "mi210"),
    (r"MI100", "mi100"),
    (r"Trainium.?2|Trn2", "trainium2-core"),
    (r"Trainium|Trn1", "trainium1-core"),
    (r"Gaudi.?2|HPU.?2", "gaudi2"),
    (r"Gaudi.?3", "gaudi3"),
    (r"TPU.?v3", "tpu-v3"),
    (r"TPU.?v4(?!i)", "tpu-v4"),
    (r"TPU.?v5.?(e|lite)|v5litepod", "tpu-v5e"),
    (r"TPU.?v5p", "tpu-v5p"),
    (r"TPU.?v6e|Trillium", "tpu-v6e"),
    (r"M1.?Max", "apple-m1-max"),
    (r"M2.?Ultra", "apple-m2-ultra"),
)
"""Patterns of the column `hardware`, the first that fits, and the catalogue's names."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the simulator says about one row."""

    step_s: float
    peak_bytes: float
    fits: bool
    spread: tuple[float, float]

    @property
    def p5_s(self) -> float:
        """Nineteen of twenty measured steps should be longer."""
        return self.step_s * self.spread[0]

    @property
    def p95_s(self) -> float:
        """Nineteen of twenty measured steps should be shorter."""
        return self.step_s * self.spread[1]


@dataclass(frozen=True, slots=True)
class Constants:
    """What a laboratory's software and machines add to the catalogue's figures; fitted by `fitting.py`."""

    sustained_share: float
    streaming_share: float
    host_launch_s: float
    host_microbatch_s: float
    link_efficiency: float
    step_fixed_s: float


def shipped_constants(row: Row) -> Constants:
    """The catalogue's own for the device of a row."""
    device = find_device(device_name_of(row["hardware"]), precision_of(row), "hardware")
    host = device.host_launch_s, device.host_microbatch_s
    return Constants(device.sustained_share, device.streaming_share, *host, 1.0, device.step_fixed_s)


def predict(row: Row, constants: Constants | None = None) -> Prediction:
    """Simulate a row, with the catalogue's constants or others; NotPredictedError where it cannot be expressed."""
    model, machines, precision = model_of(row), _machines_of(row, constants or shipped_constants(row)), precision_of(row)
    pricer = _pricer(model, machines, _optimizer(row), {"tf32": "fp32", "fp8": "bf16"}.get(precision, precision))
    cluster, device = pricer.cluster, machines.device
    plan = _plan_of(row, model)
    if len(plan.slots) > cluster.rank_count:
        raise NotPredictedError(f"tp x pp x dp x cp = {len(plan.slots)} is more than the {cluster.rank_count} GPUs of the row")
    pricing = _with_shared_interfaces(plan, pricer.price(plan), cluster)
    activities = activities_of(lower(plan, folded=True), pricing, cluster)
    memory = memory_of(row, model, plan, pricer, pricing)
    fits = memory.needed_bytes <= device.memory_bytes
    return Prediction(makespan_s(replay(activities)), memory.reported_bytes, fits, SPREAD[model.formula in DECODERS])


@lru_cache(maxsize=64)
def _pricer(model: Model, machines: Machines, optimizer: Any, precision: Any) -> Pricer:
    return Pricer(graph_of(model), _cluster(machines), JobSpec(global_batch_size=1, optimizer=optimizer, precision=precision))


def _optimizer(row: Row) -> Any:
    return "sgd" if "sgd" in row["optimizer"].lower() else "adam"


# Machines


def device_name_of(hardware: str) -> str:
    """The catalogue's name of what a table calls its hardware; NotPredictedError where it has none."""
    for pattern, name in HARDWARE:
        if re.search(pattern, hardware, re.IGNORECASE):
            return name
    raise NotPredictedError(f"{hardware or 'the hardware'} is not in the catalogue")


@dataclass(frozen=True, slots=True)
class Machines:
    """Equal nodes around one network; `measured_share` of its own link's bandwidth arrives within a node (0: it is another link)."""

    device: Device
    gpus: int
    width: int
    inner: Link
    nic_bytes_per_s: float
    measured_share: float


def _machines_of(row: Row, constants: Constants) -> Machines:
    device_name, gpus = device_name_of(row["hardware"]), count_of(row, "n_gpus")
    width = min(gpus, count_of(row, "gpus_per_node") if row["gpus_per_node"] else 8)
    link = row["interconnect"]
    inner = (
        find_link("pcie-3-x16")
        if "PCIe3" in link
        else find_link("pcie-4-x16")
        if "PCIe" in link and "NVLink" not in link
        else node_link(device_name)
    )
    gbit = float(row["inter_node_gbps"]) if row["inter_node_gbps"] else _gbit_of(link)
    device = replace(
        find_device(device_name, precision_of(row), "hardware"),
        sustained_share=constants.sustained_share,
        streaming_share=constants.streaming_share,
        host_launch_s=constants.host_launch_s,
        host_microbatch_s=constants.host_microbatch_s,
        step_fixed_s=constants.step_fixed_s,
    )
    nic_bytes_per_s = gbit / 8 * 1e9 * _network_share(link) * constants.link_efficiency
    share = constants.link_efficiency if inner == node_link(device_name) else 0.0
    inner = replace(inner, bandwidth_bytes_per_s=inner.bandwidth_bytes_per_s * constants.link_efficiency)
    return Machines(device, gpus, width, inner, nic_bytes_per_s, share)


def _network_share(interconnect: str) -> float:
    """What arrives of the bandwidth between nodes."""
    if "Omni-Path" in interconnect:
        return OMNI_PATH_SHARE
    return TCP_SHARE if ("TCP" in interconnect and "RoCE" not in interconnect) or "Ethernet" in interconnect else RDMA_SHARE


def _gbit_of(interconnect: str) -> float:
    """Network of a node as the text says it, else 100 Gbit/s for each of eight devices."""
    several = re.search(r"(\d+)\s*x\s*(\d+)\s*G", interconnect)
    if several:
        return float(several.group(1)) * float(several.group(2))
    single = re.search(r"(\d+)\s*G(?:bps|bE|bit)", interconnect)
    return float(single.group(1)) if single else 800.0


@lru_cache(maxsize=64)
def _cluster(machines: Machines) -> Cluster:
    graph: nx.DiGraph[str] = nx.DiGraph()
    slots = tuple(f"node-{index // machines.width}/{index % machines.width}" for index in range(machines.gpus))
    half = Link(machines.inner.latency_s / 2, machines.inner.bandwidth_bytes_per_s)
    uplink = Link(INTERNODE_LATENCY_S / 2, machines.nic_bytes_per_s)
    for slot in slots:
        node = slot.split("/")[0]
        for edge in ((slot, node), (node, slot)):
            graph.add_edge(*edge, link=half)
        for edge in ((node, "network"), ("network", node)):
            graph.add_edge(*edge, link=uplink)
    found = node_collectives(machines.device.name, "nccl", machines.measured_share) if machines.measured_share else None
    tables = {slot.split("/")[0]: found[1] for slot in slots} if found else {}
    return Cluster(graph, slots, (machines.device,) * machines.gpus, find_backend("nccl"), node_collectives=tables)


# Plan


def _plan_of(row: Row, model: Model) -> Plan:
    tensor, ranks, context = (count_of(row, name, 1) for name in ("tp", "pp", "cp"))
    gpus, width = count_of(row, "n_gpus"), count_of(row, "vpp", 1)
    replicas = count_of(row, "dp", 0) or max(1, gpus // (tensor * ranks * context))
    batch = count_of(row, "global_batch", 0) or count_of(row, "micro_batch", 0) * replicas
    if not batch:
        raise NotPredictedError("neither global_batch nor micro_batch is stated")
    size = count_of(row, "micro_batch", 0) or (1 if ranks > 1 else max(1, batch // replicas))
    count = max(1, round(batch / (size * replicas)))
    name = _schedule_name(row, ranks, width)
    refused = SCHEDULES[name].refuses(ranks, width, count)
    if refused:
        name, width = "1f1b", 1
    stages = stages_of(model, ranks * width)
    zero = min(3, count_of(row, "zero_stage", 0)) if replicas * context > 1 else 0
    exchanging = replicas * context > 1
    plan = Plan(
        stages=stages,
        placement=tuple(tuple(replica * ranks + stage % ranks for replica in range(replicas)) for stage in range(len(stages))),
        slots=tuple(range(tensor * context * ranks * replicas)),
        global_batch_size=size * count * replicas,
        microbatch_count=count,
        schedule=name,
        gradient_codecs=("none",) * len(stages),
        activation_codecs=("none",) * (len(stages) - 1),
        gradient_buckets=OVERLAPPED_BUCKETS if exchanging and ranks == 1 and (zero == 3 or NO_OVERLAP not in row.get("notes", "")) else 1,
        ring_order="placed",
        collective_algorithm="ring",
        zero_stage=zero,
        recompute=tuple(kind for kind in ("full", "selective") if row["recompute"].startswith(kind)) * len(stages),
        tensor_parallel_degree=tensor,
        sequence_parallel=tensor > 1 and row["sequence_parallel"] == "1",
        context_parallel_degree=context,
        expert_parallel_degree=_expert_degree(row, replicas),
    )
    found = mistakes_of(plan)
    if found:
        raise NotPredictedError(f"the plan contradicts itself: {found[0][1]}")
    return plan


def _schedule_name(row: Row, ranks: int, width: int) -> str:
    """1F1B unless the row says otherwise; drawn schedules stand for the automatic ones of the same memory (ZB-1p, ZB-2p)."""
    if width > 1 or ranks == 1:
        return "1f1b" if width == 1 else "interleaved-1f1b"
    text = row["pp_schedule"].lower().replace("_", "-")
    found = (
        name for pattern, name in ((r"zb-?(h1|1p)", "zb-h1"), (r"zb-?(h2|2p)", "zb-h2"), ("gpipe", "gpipe")) if re.search(pattern, text)
    )
    return next(found, "1f1b")


def _expert_degree(row: Row, replicas: int) -> int:
    degree = count_of(row, "ep", 1)
    return degree if degree and replicas % degree == 0 else 1


def _with_shared_interfaces(plan: Plan, pricing: Pricing, cluster: Cluster) -> Pricing:
    """Exchanges across nodes at the share of the node's interface that each ring has."""
    exchanges = tuple(_shared(plan, exchange, cluster) for exchange in pricing.gradients)
    return replace(pricing, gradients=exchanges, weights=tuple(_shared(plan, exchange, cluster) for exchange in pricing.weights))


def _shared(plan: Plan, exchange: Exchange, cluster: Cluster) -> Exchange:
    if exchange.table or not exchange.orders:
        return exchange
    order = exchange.orders[0]
    link = cluster.slowest_pair(order[:2] if len(order) == 2 else (order[0], order[1], order[-1]))
    nodes = {cluster.node_of(slot) for slot in order}
    if len(nodes) > 1:
        members = len(order) / len(nodes)
        rings = max(1.0, sum(cluster.node_of(slot) in nodes for slot in plan.slots) / len(nodes) / members)
        link = replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / rings)
    return replace(exchange, idle_s=collective_s(exchange.kind, exchange.payload_bytes, len(order), link, cluster.backend))
