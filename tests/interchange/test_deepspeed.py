"""DeepSpeed JSON: the three numbers of a batch, ZeRO and what goes with it, and back."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.interchange.assemble import Machines, import_files
from chinchilla_sim.interchange.deepspeed import read_deepspeed
from chinchilla_sim.interchange.exact import exact_plan
from chinchilla_sim.interchange.expressible import Exportable
from chinchilla_sim.interchange.to_deepspeed import export_deepspeed
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.setting import prepare

DATA = Path(__file__).parents[1] / "data" / "configs"
MODEL = {"architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 64, "n_positions": 16}


@pytest.mark.parametrize(
    ("table", "replicas", "expected"),
    [
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4}, None, (64, [8], [4])),
        ({"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4}, 8, (64, [8], [4])),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2}, 4, (64, [4], [8])),
        ({"train_batch_size": 64, "gradient_accumulation_steps": 2}, 4, (64, [4], [2])),
        ({"train_micro_batch_size_per_gpu": 2}, 4, (8, [4], [1])),
        ({"train_batch_size": 64}, None, (64, None, None)),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2}, None, (64, None, None)),
        ({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}, 8, (None, [8], None)),
    ],
)
def test_two_numbers_of_a_batch_give_the_third(table: dict[str, Any], replicas: int | None, expected: tuple[Any, ...]) -> None:
    """As DeepSpeed works them out; what the file leaves open stays open."""
    parts, keys = read_deepspeed(table, "ds.json", replicas)
    places = ("job.global_batch_size", "search.data_parallel_degrees", "search.microbatch_counts")
    assert not keys.mistakes and tuple(map(parts.value, places)) == expected


@pytest.mark.parametrize(
    ("table", "replicas", "told"),
    [
        ({"train_batch_size": 63, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4}, None, "is no multiple"),
        (
            {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4},
            4,
            "are 8 replicas, and there are 4",
        ),
        ({"train_batch_size": 63}, 4, "do not divide"),
        ({"zero_optimization": {"stage": 4}}, None, "must be from 0 to 3"),
        ({"bf16": {"enabled": "yes"}}, None, "must be true or false"),
    ],
)
def test_wrong_values_are_mistakes(table: dict[str, Any], replicas: int | None, told: str) -> None:
    """With the number that would be right."""
    _, keys = read_deepspeed(table, "ds.json", replicas)
    assert any(told in one.what for one in keys.mistakes)


def test_what_cannot_be_expressed_is_told() -> None:
    """Offload, other optimizers, other parallelism, and every key that was not used."""
    table = {
        "train_batch_size": 8, "optimizer": {"type": "OneBitAdam", "params": {"lr": 1e-3, "freeze_step": 9}}, "wall_clock_breakdown": True,
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "offload_param": {"device": "none"}},
        "tensor_parallel": {"autotp_size": 4}, "bf16": {"enabled": True}, "communication_data_type": "fp16",
    }  # fmt: skip
    parts, keys = read_deepspeed(table, "ds.json")
    assert not keys.mistakes
    for part in (
        "OneBitAdam cannot be expressed",
        "offload_optimizer is not expressed",
        "tensor_parallel cannot",
        "fp16 cannot be expressed",
    ):
        assert any(part in warning for warning in parts.warnings), part
    assert parts.ignored == ("optimizer.params.freeze_step", "wall_clock_breakdown", "zero_optimization.offload_param.device")


@settings(max_examples=40)
@given(
    replicas=st.sampled_from([1, 2, 8]), size=st.integers(1, 3), count=st.integers(1, 4), stage=st.integers(0, 3), overlap=st.booleans(),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]), schedule=st.sampled_from([None, "WarmupLR", "WarmupDecayLR", "WarmupCosineLR"]),
    clip=st.sampled_from([None, 1.0]), optimizer=st.sampled_from(["Adam", "SGD"]),
)  # fmt: skip
def test_round_trip(
    replicas: int, size: int, count: int, stage: int, overlap: bool, precision: str, schedule: str | None, clip: float | None,
    optimizer: str, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """JSON -> scenario and plan -> JSON keeps everything that was used."""
    folder = tmp_path_factory.mktemp("round")
    table: dict[str, Any] = {
        "train_batch_size": replicas * size * count, "train_micro_batch_size_per_gpu": size, "gradient_accumulation_steps": count,
        "zero_optimization": {"stage": stage if replicas > 1 else 0}, "optimizer": {"type": optimizer, "params": {"lr": 0.01}},
    }  # fmt: skip
    table |= {} if precision == "fp32" else {precision: {"enabled": True}}
    table |= {"gradient_clipping": clip} if clip else {}
    if schedule:
        params = {"warmup_num_steps": 3} | ({} if schedule == "WarmupLR" else {"total_num_steps": 10})
        table["scheduler"] = {"type": schedule, "params": params}
    if table["zero_optimization"]["stage"]:
        table["zero_optimization"]["overlap_comm"] = overlap
        table["zero_optimization"] |= {"reduce_bucket_size": 10_000} if overlap else {}
    (folder / "config.json").write_text(json.dumps(MODEL))
    (folder / "ds.json").write_text(json.dumps(table))
    imported = import_files([folder / "config.json", folder / "ds.json"], Machines(), overrides=['search.recompute=["none"]'])
    setting = prepare(imported.scenario)
    file = PlanFile(exact_plan(setting.scenario, setting.graph), setting.scenario)
    back = json.loads(export_deepspeed(Exportable(file, setting.graph)).text)
    back["zero_optimization"].pop("reduce_bucket_size", None)
    table["zero_optimization"].pop("reduce_bucket_size", None)
    back["optimizer"]["params"].pop("momentum", None)
    if schedule:
        back["scheduler"]["params"].pop("warmup_max_lr", None)
    assert back == table


def test_a_model_and_its_training_make_one_scenario() -> None:
    """The common pair; both files are named where their values stand."""
    imported = import_files([DATA / "deepspeed.json", DATA / "llama.json"], Machines(device="a100-sxm-80gb"))
    assert imported.scenario.cluster.nodes[0].devices == 8 and imported.parameter_count == 8_030_261_248
    assert "layers = 32  # llama.json: num_hidden_layers" in imported.text
    assert "zero_stages = [3]  # deepspeed.json: zero_optimization.stage" in imported.text


def test_two_files_that_disagree(tmp_path: Path) -> None:
    """Precision stated twice, differently: both are named. What is only a default gives way."""
    text = (DATA / "llama-megatron.txt").read_text().replace("--tensor-model-parallel-size 2 --sequence-parallel", "")
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "ds.json").write_text(json.dumps({"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}}))
    with pytest.raises(ScenarioError) as caught:
        import_files([tmp_path / "a.txt", tmp_path / "ds.json"], Machines())
    told = str(caught.value)
    assert 'job.precision: is "bf16" by a.txt: --bf16, and "fp16" by ds.json: fp16.enabled' in told and "search.zero_stages" in told
    (tmp_path / "a.txt").write_text(text.replace("--bf16", "").replace("--use-distributed-optimizer", ""))
    scenario = import_files([tmp_path / "a.txt", tmp_path / "ds.json"], Machines()).scenario
    assert (scenario.job.precision, scenario.search.zero_stages) == ("fp16", (2,))
