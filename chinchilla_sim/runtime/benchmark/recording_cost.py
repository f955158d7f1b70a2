"""What recording costs: the recorder's own seconds in a step, and the same steps with and without it.

The first is exact to a few per cent: the calls of a step, timed alone. The second is what a user would notice; on a
shared machine it drowns in noise, so beside it stands how far two series of steps that are both without differ.
Steps are of 784-512-10 on one rank, in microbatches so small that a span takes some 100 microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median
from time import monotonic, perf_counter

import torch

from chinchilla_sim.graph.contract import factory_of, load_job
from chinchilla_sim.graph.zoo import mlp
from chinchilla_sim.planner.action import CATEGORY, Action
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.program import lower
from chinchilla_sim.runtime.exchanges.groups import Groups, seat_of
from chinchilla_sim.runtime.program.interpreter import Interpreter
from chinchilla_sim.runtime.program.updates import stage_update
from chinchilla_sim.runtime.rank.optimizers import make_optimizer
from chinchilla_sim.runtime.record.recorder import WARM_UP_STEPS, Recorder
from chinchilla_sim.runtime.stage.batches import Shares, global_batches
from chinchilla_sim.runtime.stage.stages import cut_stages, own_parameters
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.simulator.benchmark import Figure

PAIRS = 200
MOST_PERCENT = 1.0
SCENARIO = {"name": "recorder", "model": {"builtin": "mnist_mlp"}, "job": {"global_batch_size": 256}, "cluster": {"kind": "this-machine"}}
WIDTHS = (784, 512, 10)
MICROBATCHES = 8


class NoRecorder(Recorder):
    """Records nothing."""

    def begin_step(self) -> None:
        """Nothing."""

    def end_step(self) -> None:
        """Nothing."""

    def compute(self, label: str, category: object, start_s: float, waited_s: float = 0.0, sent_bytes: float = 0.0) -> None:
        """Nothing."""


def measure_recorder(pairs: int = PAIRS) -> Iterator[Figure]:
    """Seconds of a step, of recording it, and their ratio; then whole steps with and without recorder, in turns."""
    torch.set_num_threads(1)
    interpreter = _interpreter()
    recorded_s, plain_s, again_s = _in_turns(interpreter, [Recorder(), NoRecorder(), NoRecorder()], pairs)
    own_s = recording_s(interpreter.actions)
    yield Figure("a step without recorder", 1e3 * plain_s, "ms")
    yield Figure("actions of a step", len(interpreter.actions), "")
    yield Figure("recording a step", 1e6 * own_s, "us")
    yield Figure("recording a step, share of it", 100 * own_s / plain_s, "%", MOST_PERCENT, at_most=True)
    yield Figure("steps with recorder against steps without", 100 * (recorded_s / plain_s - 1), "%")
    yield Figure("steps without against steps without (noise)", 100 * (again_s / plain_s - 1), "%")


def recording_s(actions: Sequence[Action], repeats: int = 200) -> float:
    """Seconds of a recorder's calls in a step of these actions, as if every pass waited for a message and sent one: the least of all."""
    recorder, best_s = Recorder(), float("inf")
    for _ in range(repeats):
        started_s = perf_counter()
        recorder.begin_step()
        for action in actions:
            key = "F", 0, action.microbatch or 0, 0
            recorder.post(key, str(action))
            recorder.received(key, monotonic())
            recorder.compute(str(action), CATEGORY[action.op], monotonic())
            recorder.send(key, str(action), 0)
        recorder.end_step()
        best_s = min(best_s, perf_counter() - started_s)
    return best_s


def _in_turns(interpreter: Interpreter, recorders: Sequence[Recorder], rounds: int) -> list[float]:
    """Median seconds of steps under each recorder; who comes first changes from round to round."""
    seconds: list[list[float]] = [[] for _ in recorders]
    for number in range(rounds + WARM_UP_STEPS):
        for turn in range(len(recorders)):
            index = (turn + number) % len(recorders)
            _give(interpreter, recorders[index])
            started_s = perf_counter()
            interpreter.step(interpreter.inputs, interpreter.targets)
            seconds[index].append(perf_counter() - started_s)
    return [median(series[WARM_UP_STEPS:]) for series in seconds]


def _give(interpreter: Interpreter, recorder: Recorder) -> None:
    interpreter.recorder = interpreter.messages.recorder = recorder
    for gradients in interpreter.gradients.values():
        gradients.recorder = recorder


def _interpreter() -> Interpreter:
    """One rank that holds the whole model, with a batch to repeat."""
    scenario, cpu = parse_scenario(SCENARIO, "recorder"), torch.device("cpu")
    names = tuple(task.name for task in mlp(WIDTHS, scenario.job.global_batch_size).compute_tasks)
    plan = Plan((names,), ((0,),), (0,), scenario.job.global_batch_size, MICROBATCHES, "1f1b", ("none",), ())
    job = load_job(*factory_of(scenario), to_run=True)
    torch.manual_seed(scenario.job.seed)
    seat = seat_of(plan, 0)
    stages = cut_stages(job, job.model(), plan, seat.stages, cpu)
    updates = {0: stage_update(plan, stages[0], own_parameters(stages)[0], seat, Groups(), partial(make_optimizer, scenario.job))}
    interpreter = Interpreter(plan, lower(plan).actions[0], seat, stages, job.loss, updates, Groups(), Recorder(), cpu)
    shares = Shares(plan, seat.replica, cpu, torch.float32)
    inputs, targets = next(global_batches(job.batches("train", 0, 0), scenario.job.global_batch_size))
    interpreter.inputs, interpreter.targets = shares.inputs(inputs), shares.targets(targets)
    return interpreter
