"""[disturbances]: what makes one step differ from the next."""

from pydantic import Field

from chinchilla_sim.scenario.fields import BytesPerSecond, NodeName, PositiveSeconds, Seconds
from chinchilla_sim.scenario.table import Table


class LinkChangeSpec(Table):
    """All links on the way between two nodes are slower for a while, counted from the start of a step."""

    between: tuple[NodeName, NodeName] = Field(strict=False, description="Two names of nodes.", examples=[["big", "small"]])
    start_s: Seconds = Field(alias="start", description="When the links slow down.", examples=["10 ms"])
    end_s: Seconds = Field(alias="end", description="When they recover.", examples=["60 ms"])
    factor: float = Field(ge=0, le=1, description="Share of the bandwidth that is left; 0 drops the link.", examples=[0.1])


class TrafficSpec(Table):
    """Others send all the time, as fast as stated or as the shared links let them."""

    between: tuple[NodeName, NodeName] = Field(strict=False, description="Sending and receiving node.", examples=[["big", "small"]])
    bandwidth_bytes_per_s: BytesPerSecond = Field(alias="bandwidth", description="What they send at most.", examples=["1 Gbit/s"])


class FailureSpec(Table):
    """How often nodes fail, and what that costs."""

    mean_time_between_failures_s: PositiveSeconds = Field(
        alias="mean_time_between_failures", description="Of one node; n nodes fail n times as often.", examples=["1000 h"]
    )
    checkpoint_s: Seconds = Field(alias="checkpoint", description="Seconds that saving a checkpoint stops the job.", examples=["30 s"])
    restart_s: Seconds = Field(alias="restart", description="From a failure until the job computes again.", examples=["5 min"])
    interval_s: PositiveSeconds | None = Field(
        default=None, alias="interval", description="Work between checkpoints; default: the best by Daly's formula.", examples=["1 h"]
    )


class DisturbanceSpec(Table):
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
