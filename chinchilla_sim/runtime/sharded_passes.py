"""What FSDP2 takes of a rank's own time beside the passes and the exchanges: its hooks, and copies into and out of its buffers.

Two ranks play steps of the whole model under ZeRO 3, and each plays the same alone. What the kernel says that their threads ran longer is
FSDP2's, the messages that it sends included.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import thread_time

import torch

from chinchilla_sim.graph.compress import AS_IT_IS, Variant
from chinchilla_sim.graph.contract import TrainingJob
from chinchilla_sim.graph.trace import as_tuple
from chinchilla_sim.planner.action import Action, Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.program import lower
from chinchilla_sim.runtime.fully_sharded import shard_stage
from chinchilla_sim.runtime.groups import Groups, make_groups, seat_of
from chinchilla_sim.runtime.interlude import Interlude
from chinchilla_sim.runtime.interpreter import Interpreter
from chinchilla_sim.runtime.recorder import Recorder
from chinchilla_sim.runtime.stages import cut_stages, own_parameters
from chinchilla_sim.runtime.threads import hurry_network_threads
from chinchilla_sim.runtime.updates import stage_update
from chinchilla_sim.runtime.whole_passes import plain_descent, variant_of

STEPS = 10
WARM_UP = 2


def sharding_seconds(job: TrainingJob, size: int, rank: int, variant: Variant = AS_IT_IS) -> tuple[float, float]:
    """What ZeRO 3 adds to a forward and a backward pass of all weights in one bucket; all ranks call it, the first two play."""
    _, graph = variant_of(job, job.model().train(), size, True, variant)
    names = tuple(task.name for task in graph.compute_tasks)
    alone = Plan((names,), ((0,),), (0,), size, 1, "1f1b", ("none",), ())
    divided = Plan((names,), ((0, 1),), (0, 1), 2 * size, 1, "1f1b", ("none",), (), zero_stage=3)
    groups = make_groups(divided, seat_of(divided, rank % 2), ordered_messages=False)
    hurry_network_threads()
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
    cpu, seat, recorder = torch.device("cpu"), seat_of(plan, rank), Recorder()
    inputs, targets = job.example_batch(size)
    stages = cut_stages(job, job.model().train(), plan, (0,), cpu, variant=variant)
    if plan.zero_stage:
        stages = [shard_stage(plan, stage, groups, recorder, torch.float32) for stage in stages]
    pairs = zip(stages, own_parameters(stages), strict=True)
    updates = {stage.number: stage_update(plan, stage, owned, seat, groups, plain_descent) for stage, owned in pairs}
    player = Interpreter(plan, lower(plan).actions[rank], seat, stages, job.loss, updates, groups, recorder, cpu)
    seconds: dict[Op, list[float]] = {Op.F: [], Op.B: []}
    interlude = Interlude()

    def with_time(play: Callable[[Action], None]) -> Callable[[Action], None]:
        def play_timed(action: Action) -> None:
            interlude()
            start_s = thread_time()
            play(action)
            seconds[action.op].append(thread_time() - start_s)

        return play_timed

    for op in seconds:
        player.replace_player(op, with_time)
    for _ in range(WARM_UP + STEPS):
        player.step([as_tuple(inputs)], [targets])
    return median(seconds[Op.F][WARM_UP:]), median(seconds[Op.B][WARM_UP:])
