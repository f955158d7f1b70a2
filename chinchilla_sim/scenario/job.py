"""[job]: what is asked of the model, training or inference."""

from typing import Literal

from pydantic import Field

from chinchilla_sim.scenario.fields import Count, PositiveSeconds, RequestsPerSecond, Seconds
from chinchilla_sim.scenario.table import Table


class JobSpec(Table):
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
    epoch_samples: Count | None = Field(
        default=None, description="Samples of one pass over the data: reports then tell what an epoch costs.", examples=[1281167]
    )
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="Optimizer.", examples=["adam"])
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False, description="Learning rate.", examples=[0.001])
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="constant, or falling to 0 over all epochs: linearly, or along half a cosine.", examples=["linear"]
    )
    warmup_steps: int = Field(
        default=0, ge=0, description="Steps over which the learning rate first rises linearly to its value.", examples=[100]
    )
    clip_gradient_norm: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Scale all gradients down to this norm where theirs is larger (2-norm over the whole model).",
        examples=[1.0],
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False, description="Momentum of optimizer sgd.", examples=[0.9])
    outer_learning_rate: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="With local steps: how far the shared weights follow the mean of the replicas' (1: all the way; DiLoCo: 0.7).",
        examples=[0.7],
    )
    outer_momentum: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="With local steps: Nesterov momentum of the shared weights (0: plain averages; DiLoCo: 0.9).",
        examples=[0.9],
    )
    checkpoint_interval_steps: Count | None = Field(
        default=None, description="Save a checkpoint of a real run every so many steps.", examples=[500]
    )
    checkpoint_interval_s: Seconds = Field(
        default=300.0,
        alias="checkpoint_interval",
        description="Save a checkpoint of a real run about every so many seconds, unless its steps are counted; never at 0 s.",
        examples=["5 min"],
    )
    timeout_s: PositiveSeconds = Field(
        default=120.0, alias="timeout", description="A real run in which no rank moves for so long hangs, and is ended.", examples=["2 min"]
    )
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
    concurrency: Count | None = Field(
        default=None,
        description="Requests that are always under way in inference (a closed loop): each answer brings the next one.",
        examples=[16],
    )
    target_accuracy: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Accuracy (of evaluate() on validation data, 0 to 1) to which steps are counted by time_to_accuracy; default: what the "
        "uncompressed job reaches in 90 % of a short run.",
        examples=[0.95],
    )
    target_loss: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="The same as a validation_loss, instead of target_accuracy.",
        examples=[0.2],
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
