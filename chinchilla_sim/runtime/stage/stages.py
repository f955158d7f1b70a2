"""Cut a model into the stages of a plan, on the run's own device.

The model is exported again where it runs, at the plan's microbatch size: a trace on the meta device bakes in its
device. Stage s takes the tensors that cross the boundary before it and returns those that cross the one behind it;
a tensor that a later stage needs passes through the stages between (a skip connection across several stages).

A stage is a row of segments, cut in the same way: where its gradients leave in several buckets, and around what is computed again.

A dynamic trace takes any number of samples. Its sizes that depend on them are no tensors and cross no boundary: each stage reads them
off its own inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_unflatten

from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.compress import AS_IT_IS, Variant
from chinchilla_sim.graph.contract import TrainingJob
from chinchilla_sim.graph.shard import shard_graph
from chinchilla_sim.graph.task import LOSS_OP, Task, TaskGraph
from chinchilla_sim.graph.trace import as_tuple, export_module, graph_of, shape_of
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.buckets import bucket_ends, trained_sizes
from chinchilla_sim.planner.pricing.recompute import Blocks
from chinchilla_sim.planner.pricing.sharing import shared_names
from chinchilla_sim.runtime.exchanges.codecs import TensorSpec
from chinchilla_sim.runtime.stage.batches import calibration_inputs
from chinchilla_sim.runtime.stage.deferred import WeightTape, defer
from chinchilla_sim.runtime.stage.division import Divider, Placed
from chinchilla_sim.runtime.stage.dtypes import cast_floating, weights_dtype
from chinchilla_sim.runtime.stage.lanes import Lanes
from chinchilla_sim.runtime.variant.quantized import MADE_OF_WEIGHTS
from chinchilla_sim.runtime.variant.surgery import has, value_of
from chinchilla_sim.runtime.variant.variants import State, make_variant


@dataclass(frozen=True)
class Segment:
    """A run of a stage's tasks: `module(*inputs) -> tuple of outputs`.

    `again` says that its forward pass runs again in its backward pass, `bucket` in which of the stage's buckets its gradients leave,
    `random` that it draws random numbers, which must be the same when it runs again.
    """

    module: nn.Module
    input_needs_gradient: tuple[bool, ...]
    output_needs_gradient: tuple[bool, ...]
    bucket: int = 0
    again: bool = False
    random: bool = False


@dataclass(frozen=True)
class Stage:
    """One stage of a model: `stage(*inputs) -> tuple of outputs`, its segments one behind the other.

    `*_specs` describe the tensors of the boundaries, `*_needs_gradient` says which of them have a gradient. The
    last stage's outputs are the leaves of the model's; `restore` gives them the model's own structure. With split backward passes the
    weight gradients are on `tape` after I. `shared` are its parameters that other stages train too, by number of their set.
    Weights have `dtype`. `modules` have the model's names for what is in the segments, where those do not (empty: the segments do).
    A `dynamic` stage takes any number of samples; the specs are those of a full microbatch.
    With tensor parallelism `divider` says how this lane's parts of weights and tensors are cut. `expand` makes weights of the whole
    model of those of all stages, where they are a variant's.
    """

    segments: tuple[Segment, ...]
    input_specs: tuple[TensorSpec, ...]
    input_needs_gradient: tuple[bool, ...]
    output_specs: tuple[TensorSpec, ...]
    output_needs_gradient: tuple[bool, ...]
    restore: Callable[[Sequence[Tensor]], Any]
    number: int = 0
    last: bool = True
    tape: WeightTape = field(default_factory=WeightTape)
    shared: dict[int, list[nn.Parameter]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    modules: tuple[nn.Module, ...] = ()
    dynamic: bool = False
    input_divided: tuple[bool, ...] = ()
    output_divided: tuple[bool, ...] = ()
    divider: Divider | None = None
    expand: Callable[[State], State] = dict

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        tensors = inputs
        for segment in self.segments:
            tensors = segment.module(*tensors)
        return tensors

    @property
    def bucket_count(self) -> int:
        """In how many buckets its gradients leave."""
        return self.segments[-1].bucket + 1

    def parameters(self, bucket: int | None = None) -> list[nn.Parameter]:
        """Trainable parameters of the stage, or of one bucket, in a fixed order; one that several use is the first one's."""
        bucket_of: dict[nn.Parameter, int] = {}
        for segment in self.segments:
            for parameter in segment.module.parameters():
                if parameter.requires_grad:
                    bucket_of.setdefault(parameter, segment.bucket)
        return [parameter for parameter, own in bucket_of.items() if bucket in (None, own)]

    def paths(self) -> dict[nn.Parameter, str]:
        """By what name of the model's each parameter is found; the first of several."""
        paths: dict[nn.Parameter, str] = {}
        for module in self.modules or [segment.module for segment in self.segments]:
            for path, parameter in module.named_parameters(remove_duplicate=False):
                paths.setdefault(parameter, path)
        return paths

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers by the model's own names; sharded ones as they are, with tensor parallelism this lane's parts."""
        state: dict[str, Tensor] = {}
        for module in self.modules or [segment.module for segment in self.segments]:
            state |= {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}
        return state


def cut_stages(
    job: TrainingJob,
    model: nn.Module,
    plan: Plan,
    numbers: Sequence[int],
    device: torch.device,
    dynamic: bool = False,
    variant: Variant = AS_IT_IS,
    lanes: Lanes | None = None,
) -> list[Stage]:
    """The stages of `model` (in training mode for training plans) with these numbers; its parameters become theirs.

    A weight that several of them use is one tensor with a gradient for each of them. With `dynamic` they take any number of samples,
    where torch.export can trace the model so, and the plan's microbatches else. With a `variant` the stages are those of a smaller model,
    with `lanes` (tensor parallelism) they hold this lane's parts of what is divided.
    """
    size, model = plan.microbatch_size, model.train(plan.training)
    exported, dynamic = export_for_run(model, example_inputs(job, model, size, device), dynamic, size)
    nodes = list(exported.graph.nodes)
    graph = graph_of(model, nodes, size, plan.training, name="run")
    expand: Callable[[State], State] = dict
    if variant != AS_IT_IS:
        made = make_variant(exported, graph, variant, partial(calibration_inputs, job, model, size, device))
        exported, graph, expand = made.exported, made.graph, made.expand
    _check(plan, graph)
    divider = Divider(exported, model, graph, lanes) if lanes else None
    cutter = _Cutter(exported, graph, plan, weights_dtype(model), dynamic, divider)
    stages = [replace(cutter.cut(number), expand=expand) for number in numbers]
    _separate_gradients(stages)
    parameters = divider.parameters if divider else _parameters_of(exported, model, graph)
    _find_shared(stages, parameters, plan, graph)
    return stages


def _parameters_of(exported: GraphModule, model: nn.Module, graph: TaskGraph) -> dict[str, nn.Parameter]:
    """Parameters by all names that the model and the task graph have for them; those of a variant are its own."""
    made = {name: value_of(exported, name) for name in graph.weights if has(exported, name)}
    return dict(model.named_parameters(remove_duplicate=False)) | {k: v for k, v in made.items() if isinstance(v, nn.Parameter)}


def example_inputs(job: TrainingJob, model: nn.Module, size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Inputs of `size` samples as the model takes them, any values."""
    inputs, _ = job.example_batch(size)
    return tuple(cast_floating(tensor.to(device), weights_dtype(model)) for tensor in as_tuple(inputs))


def export_for_run(model: nn.Module, inputs: tuple[Tensor, ...], dynamic: bool, size: int) -> tuple[GraphModule, bool]:
    """The exported model, and whether it takes any number of samples."""
    if dynamic and size > 1:
        try:
            # torch.export marks the very tensors, for good.
            exported = export_module(model, tuple(tensor.clone() for tensor in inputs), dynamic=True)
        except Exception:  # torch.export fails in many ways; a fixed size is left
            return export_module(model, inputs), False
        _drop_empty_slices(exported)
        return exported, True
    return export_module(model, inputs), False


def _drop_empty_slices(exported: GraphModule) -> None:
    """Slices that keep everything, which a trace of a fixed size does not have."""
    for node in list(exported.graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten.slice.Tensor and _keeps_all(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            exported.graph.erase_node(node)


def _keeps_all(node: Node) -> bool:
    return tuple(map(str, node.meta["val"].shape)) == tuple(map(str, node.all_input_nodes[0].meta["val"].shape))


def _check(plan: Plan, graph: TaskGraph) -> None:
    ours, theirs = [task.name for task in graph.compute_tasks], [name for stage in plan.stages for name in stage]
    if ours != theirs:
        differing = sorted(set(ours) ^ set(theirs))[:5] or ["their order"]
        raise RunError(f"the model traced here has other tasks than the plan ({', '.join(differing)}): plan again on this machine")


class _Cutter:
    """Cuts stages and their segments out of one exported model."""

    def __init__(
        self, exported: GraphModule, graph: TaskGraph, plan: Plan, dtype: torch.dtype, dynamic: bool, divider: Divider | None
    ) -> None:
        self.exported, self.graph, self.plan, self.dtype, self.dynamic, self.divider = exported, graph, plan, dtype, dynamic, divider
        # Buckets are equal in what a device holds.
        self.own = shard_graph(graph, plan.tensor_parallel_degree).graph if divider else graph
        self.nodes = {(str(node.target) if node.op == "placeholder" else node.name): node for node in exported.graph.nodes}
        self._blocks: dict[str, Blocks] = {}

    def cut(self, number: int) -> Stage:
        """One stage."""
        names = self.plan.stages[number]
        last = number == self.plan.stage_count - 1
        ends = self._segment_ends(number)
        tape = WeightTape()
        segments = []
        for (start, _, _), (end, bucket, again) in pairwise([(0, 0, False), *ends]):
            before, behind = self._live_before(names[start]), None if last and end == len(names) else self._live_after(names[end - 1])
            module = self._extract(before, [name for name in names[start:end] if name != LOSS_OP], behind, tape)
            needs = tuple(task.needs_gradient for task in before), tuple(task.needs_gradient for task in behind or ())
            segments.append(Segment(module, *needs, bucket, again, _is_random(module)))
        before, behind = self._live_before(names[0]), [] if last else self._live_after(names[-1])
        return Stage(
            segments=tuple(segments),
            input_specs=tuple(map(self._spec, before)),
            input_needs_gradient=tuple(task.needs_gradient for task in before),
            output_specs=tuple(map(self._spec, behind)),
            output_needs_gradient=tuple(task.needs_gradient for task in behind),
            restore=_restorer(self.exported),
            number=number,
            last=last,
            tape=tape,
            dtype=self.dtype,
            dynamic=self.dynamic,
            input_divided=tuple(map(self._is_divided, before)),
            output_divided=tuple(map(self._is_divided, behind)),
            divider=self.divider,
        )

    def _is_divided(self, task: Task) -> bool:
        return self.divider is not None and self.divider.layout_of(task.name) is not None

    def _spec(self, task: Task) -> TensorSpec:
        value = self.nodes[task.name].meta["val"]
        shape = shape_of(value)
        return TensorSpec(self.divider.local_shape(task.name, shape) if self.divider else shape, value.dtype)

    def _segment_ends(self, number: int) -> list[tuple[int, int, bool]]:
        """(position behind its last task, bucket, whether it runs again) of every segment of a stage."""
        tasks = [self.own.tasks[self.own.position[name]] for name in self.plan.stages[number]]
        exchanging = self.plan.exchange_degree_of(number) > 1
        buckets = self.plan.gradient_buckets if exchanging and self.plan.training else 1
        ends = bucket_ends(trained_sizes(self.own, tasks), buckets)
        bucket_of = [bucket for bucket, (start, end) in enumerate(pairwise([0, *ends])) for _ in range(start, end)]
        blocks = self._blocks_of(number)
        keys = [(bucket, blocks.get(task.name)) for bucket, task in zip(bucket_of, tasks, strict=True)]
        found = [(index, *keys[index - 1]) for index in range(1, len(keys)) if keys[index] != keys[index - 1]]
        return [(end, bucket, block is not None) for end, bucket, block in [*found, (len(keys), *keys[-1])]]

    def _blocks_of(self, number: int) -> dict[str, int]:
        kind = self.plan.recompute_of(number)
        if kind == "none" or not self.plan.training:
            return {}
        if kind not in self._blocks:
            self._blocks[kind] = Blocks(self.graph, kind)
        return self._blocks[kind].block_of

    def _live_before(self, name: str) -> list[Task]:
        """What is there before a task, of which it or a later one needs each."""
        position = self.graph.position[name]
        first = next(index for index, task in enumerate(self.graph.tasks) if task.op != "input")
        if position == first:
            return [task for task in self.graph.tasks if task.op == "input"]
        return self.graph.live_after(position - 1)

    def _live_after(self, name: str) -> list[Task]:
        return self.graph.live_after(self.graph.position[name])

    def _extract(self, inputs: Sequence[Task], names: Sequence[str], outputs: Sequence[Task] | None, tape: WeightTape) -> GraphModule:
        """A module of its own from some nodes of the exported graph; `outputs` None returns what the model returns."""
        graph, copied, placed = Graph(), {}, Placed()
        for task in inputs:
            copied[self.nodes[task.name]] = graph.placeholder(self.nodes[task.name].name)

        def copy_of(node: Node) -> Node:
            if node not in copied:
                copied[node] = _made_here(graph, node, copied) or graph.node_copy(node, copy_of)
            return copied[node]

        for name in names:
            node = self.nodes[name]
            copied[node] = self.divider.copy(graph, node, copy_of, placed) if self.divider else graph.node_copy(node, copy_of)
        for node in list(graph.nodes):
            _keep_inputs(graph, node)
            if self.plan.splits_backward and callable(node.target) and any(operand.op == "get_attr" for operand in node.all_input_nodes):
                node.target = defer(node.target, tape)
        if outputs is None:
            result: Any = next(node for node in self.exported.graph.nodes if node.op == "output").args[0]
            divider = self.divider
            graph.output(torch.fx.map_arg(result, lambda node: divider.whole(graph, node, copy_of, placed) if divider else copy_of(node)))
        else:
            graph.output(tuple(copy_of(self.nodes[task.name]) for task in outputs))
        return GraphModule(self.exported, graph)


def _made_here(graph: Graph, node: Node, copied: Mapping[Node, Node]) -> Node | None:
    """A number of samples read off what the stage has; None for what it may copy: weights, what is made of them, and of numbers."""
    value = node.meta.get("val")
    if node.op == "get_attr" or node.meta.get(MADE_OF_WEIGHTS):
        return None
    if not isinstance(value, torch.SymInt):
        raise RunError(f"{node.name} is needed in a stage that does not receive it")
    if node.target is not torch.ops.aten.sym_size.int or node.args[0] in copied:
        return None
    wanted = value.node.expr
    for source, own in copied.items():
        for dim, length in enumerate(getattr(source.meta.get("val"), "shape", ())):
            times = length.node.expr / wanted if isinstance(length, torch.SymInt) else None
            if times is not None and times.is_Integer:
                found = graph.call_function(torch.ops.aten.sym_size.int, (own, dim))
                return found if times == 1 else graph.call_function(operator.floordiv, (found, int(times)))
    raise RunError(f"the stage that computes with {node.name} receives no tensor that tells the number of samples")


def _keep_inputs(graph: Graph, node: Node) -> None:
    """An operator that works in place gets a copy of what another segment made: that is a leaf here, which autograd protects."""
    if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
        for operand in node.all_input_nodes:
            if operand.op == "placeholder":
                with graph.inserting_before(node):
                    copy = graph.call_function(torch.ops.aten.clone.default, (operand,))
                operand.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)  # type: ignore[misc]


def _is_random(module: GraphModule) -> bool:
    tag = torch.Tag.nondeterministic_seeded
    return any(tag in getattr(node.target, "tags", ()) for node in module.graph.nodes if node.op == "call_function")


def _restorer(exported: GraphModule) -> Callable[[Sequence[Tensor]], Any]:
    structure = exported.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    return lambda leaves: tree_unflatten(list(leaves), structure)


def _separate_gradients(stages: Sequence[Stage]) -> None:
    """Stages that share a weight get parameters of their own on the same memory."""
    owner: dict[nn.Parameter, int] = {}
    for index, stage in enumerate(stages):
        own: dict[nn.Parameter, nn.Parameter] = {}
        for module in (segment.module for segment in stage.segments):
            for name, parameter in list(module.named_parameters(remove_duplicate=False)):
                if owner.setdefault(parameter, index) == index:
                    continue
                twin = own.setdefault(parameter, nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad))
                path, _, attribute = name.rpartition(".")
                setattr(module.get_submodule(path), attribute, twin)


def _find_shared(stages: Sequence[Stage], parameters: dict[str, nn.Parameter], plan: Plan, graph: TaskGraph) -> None:
    """Fill in `shared`: a stage's parameters lie where the model's do."""
    names_of = shared_names(graph, plan.stages)
    for stage in stages:
        own = {parameter.data_ptr(): parameter for parameter in stage.parameters()}
        for number, group in enumerate(plan.shared_stages):
            if stage.number in group:
                stage.shared[number] = [own[parameters[name].data_ptr()] for name in names_of[group]]


def own_parameters(stages: Sequence[Stage]) -> list[list[nn.Parameter]]:
    """What each stage updates: a weight that several stages of a rank share is one tensor, and the first one's."""
    seen: set[int] = set()
    found = []
    for stage in stages:
        fresh = [parameter for parameter in stage.parameters() if parameter.data_ptr() not in seen]
        seen.update(parameter.data_ptr() for parameter in fresh)
        found.append(fresh)
    return found
