"""A small network whose kernels are measured one by one: what its steps take beyond these is the program's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median
from time import thread_time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from chinchilla_sim.cluster.calibration import KernelRow
from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.compute import FP32_BYTES, OPTIMIZER_BYTES_PER_VALUE, accumulation_s, backward_s, forward_s, optimizer_s
from chinchilla_sim.graph.zoo import mlp
from chinchilla_sim.planner.action import RECEIVES, SENDS
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.program import lower
from chinchilla_sim.runtime.exchanges.groups import Groups, seat_of
from chinchilla_sim.runtime.measurement.clocked import Clocked
from chinchilla_sim.runtime.measurement.interlude import timed
from chinchilla_sim.runtime.program.interpreter import Interpreter
from chinchilla_sim.runtime.program.updates import StageUpdate
from chinchilla_sim.runtime.record.recorder import Recorder
from chinchilla_sim.runtime.stage.stages import cut_stages

REFERENCE_WIDTHS = (512, 1024, 32)
REFERENCE_BATCH = 16
REFERENCE_LAYERS = tuple(pairwise(REFERENCE_WIDTHS))
REFERENCE_HIDDEN_VALUES = REFERENCE_BATCH * REFERENCE_WIDTHS[1]
REFERENCE_PARAMETERS = sum((inputs + 1) * outputs for inputs, outputs in REFERENCE_LAYERS)
REFERENCE_COUNTS = (1, 8)
ROUNDS, STEPS = 9, 40
MESSAGE_STEPS = 40


class ReferenceJob:
    """Two linear layers and a ReLU."""

    def __init__(self, widths: tuple[int, int, int] = REFERENCE_WIDTHS) -> None:
        self.widths = widths

    def model(self) -> nn.Module:
        """The network."""
        inputs, hidden, outputs = self.widths
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def example_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Samples and targets."""
        return torch.rand(size, self.widths[0]), torch.zeros(size, dtype=torch.int64)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy."""
        return cross_entropy(outputs, targets)

    def batches(self, split: str, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One batch."""
        yield self.example_batch(REFERENCE_BATCH)


def fit_fixed_times(device: Device, step_s: Mapping[int, float], rows: Sequence[KernelRow]) -> Device:
    """Fixed seconds per microbatch and per step: what measured steps take beyond the network's kernels, as these were measured alone.

    `step_s` maps a microbatch count to seconds of a step through the interpreter; kernels that are not in `rows` take what the device says.
    """
    graph, measured = mlp(REFERENCE_WIDTHS, REFERENCE_BATCH), {(row.direction, row.flop, row.moved_bytes): row.measured_s for row in rows}
    kernels_s = device.backward_fixed_s
    for task in graph.compute_tasks:
        kernels_s += measured.get(("forward", task.forward_flop, task.read_bytes + task.written_bytes), forward_s(task, 1.0, device))
        # A backward kernel that is measured alone pays for the start of a backward pass too.
        alone_s = measured.get(("backward", task.backward_flop, task.backward_read_bytes + task.backward_written_bytes))
        kernels_s += backward_s(task, 1.0, device) if alone_s is None else max(0.0, alone_s - device.backward_fixed_s)
    addition_s = accumulation_s(graph.total_parameter_bytes, device)
    few, many = min(step_s), max(step_s)
    per_microbatch_s = max(0.0, (step_s[many] - step_s[few]) / (many - few) - kernels_s - addition_s)
    moved_bytes = OPTIMIZER_BYTES_PER_VALUE["adam"] * REFERENCE_PARAMETERS
    update_s = measured.get(("optimizer", 0.0, moved_bytes), optimizer_s(REFERENCE_PARAMETERS * FP32_BYTES, "adam", 0.0, device))
    fixed_s = max(0.0, step_s[few] - few * (kernels_s + per_microbatch_s) - update_s)
    begin_s, end_s = device.forward_fixed_s + per_microbatch_s / 2, device.backward_fixed_s + per_microbatch_s / 2
    return replace(device, forward_fixed_s=begin_s, backward_fixed_s=end_s, step_fixed_s=fixed_s)


def reference_step_s() -> dict[int, float]:
    """Seconds of a step on one rank, through the interpreter, by microbatch count.

    They follow each other as in a run: behind other work a step of one microbatch takes 15 % longer, one of eight as long. Measured
    in turns: what disturbs the machine for a while must not make one kind of step longer and not the other.
    """
    steps = {count: _rank(0, 1, count)[1] for count in REFERENCE_COUNTS}
    rounds = [{count: _back_to_back_s(step, STEPS // count) for count, step in steps.items()} for _ in range(ROUNDS)]
    return {count: median(one[count] for one in rounds) for count in steps}


def _back_to_back_s(step: Callable[[], float], count: int) -> float:
    step()
    return median(timed(step) for _ in range(count))


def program_message_s(rank: int) -> float:
    """Seconds that a program takes to send a message or await one, without what other threads do for it; ranks 0 and 1 play."""
    player, step = _rank(rank, 2, REFERENCE_COUNTS[-1])
    clocked = Clocked(player, SENDS | RECEIVES, thread_time)
    for _ in range(MESSAGE_STEPS):
        step()
    played = {op for op, _ in clocked.seconds}
    return sum(map(clocked.total_s, played)) / len(played)


def _rank(rank: int, stage_count: int, microbatch_count: int) -> tuple[Interpreter, Callable[[], float]]:
    """One rank of the job in one or two stages, and what plays a step."""
    names = tuple(task.name for task in mlp(REFERENCE_WIDTHS, 1).compute_tasks)
    parts = (names,) if stage_count == 1 else (names[:2], names[2:])
    placement, codecs = tuple((stage,) for stage in range(stage_count)), ("none",) * stage_count
    size = REFERENCE_BATCH * microbatch_count
    plan = Plan(parts, placement, tuple(range(stage_count)), size, microbatch_count, "gpipe", codecs, codecs[1:])
    job, device = ReferenceJob(), torch.device("cpu")
    stages = cut_stages(job, job.model(), plan, (rank,), device)
    parameters = stages[0].parameters()
    updates = {rank: StageUpdate(parameters, parameters, parameters, lambda updated: torch.optim.Adam(updated, fused=True))}
    player = Interpreter(plan, lower(plan).actions[rank], seat_of(plan, rank), stages, job.loss, updates, Groups(), Recorder(), device)
    inputs, targets = job.example_batch(REFERENCE_BATCH)
    return player, lambda: player.step([(inputs,)] * microbatch_count, [targets] * microbatch_count)
