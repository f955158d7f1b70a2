"""[search]: what is minimized, and what the planner may choose from."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from chinchilla_sim.scenario.fields import Count, Counts, PositiveSeconds, PositiveUsd, refuse_for_activations
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.scenario.table import Table

Codec = Literal["none", "fp16", "bf16", "int8", "one-bit", "top-k", "low-rank"]
PlainActivationCodec = Literal["none", "fp16", "bf16", "int8"]
ActivationCodec = Annotated[PlainActivationCodec, BeforeValidator(refuse_for_activations)]
Schedule = Literal[
    "gpipe", "1f1b", "looped-bfs", "interleaved-1f1b", "zb-h1", "zb-h2", "interleaved-zb", "zb-1p", "zb-2p", "zb-v", "dualpipe-v"
]


class SearchSpec(Table):
    """What the planner minimizes and what it may choose from; a list that is not given means every value."""

    objective: Literal["step_time", "cost", "energy", "latency", "time_to_accuracy"] = Field(
        default="step_time",
        description="Minimized; latency is the 95th percentile from a request's arrival to its answer, and needs job.arrival_rate; "
        "time_to_accuracy is the time of a step times the measured steps to the target, and needs chinchilla calibrate --accuracy.",
        examples=["step_time"],
    )
    max_accuracy_drop: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="Keep to codecs, local steps, late gradients and variants that are measured (chinchilla calibrate --accuracy) to lower "
        "the accuracy, 0 to 1, by at most so much: by the upper end of the 95 % interval. Lists of codecs that are not given then mean all "
        "codecs. Where nothing was measured, of lossy codecs fp16 and bf16 are left, whose published record is safe.",
        examples=[0.005],
    )
    accuracy_table: str | None = Field(
        default=None,
        min_length=1,
        description="File that chinchilla calibrate --accuracy --output wrote for this model and job, looked up from the folder of the "
        "scenario; default: what it stored on this machine.",
        examples=["accuracy.json"],
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
        description="Keep to plans that `chinchilla run` can play today; false widens the space to all that can be simulated.",
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
    local_steps: Counts = Field(
        default=(1,),
        description="Optimizer steps that replicas take of their own before they exchange how far their weights have moved (local SGD, "
        "DiLoCo). Only 1 trains as one device would: other numbers change what is learned and must be allowed by name.",
        examples=[[1, 4, 16]],
    )
    gradient_delays: tuple[Annotated[int, Field(ge=0, le=1)], ...] = Field(
        default=(0,),
        strict=False,
        min_length=1,
        description="1 exchanges gradients while the next step computes and applies them at its end, one step late; it must be allowed "
        "by name, as it changes what is learned.",
        examples=[[0, 1]],
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
        description="Allowed codecs for gradients. Only none keeps every bit: codecs that lose accuracy must be allowed by name, or all "
        "of them by max_accuracy_drop. "
        "one-bit, top-k (1 %) and low-rank (PowerSGD, rank 4) send in later steps what they left out (error feedback).",
        examples=[["none", "fp16"]],
    )
    activation_codecs: tuple[ActivationCodec, ...] = Field(
        default=("none",),
        strict=False,
        min_length=1,
        description="Allowed codecs for what stages send each other. Only none keeps every bit; the others must be allowed by name, or "
        "all of them by max_accuracy_drop.",
        examples=[["none", "int8"]],
    )
    variants: tuple[CompressionSpec, ...] = Field(
        default=(),
        strict=False,
        description="Smaller variants of the model that may be taken instead of it; how accurate they still are is for you to know, "
        "or measured under max_accuracy_drop.",
        examples=[[{"prune": 0.5}, {"quantize": "bf16"}]],
    )
    runner_ups: int = Field(default=5, ge=0, description="How many next best plans to report.", examples=[5])

    @model_validator(mode="before")
    @classmethod
    def _allow_all_under_a_floor(cls, tables: Any) -> Any:
        """With a floor under the accuracy, codecs need not be allowed by name."""
        if not isinstance(tables, dict) or tables.get("max_accuracy_drop") is None:
            return tables
        return {"gradient_codecs": get_args(Codec), "activation_codecs": get_args(PlainActivationCodec)} | tables
