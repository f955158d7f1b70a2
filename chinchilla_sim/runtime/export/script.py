"""One readable Python file that trains a plan with torch alone; weights and data lie beside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten, tree_map

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.contract import TrainingJob, factory_of, load_job
from chinchilla_sim.graph.trace import as_tuple
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.program import lower
from chinchilla_sim.runtime.export.bundle import Bundle, write
from chinchilla_sim.runtime.export.script_check import WIRE_TYPES, check_script
from chinchilla_sim.runtime.export.stage_code import ModuleCode, export_loss, write_module
from chinchilla_sim.runtime.stage.batches import batch_length, global_batches
from chinchilla_sim.runtime.stage.stages import Stage, cut_stages

SPOKEN = (Op.F, Op.B, Op.SEND_F, Op.SEND_B, Op.RECV_F, Op.RECV_B, Op.REDUCE_GRAD, Op.OPTIM)
"""Packing is part of sending, unpacking of waiting."""
DATA_LIMIT_BYTES = 1 << 30
LINE_WIDTH = 120


@dataclass(frozen=True)
class _Data:
    """All samples of the first epoch that are saved, and how many steps the whole job has."""

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    samples_per_epoch: int
    truncated: bool


def export_script(file: PlanFile, folder: Path) -> tuple[str, ...]:
    """Write train.py, weights.pt and data.pt; returns what a person still has to see to."""
    plan, job_spec = file.plan, file.scenario.job
    check_script(plan, job_spec)
    folder.mkdir(parents=True, exist_ok=True)
    job = load_job(*factory_of(file.scenario), to_run=True)
    data = _collect(job, file)
    model = _initial_model(job, file)
    stages = cut_stages(job, model, plan, range(plan.stage_count), torch.device("cpu"))
    example = tuple(tensor[: plan.microbatch_size] for tensor in data.inputs)
    loss = export_loss(job.loss, stages[-1].restore, _outputs(stages, example), _example_targets(job, data, plan))
    codes = [write_module(cast(GraphModule, stage.segments[0].module)) for stage in stages]
    loss_code = write_module(loss, prefix="loss.")
    tensors = {tensor.key: tensor.value.detach().clone() for code in (*codes, loss_code) for tensor in code.tensors}
    torch.save(tensors, folder / "weights.pt")
    torch.save({"inputs": list(data.inputs), "targets": list(data.targets)}, folder / "data.pt")
    made = Bundle(folder, file, ())
    summary = f"{made.name}: {plan.describe()}"
    write(made, "train.py.jinja", "train.py", **_values(file, stages, codes, loss_code, data), summary=summary)
    return _notes(data, job_spec.epochs)


def _initial_model(job: TrainingJob, file: PlanFile) -> nn.Module:
    torch.manual_seed(file.scenario.job.seed)
    model: nn.Module = job.model()
    if file.scenario.model.weights:
        model.load_state_dict(torch.load(file.scenario.model.weights, weights_only=True))
    return model


def _collect(job: TrainingJob, file: PlanFile) -> _Data:
    """Samples of the first epoch that the job uses, as far as they fit into the file."""
    spec, kept, size, count = file.scenario.job, list[tuple[Any, Any]](), 0, 0
    steps = spec.total_steps or sys.maxsize
    for inputs, targets in global_batches(job.batches("train", spec.seed, 0), spec.global_batch_size):
        count += batch_length(inputs)
        if size < DATA_LIMIT_BYTES and len(kept) < steps:
            kept.append((as_tuple(inputs), tree_flatten(targets)[0]))
            size += sum(tensor.numel() * tensor.element_size() for part in kept[-1] for tensor in part)
    if not kept:
        what = f"the data have fewer than {spec.global_batch_size} samples"
        raise ScenarioError([Mistake("job.global_batch_size", what, "plan with a smaller batch")])
    inputs, targets = (tuple(torch.cat(parts) for parts in zip(*side, strict=True)) for side in zip(*kept, strict=True))
    return _Data(inputs, targets, count, truncated=size >= DATA_LIMIT_BYTES)


def _example_targets(job: TrainingJob, data: _Data, plan: Plan) -> Any:
    """One microbatch of targets in the structure that the loss expects."""
    _, example = job.example_batch(plan.microbatch_size)
    leaves = iter(data.targets)
    return tree_map(lambda _: next(leaves)[: plan.microbatch_size], example)


def _outputs(stages: Sequence[Stage], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What the last stage makes of one microbatch; the random numbers and statistics that it uses up are put back."""
    state, before = torch.get_rng_state(), [{name: t.clone() for name, t in stage.state().items()} for stage in stages]
    with torch.no_grad():
        for stage in stages:
            inputs = stage(*inputs)
        for stage, tensors in zip(stages, before, strict=True):
            for name, tensor in stage.state().items():
                tensor.copy_(tensors[name])
    torch.set_rng_state(state)
    return inputs


def _values(file: PlanFile, stages: Sequence[Stage], codes: Sequence[ModuleCode], loss: ModuleCode, data: _Data) -> dict[str, Any]:
    """What the template fills in."""
    plan, spec = file.plan, file.scenario.job
    return {
        "plan": plan,
        "job": spec,
        "torch_version": torch.__version__.partition("+")[0],
        "rank_count": plan.rank_count,
        "imports": [name for name in ("device", "inf", "nan") if any(code.uses(name) for code in (*codes, loss))],
        "stages": list(zip(stages, codes, strict=True)),
        "loss": loss,
        "microbatches": [plan.microbatches_of(replica) for replica in range(plan.data_parallel_degree)],
        "boundaries": [_boundary(stage) for stage in stages[:-1]],
        "activation_types": [WIRE_TYPES[codec] for codec in plan.activation_codecs],
        "gradient_types": [WIRE_TYPES[codec] for codec in plan.gradient_codecs],
        "rows": _rows(plan),
        "steps": spec.total_steps,
        "total_steps": data.samples_per_epoch // spec.global_batch_size * spec.epochs,
    }


def _boundary(stage: Stage) -> list[tuple[tuple[int, ...], str, bool]]:
    """Shape, type and whether it has a gradient, of every tensor that leaves a stage."""
    return [(spec.shape, str(spec.dtype), needs) for spec, needs in zip(stage.output_specs, stage.output_needs_gradient, strict=True)]


def _rows(plan: Plan) -> list[tuple[int, str, list[str]]]:
    """For every rank, what it is, and its actions in lines of moderate length."""
    rows = []
    for rank, actions in enumerate(lower(plan).actions):
        stages, replica = plan.position[rank]
        words = [str(action) for action in actions if action.op in SPOKEN]
        lines = [""]
        for word in words:
            if len(lines[-1]) + len(word) > LINE_WIDTH:
                lines.append("")
            lines[-1] += f"{word} "
        part = f"stage{'s' if len(stages) > 1 else ''} {', '.join(map(str, stages))}"
        rows.append((rank, f"{part} of replica {replica}", lines))
    return rows


def _notes(data: _Data, epochs: int) -> tuple[str, ...]:
    notes = []
    if epochs > 1:
        notes.append("data.pt holds the first epoch's samples, which every epoch of train.py repeats: job.batches() may vary them")
    if data.truncated:
        notes.append(f"data.pt holds {len(data.inputs[0])} of {data.samples_per_epoch} samples: change load_data() for more")
    return tuple(notes)
