"""The shape of a scenario: every table, every key, its unit and its default.

    Scenario
    ├── model    ModelSpec      what is computed: builtin, factory, formula or graph
    │   └── compression CompressionSpec   a smaller variant of it
    ├── job      JobSpec        what is asked of it: training or inference
    ├── cluster  ClusterSpec    what it can run on
    │   ├── nodes       NodeSpec ...
    │   ├── network     NetworkSpec
    │   ├── links       LinkSpec ...
    │   └── intra_node  IntraNodeSpec
    ├── search   SearchSpec     what the planner may choose from
    └── disturbances DisturbanceSpec   what makes one step differ from the next
        ├── links    LinkChangeSpec ...
        ├── traffic  TrafficSpec ...
        └── failures FailureSpec

A TOML key says `bandwidth = "10 Gbit/s"`; its attribute says `bandwidth_bytes_per_s`, a float. Pydantic stays in this folder: everyone
else sees frozen values. Rules that join several keys are in `check.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from chinchilla_sim.scenario.fields import (
    Bytes,
    BytesPerSecond,
    Count,
    Counts,
    Factory,
    Flop,
    FlopPerSecond,
    FolderName,
    KgPerJoule,
    LinkName,
    MemoryBytes,
    NodeName,
    Options,
    PositiveSeconds,
    PositiveUsd,
    RequestsPerSecond,
    Seconds,
    UsdPerSecond,
    Watt,
    refuse_for_activations,
)

ModelKind = Literal["builtin", "factory", "formula", "graph"]
Codec = Literal["none", "fp16", "bf16", "int8", "one-bit", "top-k", "low-rank"]
ActivationCodec = Annotated[Literal["none", "fp16", "bf16", "int8"], BeforeValidator(refuse_for_activations)]
Schedule = Literal[
    "gpipe", "1f1b", "looped-bfs", "interleaved-1f1b", "zb-h1", "zb-h2", "interleaved-zb", "zb-1p", "zb-2p", "zb-v", "dualpipe-v"
]
Builtin = Literal["mnist_mlp", "huggingface", "bert", "dlrm", "fraud", "gpt", "resnet", "translation", "unet"]
WeightFormat = Literal["bf16", "int8", "int4"]

Formula = Literal[
    "mlp",
    "chain",
    "alexnet",
    "bert",
    "gpt",
    "inception_v3",
    "llama",
    "mixture_of_experts",
    "mpt",
    "resnet",
    "t5",
    "transformer_xl",
    "vgg16",
    "vit",
]

SYNTHETIC_FORMULAS = ("mlp", "chain")
FORMULAS: tuple[str, ...] = get_args(Formula)
MODEL_KINDS: tuple[ModelKind, ...] = ("builtin", "factory", "formula", "graph")
MODEL_KEYS: Mapping[str, frozenset[str]] = {
    "builtin": frozenset({"builtin", "options", "weights", "compression"}),
    "factory": frozenset({"factory", "options", "weights", "compression"}),
    "mlp": frozenset({"formula", "widths", "compression"}),
    "chain": frozenset({"formula", "task_count", "parameter_count", "work", "output"}),
    "graph": frozenset({"graph", "format", "compression"}),
    **{formula: frozenset({"formula", "options", "compression"}) for formula in FORMULAS if formula not in SYNTHETIC_FORMULAS},
}
CLUSTER_KEYS: Mapping[str, frozenset[str]] = {
    "this-machine": frozenset({"kind", "ranks", "price", "power", "grid_intensity"}),
    "nodes": frozenset({"kind", "nodes", "network", "switches", "links", "intra_node", "grid_intensity"}),
}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CompressionSpec(_Table):
    """A smaller variant of the model: what is done to it, in the order of these keys."""

    share_weights: bool = Field(default=False, description="All repeated blocks use the weights of the first (ALBERT).", examples=[True])
    tie_embeddings: bool = Field(
        default=False, description="Output layers use the table of the embedding of their shape as their weight.", examples=[True]
    )
    prune: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the neurons, channels and heads of every layer that is removed.", examples=[0.5]
    )
    low_rank: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the values of each layer's weight that two low-rank factors save.", examples=[0.5]
    )
    quantize: WeightFormat | None = Field(
        default=None, description="Format of the weights; int8 and int4 for inference only.", examples=["int8"]
    )

    def describe(self) -> str:
        """A few words, such as `pruned 50 %, int8 weights`; `as it is` where nothing is done.

        >>> CompressionSpec(prune=0.5, quantize="int8").describe()
        'pruned 50 %, int8 weights'
        """
        words = ["shared weights"] * self.share_weights + ["tied embeddings"] * self.tie_embeddings
        words += [f"pruned {self.prune:.0%}".replace("%", " %")] * (self.prune > 0)
        words += [f"low rank, {self.low_rank:.0%} of values saved".replace("%", " %")] * (self.low_rank > 0)
        words += [f"{self.quantize} weights"] * (self.quantize is not None)
        return ", ".join(words) or "as it is"


class ModelSpec(_Table):
    """The neural network, given in exactly one way: builtin, factory, formula or graph."""

    builtin: Builtin | None = Field(
        default=None,
        description="A model that comes with chinchilla_sim, and runs; `options.preset` names its sizes.",
        examples=["mnist_mlp"],
    )
    factory: Factory | None = Field(
        default=None,
        description='Function that builds the torch model: "package.module:function" or "path/to/file.py:function". '
        "A file is looked up from the folder of the scenario.",
        examples=["models/transformer.py:build"],
    )
    formula: Formula | None = Field(
        default=None,
        description='A model by its formula, to plan only, without torch: "mlp" (dense layers), "chain" (a synthetic chain of equal '
        "tasks), or a published architecture whose shape `options` give.",
        examples=["llama"],
    )
    graph: str | None = Field(
        default=None, min_length=1, description="A task graph file, looked up from the folder of the scenario.", examples=["graph.json"]
    )
    format: Literal["chinchilla", "pipedream", "dnn-partitioning", "piper", "onnx"] | None = Field(
        default=None,
        description='Format of the graph file: "chinchilla" (our own JSON), "pipedream" (a profile, text), "dnn-partitioning" or "piper" '
        '(layer graphs with times, JSON), or "onnx".',
        examples=["chinchilla"],
    )
    options: Options = Field(
        default_factory=dict,
        description="Keyword arguments of the builtin or factory, or the shape of a formula; `preset` names a published one.",
        examples=[{"widths": [784, 512, 10], "shift_pixels": 2}],
    )
    weights: str | None = Field(
        default=None,
        min_length=1,
        description="A saved state_dict that the builtin or factory starts from, looked up from the folder of the scenario.",
        examples=["weights.pt"],
    )
    compression: CompressionSpec = Field(
        default_factory=CompressionSpec,
        description="Plan a smaller variant of the model (not of a graph file without shapes).",
        examples=[{"prune": 0.5, "quantize": "int8"}],
    )
    widths: tuple[Count, ...] = Field(
        default=(), strict=False, description="Layer widths of formula mlp, input first, output last.", examples=[[784, 512, 10]]
    )
    task_count: Count | None = Field(default=None, description="Tasks of formula chain.", examples=[8])
    parameter_count: int | None = Field(default=None, ge=0, description="Parameters of all tasks of formula chain.", examples=[1000000])
    work_flop: Flop | None = Field(
        default=None,
        alias="work",
        description="Work of one step of formula chain: all tasks, forward and backward, one global batch.",
        examples=["1e10 flop"],
    )
    output_bytes: Bytes | None = Field(
        default=None, alias="output", description="Output of each task of formula chain for one global batch.", examples=["4 MB"]
    )

    @property
    def kind(self) -> ModelKind:
        """Which of the four ways the model is given in."""
        return next(kind for kind in MODEL_KINDS if getattr(self, kind) is not None)


class JobSpec(_Table):
    """What is asked of the model."""

    kind: Literal["training", "inference"] = Field(default="training", description="Train the model, or apply it.", examples=["training"])
    global_batch_size: Count = Field(description="Samples per step, over all replicas.", examples=[128])
    epochs: Count = Field(default=1, description="Passes over the data.", examples=[3])
    steps: Count | None = Field(default=None, description="Stop after so many steps, before the epochs are over.", examples=[20])
    target_samples: Count | None = Field(
        default=None,
        description="Stop after as many steps as it takes to see so many samples, over all epochs.",
        examples=[1000000],
    )
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="Optimizer.", examples=["adam"])
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False, description="Learning rate.", examples=[0.001])
    learning_rate_schedule: Literal["constant", "linear"] = Field(
        default="constant", description="constant, or falling linearly to 0 over all epochs.", examples=["linear"]
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False, description="Momentum of optimizer sgd.", examples=[0.9])
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="Numbers the job computes with.", examples=["fp32"])
    checkpoint_s: Seconds | None = Field(
        default=None,
        alias="checkpoint",
        description="Seconds that saving a checkpoint stops the job; needed for nodes with a spot price.",
        examples=["30 s"],
    )
    restart_s: Seconds | None = Field(
        default=None,
        alias="restart",
        description="From an interruption until the job computes again; needed for nodes with a spot price.",
        examples=["5 min"],
    )
    data: str | None = Field(
        default=None,
        min_length=1,
        description='"digits", or a folder of IDX files looked up from the folder of the scenario; default: the data of the model.',
        examples=["digits"],
    )
    arrivals_per_s: RequestsPerSecond | None = Field(
        default=None,
        alias="arrival_rate",
        description="Requests of one sample each that arrive at random (Poisson) in inference; plans that cannot answer them are left out.",
        examples=["200 requests/s"],
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of every random number of the job.", examples=[0])

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole job, from `steps` or `target_samples`, whichever ends first; None where only epochs end it.

        >>> JobSpec(global_batch_size=128, target_samples=1000).total_steps
        8
        """
        stated = [self.steps] if self.steps is not None else []
        stated += [-(-self.target_samples // self.global_batch_size)] if self.target_samples is not None else []
        return min(stated, default=None)


class NodeSpec(_Table):
    """One machine, or `count` equal ones."""

    name: NodeName = Field(description="Name; with count > 1 the nodes are called name-0, name-1, ...", examples=["big"])
    count: int = Field(default=1, ge=1, le=100_000, description="How many equal nodes.", examples=[4])
    devices: int = Field(default=1, ge=1, le=100_000, description="Devices per node.", examples=[8])
    device: str | None = Field(
        default=None, min_length=1, description="Device name from the catalogue; or give peak and memory.", examples=["a100-sxm-80gb"]
    )
    peak_flop_per_s: FlopPerSecond | None = Field(default=None, alias="peak", description="Peak speed per device.", examples=["10 Tflop/s"])
    memory_bytes: MemoryBytes | None = Field(
        default=None, alias="memory", description="Memory per device; overrides the catalogue.", examples=["16 GiB"]
    )
    memory_bandwidth_bytes_per_s: BytesPerSecond | None = Field(
        default=None, alias="memory_bandwidth", description="Memory bandwidth per device; overrides the catalogue.", examples=["50 GB/s"]
    )
    overlap_slowdown: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="By how much longer computation takes while the device communicates; overrides the catalogue.",
        examples=[0.19],
    )
    communication_s_per_megabyte: Seconds = Field(
        default=0.0,
        alias="communication_per_megabyte",
        description="Processor time that a megabyte sent or received takes from the computation of its device.",
        examples=["0.7 ms"],
    )
    price_usd_per_s: UsdPerSecond | None = Field(
        default=None, alias="price", description="Price per node; default: what the catalogue says of its devices.", examples=["2 USD/h"]
    )
    power_watt: Watt | None = Field(default=None, alias="power", description="Electric power per device.", examples=["300 W"])
    quota: Count | None = Field(
        default=None, description="At most so many of this entry's devices are used, of all that it lists.", examples=[4]
    )
    spot_price_usd_per_s: UsdPerSecond | None = Field(
        default=None,
        alias="spot_price",
        description="Price per node at which it may be taken away at any time; `search.spot` says whether that is used.",
        examples=["0.9 USD/h"],
    )
    time_between_interruptions_s: PositiveSeconds | None = Field(
        default=None,
        alias="time_between_interruptions",
        description="After what time a node at its spot price is taken away, on average.",
        examples=["6 h"],
    )

    def names(self) -> tuple[str, ...]:
        """Name of every node of this entry."""
        return expand_name(self.name, self.count)


def expand_name(name: str, count: int) -> tuple[str, ...]:
    """Names of `count` equal nodes: the bare name when there is one, else numbered.

    >>> expand_name("big", 1), expand_name("small", 2)
    (('big',), ('small-0', 'small-1'))
    """
    return (name,) if count == 1 else tuple(f"{name}-{index}" for index in range(count))


class NetworkSpec(_Table):
    """What joins the nodes when every node is joined in the same way."""

    bandwidth_bytes_per_s: BytesPerSecond | None = Field(
        default=None,
        alias="bandwidth",
        description="Bandwidth of each node's link, per direction; overrides the catalogue.",
        examples=["10 Gbit/s"],
    )
    latency_s: Seconds | None = Field(
        default=None, alias="latency", description="One way, from node to node; overrides the catalogue.", examples=["50 us"]
    )
    link: LinkName | None = Field(default=None, description="Link class of the catalogue.", examples=["ethernet-100g"])
    topology: Literal["switch", "tree", "ring", "full-mesh", "bus", "links"] = Field(
        default="switch",
        description="switch: each node has one link of this bandwidth into one switch; tree: racks of rack_size nodes around a core; "
        "ring, full-mesh: a link between neighbours, or between every two nodes; bus: all nodes share one medium; "
        "links: only what [[cluster.links]] lists (default when links are given without a bandwidth here).",
        examples=["switch"],
    )
    rack_size: Count = Field(default=8, description="Nodes of a rack in topology tree.", examples=[8])
    oversubscription: float = Field(
        default=1.0,
        ge=1,
        le=1000,
        description="Bandwidth of a rack's nodes together over that of its uplink, in topology tree.",
        examples=[4.0],
    )
    duplex: Literal["full", "half"] = Field(
        default="full", description="half: both directions of a link share its bandwidth.", examples=["full"]
    )
    activation_priority: float = Field(
        default=1.0, gt=0, le=1000, description="Weight of messages between stages where they share a link with others.", examples=[4.0]
    )
    gradient_priority: float = Field(
        default=1.0, gt=0, le=1000, description="Weight of gradient and weight exchanges on a shared link.", examples=[1.0]
    )
    backend: Literal["gloo", "nccl", "plain"] = Field(
        default="plain", description="Whose protocol the messages follow; plain has no protocol effects.", examples=["gloo"]
    )


class LinkSpec(_Table):
    """One cable between two nodes or switches, beside those of the topology."""

    between: tuple[NodeName, NodeName] = Field(strict=False, description="Two names of nodes or switches.", examples=[["big", "small"]])
    bandwidth_bytes_per_s: BytesPerSecond | None = Field(
        default=None, alias="bandwidth", description="Bandwidth per direction; overrides the catalogue.", examples=["10 Gbit/s"]
    )
    latency_s: Seconds | None = Field(default=None, alias="latency", description="One way; overrides the catalogue.", examples=["50 us"])
    link: LinkName | None = Field(default=None, description="Link class of the catalogue.", examples=["wan-region"])


class IntraNodeSpec(_Table):
    """What joins the devices inside one node."""

    bandwidth_bytes_per_s: BytesPerSecond | None = Field(
        default=None,
        alias="bandwidth",
        description="Bandwidth of each device's link, per direction; overrides the catalogue.",
        examples=["300 GB/s"],
    )
    latency_s: Seconds | None = Field(
        default=None, alias="latency", description="One way, from device to device; overrides the catalogue.", examples=["5 us"]
    )
    link: LinkName | None = Field(default=None, description="Link class of the catalogue.", examples=["nvlink-4"])


class ClusterSpec(_Table):
    """The machines: this one, or a list of nodes and what joins them."""

    kind: Literal["this-machine", "nodes"] = Field(
        default="nodes", description="this-machine: the cores of this computer; nodes: those listed here.", examples=["this-machine"]
    )
    ranks: Count | None = Field(default=None, description="Ranks on this machine; default: its cores.", examples=[4])
    price_usd_per_s: UsdPerSecond | None = Field(default=None, alias="price", description="Price of this machine.", examples=["0.2 USD/h"])
    power_watt: Watt | None = Field(default=None, alias="power", description="Electric power of this machine.", examples=["65 W"])
    nodes: tuple[NodeSpec, ...] = Field(default=(), strict=False, description="The machines.")
    network: NetworkSpec = Field(default_factory=NetworkSpec, description="What joins the nodes.")
    switches: tuple[NodeName, ...] = Field(default=(), strict=False, description="Names that links may end at.", examples=[["core"]])
    links: tuple[LinkSpec, ...] = Field(default=(), strict=False, description="Links beside those of the topology.")
    intra_node: IntraNodeSpec | None = Field(default=None, description="What joins the devices inside a node.")
    grid_intensity_kg_per_joule: KgPerJoule | None = Field(
        default=None, alias="grid_intensity", description="CO2 per electric energy.", examples=["400 g/kWh"]
    )

    def node_names(self) -> tuple[str, ...]:
        """Name of every node, in the order of the file; empty for this-machine."""
        return tuple(name for node in self.nodes for name in node.names())


class SearchSpec(_Table):
    """What the planner minimizes and what it may choose from; a list that is not given means every value."""

    objective: Literal["step_time", "cost", "energy", "latency"] = Field(
        default="step_time",
        description="Minimized; latency is the 95th percentile from a request's arrival to its answer, and needs job.arrival_rate.",
        examples=["step_time"],
    )
    maximum_latency_s: PositiveSeconds | None = Field(
        default=None,
        alias="maximum_latency",
        description="95 % of the requests are answered within this time; needs job.arrival_rate.",
        examples=["50 ms"],
    )
    deadline_s: PositiveSeconds | None = Field(
        default=None,
        alias="deadline",
        description="The whole job takes at most so long; it needs job.steps or job.target_samples.",
        examples=["7 d"],
    )
    budget_usd: PositiveUsd | None = Field(
        default=None,
        alias="budget",
        description="The whole job costs at most so much; it needs job.steps or job.target_samples, and prices of the nodes.",
        examples=["10000 USD"],
    )
    maximum_step_time_s: PositiveSeconds | None = Field(
        default=None, alias="maximum_step_time", description="A step takes at most so long.", examples=["200 ms"]
    )
    maximum_cost_per_sample_usd: PositiveUsd | None = Field(
        default=None, alias="maximum_cost_per_sample", description="A sample costs at most so much.", examples=["0.00002 USD"]
    )
    spot: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Whether nodes are rented at their spot prices: auto takes what costs least with the work that interruptions lose.",
        examples=["auto"],
    )
    executable: bool = Field(
        default=True,
        description="Keep to plans that `chinchilla run` can play today; false widens the space to all that can be simulated, "
        "such as stages that share a weight (a head tied to its embedding).",
        examples=[False],
    )
    minimum_ranks: Count = Field(default=1, description="Use at least so many ranks.", examples=[2])
    maximum_ranks: Count | None = Field(default=None, description="Use at most so many ranks.", examples=[8])
    data_parallel_degrees: Counts | None = Field(default=None, description="Allowed data parallel degrees.", examples=[[1, 2]])
    pipeline_parallel_degrees: Counts | None = Field(default=None, description="Allowed pipeline parallel degrees.", examples=[[1, 2]])
    microbatch_counts: Counts | None = Field(default=None, description="Allowed microbatch counts per replica.", examples=[[1, 4]])
    stage_replicas: Literal["equal", "free"] = Field(
        default="equal",
        description="free also tries stages with replica counts of their own, which share one stream of microbatches (1f1b and gpipe).",
        examples=["free"],
    )
    schedules: tuple[Schedule, ...] = Field(
        default=("gpipe", "1f1b"), strict=False, min_length=1, description="Allowed schedules.", examples=[["1f1b"]]
    )
    stage_tasks: Literal["contiguous", "free"] = Field(
        default="contiguous",
        description="free: a rank may also take several pieces of the line of tasks, wherever they lie, on like devices.",
        examples=["free"],
    )
    stages_per_rank: Counts = Field(
        default=(2,), description="Stages that a rank has in schedules that loop over the ranks.", examples=[[2, 4]]
    )
    tensor_parallel_degrees: Counts = Field(
        default=(1,), description="Devices that share every product of a stage (Megatron); neighbours in the cluster.", examples=[[1, 8]]
    )
    sequence_parallel: bool = Field(
        default=False, description="With tensor parallelism: divide by positions what is not split otherwise.", examples=[True]
    )
    context_parallel_degrees: Counts = Field(
        default=(1,), description="Devices that share the positions of every sample.", examples=[[1, 2]]
    )
    expert_parallel_degrees: Counts = Field(
        default=(1,), description="Replicas among which the experts of a mixture are divided.", examples=[[1, 8]]
    )
    zero_stages: tuple[Annotated[int, Field(ge=0, le=3)], ...] = Field(
        default=(0,),
        strict=False,
        min_length=1,
        description="What replicas divide: 1 optimizer state, 2 gradients too, 3 weights too.",
        examples=[[0, 1, 3]],
    )
    recompute: tuple[Literal["none", "selective", "full"], ...] = Field(
        default=("none",),
        strict=False,
        min_length=1,
        description="selective computes attention's scores again; full keeps a layer's input only and computes the rest again.",
        examples=[["none", "selective", "full"]],
    )
    gradient_buckets: Counts = Field(
        default=(1,), description="Buckets in which gradients leave during the last backward pass.", examples=[[1, 4]]
    )
    activation_priorities: tuple[Annotated[float, Field(gt=0, le=1000)], ...] = Field(
        default=(),
        strict=False,
        description="Weights that messages between stages may get on links that they share with exchanges, instead of the network's own.",
        examples=[[4.0]],
    )
    gradient_codecs: tuple[Codec, ...] = Field(
        default=("none",),
        strict=False,
        min_length=1,
        description="Allowed codecs for gradients. Only none keeps every bit: codecs that lose accuracy must be allowed by name. "
        "one-bit, top-k (1 %) and low-rank (PowerSGD, rank 4) send in later steps what they left out (error feedback).",
        examples=[["none", "fp16"]],
    )
    activation_codecs: tuple[ActivationCodec, ...] = Field(
        default=("none",),
        strict=False,
        min_length=1,
        description="Allowed codecs for what stages send each other. Only none keeps every bit; the others must be allowed by name.",
        examples=[["none", "int8"]],
    )
    variants: tuple[CompressionSpec, ...] = Field(
        default=(),
        strict=False,
        description="Smaller variants of the model that may be taken instead of it; how accurate they still are is for you to know.",
        examples=[[{"prune": 0.5}, {"quantize": "bf16"}]],
    )
    runner_ups: int = Field(default=5, ge=0, description="How many next best plans to report.", examples=[5])


class LinkChangeSpec(_Table):
    """All links on the way between two nodes are slower for a while, counted from the start of a step."""

    between: tuple[NodeName, NodeName] = Field(strict=False, description="Two names of nodes.", examples=[["big", "small"]])
    start_s: Seconds = Field(alias="start", description="When the links slow down.", examples=["10 ms"])
    end_s: Seconds = Field(alias="end", description="When they recover.", examples=["60 ms"])
    factor: float = Field(ge=0, le=1, description="Share of the bandwidth that is left; 0 drops the link.", examples=[0.1])


class TrafficSpec(_Table):
    """Others send all the time, as fast as stated or as the shared links let them."""

    between: tuple[NodeName, NodeName] = Field(strict=False, description="Sending and receiving node.", examples=[["big", "small"]])
    bandwidth_bytes_per_s: BytesPerSecond = Field(alias="bandwidth", description="What they send at most.", examples=["1 Gbit/s"])


class FailureSpec(_Table):
    """How often nodes fail, and what that costs."""

    mean_time_between_failures_s: PositiveSeconds = Field(
        alias="mean_time_between_failures", description="Of one node; n nodes fail n times as often.", examples=["1000 h"]
    )
    checkpoint_s: Seconds = Field(alias="checkpoint", description="Seconds that saving a checkpoint stops the job.", examples=["30 s"])
    restart_s: Seconds = Field(alias="restart", description="From a failure until the job computes again.", examples=["5 min"])
    interval_s: PositiveSeconds | None = Field(
        default=None, alias="interval", description="Work between checkpoints; default: the best by Daly's formula.", examples=["1 h"]
    )


class DisturbanceSpec(_Table):
    """What makes one step differ from the next; `chinchilla simulate` tells p5, p50 and p95 of the step time."""

    jitter: float = Field(
        default=0.0, ge=0, le=2, description="Standard deviation of each computation's time over its mean (log-normal).", examples=[0.05]
    )
    straggler_chance: float = Field(default=0.0, ge=0, le=1, description="Chance that a rank is slow for a whole step.", examples=[0.01])
    straggler_factor: float = Field(default=2.0, ge=1, le=1000, description="How much longer a straggler takes.", examples=[2.0])
    samples: int = Field(default=200, ge=20, le=100_000, description="Steps to draw.", examples=[200])
    links: tuple[LinkChangeSpec, ...] = Field(default=(), strict=False, description="Links that slow down or drop for a while.")
    traffic: tuple[TrafficSpec, ...] = Field(default=(), strict=False, description="Traffic of others.")
    failures: FailureSpec | None = Field(default=None, description="Failures of nodes.")


class Scenario(_Table):
    """One question: this job of this model on this cluster, searched like this."""

    name: FolderName = Field(
        default="scenario", description="Names the folder of reports; default: the file's stem.", examples=["two-nodes"]
    )
    question: str = Field(
        default="",
        description="One sentence, shown in reports.",
        examples=["Does a second node pay for itself over a 200 Mbit/s link?"],
    )
    model: ModelSpec = Field(description="The neural network.")
    job: JobSpec = Field(description="What is asked of it.")
    cluster: ClusterSpec = Field(description="What it can run on.")
    search: SearchSpec = Field(default_factory=SearchSpec, description="What the planner may choose from.")
    disturbances: DisturbanceSpec | None = Field(default=None, description="What makes one step differ from the next.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able tables from which `parse_scenario` makes an equal Scenario, to the last bit of every float."""
        tables = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        belonging = MODEL_KEYS[self.model.formula or self.model.kind]
        tables["model"] = {key: value for key, value in tables["model"].items() if key in belonging}
        tables["cluster"] = {key: value for key, value in tables["cluster"].items() if key in CLUSTER_KEYS[self.cluster.kind]}
        return tables
