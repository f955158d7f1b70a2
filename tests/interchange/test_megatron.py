"""Megatron-LM's arguments: read as Megatron reads them, simulated as published, and written back the same."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.given import simulate_plan
from chinchilla_sim.interchange.arguments import parse_arguments
from chinchilla_sim.interchange.assemble import Imported, Machines, import_files
from chinchilla_sim.interchange.exact import exact_plan
from chinchilla_sim.interchange.expressible import Exportable
from chinchilla_sim.interchange.layers import counts_of
from chinchilla_sim.interchange.megatron import read_megatron
from chinchilla_sim.interchange.to_megatron import export_megatron
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.setting import prepare
from chinchilla_sim.validation.published import SPREAD

DATA = Path(__file__).parents[1] / "data" / "configs"
SMALL = (
    "--nnodes 1 --nproc-per-node 8 --num-layers 8 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--vocab-size 512 --micro-batch-size 1 --global-batch-size 16 "
)
LLAMA = "--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear --hidden-dropout 0 "


def plan_file(imported: Imported) -> tuple[PlanFile, Exportable]:
    """Megatron's own plan of imported arguments."""
    setting = prepare(imported.scenario)
    parts = imported.parts[0]
    plan = exact_plan(setting.scenario, setting.graph, parts.layer_counts, parts.replicas_first)
    file = PlanFile(plan, setting.scenario)
    return file, Exportable(file, setting.graph, parts.devices_per_node or 8)


def read(text: str, folder: Path, **machines: Any) -> Imported:
    """Import a text."""
    path = folder / "arguments.sh"
    path.write_text(text)
    return import_files([path], Machines(**machines))


def test_a_published_run_simulates_as_measured() -> None:
    """GPT of 145.6 billion parameters on 1536 A100 (Narayanan 2021, table 1): 148 Tflop/s a GPU are 24.8 s a step."""
    imported = import_files([DATA / "megatron-145b.sh"], Machines(device="a100-sxm-80gb"))
    assert imported.parameter_count == pytest.approx(145.6e9, rel=1e-3)
    search = imported.scenario.search
    assert (search.data_parallel_degrees, search.microbatch_counts, search.stages_per_rank) == ((24,), (48,), (2,))
    file, source = plan_file(imported)
    assert set(source.layer_counts()) == {5} and file.plan.stage_count == 16 and len(file.plan.slots) == 1536
    measured_s = 24.817
    low, high = SPREAD[True]
    assert low < measured_s / simulate_plan(prepare(imported.scenario), file).step_s < high


@pytest.mark.parametrize(
    ("layers", "width", "heads", "ranks", "per_rank", "devices", "batch", "size", "parameters", "measured_s"),
    [
        (48, 8192, 64, 2, 1, 512, 1536, 4, 39.1e9, 14.4535),
        (105, 20480, 128, 35, 3, 2520, 2520, 1, 529.6e9, 54.085),
        (128, 25600, 160, 64, 1, 3072, 3072, 1, 1008e9, 102.63),
    ],
)
def test_other_rows_of_the_same_table(
    layers: int, width: int, heads: int, ranks: int, per_rank: int, devices: int, batch: int, size: int, parameters: float,
    measured_s: float, tmp_path: Path,
) -> None:  # fmt: skip
    """Up to a trillion parameters on 3072 A100, tensor parallel 8, full recompute, fp16."""
    text = (
        f"--num-layers {layers} --hidden-size {width} --num-attention-heads {heads} --seq-length 2048 --max-position-embeddings 2048 "
        f"--vocab-size 51200 --tensor-model-parallel-size 8 --pipeline-model-parallel-size {ranks} --micro-batch-size {size} "
        f"--global-batch-size {batch} --recompute-granularity full --fp16 "
    )
    if per_rank > 1:
        text += f"--num-layers-per-virtual-pipeline-stage {layers // ranks // per_rank}"
    imported = read(text, tmp_path, device="a100-sxm-80gb", count=devices)
    assert imported.parameter_count == pytest.approx(parameters, rel=5e-3)
    low, high = SPREAD[True]
    file, _ = plan_file(imported)
    assert low < measured_s / simulate_plan(prepare(imported.scenario), file).step_s < high


def test_a_vocabulary_is_padded_as_megatron_pads_it(tmp_path: Path) -> None:
    """In whole multiples for every device of a tensor-parallel group; 50257 become 51200 on eight."""
    text = SMALL.replace("--vocab-size 512", "--tokenizer-type GPT2BPETokenizer") + "--tensor-model-parallel-size 8 --num-attention-heads 8"
    imported = read(text.replace("--num-attention-heads 4", ""), tmp_path)
    assert imported.scenario.model.options["vocabulary"] == 51200


@pytest.mark.parametrize(
    ("more", "formula", "option", "value"),
    [
        ("", "gpt", "dropout", 0.1),
        (LLAMA, "llama", "inner_width", 128),
        (LLAMA + "--group-query-attention --num-query-groups 2", "llama", "key_value_heads", 2),
        (LLAMA + "--num-experts 4 --ffn-hidden-size 96", "mixture_of_experts", "active_experts", 2),
    ],
)
def test_formula_of_the_arguments(more: str, formula: str, option: str, value: object, tmp_path: Path) -> None:
    """Llama has all of the modern parts, gpt none; defaults are Megatron's."""
    model = read(SMALL + more, tmp_path).scenario.model
    assert (model.formula, model.options[option]) == (formula, value)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("--swiglu", ["--disable-bias-linear: no formula"]),
        ("--multi-latent-attention", ["--multi-latent-attention: changes the model"]),
        ("--pipeline-model-parallel-size 3", ["--pipeline-model-parallel-size: 3 devices", "--num-layers: 8 layers cannot"]),
        ("--lr fast --seed $SEED", ['--lr: must be a number, not "fast"', "--seed: must be a whole number", "does not set this variable"]),
        ("--bf16 --fp16", ["--fp16: is given beside"]),
        ("--global-batch-size 15", ["--global-batch-size: is given more than once", "--global-batch-size: 15 samples"]),
        ("--optimizer lamb", ['--optimizer: "lamb" is not known']),
    ],
)
def test_mistakes_name_the_argument_and_the_cure(text: str, wrong: list[str], tmp_path: Path) -> None:
    """All at once, each with file and argument."""
    with pytest.raises(ScenarioError) as caught:
        read(SMALL + text, tmp_path)
    told = str(caught.value)
    for part in wrong:
        assert part in told
    assert all("arguments.sh: --" in line for line in told.splitlines())


def test_other_networks_are_refused(tmp_path: Path) -> None:
    """BERT's script is not a GPT."""
    with pytest.raises(ScenarioError, match=r"pretrain_bert\.py"):
        read("torchrun --nproc_per_node 8 pretrain_bert.py " + SMALL, tmp_path)


def test_what_is_not_used_or_not_expressed_is_told(tmp_path: Path) -> None:
    """Names of unused arguments, and what is taken instead of those without expression."""
    more = (
        "--weight-decay 0.1 --mystery 3 --lr-decay-style WSD --recompute-granularity full --recompute-method block --recompute-num-layers 2"
    )
    parts = read(SMALL + more, tmp_path).parts[0]
    assert parts.ignored == ("--mystery", "--weight-decay")
    assert [warning.split()[0] for warning in parts.warnings] == ["--lr-decay-style", "--recompute-method"]


def test_unequal_ends_of_a_pipeline(tmp_path: Path) -> None:
    """First and last stage of their own size; the plan is cut there, and written so."""
    more = (
        "--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 1 --decoder-last-pipeline-num-layers 3 --use-tp-pp-dp-mapping"
    )
    file, source = plan_file(read(SMALL + more, tmp_path))
    assert counts_of(source.graph, file.plan.stages) == (1, 2, 2, 3)
    assert file.plan.placement[0] == (0, 4)
    again = parse_arguments(export_megatron(source).text).values
    assert again["decoder-first-pipeline-num-layers"] == ("1",) and again["decoder-last-pipeline-num-layers"] == ("3",)
    assert "use-tp-pp-dp-mapping" in again


FLAGS = ("sequence-parallel", "use-distributed-optimizer", "overlap-grad-reduce", "untie-embeddings-and-output-weights", "bf16")


@st.composite
def configurations(draw: Any) -> dict[str, str | None]:
    """Arguments of small models on up to 32 devices; None is a switch."""
    tensor, ranks, context = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2]))
    replicas, size, count = draw(st.sampled_from([1, 2])), draw(st.integers(1, 2)), draw(st.sampled_from([4, 8]))
    values: dict[str, str | None] = {
        "nnodes": "1", "nproc-per-node": str(tensor * ranks * context * replicas), "num-layers": "8", "hidden-size": "64",
        "num-attention-heads": "4", "seq-length": "32", "max-position-embeddings": "64", "vocab-size": "512",
        "tensor-model-parallel-size": str(tensor), "pipeline-model-parallel-size": str(ranks), "micro-batch-size": str(size),
        "global-batch-size": str(size * count * replicas), "lr": draw(st.sampled_from(["0.0003", "6e-05"])),
        "lr-decay-style": draw(st.sampled_from(["constant", "linear", "cosine"])), "train-iters": "100", "seed": "7",
        "clip-grad": draw(st.sampled_from(["0.0", "1.0"])), "optimizer": draw(st.sampled_from(["adam", "sgd"])),
    }  # fmt: skip
    values |= {"context-parallel-size": "2"} if context > 1 else {}
    values |= dict.fromkeys(flag for flag in FLAGS if draw(st.booleans()))
    if ranks > 1 and draw(st.booleans()):
        values["num-layers-per-virtual-pipeline-stage"] = str(8 // ranks // 2)
    if kind := draw(st.sampled_from([None, "selective", "full"])):
        values["recompute-granularity"] = kind
    if draw(st.booleans()):
        values |= {"swiglu": None, "normalization": "RMSNorm", "position-embedding-type": "rope", "disable-bias-linear": None}
        values |= {"group-query-attention": None, "num-query-groups": "2", "ffn-hidden-size": "96", "hidden-dropout": "0.0"}
        values |= {"max-position-embeddings": "32"}
    if "overlap-grad-reduce" in values:
        values["ddp-bucket-size"] = "20000"
    if tensor == 1:
        values.pop("sequence-parallel", None)
    if replicas * context == 1:
        values.pop("use-distributed-optimizer", None)
        values.pop("overlap-grad-reduce", None)
        values.pop("ddp-bucket-size", None)
    return values


@settings(max_examples=60)
@given(values=configurations())
def test_round_trip_keeps_every_used_argument(values: dict[str, str | None], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Arguments -> scenario and plan -> arguments: what was used comes back as it was, and read again it is the same plan."""
    folder = tmp_path_factory.mktemp("round")
    text = " ".join(f"--{key}" if value is None else f"--{key} {value}" for key, value in values.items())
    imported = read(text, folder)
    file, source = plan_file(imported)
    made = export_megatron(source).text
    back = {key: " ".join(found) for key, found in parse_arguments(made).values.items()}
    ignored = {key.removeprefix("--") for key in imported.parts[0].ignored}
    for key, value in values.items():
        if key == "ddp-bucket-size":
            assert "overlap-grad-reduce" in back  # as many buckets, as the plan below says, of the same size but for rounding
        elif key not in ignored:
            assert key in back and (value is None or back[key] == value or float(back[key]) == float(value)), key
    again = read(made, folder)
    assert plan_file(again)[0].plan == file.plan
    assert again.scenario.model.options.items() >= imported.scenario.model.options.items()
    assert again.scenario.job == imported.scenario.job


def test_devices_must_be_known() -> None:
    """Without launcher and --count the data-parallel degree is open: that is said, not guessed."""
    text = SMALL.replace("--nnodes 1 --nproc-per-node 8", "")
    _, keys = read_megatron(parse_arguments(text), "a.sh")
    assert [one.where for one in keys.mistakes] == ["--nproc-per-node"]
    parts, keys = read_megatron(parse_arguments(text), "a.sh", devices=16)
    assert not keys.mistakes and parts.value("search.data_parallel_degrees") == [16]
