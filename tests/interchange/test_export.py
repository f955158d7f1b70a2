"""Plans as other frameworks' configurations: what they say, and what they refuse."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.interchange.assemble import Machines, import_files
from chinchilla_sim.interchange.exact import exact_plan
from chinchilla_sim.interchange.expressible import Exportable, shape_of_model
from chinchilla_sim.interchange.forms import WRITERS, export_configuration, with_equal_layers
from chinchilla_sim.interchange.layers import counts_of
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.scenario.model import ModelSpec
from chinchilla_sim.setting import prepare

DATA = Path(__file__).parents[1] / "data" / "configs"


@pytest.fixture(scope="module")
def source() -> Exportable:
    """Llama 8B on two nodes of eight: two stages, tensor parallel 2, replicas 4."""
    imported = import_files([DATA / "llama-megatron.txt"], Machines(device="h100-sxm-80gb"))
    setting = prepare(imported.scenario)
    return Exportable(PlanFile(exact_plan(setting.scenario, setting.graph), setting.scenario), setting.graph)


def changed(source: Exportable, **fields: Any) -> Exportable:
    """The same with another plan."""
    return replace(source, file=replace(source.file, plan=replace(source.plan, **fields)))


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "plan.activation_codecs": ({"activation_codecs": ("int8",)}, tuple(WRITERS)),
    "plan.gradient_codecs": ({"gradient_codecs": ("int8", "none")}, tuple(WRITERS)),
    "plan.local_steps": ({"local_steps": 4}, tuple(WRITERS)),
    "plan.gradient_delay": ({"gradient_delay": 1}, tuple(WRITERS)),
    "plan.recompute": ({"recompute": ("full", "none")}, tuple(WRITERS)),
    "plan.activation_priority": ({"activation_priority": 4.0}, tuple(WRITERS)),
    "plan.schedule": ({"schedule": "zb-h1"}, ("megatron", "torchtitan")),
    "plan.zero_stage": ({"zero_stage": 2}, ("megatron", "torchtitan")),
    "plan.sequence_parallel": ({"sequence_parallel": False}, ("torchtitan",)),
    "plan.expert_parallel_degree": ({"expert_parallel_degree": 2}, ("torchtitan", "deepspeed")),
    "plan.pipeline_parallel_degree": ({}, ("deepspeed",)),
    "plan.tensor_parallel_degree": ({}, ("deepspeed",)),
}


@pytest.mark.parametrize(("field", "form"), [(field, form) for field, (_, forms) in REFUSED.items() for form in forms])
def test_what_a_form_cannot_say_is_refused(field: str, form: str, source: Exportable) -> None:
    """With the field, the form and a cure; never dropped."""
    with pytest.raises(ScenarioError) as caught:
        export_configuration(changed(source, **REFUSED[field][0]), form)
    (found,) = [one for one in caught.value.mistakes if one.where == field]
    assert "cannot say that" in found.what and found.cure


def test_stages_that_begin_within_a_layer(source: Exportable) -> None:
    """Are refused by forms that know whole layers, and made whole by equal layers."""
    first, last = source.plan.stages
    torn = changed(source, stages=(first[:-3], (*first[-3:], *last)))
    for form in ("megatron", "torchtitan"):
        with pytest.raises(ScenarioError, match=r"begin within a layer.*--equal-layers"):
            export_configuration(torn, form)
    assert with_equal_layers(torn.plan, source.graph) == source.plan
    three = changed(source, stages=(first[:9], first[9:], last), placement=((0,), (1,), (2,)))
    with pytest.raises(ScenarioError, match="32 layers cannot be divided equally over 3 stages"):
        with_equal_layers(three.plan, source.graph)


def test_torchtitan_file(source: Exportable) -> None:
    """Degrees, stages by name and schedule; a published size by its flavor. ZeRO 1 is none of its shardings."""
    made = export_configuration(changed(source, zero_stage=3), "torchtitan")
    table = tomllib.loads(made.text)
    assert table["model"] == {"name": "llama3", "flavor": "8B"}
    parallel = table["parallelism"]
    degrees = {key: value for key, value in parallel.items() if key.endswith("_degree")}
    assert degrees == {
        "data_parallel_replicate_degree": 1, "data_parallel_shard_degree": 4, "tensor_parallel_degree": 2, "context_parallel_degree": 1,
        "pipeline_parallel_degree": 2,
    }  # fmt: skip
    stages = parallel["module_fqns_per_model_part"]
    assert stages[0][:2] == ["tok_embeddings", "layers.0"] and stages[1][0] == "layers.16" and stages[1][-2:] == ["norm", "output"]
    assert sum(map(len, stages)) == 32 + 3 and parallel["pipeline_parallel_schedule"] == "1F1B"
    training = table["training"]
    assert training["global_batch_size"] == 128 and training["local_batch_size"] * 4 == 128 and training["steps"] == 1000


def test_torchtitan_schedules_are_those_of_pytorch() -> None:
    """Each name is one that PyTorch's own look-up finds."""
    from torch.distributed.pipelining.schedules import get_schedule_class

    from chinchilla_sim.interchange.to_torchtitan import SCHEDULES

    assert all(get_schedule_class(name) for name in SCHEDULES.values())


def test_unknown_sizes_are_told(source: Exportable) -> None:
    """A model without a flavor needs one: the note says its sizes."""
    model = source.file.scenario.model
    other = source.file.scenario.model_copy(update={"model": model.model_copy(update={"options": {**model.options, "inner_width": 1024}})})
    made = export_configuration(
        replace(changed(source, zero_stage=0), file=replace(source.file, scenario=other, plan=replace(source.plan, zero_stage=0))),
        "torchtitan",
    )
    assert "no flavor" in made.notes[0] and "n_kv_heads=8" in made.notes[0]


def test_deepspeed_says_replicas_only(source: Exportable) -> None:
    """One stage: batch, accumulation and ZeRO; recompute and the model are the program's, and that is told."""
    tasks = tuple(name for stage in source.plan.stages for name in stage)
    plan = replace(
        source.plan, stages=(tasks,), placement=(tuple(range(16)),), tensor_parallel_degree=1, sequence_parallel=False, microbatch_count=8,
        gradient_codecs=("fp16",), activation_codecs=(), recompute=("full",), gradient_buckets=1, zero_stage=2,
    )  # fmt: skip
    made = export_configuration(replace(source, file=replace(source.file, plan=plan)), "deepspeed")
    table = json.loads(made.text)
    assert (table["train_batch_size"], table["train_micro_batch_size_per_gpu"], table["gradient_accumulation_steps"]) == (128, 1, 8)
    assert table["zero_optimization"] == {"stage": 2, "overlap_comm": False} and table["communication_data_type"] == "fp16"
    assert any("gradient_checkpointing_enable" in note for note in made.notes)


def test_model_that_no_framework_has(source: Exportable) -> None:
    """A formula beyond GPT and Llama is refused by name of the field; presets and transformers' own Llama are known."""
    other = source.file.scenario.model_copy(update={"model": ModelSpec(formula="vgg16")})
    for form in ("megatron", "torchtitan"):
        with pytest.raises(ScenarioError, match="model: is n"):
            export_configuration(replace(source, file=replace(source.file, scenario=other)), form)
    assert shape_of_model(ModelSpec(formula="gpt", options={"preset": "gpt2"}))[1]["layers"] == 12
    config = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
    formula, shape = shape_of_model(ModelSpec(builtin="huggingface", options={"architecture": "LlamaForCausalLM", "config": config}))
    assert (formula, shape["inner_width"]) == ("llama", 96)


def test_layers_of_stages(source: Exportable) -> None:
    """Counted from the graph; one stage has them all."""
    assert counts_of(source.graph, source.plan.stages) == (16, 16)
    assert counts_of(source.graph, (tuple(task.name for task in source.graph.compute_tasks),)) == (32,)
