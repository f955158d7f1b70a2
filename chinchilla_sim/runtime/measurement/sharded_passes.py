"""What FSDP2 takes of a rank's own time beside the passes and the exchanges: its hooks, and copies into and out of its buffers.

Two ranks play steps of the whole model under ZeRO 3, and each plays the same alone. What the kernel says that their threads ran longer is
FSDP2's, the messages that it sends included.
"""

from __future__ import annotations

from time import thread_time

import torch

from chinchilla_sim.graph.compress import AS_IT_IS, Variant
from chinchilla_sim.graph.contract import TrainingJob
from chinchilla_sim.graph.trace import as_tuple
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.exchanges.groups import Groups, make_groups, seat_of
from chinchilla_sim.runtime.launching.threads import order_network_threads
from chinchilla_sim.runtime.measurement.clocked import Clocked, idle_rank
from chinchilla_sim.runtime.measurement.interlude import Interlude
from chinchilla_sim.runtime.measurement.whole_passes import variant_of
from chinchilla_sim.runtime.program.fully_sharded import shard_stage
from chinchilla_sim.runtime.record.recorder import Recorder
from chinchilla_sim.runtime.stage.stages import cut_stages

STEPS = 10
WARM_UP = 2


def sharding_seconds(job: TrainingJob, size: int, rank: int, variant: Variant = AS_IT_IS) -> tuple[float, float]:
    """What ZeRO 3 adds to a forward and a backward pass of all weights in one bucket; all ranks call it, the first two play."""
    _, graph = variant_of(job, job.model().train(), size, True, variant)
    names = tuple(task.name for task in graph.compute_tasks)
    alone = Plan((names,), ((0,),), (0,), size, 1, "1f1b", ("none",), ())
    divided = Plan((names,), ((0, 1),), (0, 1), 2 * size, 1, "1f1b", ("none",), (), zero_stage=3)
    groups = make_groups(divided, seat_of(divided, rank % 2), ordered_messages=False)
    order_network_threads()
    if rank > 1:
        return 0.0, 0.0
    with_it, without = (
        _seconds(job, size, plan, place, among, variant) for plan, place, among in ((divided, rank, groups), (alone, 0, Groups()))
    )
    forward_s, backward_s = (max(0.0, a - b) for a, b in zip(with_it, without, strict=True))
    return forward_s, backward_s


def _seconds(job: TrainingJob, size: int, plan: Plan, rank: int, groups: Groups, variant: Variant) -> tuple[float, float]:
    """Median seconds that a rank's thread runs in a forward and in a backward pass, each behind other work."""
    torch.manual_seed(0)
    recorder, (inputs, targets) = Recorder(), job.example_batch(size)
    stages = cut_stages(job, job.model().train(), plan, (0,), torch.device("cpu"), variant=variant)
    if plan.zero_stage:
        stages = [shard_stage(plan, stage, groups, recorder, torch.float32) for stage in stages]
    player = idle_rank(job, plan, rank, stages, groups, recorder)
    clocked = Clocked(player, (Op.F, Op.B), thread_time, Interlude())
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            clocked.seconds.clear()
        player.step([as_tuple(inputs)], [targets])
    return clocked.total_s(Op.F), clocked.total_s(Op.B)
