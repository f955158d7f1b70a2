"""Short real runs of a job with one change: what it does to accuracy, seed by seed.

How a run trains is in `short_training.py`. The learning rate of a schedule falls over the steps of the short run. Changes of inference
(codecs, variants) are made to a model that was trained as it is, or has the weights that the scenario names; those of training take
part in every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import accumulate, count
from typing import Any

import torch
from torch import Tensor, nn

from chinchilla_sim.errors import Mistake, RunError, ScenarioError
from chinchilla_sim.graph.compress import AS_IT_IS as PLAIN
from chinchilla_sim.graph.compress import Variant, compress
from chinchilla_sim.graph.contract import TrainingJob, factory_of, load_job
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.trace import trace_job
from chinchilla_sim.planner.accuracy import AS_IT_IS, LOSS, Protocol, ShortRun, accuracy_among
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.space.partition import allowed_cuts
from chinchilla_sim.runtime.accuracy.short_training import Change, ShortTraining, whole_plan
from chinchilla_sim.runtime.exchanges.codecs import MessageCodec, TensorSpec
from chinchilla_sim.runtime.stage.batches import global_batches
from chinchilla_sim.runtime.stage.dtypes import run_dtype
from chinchilla_sim.runtime.stage.stages import Stage, cut_stages
from chinchilla_sim.runtime.stage.whole_variant import variant_module
from chinchilla_sim.scenario.schema import Scenario

CPU = torch.device("cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """As ranks have it: sums of several threads are rounded otherwise, on every machine in another way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class AccuracyProbe:
    """Runs of one scenario's job."""

    def __init__(self, scenario: Scenario, protocol: Protocol) -> None:
        self.scenario, self.protocol, self.spec = scenario, protocol, scenario.job
        self.training = scenario.job.kind == "training"
        self.job: TrainingJob = load_job(*factory_of(scenario), to_run=True)
        if not callable(getattr(self.job, "evaluate", None)):
            cure = 'let its job have evaluate(model) -> {"validation_accuracy": ...}'
            raise ScenarioError([Mistake("model.factory", "builds a job that cannot be evaluated", cure)])
        self._trained: tuple[int, nn.Module, ShortRun] | None = None
        self._graphs: dict[bool, TaskGraph] = {}

    def graph(self, training: bool) -> TaskGraph:
        """The model as it is, with its loss or without."""
        if training not in self._graphs:
            self._graphs[training] = trace_job(self.job, self.spec.global_batch_size, training, "probe", self.spec.precision)
        return self._graphs[training]

    def run(self, change: Change, seed: int) -> ShortRun:
        """One run; RunError says why a change cannot be measured."""
        with one_thread():
            return self._train(change, seed)[1] if self.training else self._infer(change, seed)

    def _infer(self, change: Change, seed: int) -> ShortRun:
        _, model, plain = self._trained_model(seed)
        if change == Change(change.name):
            return plain
        metrics = self._evaluate(self._changed(model, change))
        last = {name: (values[0],) for name, values in metrics.items()}
        return ShortRun(change.name, seed, (plain.steps[-1],), last, *self._stored_bytes(change))

    def _trained_model(self, seed: int) -> tuple[int, nn.Module, ShortRun]:
        """A model for inference: trained as it is from this seed, or of given weights."""
        if self._trained is None or self._trained[0] != seed:
            self._trained = (seed, *self._train(Change(AS_IT_IS), seed))
        return self._trained

    def fresh_model(self, seed: int) -> nn.Module:
        """The model as a seed begins it."""
        torch.manual_seed(seed)
        model: nn.Module = self.job.model()
        if self.scenario.model.weights:
            model.load_state_dict(torch.load(self.scenario.model.weights, weights_only=True))
        torch.manual_seed(seed)
        return model.to(run_dtype(self.spec.precision))

    def _train(self, change: Change, seed: int) -> tuple[nn.Module, ShortRun]:
        """A model after all steps, and what was seen of it on the way."""
        model, steps = self.fresh_model(seed), self.protocol.steps
        if not steps:
            return model, self._short_run(change, seed, [(0, self._evaluate(model))])
        trainer = self.trainer(model, change)
        seen = [(0, self._evaluate(self._whole(trainer)))]
        marks = {round(steps * number / self.protocol.evaluations) for number in range(1, self.protocol.evaluations + 1)}
        for done, (inputs, targets) in enumerate(self.batches(seed, steps), start=1):
            trainer.step(inputs, targets, done - 1)
            if done in marks:
                trainer.settle()
                seen.append((done, self._evaluate(self._whole(trainer))))
        return model, replace(self._short_run(change, seed, seen), sent_bytes=trainer.sent_bytes, plain_bytes=trainer.plain_bytes)

    def trainer(self, model: nn.Module, change: Change) -> ShortTraining:
        """A model in training with a change; RunError where the runtime cannot play it."""
        replicas = self.protocol.replicas
        plan = self.plan(change.activations != "none", self.spec.global_batch_size // replicas, True, change.variant)
        whole = whole_plan(plan, self.spec, replicas, change)
        return ShortTraining(self.job, self.spec, self.protocol.steps, whole, model, change.variant)

    def _whole(self, trainer: ShortTraining) -> nn.Module:
        """What is evaluated: the model, or its variant with the weights that it has by now."""
        if trainer.variant == PLAIN:
            return trainer.model
        state = {name: tensor for stage in trainer.stages for name, tensor in stage.state().items()}
        whole = deepcopy(trainer.model)
        whole.load_state_dict(whole.state_dict() | trainer.stages[0].expand(state))
        return variant_module(self.job, whole, self.plan(False, self.spec.global_batch_size, training=False), CPU, trainer.variant)

    def batches(self, seed: int, steps: int) -> Iterator[tuple[Any, Any]]:
        """As many global batches as there are steps, over as many epochs as that takes."""
        left = steps
        for epoch in count():
            before = left
            for batch in global_batches(self.job.batches("train", seed, epoch), self.spec.global_batch_size):
                yield batch
                left -= 1
                if not left:
                    return
            if left == before:
                raise RunError(f"the data has fewer than {self.spec.global_batch_size} samples: no step was made")

    def _evaluate(self, model: nn.Module) -> dict[str, tuple[float]]:
        whole = (
            model if all(one.dtype == torch.float32 for one in model.parameters() if one.is_floating_point()) else deepcopy(model).float()
        )
        training = model.training
        metrics: dict[str, float] = self.job.evaluate(whole)  # type: ignore[attr-defined]
        model.train(training)
        if self.spec.target_loss is not None and LOSS not in metrics:
            raise ScenarioError([Mistake("job.target_loss", f"needs {LOSS}, which evaluate() does not return", "state a target_accuracy")])
        if accuracy_among(metrics) is None:
            cure = "let evaluate() return validation_accuracy"
            raise ScenarioError([Mistake("model", f"evaluate() returns no accuracy, only {', '.join(metrics)}", cure)])
        return {name: (float(value),) for name, value in metrics.items()}

    @staticmethod
    def _short_run(change: Change, seed: int, seen: Sequence[tuple[int, dict[str, tuple[float]]]]) -> ShortRun:
        metrics = {name: tuple(row[name][0] for _, row in seen) for name in seen[0][1]}
        return ShortRun(change.name, seed, tuple(steps for steps, _ in seen), metrics)

    def plan(self, halves: bool, samples: int, training: bool, variant: Variant = PLAIN) -> Plan:
        """The plan of one virtual replica: all tasks in one stage, or in two on two ranks."""
        graph = compress(self.graph(training), variant)
        stages = halves_of(graph, training) if halves else (tuple(task.name for task in graph.compute_tasks),)
        return Plan(
            stages=stages,
            placement=tuple((rank,) for rank in range(len(stages))),
            slots=tuple(range(len(stages))),
            global_batch_size=samples,
            microbatch_count=1,
            schedule="gpipe" if training else "forward",
            gradient_codecs=("none",) * len(stages),
            activation_codecs=("none",) * (len(stages) - 1),
        )

    def _changed(self, model: nn.Module, change: Change) -> nn.Module:
        """A trained model, with a change of inference made to it."""
        model = deepcopy(model)
        if change.variant != PLAIN:
            plan = self.plan(False, self.spec.global_batch_size, training=False)
            return variant_module(self.job, model, plan, CPU, change.variant)
        plan = self.plan(True, max(2, self.spec.global_batch_size), training=False)
        return CodedModel(cut_stages(self.job, model, plan, (0, 1), CPU, dynamic=True), change.activations)

    def _stored_bytes(self, change: Change) -> tuple[float, float]:
        """Bytes of a variant's weights, or of what crosses in a global batch; and the same as it is."""
        graph = self.graph(training=False)
        if change.variant != PLAIN:
            return compress(graph, change.variant).total_parameter_bytes, graph.total_parameter_bytes
        position = graph.position[halves_of(graph, training=False)[0][-1]]
        specs = [TensorSpec(shape, torch.float32) for task in graph.live_after(position) for shape in task.shapes]
        return tuple(float(MessageCodec(codec, specs).wire_bytes) for codec in (change.activations, "none"))  # type: ignore[return-value]


def halves_of(graph: TaskGraph, training: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tasks before and behind the boundary that leaves about as many flop on either side."""
    tasks = graph.compute_tasks
    done = list(accumulate(task.forward_flop for task in tasks))
    ends = [index for index, allowed in enumerate(allowed_cuts(graph, training)[:-1], start=1) if allowed]
    if not ends:
        raise RunError("the model cannot be cut in two, so nothing crosses a boundary")
    middle = min(ends, key=lambda end: (abs(2 * done[end - 1] - done[-1]), end))
    names = tuple(task.name for task in tasks)
    return names[:middle], names[middle:]


class CodedModel(nn.Module):
    """A model in two stages for inference; what crosses goes through a codec, for any number of samples."""

    def __init__(self, stages: Sequence[Stage], codec: str) -> None:
        super().__init__()
        if not all(stage.dynamic for stage in stages):
            raise RunError("torch.export traces this model for one number of samples only: it cannot be evaluated in two stages")
        self.stages, self.codec = stages, codec

    def forward(self, *inputs: Tensor) -> Any:
        """What the model returns."""
        crossing = self.stages[0](*inputs)
        message = MessageCodec(self.codec, [TensorSpec(tuple(tensor.shape), tensor.dtype) for tensor in crossing])
        return self.stages[1].restore(self.stages[1](*message.decode(message.encode(crossing))))
