"""Short real runs of a job with one change: what it does to accuracy, seed by seed.

The replicas of a run are virtual (`virtual_replicas.py`); for codecs of activations the model is cut in two in its middle, and what
crosses goes through the message codec of a boundary, both ways. Stages, passes, codecs, optimizers and data are those of real runs.
The learning rate of a schedule falls over the steps of the short run. Changes of inference (codecs, variants) are made to a model that was
trained as it is, or has the weights that the scenario names; those of training take part in every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
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
from chinchilla_sim.planner.partition import allowed_cuts
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.batches import Shares, global_batches
from chinchilla_sim.runtime.codecs import MessageCodec, TensorSpec
from chinchilla_sim.runtime.dtypes import run_dtype
from chinchilla_sim.runtime.optimizers import make_optimizer, set_learning_rate
from chinchilla_sim.runtime.passes import Passes
from chinchilla_sim.runtime.stages import Stage, cut_stages, own_parameters
from chinchilla_sim.runtime.virtual_replicas import VirtualExchange
from chinchilla_sim.runtime.whole_variant import variant_module
from chinchilla_sim.scenario.schema import Scenario

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Change:
    """One change by its name in the accuracy table; the fields that differ from those of the job as it is."""

    name: str
    gradients: str = "none"
    activations: str = "none"
    variant: Variant = PLAIN


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
        trainer = ShortTraining(self, model, change)
        seen = [(0, self._evaluate(trainer.whole()))]
        marks = {round(steps * number / self.protocol.evaluations) for number in range(1, self.protocol.evaluations + 1)}
        for done, (inputs, targets) in enumerate(self.batches(seed, steps), start=1):
            trainer.step(inputs, targets, done - 1)
            if done in marks:
                seen.append((done, self._evaluate(trainer.whole())))
        return model, replace(self._short_run(change, seed, seen), sent_bytes=trainer.sent_bytes, plain_bytes=trainer.plain_bytes)

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


class ShortTraining:
    """One model in training with virtual replicas, and one change."""

    def __init__(self, probe: AccuracyProbe, model: nn.Module, change: Change) -> None:
        self.probe, self.model, self.spec, self.replicas = probe, model, probe.spec, probe.protocol.replicas
        self.variant, self.share = change.variant, self.spec.global_batch_size // self.replicas
        plan = probe.plan(change.activations != "none", self.share, True, self.variant)
        self.stages = cut_stages(probe.job, model, plan, range(plan.stage_count), CPU, variant=self.variant)
        self.passes = [Passes(stage, None) for stage in self.stages]
        self.owned = [parameter for row in own_parameters(self.stages) for parameter in row]
        self._owner = {parameter.data_ptr(): parameter for parameter in self.owned}
        self.masters = [_master(parameter) for parameter in self.owned]
        self.optimizer = make_optimizer(self.spec, self.masters)
        self.exchange = VirtualExchange(change.gradients, self.owned, self.replicas)
        self.boundary = Boundary(self.stages[0], change.activations) if len(self.stages) > 1 else None
        self.shares = [Shares(self._whole_plan(plan), replica, CPU, run_dtype(self.spec.precision)) for replica in range(self.replicas)]

    def _whole_plan(self, plan: Plan) -> Plan:
        """The plan with all replicas, by which a batch is divided."""
        placement = tuple(tuple(row[0] + replica * plan.stage_count for replica in range(self.replicas)) for row in plan.placement)
        slots = tuple(range(self.replicas * plan.stage_count))
        return replace(plan, placement=placement, slots=slots, global_batch_size=self.spec.global_batch_size)

    @property
    def sent_bytes(self) -> float:
        """What one rank sends in a step of what the change is about."""
        return self.boundary.wire_bytes if self.boundary else self.exchange.wire_bytes

    @property
    def plain_bytes(self) -> float:
        """The same as it is."""
        if self.boundary:
            return Boundary(self.stages[0], "none").wire_bytes
        return VirtualExchange("none", list(self.model.parameters()), self.replicas).wire_bytes

    def whole(self) -> nn.Module:
        """What is evaluated: the model, or its variant with the weights that it has by now."""
        if self.variant == PLAIN:
            return self.model
        state = {name: tensor for stage in self.stages for name, tensor in stage.state().items()}
        whole = deepcopy(self.model)
        whole.load_state_dict(whole.state_dict() | self.stages[0].expand(state))
        plan = self.probe.plan(False, self.spec.global_batch_size, training=False)
        return variant_module(self.probe.job, whole, plan, CPU, self.variant)

    def step(self, inputs: Any, targets: Any, done: int) -> float:
        """One optimizer step on a global batch, after so many others; returns its mean loss."""
        set_learning_rate(self.optimizer, self.spec, done, self.probe.protocol.steps)
        self.model.train()
        loss, kept = 0.0, list[Tensor]()
        for replica, shares in enumerate(self.shares):
            loss += self._pass(shares.inputs(inputs)[0], shares.targets(targets)[0])
            self.exchange.pack(replica)
            # Statistics of a batch norm are each replica's own; the first one's are kept.
            kept = kept or [buffer.clone() for buffer in self.model.buffers()]
        for buffer, own in zip(self.model.buffers(), kept, strict=False):
            buffer.copy_(own)
        self.exchange.finish()
        self._update()
        return loss

    def _pass(self, inputs: tuple[Tensor, ...], targets: Any) -> float:
        """Forward and backward of one replica's share."""
        last = self.stages[-1]
        loss = lambda outputs: self.probe.job.loss(last.restore(outputs), targets) / self.replicas  # noqa: E731
        tensors = inputs
        if self.boundary:
            tensors = self.boundary.forward(self.passes[0].forward(0, inputs, None))
        value = float(self.passes[-1].forward(0, tensors, loss)[0].detach())
        gradients = self.passes[-1].backward(0, None, _stay)
        if self.boundary:
            self.passes[0].backward(0, self.boundary.backward(gradients), _stay)
        self._add_twins()
        return value

    def _add_twins(self) -> None:
        """A weight that both stages use has one gradient."""
        for parameter in (one for stage in self.stages for one in stage.parameters()):
            owner = self._owner[parameter.data_ptr()]
            if parameter is not owner and parameter.grad is not None:
                owner.grad = parameter.grad if owner.grad is None else owner.grad + parameter.grad
                parameter.grad = None

    def _update(self) -> None:
        for parameter, master in zip(self.owned, self.masters, strict=True):
            if master is not parameter and parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.to(master.dtype), None
        if self.spec.clip_gradient_norm:
            nn.utils.clip_grad_norm_(self.masters, self.spec.clip_gradient_norm)
        self.optimizer.step()
        for parameter, master in zip(self.owned, self.masters, strict=True):
            parameter.grad = master.grad = None
            if master is not parameter:
                parameter.detach().copy_(master.detach())


class Boundary:
    """What crosses between two stages, through the codec of its messages."""

    def __init__(self, below: Stage, codec: str) -> None:
        needing = [spec for spec, needed in zip(below.output_specs, below.output_needs_gradient, strict=True) if needed]
        self._forward, self._backward = MessageCodec(codec, below.output_specs), MessageCodec(codec, needing)

    @property
    def wire_bytes(self) -> float:
        """Of one message there and one back."""
        return float(self._forward.wire_bytes + self._backward.wire_bytes)

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Activations as the upper stage gets them."""
        return tuple(self._forward.decode(self._forward.encode(tensors)))

    def backward(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Their gradients as the lower stage gets them."""
        return self._backward.decode(self._backward.encode(gradients))


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


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """In fp32: a copy, unless it is so already."""
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())


def _stay(_: int) -> None:
    """Gradients leave behind the whole pass."""
