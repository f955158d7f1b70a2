"""What a script of torch alone can say of a plan and its job."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.scenario.job import JobSpec

WIRE_TYPES = {"none": None, "fp16": "torch.float16", "bf16": "torch.bfloat16"}

_BEYOND_PLAN: Mapping[str, Callable[[Plan], bool]] = {
    "inference": lambda plan: not plan.training,
    "stages with replica counts of their own": lambda plan: plan.free_replicas,
    "split backward passes": lambda plan: plan.splits_backward,
    "gradient buckets": lambda plan: plan.gradient_buckets > 1,
    "ZeRO": lambda plan: plan.zero_stage > 0,
    "local steps and late gradients": lambda plan: plan.asynchronous,
    "recompute": lambda plan: not {*plan.recompute} <= {"none"},
    "weights shared by stages": lambda plan: bool(plan.shared_stages),
    "tensor, context and expert parallelism": lambda plan: plan.group_width * plan.expert_parallel_degree > 1,
    "codecs other than fp16 and bf16": lambda plan: not {*plan.gradient_codecs, *plan.activation_codecs} <= {*WIRE_TYPES},
    "priorities of messages": lambda plan: plan.activation_priority is not None,
}

_SAID_OF_JOB: Mapping[str, tuple[object, ...]] = {
    "precision": ("fp32",),
    "optimizer": ("adam", "sgd"),
    "learning_rate_schedule": ("constant", "linear"),
    "warmup_steps": (None, 0),
    "clip_gradient_norm": (None,),
}
"""Keys of [job] and those of their values that a script can say; keys that this version does not have count as left out."""


def check_script(plan: Plan, job: JobSpec) -> None:
    """ScenarioError with all that a script cannot express."""
    cure = "export --to torchrun, or leave it out when planning"
    mistakes = [Mistake("plan", f"a script of torch alone has no {what}", cure) for what, asked in _BEYOND_PLAN.items() if asked(plan)]
    for key, values in _SAID_OF_JOB.items():
        value = getattr(job, key, None)
        if value not in values and hasattr(job, key):
            mistakes.append(Mistake(f"job.{key}", f"a script of torch alone does not know {value!r}", cure))
    if mistakes:
        raise ScenarioError(mistakes)
