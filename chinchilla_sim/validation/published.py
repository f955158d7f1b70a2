"""Training steps measured by others, simulated: one row of `measured_training_steps.csv` becomes model, cluster and plan.

What a row does not say is assumed, always alike: 1F1B (interleaved where vpp > 1), microbatches of one sample in pipelines, one
microbatch elsewhere and where no global batch is stated, no recompute, adam, gradients in buckets that overlap with the backward
pass where there is no pipeline. Layers are divided evenly over the stages. Replicas are folded: the first stands for all, and its
exchanges share the node's network interface with the other rings of the node. A row that cannot be expressed says why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import networkx as nx

from chinchilla_sim.cluster.catalogue import find_backend, find_device, find_link, node_link
from chinchilla_sim.cluster.topology import Cluster, Device, Link
from chinchilla_sim.cost.collective import collective_s
from chinchilla_sim.errors import ChinchillaError
from chinchilla_sim.graph.attention import with_separate_attention
from chinchilla_sim.graph.repeats import Repeat, find_repeats
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import FORMULAS
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.prices import Exchange, Pricing
from chinchilla_sim.planner.pricing import Pricer
from chinchilla_sim.planner.program import lower, passes_of
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.scenario.schema import JobSpec
from chinchilla_sim.simulator.activities import makespan_s
from chinchilla_sim.simulator.lowering import activities_of
from chinchilla_sim.simulator.replay import replay

Row = Mapping[str, str]
SPREAD = {True: (0.77, 1.22), False: (0.67, 2.54)}
"""p5 and p95 of measured over simulated steps, for decoders and for all other models: quantiles over the sources of ../shared with 8 rows
or more, each weighted equally (2026-11-24; the same rows that the ledger scores)."""

DECODERS = ("gpt", "mpt", "llama", "mixture_of_experts")

FUSED_FAMILIES = ("mpt", "llama2", "llama3", "internlm", "nemotron", "qwen3", "mixtral")
"""Models of 2023 and later, whose training code keeps attention scores on chip unless a row says otherwise."""

OVERLAPPED_BUCKETS = 8
INTERNODE_LATENCY_S = 10e-6
RDMA_SHARE, TCP_SHARE = 0.85, 0.6
"""What arrives of a network's nominal bandwidth; like the latency between nodes our assumption, not fitted."""

HARDWARE = (
    (r"A100.*PCIe.*40|40GB PCIe", "a100-pcie-40gb"),
    (r"A100.*PCIe", "a100-pcie-80gb"),
    (r"A100.*40GB", "a100-sxm-40gb"),
    (r"A800", "a800-sxm-80gb"),
    (r"A100", "a100-sxm-80gb"),
    (r"H100.*PCIe", "h100-pcie"),
    (r"H100", "h100-sxm-80gb"),
    (r"H200", "h200-sxm"),
    (r"B200", "b200-sxm"),
    (r"V100.*32GB", "v100-sxm2-32gb"),
    (r"V100", "v100-sxm2-16gb"),
    (r"P100", "p100-sxm2-16gb"),
    (r"K80", "k80-gk210"),
    (r"RTX.?2080.?Ti", "rtx-2080-ti"),
    (r"TITAN.?RTX", "titan-rtx"),
    (r"RTX.?8000", "quadro-rtx-8000"),
    (r"RTX.?3090", "rtx-3090"),
    (r"RTX.?4090", "rtx-4090"),
    (r"RTX.?A6000", "rtx-a6000"),
    (r"RTX.?6000.?Ada", "rtx-6000-ada"),
    (r"\bA10\b", "a10"),
    (r"\bL40S?\b", "l40s"),
    (r"\bL4\b", "l4"),
    (r"\bT4\b", "t4"),
    (r"MI300X", "mi300x"),
    (r"MI250", "mi250x-gcd"),
    (r"Trainium1", "trainium1-core"),
    (r"TPU.?v4", "tpu-v4"),
    (r"TPU.?v5e", "tpu-v5e"),
    (r"TPU.?v5p", "tpu-v5p"),
)
"""Patterns of the column `hardware`, the first that fits, and the catalogue's names."""

CNNS = {"ResNet-50": ("resnet", {"depth": 50}), "ResNet-101": ("resnet", {"depth": 101}), "ResNet-152": ("resnet", {"depth": 152}),
        "VGG16": ("vgg16", {}), "AlexNet": ("alexnet", {}), "Inception-v3": ("inception_v3", {})}  # fmt: skip


class NotPredictedError(ChinchillaError):
    """A row that this simulator cannot express; the message says why."""


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
    host_launch_s: float
    link_efficiency: float
    step_fixed_s: float
    microbatch_fixed_s: float


def shipped_constants(row: Row) -> Constants:
    """The catalogue's own for the device of a row."""
    device = find_device(_device_name(row), _precision(row), "hardware")
    return Constants(device.sustained_share, device.host_launch_s, 1.0, device.step_fixed_s, device.forward_fixed_s)


def predict(row: Row, constants: Constants | None = None) -> Prediction:
    """Simulate a row, with the catalogue's constants or others; NotPredictedError where it cannot be expressed."""
    model, machines, precision = _model_of(row), _machines_of(row, constants or shipped_constants(row)), _precision(row)
    pricer = _pricer(model, machines, _optimizer(row), "fp32" if precision == "tf32" else precision)
    cluster, device = pricer.cluster, machines.device
    plan = _plan_of(row, model)
    if len(plan.slots) > cluster.rank_count:
        raise NotPredictedError(f"tp x pp x dp x cp = {len(plan.slots)} is more than the {cluster.rank_count} GPUs of the row")
    pricing = _with_shared_interfaces(plan, pricer.price(plan), cluster)
    activities = activities_of(lower(plan, folded=True), pricing, cluster, folded=True)
    rows = zip(plan.pipeline(0), passes_of(plan, 0), strict=True)
    peak = max(pricing.peak_bytes(plan, rank, passes) for rank, passes in rows)
    return Prediction(makespan_s(replay(activities)), peak, peak <= device.memory_bytes, SPREAD[model.formula in DECODERS])


# Model


@dataclass(frozen=True, slots=True)
class Model:
    """A published architecture: what its graph is built from."""

    formula: str
    options: tuple[tuple[str, Any], ...]
    value_bytes: float
    separate_attention: bool = False


def _model_of(row: Row) -> Model:
    family, name = row["model_family"], row["model_name"]
    options: dict[str, Any] = {}
    if family == "cnn":
        if name not in CNNS:
            raise NotPredictedError(f"there is no formula for {name}")
        formula, options = CNNS[name]
    else:
        formula = _formula(family, row)
        shape = {
            "layers": "layers",
            "width": "hidden",
            "heads": "heads",
            "tokens": "seq_len",
            "vocabulary": "vocab",
            "inner_width": "ffn_hidden",
        }
        options = {ours: _count(row, theirs) for ours, theirs in shape.items() if row[theirs]}
        if "ONE LAYER" in name:
            options["vocabulary"] = 8  # the layer was measured without embedding and head
        missing = [theirs for ours, theirs in shape.items() if ours in ("layers", "width", "heads") and ours not in options]
        if missing:
            raise NotPredictedError(f"{', '.join(missing)} of the model are not stated")
        options |= _family_options(formula, row, options)
    value_bytes = 2.0 if _precision(row) in ("fp16", "bf16") else 4.0
    fused = family in FUSED_FAMILIES or "flash" in row["other_config"].lower()
    return Model(formula, tuple(sorted(options.items())), value_bytes, not fused)


def _formula(family: str, row: Row) -> str:
    if row["n_experts"] and _count(row, "n_experts") > 1:
        return "mixture_of_experts"
    known = {"gpt": "gpt", "gpt2": "gpt", "gpt3": "gpt", "opt": "gpt", "mpt": "mpt", "bert": "bert", "t5": "t5", "vit": "vit",
             "transformer-xl": "transformer_xl", "llama2": "llama", "llama3": "llama", "internlm": "llama", "nemotron": "llama",
             "qwen3": "llama", "bart": "t5", "transformer": "t5"}  # fmt: skip
    if family not in known:
        raise NotPredictedError(f"there is no formula for models of family {family}")
    return known[family]


def _family_options(formula: str, row: Row, options: dict[str, Any]) -> dict[str, Any]:
    """What a formula needs beside the common shape."""
    if formula in ("llama", "mixture_of_experts"):
        extra: dict[str, Any] = {"key_value_heads": _count(row, "kv_heads") if row["kv_heads"] else options["heads"]}
        options.setdefault("inner_width", 4 * options["width"])
        if options["width"] % options["heads"]:
            extra["head_width"] = max(1, options["width"] // options["heads"])
        return extra | ({"experts": _count(row, "n_experts"), "active_experts": _count(row, "moe_topk")} if row["n_experts"] else {})
    if formula == "gpt":
        return {"dropout": 0.0 if row["model_family"] == "opt" else 0.1}
    if formula == "bert":
        return {"positions": max(512, options.get("tokens", 512)), "head": "mlm"}
    if formula in ("t5", "transformer_xl"):
        options.setdefault("inner_width", 4 * options["width"])
        if formula == "transformer_xl":
            return {}
        # NeMo and Megatron train T5 with a decoder a quarter as long as the encoder.
        return {"layers": max(1, options["layers"] // 2), "decoder_tokens": max(1, options.get("tokens", 512) // 4)}
    if formula == "vit":
        for name in ("tokens", "vocabulary"):
            options.pop(name, None)
        return {"patch_size": 14 if row["model_name"].endswith("/14") else 16}
    return {}


@lru_cache(maxsize=256)
def _graph(model: Model) -> TaskGraph:
    try:
        graph = FORMULAS[model.formula](batch_size=1, training=True, value_bytes=model.value_bytes, **dict(model.options))
        return with_separate_attention(graph) if model.separate_attention else graph
    except ChinchillaError as error:
        raise NotPredictedError(f"the model cannot be built: {error}") from error


@lru_cache(maxsize=64)
def _pricer(model: Model, machines: Machines, optimizer: Any, precision: Any) -> Pricer:
    return Pricer(_graph(model), _cluster(machines), JobSpec(global_batch_size=1, optimizer=optimizer, precision=precision))


def _precision(row: Row) -> str:
    text = row["precision"].lower()
    if "fp8" in text or "mxfp" in text:
        raise NotPredictedError(f"precision {row['precision']} is not in the catalogue")
    if "tf32" in text:
        return "tf32"
    if "bf16" in text:
        return "bf16"
    return "fp16" if "fp16" in text else "fp32"


def _optimizer(row: Row) -> Any:
    return "sgd" if "sgd" in row["optimizer"].lower() else "adam"


# Machines


def _device_name(row: Row) -> str:
    for pattern, name in HARDWARE:
        if re.search(pattern, row["hardware"], re.IGNORECASE):
            return name
    raise NotPredictedError(f"{row['hardware'] or 'the hardware'} is not in the catalogue")


@dataclass(frozen=True, slots=True)
class Machines:
    """Equal nodes around one network."""

    device: Device
    gpus: int
    width: int
    inner: Link
    nic_bytes_per_s: float


def _machines_of(row: Row, constants: Constants) -> Machines:
    device_name, gpus = _device_name(row), _count(row, "n_gpus")
    width = min(gpus, _count(row, "gpus_per_node") if row["gpus_per_node"] else 8)
    link = row["interconnect"]
    inner = (
        find_link("pcie-3-x16")
        if "PCIe3" in link
        else find_link("pcie-4-x16")
        if "PCIe" in link and "NVLink" not in link
        else node_link(device_name)
    )
    gbit = float(row["inter_node_gbps"]) if row["inter_node_gbps"] else _gbit_of(link)
    tcp = ("TCP" in link and "RoCE" not in link) or "Ethernet" in link
    device = replace(
        find_device(device_name, _precision(row), "hardware"),
        sustained_share=constants.sustained_share,
        host_launch_s=constants.host_launch_s,
        step_fixed_s=constants.step_fixed_s,
        forward_fixed_s=constants.microbatch_fixed_s,
    )
    inner = replace(inner, bandwidth_bytes_per_s=inner.bandwidth_bytes_per_s * constants.link_efficiency)
    return Machines(device, gpus, width, inner, gbit / 8 * 1e9 * (TCP_SHARE if tcp else RDMA_SHARE) * constants.link_efficiency)


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
    return Cluster(graph, slots, (machines.device,) * machines.gpus, find_backend("nccl"))


# Plan


def _plan_of(row: Row, model: Model) -> Plan:
    tensor, ranks, context = (_count(row, name, 1) for name in ("tp", "pp", "cp"))
    gpus, width = _count(row, "n_gpus"), _count(row, "vpp", 1)
    replicas = _count(row, "dp", 0) or max(1, gpus // (tensor * ranks * context))
    batch = _count(row, "global_batch", 0) or _count(row, "micro_batch", 0) * replicas
    if not batch:
        raise NotPredictedError("neither global_batch nor micro_batch is stated")
    size = _count(row, "micro_batch", 0) or (1 if ranks > 1 else max(1, batch // replicas))
    count = max(1, round(batch / (size * replicas)))
    name = "1f1b" if width == 1 else "interleaved-1f1b"
    refused = SCHEDULES[name].refuses(ranks, width, count)
    if refused:
        name, width = "1f1b", 1
    stages = _stages(model, ranks * width)
    zero = min(3, _count(row, "zero_stage", 0)) if replicas * context > 1 else 0
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
        gradient_buckets=OVERLAPPED_BUCKETS if exchanging and ranks == 1 and (zero == 3 or row["source_id"] != "vtrain") else 1,
        ring_order="placed",
        collective_algorithm="ring",
        zero_stage=zero,
        recompute="full" if row["recompute"].strip() == "full" else "none",
        tensor_parallel_degree=tensor,
        sequence_parallel=tensor > 1 and row["sequence_parallel"] == "1",
        context_parallel_degree=context,
        expert_parallel_degree=_expert_degree(row, replicas),
    )
    found = mistakes_of(plan)
    if found:
        raise NotPredictedError(f"the plan contradicts itself: {found[0][1]}")
    return plan


def _expert_degree(row: Row, replicas: int) -> int:
    degree = _count(row, "ep", 1)
    return degree if degree and replicas % degree == 0 else 1


@lru_cache(maxsize=1024)
def _stages(model: Model, count: int) -> tuple[tuple[str, ...], ...]:
    """All tasks in `count` runs of whole layers; what stands before the first and behind the last layer goes with them."""
    names = [task.name for task in _graph(model).compute_tasks]
    if count == 1:
        return (tuple(names),)
    starts = [repeat.start + repeat.length * index for repeat in _repeats(model) for index in range(repeat.count)]
    layers = len(starts)
    # Megatron counts embedding and head as a layer each where that makes the stages equal.
    spared = 1 if layers % count and (layers + 2) % count == 0 else 0
    if layers + 2 * spared < count:
        raise NotPredictedError(f"{layers} layers cannot be divided over {count} stages")
    ends = [*starts, starts[-1] + _repeats(model)[0].length]
    cuts = [0, *(ends[round((layers + 2 * spared) * stage / count) - spared] for stage in range(1, count)), len(names)]
    return tuple(tuple(names[first:end]) for first, end in pairwise(cuts))


@lru_cache(maxsize=256)
def _repeats(model: Model) -> list[Repeat]:
    longest = sorted(find_repeats(_graph(model)), key=lambda repeat: -repeat.length * repeat.count)
    return longest[:1]


def _with_shared_interfaces(plan: Plan, pricing: Pricing, cluster: Cluster) -> Pricing:
    """Exchanges across nodes at the share of the node's interface that each ring has."""
    exchanges = tuple(_shared(plan, exchange, cluster) for exchange in pricing.gradients)
    return replace(pricing, gradients=exchanges, weights=tuple(_shared(plan, exchange, cluster) for exchange in pricing.weights))


def _shared(plan: Plan, exchange: Exchange, cluster: Cluster) -> Exchange:
    if not exchange.orders:
        return exchange
    order = exchange.orders[0]
    link = cluster.slowest_pair(order[:2] if len(order) == 2 else (order[0], order[1], order[-1]))
    nodes = {cluster.node_of(slot) for slot in order}
    if len(nodes) > 1:
        members = len(order) / len(nodes)
        rings = max(1.0, sum(cluster.node_of(slot) in nodes for slot in plan.slots) / len(nodes) / members)
        link = replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / rings)
    return replace(exchange, idle_s=collective_s(exchange.kind, exchange.payload_bytes, len(order), link, cluster.backend))


def _count(row: Row, name: str, default: int | None = None) -> int:
    text = row.get(name, "")
    if not text:
        if default is None:
            raise NotPredictedError(f"{name} is not stated")
        return default
    try:
        return int(float(text))
    except ValueError as error:
        raise NotPredictedError(f"{name} is {text!r}, not a number") from error
