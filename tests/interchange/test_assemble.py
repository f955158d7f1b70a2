"""Files to a scenario: valid, commented, with nothing guessed in silence; anything else is a clear error."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.interchange.assemble import Machines, import_files
from chinchilla_sim.scenario.load import load_scenario

DATA = Path(__file__).parents[1] / "data" / "configs"
BATCH = ["job.global_batch_size=64"]


def told(paths: list[Path], machines: Machines | None = None, overrides: list[str] | None = None) -> str:
    """The error."""
    with pytest.raises(ScenarioError) as caught:
        import_files(paths, machines or Machines(), overrides=overrides or [])
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_text_is_the_scenario(tmp_path: Path) -> None:
    """What is written loads as what is returned; assumptions and unused keys stand above."""
    imported = import_files([DATA / "llama.json"], Machines(count=16), overrides=[*BATCH, 'name="llama"'])
    (tmp_path / "s.toml").write_text(imported.text)
    assert load_scenario(tmp_path / "s.toml") == imported.scenario
    assert [one.split(":")[0] for one in imported.assumed] == ["precision bf16", "device h100-sxm-80gb", "network of 1600 Gbit/s a node"]
    assert "# Not used of llama.json: bos_token_id, rms_norm_eps, rope_theta, torch_dtype." in imported.text
    assert "global_batch_size = 64" in imported.text and imported.scenario.search.tensor_parallel_degrees == (1, 2, 4, 8)


def test_every_value_has_its_origin() -> None:
    """Each line of model, job and search says where it is from."""
    text = import_files([DATA / "llama-megatron.txt"], Machines()).text
    lines = [line for line in text.split("[cluster]")[0].splitlines() if " = " in line]
    assert lines and all("  # llama-megatron.txt: " in line for line in lines)


def test_values_that_are_set_win() -> None:
    """--set replaces what a file says, and its comment says so."""
    imported = import_files([DATA / "llama.json"], Machines(), tokens=1024, overrides=[*BATCH, "model.options.layers=2"])
    assert imported.scenario.model.options["layers"] == 2 and "layers = 2  # --set" in imported.text
    assert "tokens = 1024  # --tokens" in imported.text


def test_wrong_files_are_told_together(tmp_path: Path) -> None:
    """Not there, not JSON, neither kind: one line each, with file and cure."""
    (tmp_path / "half.json").write_text('{"architectures": [')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "prose.txt").write_text("Dear reader, there's nothing here")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    names = ("gone.json", "half.json", "list.json", "prose.txt", "binary")
    lines = told([tmp_path / name for name in names]).splitlines()
    assert len(lines) == len(names)
    for name, line in zip(names, lines, strict=True):
        assert name in line and "give a config.json of Hugging Face" in line


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["llama.json", "llama-megatron.txt"], "each say a model"),
        (["deepspeed.json"], "says no model"),
        (["llama.json", "deepspeed.json", "deepspeed.json"], "two DeepSpeed JSONs"),
        (["llama.json"], "job.global_batch_size: is said by none of"),
    ],
)
def test_files_that_do_not_go_together(names: list[str], part: str) -> None:
    """Two models, none, two trainings, no batch."""
    assert part in told([DATA / name for name in names])


@pytest.mark.parametrize(
    ("machines", "part"),
    [
        (Machines(device="h100"), "'h100' is not in the catalogue"),
        (Machines(count=12, devices_per_node=8), "--devices-per-node: 12 devices do not divide"),
    ],
)
def test_wrong_machines(machines: Machines, part: str) -> None:
    """What the catalogue does not have, and nodes that are not equal."""
    assert part in told([DATA / "llama.json"], machines, BATCH)


def test_network_by_link_or_bandwidth() -> None:
    """A name of the catalogue stands for itself, a bandwidth for that of a node."""
    for network, expected in (("efa-3200g", ("efa-3200g", None)), ("3200 Gbit/s", ("infiniband-hdr", 4e11))):
        found = import_files([DATA / "llama.json"], Machines(count=16, network=network), overrides=BATCH).scenario.cluster.network
        assert (found.link, found.bandwidth_bytes_per_s) == expected


KEYS = st.sampled_from([
    "architectures", "model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "n_layer",
    "tie_word_embeddings", "hidden_act", "head_dim", "id2label", "train_batch_size", "train_micro_batch_size_per_gpu", "bf16", "optimizer",
    "zero_optimization", "stage", "enabled", "type", "scheduler", "params", "gradient_accumulation_steps", "odd\nkey", "",
])  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 80), st.just(10**30), st.floats(), st.text(max_size=5),
    st.sampled_from(["auto", "silu", "LlamaForCausalLM", "GPT2LMHeadModel", "Adam"]),
)  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(KEYS, inner, max_size=3)), max_leaves=8
)
MODEL = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96,
}  # fmt: skip


WORDS = (
    "--num-layers", "--hidden-size", "--tensor-model-parallel-size", "--bf16", "8", "2", "0", "-1", "x", "$Y", "'a", "--swiglu", "=", "(",
    ")", "\n", "--vocab-size=7", "#", "Y=3",
)  # fmt: skip


@settings(max_examples=150)
@given(
    config=st.dictionaries(KEYS, VALUES, max_size=5),
    training=st.dictionaries(KEYS, VALUES, max_size=5),
    words=st.lists(st.sampled_from(WORDS), max_size=12),
    spoilt=st.sampled_from(["model", "training", "arguments"]),
)
def test_spoilt_files_give_an_error_or_a_scenario(
    config: dict[str, Any], training: dict[str, Any], words: list[str], spoilt: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Never a traceback: a ScenarioError, or a scenario whose text loads."""
    folder = tmp_path_factory.mktemp("spoilt")
    files = [folder / "config.json", folder / "ds.json"]
    files[0].write_text(json.dumps({**MODEL, **config} if spoilt == "model" else MODEL))
    files[1].write_text(json.dumps({"train_batch_size": 64} | (training if spoilt == "training" else {})))
    if spoilt == "arguments":
        files = [folder / "a.sh"]
        base = (
            "--nproc-per-node 8 --num-layers 8 --hidden-size 64 --num-attention-heads 4 --seq-length 8 --vocab-size 9 --micro-batch-size 1 "
        )
        files[0].write_text(base + " ".join(words))
    try:
        imported = import_files(files, Machines())
    except ScenarioError as error:
        assert error.mistakes
        return
    (folder / "scenario.toml").write_text(imported.text)
    assert load_scenario(folder / "scenario.toml") == imported.scenario
